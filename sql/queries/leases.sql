-- name: lease
-- Lease what is ready, oldest first in the order of readers and up to their horizon: of the consumer named $2, or
-- without a name of the plain inbox, which is the rows without an endpoint. One statement, and no transaction outlives
-- it. A leased row leaves the index that is read here, so neither live leases nor deliveries of others cost anything.
-- `is_known` is false if there is no such consumer. A lease that takes nothing returns one row with the destination
-- only; a disabled consumer has nothing. `attempt` counts the leases of the plain inbox, and elsewhere attempts. A held
-- delivery of an enabled consumer, whose turn in its job has not come, is leased as well. The statement reads no
-- partition: PostgreSQL 18 crashes if a joined value selects partitions in a statement that has looked again at a row
-- which another transaction changed, and leases that race do.
-- $1 organization_id uuid, $2 consumer text or null, $3 claim_token uuid, $4 limit int,
-- $5 lease_s float8 or null: what the consumer says, else $6, $6 lease_s float8
-- gives: is_known bool, lease_s float8, epoch int4, xid int8, event_id uuid, endpoint_id uuid, attempt int4
with destination as materialized (
    select
        e.id as endpoint_id,
        e.id as queue_id,
        e.enabled,
        coalesce($5::float8, e.lease_s) as lease_s,
        now() + coalesce($5::float8, e.lease_s) * interval '1 second' as until,
        now() as at
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.kind = 'consumer' and e.name = $2::text
    union all
    select
        '00000000-0000-0000-0000-000000000000',
        $1::uuid,
        true,
        coalesce($5::float8, $6::float8),
        now() + coalesce($5::float8, $6::float8) * interval '1 second',
        now()
    where $2::text is null
),
locked as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from relay.open as o
    where case
            when o.endpoint_id = '00000000-0000-0000-0000-000000000000' then o.organization_id else o.endpoint_id
        end = (select d.queue_id from destination as d where d.enabled)
        and (o.bucket = -1 or o.endpoint_id = '00000000-0000-0000-0000-000000000000')
        and o.away is null
        and (o.epoch, o.xid) < ((select epoch from relay.cell), relay.horizon())
    order by o.epoch, o.xid, o.event_id
    limit $4::int
    for update skip locked
),
leased as (
    update relay.open as o
    set
        away = 'leased',
        back_at = d.until,
        leased_until = d.until,
        claim_token = $3::uuid,
        due_at = case
            when o.endpoint_id <> '00000000-0000-0000-0000-000000000000' then coalesce(o.due_at, d.at)
        end,
        claims = case
            when o.endpoint_id <> '00000000-0000-0000-0000-000000000000' then o.claims
            else least(o.claims, 32000) + 1
        end
    from locked as k
    cross join destination as d
    where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
        and o.endpoint_id = k.endpoint_id
    returning
        o.epoch,
        o.xid,
        o.event_id,
        o.endpoint_id,
        case
            when o.endpoint_id <> '00000000-0000-0000-0000-000000000000' then o.attempts + 1 else o.claims
        end as attempt
),
unnoted as materialized (
    select e.organization_id, e.id
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.id = (select d.endpoint_id from destination as d)
        and (e.last_leased_at is null or e.last_leased_at < now() - interval '1 second')
        and exists (select from locked)
    for no key update skip locked
),
noted as (
    update relay.endpoints as e
    set last_leased_at = d.at
    from unnoted as u
    cross join destination as d
    where e.organization_id = u.organization_id and e.id = u.id
)
select d.endpoint_id is not null as is_known, d.lease_s, l.epoch, l.xid, l.event_id, l.endpoint_id, l.attempt
from (values (true)) as one (row)
left join destination as d on true
left join leased as l on true
order by l.epoch, l.xid, l.event_id;

-- name: count_leased
-- Count the live leases of the consumer named $2, or without a name of the plain inbox, up to $3.
-- $1 organization_id uuid, $2 consumer text or null, $3 most int
-- gives: leased int8
select count(*) as leased
from (
    select
    from relay.open as o
    where o.organization_id = $1::uuid
        and o.endpoint_id = (
            select e.id
            from relay.endpoints as e
            where e.organization_id = $1::uuid and e.kind = 'consumer' and e.name = $2::text
            union all
            select '00000000-0000-0000-0000-000000000000'
            where $2::text is null
        )
        and o.away = 'leased'
    limit $3::int
) as o;

