-- name: claim_due
-- Take due deliveries, fairly over endpoints. A loose index scan steps from endpoint to endpoint in the order
-- (bucket, endpoint), beginning after the last one that was taken and ending with bucket $10, and looks at nothing but
-- the first due time of each; then each endpoint that has something due gives at most its free slots. So an endpoint
-- with a backlog of a million rows costs as much as one with a single row. The lease takes the place of a held lock: no
-- transaction outlives this statement. Endpoints in $6 have their free slots in $7, 0 included; every other one has $8.
-- Each row also says how many endpoints were visited and which came last; a claim that takes nothing is one row that
-- says only this.
-- $1 claim_token uuid, $2 batch int, $3 lease_s float8, $4 after_bucket int2, $5 after_endpoint_id uuid,
-- $6 known_endpoint_id uuid[], $7 free_slots int[], $8 first_slots int, $9 endpoints visited at most int,
-- $10 last_bucket int2
-- gives: organization_id uuid, epoch int4, xid int8, event_id uuid, endpoint_id uuid, bucket int2, attempts int4, type
-- text, payload bytea, url text, secret_seal bytea, visits int4, last_bucket int2, last_endpoint_id uuid
with recursive visited as (
    (
        select o.bucket, o.endpoint_id, o.due_at, 1 as step
        from relay.open as o
        where o.due_at is not null and (o.bucket, o.endpoint_id) > ($4::int2, $5::uuid) and o.bucket <= $10::int2
        order by o.bucket, o.endpoint_id, o.due_at
        limit 1
    )
    union all
    select o.bucket, o.endpoint_id, o.due_at, v.step + 1
    from visited as v
    cross join lateral (
        select o.bucket, o.endpoint_id, o.due_at
        from relay.open as o
        where o.due_at is not null and (o.bucket, o.endpoint_id) > (v.bucket, v.endpoint_id) and o.bucket <= $10::int2
        order by o.bucket, o.endpoint_id, o.due_at
        limit 1
    ) as o
    where v.step < $9::int
),
known as materialized (
    select *
    from unnest($6::uuid[], $7::int[]) as k (endpoint_id, free_slots)
),
takers as materialized (
    select v.bucket, v.endpoint_id, v.step, coalesce(k.free_slots, $8::int) as free_slots
    from visited as v
    left join known as k on k.endpoint_id = v.endpoint_id
    where v.due_at <= now() and coalesce(k.free_slots, $8::int) > 0
),
taken as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from (select * from takers order by step) as t
    cross join lateral (
        select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
        from relay.open as o
        where o.bucket = t.bucket and o.endpoint_id = t.endpoint_id
            and o.due_at <= now() and o.leased_until <= now()
        order by o.due_at
        limit t.free_slots
        for update skip locked
    ) as o
    limit $2::int
),
claimed as (
    update relay.open as o
    set claim_token = $1::uuid, leased_until = now() + $3::float8 * interval '1 second'
    from taken as t
    where o.organization_id = t.organization_id and o.epoch = t.epoch and o.xid = t.xid
        and o.event_id = t.event_id and o.endpoint_id = t.endpoint_id
    returning o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id, o.bucket, o.attempts
)
select
    c.organization_id,
    c.epoch,
    c.xid,
    c.event_id,
    c.endpoint_id,
    c.bucket,
    c.attempts,
    c.type,
    c.payload,
    c.url,
    c.secret_seal,
    coalesce(v.step, 0) as visits,
    v.bucket as last_bucket,
    v.endpoint_id as last_endpoint_id
from (values (true)) as one (row)
left join (select * from visited order by step desc limit 1) as v on true
left join (
    select
        c.organization_id,
        c.epoch,
        c.xid,
        c.event_id,
        c.endpoint_id,
        c.bucket,
        c.attempts,
        e.type,
        e.payload,
        p.url,
        p.secret_seal
    from claimed as c
    cross join lateral (
        select e.type, e.payload
        from relay.events as e
        where e.organization_id = c.organization_id and e.id = c.event_id and e.epoch = c.epoch and e.xid = c.xid
        limit 1
    ) as e
    cross join lateral (
        select p.url, p.secret_seal
        from relay.endpoints as p
        where p.organization_id = c.organization_id and p.id = c.endpoint_id
        limit 1
    ) as p
) as c on true;

