-- name: ask_ping
-- Request a test delivery to an endpoint, in one of the organization's two seats, so that at most two are in flight
-- across all processes. A seat is taken for at most $4 seconds, whatever happens to its test. A seat taken in the
-- future was written while the clock was ahead, and is free. `is_full`: both seats are taken. Neither asked nor full:
-- another request was faster. No row if there is no such endpoint.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 ping_id uuid, $4 seat_s float8
-- gives: timeout_s float8, asked bool, is_full bool
with found as materialized (
    select e.id, e.timeout_s
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.id = $2::uuid and e.kind = 'endpoint'
),
free as materialized (
    select s.seat, f.id as endpoint_id
    from found as f
    cross join (values (1::int2), (2::int2)) as s (seat)
    where not exists (
        select
        from relay.pings as p
        where p.organization_id = $1::uuid and p.seat = s.seat
            and p.asked_at between now() - $4::float8 * interval '1 second' and now() + $4::float8 * interval '1 second'
    )
    order by s.seat
    limit 1
),
asked as (
    insert into relay.pings as p (organization_id, id, endpoint_id, seat)
    select $1::uuid, $3::uuid, endpoint_id, seat
    from free
    on conflict (organization_id, seat) do update
    set id = excluded.id,
        endpoint_id = excluded.endpoint_id,
        asked_at = excluded.asked_at,
        leased_until = excluded.leased_until,
        is_left = false,
        at = null,
        status_code = null,
        latency_ms = null,
        error_class = null,
        response = null
    where p.asked_at not between excluded.asked_at - $4::float8 * interval '1 second'
        and excluded.asked_at + $4::float8 * interval '1 second'
    returning p.id
)
select f.timeout_s, exists (select from asked) as asked, not exists (select from free) as is_full
from found as f;

-- name: take_ping_answers
-- Return and delete the results of those test deliveries that a process waits for. Nothing else reads them.
-- $1 organization_id uuid[], $2 ping_id uuid[]
-- gives: id uuid, number int4, at timestamptz, status_code int4, latency_ms int4, error_class text, response bytea
delete from relay.pings as p
using unnest($1::uuid[], $2::uuid[]) as w (organization_id, id)
where p.organization_id = w.organization_id and p.id = w.id and p.at is not null
returning p.id, 1 as number, p.at, p.status_code, p.latency_ms, p.error_class, p.response;

-- name: drop_ping
-- Delete a test delivery that is no longer waited for. One that is in flight is deleted when it has ended.
-- $1 organization_id uuid, $2 ping_id uuid
with left_alone as (
    update relay.pings as p
    set is_left = true
    where p.organization_id = $1::uuid and p.id = $2::uuid and p.at is null and p.leased_until > now()
)
delete from relay.pings as p
where p.organization_id = $1::uuid and p.id = $2::uuid and (p.at is not null or p.leased_until <= now());

-- name: take_pings
-- Take requested test deliveries, each leased for its endpoint's timeout and a little more. At most two per
-- organization are in flight, the first of each organization before any second. Requests of the previous release have
-- no seat but count too. Requests older than ten minutes are deleted.
-- $1 most int, $2 default timeout_s float8, $3 longest_s float8,
-- $4 organization_id uuid[] of each test in flight here
-- gives: organization_id uuid, id uuid, endpoint_id uuid
with stale as (
    delete from relay.pings
    where asked_at < now() - interval '10 minutes'
),
waiting as materialized (
    select p.organization_id, p.id, p.asked_at, least(coalesce(e.timeout_s, $2::float8), $3::float8) + 5 as lease_s
    from relay.pings as p
    inner join relay.endpoints as e on e.organization_id = p.organization_id and e.id = p.endpoint_id
    where p.at is null
        and not p.is_left
        and (p.leased_until <= now() or p.leased_until > now() + interval '10 minutes')
        and p.asked_at >= now() - case when p.seat is null then 600 else $3::float8 + 5 end * interval '1 second'
),
under_way as materialized (
    select organization_id, max(here_or_there) as under_way
    from (
        select p.organization_id, count(*) as here_or_there
        from relay.pings as p
        where p.at is null and p.leased_until > now() and p.leased_until <= now() + interval '10 minutes'
        group by p.organization_id
        union all
        select h.organization_id, count(*)
        from unnest($4::uuid[]) as h (organization_id)
        group by h.organization_id
    ) as u
    group by organization_id
),
ranked as materialized (
    select
        w.*,
        row_number() over (partition by w.organization_id order by w.asked_at) + coalesce(u.under_way, 0) as place
    from waiting as w
    left join under_way as u on u.organization_id = w.organization_id
),
next as materialized (
    select p.organization_id, p.id, r.lease_s
    from ranked as r
    inner join relay.pings as p on p.organization_id = r.organization_id and p.id = r.id
    where r.place <= 2 and p.at is null and not p.is_left
        and (p.leased_until <= now() or p.leased_until > now() + interval '10 minutes')
    order by r.place, r.asked_at
    limit $1::int
    for update of p skip locked
)
update relay.pings as p
set leased_until = now() + n.lease_s * interval '1 second'
from next as n
where p.organization_id = n.organization_id and p.id = n.id
returning p.organization_id, p.id, p.endpoint_id;

-- name: answer_ping
-- Record the result of a test delivery. If it is no longer waited for, its row is deleted, which frees its seat.
-- $1 organization_id uuid, $2 id uuid, $3 at timestamptz, $4 status_code int, $5 latency_ms int, $6 error_class text,
-- $7 response bytea
with left_alone as (
    delete from relay.pings as p
    where p.organization_id = $1::uuid and p.id = $2::uuid and p.is_left
)
update relay.pings as p
set at = $3::timestamptz, status_code = $4::int, latency_ms = $5::int, error_class = $6::text, response = $7::bytea
where p.organization_id = $1::uuid and p.id = $2::uuid and not p.is_left;