-- name: release_leases
-- End leases whose events were not returned after all. It was no attempt. Rows that are locked are being ended.
-- $1 organization_id uuid, $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid
with held as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from unnest($2::int[], $3::int8[], $4::uuid[], $5::uuid[]) as h (epoch, xid, event_id, endpoint_id)
    inner join relay.open as o
        on o.organization_id = $1::uuid and o.epoch = h.epoch and o.xid = h.xid and o.event_id = h.event_id
        and o.endpoint_id = h.endpoint_id and o.claim_token = $6::uuid
    where o.away = 'leased'
    for update of o skip locked
)
update relay.open as o
set
    away = null,
    back_at = null,
    leased_until = '-infinity',
    claim_token = null,
    claims = case
        when o.endpoint_id = '00000000-0000-0000-0000-000000000000' then greatest(o.claims - 1, 0) else o.claims
    end
from held as h
where o.organization_id = h.organization_id and o.epoch = h.epoch and o.xid = h.xid and o.event_id = h.event_id
    and o.endpoint_id = h.endpoint_id;

-- name: acknowledge_leases
-- End live leases with success. The delivery of a consumer is delivered, which is an attempt like any other. An event
-- of the plain inbox is acknowledged: it has no other row, and a transaction that opens a delivery for it deletes this
-- row first, so it waits for this statement or leaves nothing to it. Returns the leases that this statement ended. Rows
-- are locked in primary key order, as in `acknowledge`.
-- $1 organization_id uuid, $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[], $6 claim_token
-- uuid[], $7 at timestamptz[]
-- gives: endpoint_id uuid, claim_token uuid, event_id uuid
with here as materialized (
    select now() as time
),
receipts as materialized (
    select *
    from unnest($2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[], $7::timestamptz[])
        as r (epoch, xid, event_id, endpoint_id, claim_token, at)
),
ours as materialized (
    select
        o.organization_id,
        o.epoch,
        o.xid,
        o.event_id,
        o.endpoint_id,
        r.claim_token,
        o.attempts + 1 as number,
        r.at,
        greatest(0, least(extract(epoch from h.time - r.at) * 1000, 2147483647))::int as latency_ms
    from receipts as r
    cross join here as h
    inner join relay.open as o
        on o.organization_id = $1::uuid and o.epoch = r.epoch and o.xid = r.xid and o.event_id = r.event_id
        and o.endpoint_id = r.endpoint_id and o.claim_token = r.claim_token
    where o.away = 'leased' and o.leased_until > h.time
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
ended as (
    delete from relay.open as o
    using ours as k
    where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
        and o.endpoint_id = k.endpoint_id
),
acknowledged as (
    insert into relay.acknowledgements (organization_id, event_id)
    select organization_id, event_id
    from ours
    where endpoint_id = '00000000-0000-0000-0000-000000000000'
    on conflict (organization_id, event_id) do nothing
),
attempted as (
    insert into relay.attempts (organization_id, event_id, endpoint_id, number, at, latency_ms)
    select organization_id, event_id, endpoint_id, number, at, latency_ms
    from ours
    where endpoint_id <> '00000000-0000-0000-0000-000000000000'
    on conflict (organization_id, event_id, endpoint_id, number) do nothing
),
kept as (
    insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts)
    select organization_id, event_id, endpoint_id, 'delivered', number
    from ours
    where endpoint_id <> '00000000-0000-0000-0000-000000000000'
    on conflict (organization_id, event_id, endpoint_id) do update
    set
        status = excluded.status,
        attempts = excluded.attempts,
        last_error_class = excluded.last_error_class,
        ended_at = excluded.ended_at
)
select k.endpoint_id, k.claim_token, k.event_id
from ours as k;

-- name: acknowledged_before
-- Return those receipts that were acknowledged already: the attempt that a receipt of a consumer names was the one that
-- delivered, or the event of a receipt of the plain inbox is acknowledged.
-- $1 organization_id uuid, $2 event_id uuid[], $3 endpoint_id uuid[], $4 attempt int[], $5 least uuid, $6 greatest uuid
-- gives: event_id uuid, endpoint_id uuid, attempt int4
select r.event_id, r.endpoint_id, r.attempt
from unnest($2::uuid[], $3::uuid[], $4::int[]) as r (event_id, endpoint_id, attempt)
where case
        when r.endpoint_id = '00000000-0000-0000-0000-000000000000' then exists (
            select
            from relay.acknowledgements as a
            where a.organization_id = $1::uuid and a.event_id = r.event_id
                and a.event_id >= $5::uuid and a.event_id <= $6::uuid
        )
        else exists (
            select
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = r.event_id and d.endpoint_id = r.endpoint_id
                and d.event_id >= $5::uuid and d.event_id <= $6::uuid
                and d.status = 'delivered' and d.attempts = r.attempt
        )
    end;