-- name: renew_leases
-- Keep what is in flight, so that a lease may be shorter than a timeout. What somebody else holds is being recorded or
-- acknowledged at this moment: to wait for it would be a deadlock.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[], $7 lease_s float8
with held as materialized (
    select *
    from unnest($1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[])
        as h (organization_id, epoch, xid, event_id, endpoint_id, claim_token)
),
kept as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from held as h
    inner join relay.open as o
        on o.organization_id = h.organization_id and o.epoch = h.epoch and o.xid = h.xid
        and o.event_id = h.event_id and o.endpoint_id = h.endpoint_id and o.claim_token = h.claim_token
    for update of o skip locked
)
update relay.open as o
set leased_until = now() + $7::float8 * interval '1 second'
from kept as k
where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid
    and o.event_id = k.event_id and o.endpoint_id = k.endpoint_id;

-- name: release_claims
-- Give back what will not be attempted: a process that stops leaves no lease behind.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[]
with held as materialized (
    select *
    from unnest($1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[])
        as h (organization_id, epoch, xid, event_id, endpoint_id, claim_token)
)
update relay.open as o
set leased_until = '-infinity', claim_token = null
from held as h
where o.organization_id = h.organization_id and o.epoch = h.epoch and o.xid = h.xid
    and o.event_id = h.event_id and o.endpoint_id = h.endpoint_id and o.claim_token = h.claim_token;

-- name: record_attempts
-- Write a batch of results: the attempts always, and their effect only where the claim is still ours. A delivery that
-- ended leaves `open` for `deliveries`; one that is tried again waits for `retry_s`. An attempt that was on the wire
-- while its event was acknowledged finds no row of its claim: it is recorded and changes nothing. Rows are locked in
-- the order of the primary key, as `acknowledge` does: else the two would deadlock.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[], $7 number int[], $8 at timestamptz[], $9 status_code int[], $10 latency_ms int[],
-- $11 error_class text[], $12 response bytea[], $13 outcome text[]: delivered, failed or retry, $14 retry_s float8[]
-- gives: ended int8, retried int8
with results as materialized (
    select *
    from unnest(
        $1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[], $7::int[], $8::timestamptz[], $9::int[],
        $10::int[], $11::text[], $12::bytea[], $13::text[], $14::float8[]
    ) as r (
        organization_id, epoch, xid, event_id, endpoint_id, claim_token, number, at, status_code,
        latency_ms, error_class, response, outcome, retry_s
    )
),
attempted as (
    insert into relay.attempts (
        organization_id, event_id, endpoint_id, number, at, status_code, latency_ms, error_class, response
    )
    select organization_id, event_id, endpoint_id, number, at, status_code, latency_ms, error_class, response
    from results
    on conflict (organization_id, event_id, endpoint_id, number) do nothing
),
ours as materialized (
    select r.*
    from results as r
    inner join relay.open as o
        on o.organization_id = r.organization_id and o.epoch = r.epoch and o.xid = r.xid
        and o.event_id = r.event_id and o.endpoint_id = r.endpoint_id and o.claim_token = r.claim_token
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
ended as (
    delete from relay.open as o
    using ours as r
    where o.organization_id = r.organization_id and o.epoch = r.epoch and o.xid = r.xid
        and o.event_id = r.event_id and o.endpoint_id = r.endpoint_id
        and r.outcome in ('delivered', 'failed')
    returning o.organization_id, o.event_id, o.endpoint_id, r.outcome, r.number, r.error_class
),
retried as (
    update relay.open as o
    set
        attempts = r.number,
        due_at = now() + r.retry_s * interval '1 second',
        leased_until = '-infinity',
        claim_token = null,
        last_error_class = r.error_class
    from ours as r
    where o.organization_id = r.organization_id and o.epoch = r.epoch and o.xid = r.xid
        and o.event_id = r.event_id and o.endpoint_id = r.endpoint_id
        and r.outcome = 'retry'
    returning o.endpoint_id
),
kept as (
    insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts, last_error_class)
    select organization_id, event_id, endpoint_id, outcome, number, error_class
    from ended
    on conflict (organization_id, event_id, endpoint_id) do update
    set
        status = excluded.status,
        attempts = excluded.attempts,
        last_error_class = excluded.last_error_class,
        ended_at = excluded.ended_at
)
select
    (select count(*) from ended) as ended,
    (select count(*) from retried) as retried;