-- name: fail_leases
-- End leases without success: live ones that were returned, or those that have run out. At a consumer it is a failed
-- attempt. The next one comes after $9 or the consumer's schedule, plus up to a fifth that the claim token decides; the
-- last one, or with $10 any, leaves a dead letter. If a retry was requested during the lease (`attempts_before`
-- includes it already), the delivery is ready at once. It is held if its consumer is disabled, and left to the
-- cancelling job if that is gone. An event of the plain inbox comes back after $9 or at once. A lease that ends too
-- late to be valid was written while the clock was ahead, and has run out. Returns the leases that this statement
-- ended, and whether they are ready now.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[], $6 claim_token
-- uuid[], $7 at timestamptz[], $8 error_class text, $9 delay_s float8 or null, $10 dead bool, $11 bool: run out, not
-- live, $12 default retry_schedule float8[], $13 longest_s float8
-- gives: organization_id uuid, event_id uuid, endpoint_id uuid, claim_token uuid, outcome text, is_ready bool
with here as materialized (
    select now() as time
),
receipts as materialized (
    select *
    from unnest($1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[], $7::timestamptz[])
        as r (organization_id, epoch, xid, event_id, endpoint_id, claim_token, at)
),
ours as materialized (
    select
        o.organization_id,
        o.epoch,
        o.xid,
        o.event_id,
        o.endpoint_id,
        o.claim_token,
        o.attempts + 1 as number,
        o.attempts_before,
        o.endpoint_id = '00000000-0000-0000-0000-000000000000' as is_plain,
        coalesce(e.enabled, false) as enabled,
        e.max_attempts,
        coalesce(e.retry_schedule, $12::float8[]) as schedule,
        r.at,
        greatest(0, least(extract(epoch from h.time - r.at) * 1000, 2147483647))::int as latency_ms,
        h.time
    from receipts as r
    cross join here as h
    inner join relay.open as o
        on o.organization_id = r.organization_id and o.epoch = r.epoch and o.xid = r.xid
        and o.event_id = r.event_id and o.endpoint_id = r.endpoint_id and o.claim_token = r.claim_token
    left join relay.endpoints as e on e.organization_id = r.organization_id and e.id = r.endpoint_id
    where o.away = 'leased'
        and (o.leased_until > h.time and o.leased_until <= h.time + $13::float8 * interval '1 second') <> $11::bool
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
judged as materialized (
    select
        j.*,
        case when j.outcome = 'returned' and j.wait_s > 0 then j.time + j.wait_s * interval '1 second' end as back_at
    from (
        select
            k.*,
            case
                when k.is_plain then 'returned'
                when $10::bool then 'failed'
                when k.attempts_before >= k.number then 'returned'
                when k.number - k.attempts_before >= k.max_attempts then 'failed'
                else 'returned'
            end as outcome,
            case
                when k.is_plain then coalesce($9::float8, 0)
                when not k.enabled or k.attempts_before >= k.number then 0
                else coalesce(
                    $9::float8,
                    relay.retry_wait_s(
                        k.schedule,
                        k.number - k.attempts_before,
                        (uuid_hash_extended(k.event_id, uuid_hash(k.claim_token)::int8) & 1023) / 1023.0::float8
                    )
                )
            end as wait_s
        from ours as k
    ) as j
),
attempted as (
    insert into relay.attempts (organization_id, event_id, endpoint_id, number, at, latency_ms, error_class)
    select organization_id, event_id, endpoint_id, number, at, latency_ms, $8::text
    from judged
    where not is_plain
    on conflict (organization_id, event_id, endpoint_id, number) do nothing
),
ended as (
    delete from relay.open as o
    using judged as j
    where o.organization_id = j.organization_id and o.epoch = j.epoch and o.xid = j.xid and o.event_id = j.event_id
        and o.endpoint_id = j.endpoint_id and j.outcome = 'failed'
),
returned as (
    update relay.open as o
    set
        away = case when j.back_at is not null then 'waiting' end,
        back_at = j.back_at,
        leased_until = '-infinity',
        claim_token = null,
        attempts = case when j.is_plain then o.attempts else j.number end,
        attempts_before = case when j.is_plain then o.attempts_before else least(o.attempts_before, j.number) end,
        due_at = case when j.enabled then coalesce(j.back_at, j.time) end,
        last_error_class = case when j.is_plain then o.last_error_class else $8::text end
    from judged as j
    where o.organization_id = j.organization_id and o.epoch = j.epoch and o.xid = j.xid and o.event_id = j.event_id
        and o.endpoint_id = j.endpoint_id and j.outcome = 'returned'
),
kept as (
    insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts, last_error_class)
    select organization_id, event_id, endpoint_id, outcome, number, $8::text
    from judged
    where outcome = 'failed'
    on conflict (organization_id, event_id, endpoint_id) do update
    set
        status = excluded.status,
        attempts = excluded.attempts,
        last_error_class = excluded.last_error_class,
        ended_at = excluded.ended_at
)
select
    j.organization_id,
    j.event_id,
    j.endpoint_id,
    j.claim_token,
    j.outcome,
    j.outcome = 'returned' and j.back_at is null as is_ready
from judged as j;

-- name: extend_leases
-- Let live leases end $7 seconds from now. Returns the leases that this statement extended.
-- $1 organization_id uuid, $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[], $7 lease_s float8
-- gives: endpoint_id uuid, claim_token uuid, event_id uuid
with here as materialized (
    select now() as time, now() + $7::float8 * interval '1 second' as until
),
receipts as materialized (
    select *
    from unnest($2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[])
        as r (epoch, xid, event_id, endpoint_id, claim_token)
),
ours as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id, h.until
    from receipts as r
    cross join here as h
    inner join relay.open as o
        on o.organization_id = $1::uuid and o.epoch = r.epoch and o.xid = r.xid and o.event_id = r.event_id
        and o.endpoint_id = r.endpoint_id and o.claim_token = r.claim_token
    where o.away = 'leased' and o.leased_until > h.time
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
)
update relay.open as o
set leased_until = k.until, back_at = k.until
from ours as k
where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
    and o.endpoint_id = k.endpoint_id
returning o.endpoint_id, o.claim_token, o.event_id;

-- name: back_from_away
-- Return rows whose time away is over: leases that have run out, and waits for the next attempt. A loose index scan
-- steps from destination to destination after a given place, visits at most $4, and takes at most $5 rows of each, $6
-- in all: a destination with a million costs the others nothing. Without rows it returns one with only the number of
-- visits and the last place visited. A lease that ends too late to be valid was written while the clock was ahead, and
-- has run out; so has such a wait.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 away text: the place after which to begin, $4 visits int, $5 rows of
-- each int, $6 rows int, $7 longest_s float8
-- gives: organization_id uuid, epoch int4, xid int8, event_id uuid, endpoint_id uuid, away text, claim_token uuid,
-- visits int4, last_organization_id uuid, last_endpoint_id uuid, last_away text
with recursive visited as (
    (
        select o.organization_id, o.endpoint_id, o.away, 1 as step
        from relay.open as o
        where o.away is not null and (o.organization_id, o.endpoint_id, o.away) > ($1::uuid, $2::uuid, $3::text)
        order by o.organization_id, o.endpoint_id, o.away
        limit 1
    )
    union all
    select o.organization_id, o.endpoint_id, o.away, v.step + 1
    from visited as v
    cross join lateral (
        select o.organization_id, o.endpoint_id, o.away
        from relay.open as o
        where o.away is not null
            and (o.organization_id, o.endpoint_id, o.away) > (v.organization_id, v.endpoint_id, v.away)
        order by o.organization_id, o.endpoint_id, o.away
        limit 1
    ) as o
    where v.step < $4::int
),
back as materialized (
    select o.*
    from (select * from visited order by step) as v
    cross join lateral (
        (
            select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id, o.away, o.claim_token
            from relay.open as o
            where o.organization_id = v.organization_id and o.endpoint_id = v.endpoint_id and o.away = v.away
                and o.back_at <= now()
            order by o.back_at
            limit $5::int
        )
        union all
        (
            select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id, o.away, o.claim_token
            from relay.open as o
            where o.organization_id = v.organization_id and o.endpoint_id = v.endpoint_id and o.away = v.away
                and o.back_at > now() + $7::float8 * interval '1 second'
            order by o.back_at
            limit $5::int
        )
    ) as o
    limit $6::int
)
select
    b.organization_id,
    b.epoch,
    b.xid,
    b.event_id,
    b.endpoint_id,
    b.away,
    b.claim_token,
    coalesce(v.step, 0) as visits,
    v.organization_id as last_organization_id,
    v.endpoint_id as last_endpoint_id,
    v.away as last_away
from (values (true)) as one (row)
left join (select * from visited order by step desc limit 1) as v on true
left join back as b on true;

-- name: end_waits
-- Make deliveries ready whose wait for the next attempt is over.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[]
with receipts as materialized (
    select *
    from unnest($1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[])
        as r (organization_id, epoch, xid, event_id, endpoint_id)
),
ours as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from receipts as r
    inner join relay.open as o
        on o.organization_id = r.organization_id and o.epoch = r.epoch and o.xid = r.xid
        and o.event_id = r.event_id and o.endpoint_id = r.endpoint_id
    where o.away = 'waiting'
    for update of o skip locked
)
update relay.open as o
set away = null, back_at = null
from ours as k
where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
    and o.endpoint_id = k.endpoint_id;
