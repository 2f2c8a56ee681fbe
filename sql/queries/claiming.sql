-- name: claim_due
-- Claim due deliveries, fairly across endpoints. A loose index scan steps from endpoint to endpoint in the order
-- (bucket, endpoint), from after the last one taken up to bucket $6, and reads only the first due time of each. Then
-- each endpoint with something due gives at most its free slots, or nothing if it is disabled or gone. So an endpoint
-- with a backlog of a million rows costs as much as one with a single row. The lease replaces a held lock: no
-- transaction outlives this statement.
-- Endpoints in $8 have the free slots in $9, possibly 0. The value -1 stands for one slot if their breaker has been
-- closed in the row, else none. Every other endpoint has $12 slots, or fewer if its own limits are lower, or one while
-- its breaker is open. `is_new`: it is not known yet whether it responds. `is_slow`: its attempts are slow, or may be.
-- Organizations in $13 have the capacity in $14 to $17, every other one that in $18 to $21: slots, slots for new
-- endpoints, slots for slow ones, payload bytes. $22 is the capacity in bytes of all together. Endpoints of an
-- organization with less capacity than the batch come last, in random order, so that they delay no others and none of
-- them is always last. A large payload is counted and returned once for all deliveries of its event, with the first.
-- A delivery that was claimed five times without a result may be what kills its processes. $23 says whether to claim
-- such deliveries. A claim with a token in $24 has failed, but may have committed: its rows are free. So are rows of
-- buckets in $25 whose tokens are not between $26 and $27: they belonged to a process that died.
-- Each row also contains the number of endpoints visited and of rows locked, and where to continue: after the last
-- locked row if $2 were locked, else after the last endpoint. A claim that takes nothing returns one row with only
-- these. `claims`: earlier claims without a result. `ran_out`: the lease of an earlier claim expired. A lease that ends
-- too late to be valid was written while the clock was ahead, and counts as expired. If the type is null, the event is
-- gone.
-- $1 claim_token uuid, $2 batch int, $3 lease_s float8, $4 after_bucket int2, $5 after_endpoint_id uuid,
-- $6 last_bucket int2, $7 endpoints visited at most int, $8 known_endpoint_id uuid[], $9 free_slots int[],
-- $10 is_new bool[], $11 is_slow bool[], $12 first_slots int, $13 organization_id uuid[], $14 slots int[],
-- $15 new_slots int[], $16 slow_slots int[], $17 bytes int8[], $18 slots int, $19 new_slots int, $20 slow_slots int,
-- $21 bytes int8, $22 bytes in all int8, $23 suspects bool, $24 lost_token uuid[], $25 orphaned_bucket int2[],
-- $26 first_token uuid, $27 last_token uuid, $28 default timeout_s float8
-- gives: organization_id uuid, epoch int4, xid int8, event_id uuid, endpoint_id uuid, bucket int2, attempts int4,
-- attempts_before int4, claims int2, version int4, type text, payload bytea, due_at timestamptz, ran_out bool,
-- traceparent text, visits int4, locked int8, last_bucket int2, last_endpoint_id uuid
with recursive visited as (
    (
        select o.bucket, o.endpoint_id, o.due_at, o.organization_id, 1 as step
        from relay.open as o
        where o.due_at is not null and (o.bucket, o.endpoint_id) > ($4::int2, $5::uuid) and o.bucket <= $6::int2
        order by o.bucket, o.endpoint_id, o.due_at
        limit 1
    )
    union all
    select o.bucket, o.endpoint_id, o.due_at, o.organization_id, v.step + 1
    from visited as v
    cross join lateral (
        select o.bucket, o.endpoint_id, o.due_at, o.organization_id
        from relay.open as o
        where o.due_at is not null and (o.bucket, o.endpoint_id) > (v.bucket, v.endpoint_id) and o.bucket <= $6::int2
        order by o.bucket, o.endpoint_id, o.due_at
        limit 1
    ) as o
    where v.step < $7::int
),
known as materialized (
    select *
    from unnest($8::uuid[], $9::int[], $10::bool[], $11::bool[]) as k (endpoint_id, free_slots, is_new, is_slow)
),
holders as materialized (
    select *
    from unnest($13::uuid[], $14::int[], $15::int[], $16::int[], $17::int8[])
        as h (organization_id, slots, new_slots, slow_slots, bytes)
),
takers as materialized (
    select
        t.*,
        t.slots < $2::int
        or (t.is_new and t.new_slots < $2::int)
        or (t.is_slow and t.slow_slots < $2::int) as is_limited
    from (
        select
            v.bucket,
            v.endpoint_id,
            v.step,
            e.version,
            case
                when k.free_slots >= 0 then k.free_slots
                when k.free_slots < 0 then case when e.broken_since is null then 1 else 0 end
                when e.broken_since is not null then 1
                else least($12::int, e.max_in_flight, e.rate_limit_per_second)
            end as free_slots,
            coalesce(k.is_new, true) as is_new,
            coalesce(k.is_slow, coalesce(e.timeout_s, $28::float8) > 10) as is_slow,
            coalesce(h.slots, $18::int) as slots,
            coalesce(h.new_slots, $19::int) as new_slots,
            coalesce(h.slow_slots, $20::int) as slow_slots,
            coalesce(h.bytes, $21::int8) as bytes
        from visited as v
        left join known as k on k.endpoint_id = v.endpoint_id
        left join holders as h on h.organization_id = v.organization_id
        inner join relay.endpoints as e on e.organization_id = v.organization_id and e.id = v.endpoint_id
        where v.due_at <= now() and coalesce(k.free_slots, 1) <> 0 and coalesce(h.slots, $18::int) > 0 and e.enabled
    ) as t
    where (not t.is_new or t.new_slots > 0) and (not t.is_slow or t.slow_slots > 0)
),
locked as materialized (
    select
        o.*,
        t.version,
        t.is_new,
        t.is_slow,
        t.slots,
        t.new_slots,
        t.slow_slots,
        t.bytes,
        row_number() over () as turn
    from (
        select *
        from takers
        order by
            is_limited,
            case when is_limited then uuid_hash_extended(endpoint_id, uuid_hash($1::uuid)::int8) else step end
    ) as t
    cross join lateral (
        select
            o.organization_id,
            o.epoch,
            o.xid,
            o.event_id,
            o.endpoint_id,
            o.bucket,
            o.claims,
            o.claim_token = any($24::uuid[]) as is_lost,
            o.leased_until > '-infinity' as was_leased
        from relay.open as o
        where o.bucket = t.bucket and o.endpoint_id = t.endpoint_id
            and o.due_at <= now()
            and (
                o.leased_until <= now()
                or o.leased_until > now() + (2 * $3::float8 + 60) * interval '1 second'
                or o.claim_token = any($24::uuid[])
                or (o.bucket = any($25::int2[]) and o.claim_token not between $26::uuid and $27::uuid)
            )
            and (o.claims not between 5 and 9 or $23::bool)
        order by o.due_at
        limit t.free_slots
        for update skip locked
    ) as o
    limit $2::int
),
sized as materialized (
    select
        l.*,
        e.type,
        e.payload,
        e.traceparent,
        e.is_large and exists (
            select
            from locked as b
            where b.turn < l.turn and b.event_id = l.event_id and b.organization_id = l.organization_id
        ) as is_repeated
    from locked as l
    left join lateral (
        select e.type, e.payload, e.traceparent, octet_length(e.payload) > 4096 as is_large
        from relay.events as e
        where e.organization_id = l.organization_id and e.id = l.event_id and e.epoch = l.epoch and e.xid = l.xid
        limit 1
    ) as e on true
),
taken as materialized (
    select *
    from (
        select
            s.*,
            count(*) over own as nth,
            count(*) filter (where s.is_new) over own as nth_new,
            count(*) filter (where s.is_slow) over own as nth_slow,
            sum(octet_length(s.payload)) filter (where not s.is_repeated) over own as own_bytes,
            sum(octet_length(s.payload)) filter (where not s.is_repeated) over every as all_bytes
        from sized as s
        window
            every as (order by s.turn rows unbounded preceding),
            own as (partition by s.organization_id order by s.turn rows unbounded preceding)
    ) as s
    where s.nth <= s.slots
        and (not s.is_new or s.nth_new <= s.new_slots)
        and (not s.is_slow or s.nth_slow <= s.slow_slots)
        and coalesce(s.own_bytes, 0) <= s.bytes
        and coalesce(s.all_bytes, 0) <= $22::int8
),
claimed as (
    update relay.open as o
    set
        claim_token = $1::uuid,
        leased_until = now() + $3::float8 * interval '1 second',
        claims = case when t.is_lost then t.claims else least(t.claims, 100) + 1 end
    from taken as t
    where o.organization_id = t.organization_id and o.epoch = t.epoch and o.xid = t.xid
        and o.event_id = t.event_id and o.endpoint_id = t.endpoint_id
    returning
        o.organization_id,
        o.epoch,
        o.xid,
        o.event_id,
        o.endpoint_id,
        o.bucket,
        o.attempts,
        o.attempts_before,
        o.due_at,
        t.claims,
        t.was_leased and t.is_lost is not true as ran_out,
        t.version,
        t.type,
        case when not t.is_repeated then t.payload end as payload,
        t.traceparent
)
select
    c.organization_id,
    c.epoch,
    c.xid,
    c.event_id,
    c.endpoint_id,
    c.bucket,
    c.attempts,
    c.attempts_before,
    c.claims,
    c.version,
    c.type,
    c.payload,
    c.due_at,
    c.ran_out,
    c.traceparent,
    coalesce(v.step, 0) as visits,
    l.rows as locked,
    case when l.rows >= $2::int then p.bucket else v.bucket end as last_bucket,
    case when l.rows >= $2::int then p.endpoint_id else v.endpoint_id end as last_endpoint_id
from (select count(*) as rows from locked) as l
left join (select * from visited order by step desc limit 1) as v on true
left join (select * from locked order by bucket desc, endpoint_id desc limit 1) as p on true
left join claimed as c on true;

-- name: claim_few
-- Claim at most $2 due deliveries as `claim_due` does, if $2 deliveries cannot reach any limit by organization.
-- PostgreSQL prepares every part of a statement anew at each execution, needed or not. This one has no parts for those
-- limits, lost tokens and orphaned buckets, and so takes less than half of the instructions. It opens only the
-- partitions of events between $12 and $13. The type of a delivery of any other event is null, as if the event were
-- gone, and the caller releases it for `claim_due`.
-- Endpoints in $8, which should be few, have the free slots in $9, as there; every other one has $10.
-- $1 claim_token uuid, $2 batch int, $3 lease_s float8, $4 after_bucket int2, $5 after_endpoint_id uuid,
-- $6 last_bucket int2, $7 endpoints visited at most int, $8 known_endpoint_id uuid[], $9 free_slots int[],
-- $10 first_slots int, $11 suspects bool, $12 first_event_id uuid, $13 last_event_id uuid
-- gives: organization_id uuid, epoch int4, xid int8, event_id uuid, endpoint_id uuid, bucket int2, attempts int4,
-- attempts_before int4, claims int2, version int4, type text, payload bytea, due_at timestamptz, ran_out bool,
-- traceparent text, visits int4, last_bucket int2, last_endpoint_id uuid
with recursive visited as (
    (
        select o.bucket, o.endpoint_id, o.due_at, o.organization_id, 1 as step
        from relay.open as o
        where o.due_at is not null and (o.bucket, o.endpoint_id) > ($4::int2, $5::uuid) and o.bucket <= $6::int2
        order by o.bucket, o.endpoint_id, o.due_at
        limit 1
    )
    union all
    select o.bucket, o.endpoint_id, o.due_at, o.organization_id, v.step + 1
    from visited as v
    cross join lateral (
        select o.bucket, o.endpoint_id, o.due_at, o.organization_id
        from relay.open as o
        where o.due_at is not null and (o.bucket, o.endpoint_id) > (v.bucket, v.endpoint_id) and o.bucket <= $6::int2
        order by o.bucket, o.endpoint_id, o.due_at
        limit 1
    ) as o
    where v.step < $7::int
),
takers as materialized (
    select
        v.bucket,
        v.endpoint_id,
        v.step,
        e.version,
        case
            when v.free_slots >= 0 then v.free_slots
            when e.broken_since is not null then case when v.free_slots is null then 1 else 0 end
            when v.free_slots < 0 then 1
            else least($10::int, e.max_in_flight, e.rate_limit_per_second)
        end as free_slots
    from (
        select *, ($9::int[])[array_position($8::uuid[], endpoint_id)] as free_slots
        from visited
        where due_at <= now()
    ) as v
    inner join relay.endpoints as e on e.organization_id = v.organization_id and e.id = v.endpoint_id
    where v.free_slots is distinct from 0 and e.enabled
),
taken as materialized (
    select o.*, t.version
    from (
        select *
        from takers
        order by step
    ) as t
    cross join lateral (
        select
            o.organization_id,
            o.epoch,
            o.xid,
            o.event_id,
            o.endpoint_id,
            o.claims,
            o.leased_until > '-infinity' as ran_out
        from relay.open as o
        where o.bucket = t.bucket and o.endpoint_id = t.endpoint_id
            and o.due_at <= now()
            and (o.leased_until <= now() or o.leased_until > now() + (2 * $3::float8 + 60) * interval '1 second')
            and (o.claims not between 5 and 9 or $11::bool)
        order by o.due_at
        limit t.free_slots
        for update skip locked
    ) as o
    limit $2::int
),
claimed as (
    update relay.open as o
    set
        claim_token = $1::uuid,
        leased_until = now() + $3::float8 * interval '1 second',
        claims = least(t.claims, 100) + 1
    from taken as t
    where o.organization_id = t.organization_id and o.epoch = t.epoch and o.xid = t.xid
        and o.event_id = t.event_id and o.endpoint_id = t.endpoint_id
    returning
        o.organization_id,
        o.epoch,
        o.xid,
        o.event_id,
        o.endpoint_id,
        o.bucket,
        o.attempts,
        o.attempts_before,
        o.due_at,
        t.claims,
        t.ran_out,
        t.version
)
select
    c.organization_id,
    c.epoch,
    c.xid,
    c.event_id,
    c.endpoint_id,
    c.bucket,
    c.attempts,
    c.attempts_before,
    c.claims,
    c.version,
    e.type,
    e.payload,
    c.due_at,
    c.ran_out,
    e.traceparent,
    coalesce(v.step, 0) as visits,
    v.bucket as last_bucket,
    v.endpoint_id as last_endpoint_id
from (values (true)) as one (row)
left join (select * from visited order by step desc limit 1) as v on true
left join claimed as c on true
left join lateral (
    select e.type, e.payload, e.traceparent
    from relay.events as e
    where e.organization_id = c.organization_id and e.id = c.event_id and e.epoch = c.epoch and e.xid = c.xid
        and e.id between $12::uuid and $13::uuid
    limit 1
) as e on true;

-- name: unpark
-- Move up to $1 parked deliveries that are due back to where claims find them. A delivery whose next attempt is more
-- than a minute away is stored under bucket -2 - bucket, which claims do not scan: else each claim would visit every
-- endpoint whose next attempt is hours away. A partial index, which costs other rows nothing, returns them in order of
-- time. A row that is locked at this moment is skipped: its transaction resets its bucket or ends it.
-- $1 batch int
-- gives: unparked int8
with due as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from relay.open as o
    where o.bucket < -1 and o.due_at <= now()
    order by o.due_at
    limit $1::int
    for update skip locked
),
unparked as (
    update relay.open as o
    set bucket = -2 - o.bucket
    from due as d
    where o.organization_id = d.organization_id and o.epoch = d.epoch and o.xid = d.xid
        and o.event_id = d.event_id and o.endpoint_id = d.endpoint_id and o.bucket < -1
    returning o.bucket
)
select count(*) as unparked
from unparked;

-- name: lose_claims
-- End claimed deliveries whose events are gone: they were opened again while retention dropped their partition.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[]
with held as materialized (
    select *
    from unnest($1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[])
        as h (organization_id, epoch, xid, event_id, endpoint_id, claim_token)
)
delete from relay.open as o
using held as h
where o.organization_id = h.organization_id and o.epoch = h.epoch and o.xid = h.xid
    and o.event_id = h.event_id and o.endpoint_id = h.endpoint_id and o.claim_token = h.claim_token;

-- name: endpoints_of_claim
-- Read the endpoints of a claim. Ages instead of times, so that only PostgreSQL's clock counts.
-- $1 organization_id uuid[], $2 endpoint_id uuid[]
-- gives: organization_id uuid, id uuid, version int4, enabled bool, url text, secret_seal bytea, signature text,
-- old_secret_seal bytea, old_secret_until timestamptz, headers_seal bytea, timeout_s float8, retry_schedule float8[],
-- max_in_flight int4, rate_limit_per_second int4, failing_s float8, broken_s float8
select
    e.organization_id,
    e.id,
    e.version,
    e.enabled,
    e.url,
    e.secret_seal,
    e.signature,
    e.old_secret_seal,
    e.old_secret_until,
    e.headers_seal,
    e.timeout_s,
    e.retry_schedule,
    e.max_in_flight,
    e.rate_limit_per_second,
    extract(epoch from now() - e.failing_since)::float8 as failing_s,
    extract(epoch from now() - e.broken_since)::float8 as broken_s
from unnest($1::uuid[], $2::uuid[]) as w (organization_id, id)
inner join relay.endpoints as e on e.organization_id = w.organization_id and e.id = w.id;

-- name: renew_leases
-- Renew the leases of deliveries in flight, so that a lease may be shorter than a timeout. Locked rows are being
-- recorded or acknowledged, and are skipped: waiting for them would deadlock.
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
-- Release claims that will not be attempted, so that a process that stops leaves no lease behind. The claim is not
-- counted.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[]
with held as materialized (
    select *
    from unnest($1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[])
        as h (organization_id, epoch, xid, event_id, endpoint_id, claim_token)
)
update relay.open as o
set leased_until = '-infinity', claim_token = null, claims = greatest(o.claims - 1, 0)
from held as h
where o.organization_id = h.organization_id and o.epoch = h.epoch and o.xid = h.xid
    and o.event_id = h.event_id and o.endpoint_id = h.endpoint_id and o.claim_token = h.claim_token;

-- name: put_off_claims
-- Release claims that could not be sent because the process ran out of a resource, due again after a pause: else they
-- would be claimed again at once, for as long as the shortage lasts. It was no attempt, and the claim is not counted.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[], $7 pause_s float8[]
with held as materialized (
    select
        organization_id,
        epoch,
        xid,
        event_id,
        endpoint_id,
        claim_token,
        now() + pause_s * interval '1 second' as due_at
    from unnest($1::uuid[], $2::int[], $3::int8[], $4::uuid[], $5::uuid[], $6::uuid[], $7::float8[])
        as h (organization_id, epoch, xid, event_id, endpoint_id, claim_token, pause_s)
)
update relay.open as o
set due_at = h.due_at, leased_until = '-infinity', claim_token = null, claims = greatest(o.claims - 1, 0)
from held as h
where o.organization_id = h.organization_id and o.epoch = h.epoch and o.xid = h.xid
    and o.event_id = h.event_id and o.endpoint_id = h.endpoint_id and o.claim_token = h.claim_token;

-- name: record_attempts
-- Record a batch of results. Attempts are always inserted, but take effect only if the claim token still matches. A
-- delivery that ended moves from `open` to `deliveries`. One to be retried is due after `retry_s`, parked if that is
-- long (see `unpark`). It is held if its endpoint is disabled, and left to the cancelling job if its endpoint is gone.
-- A failed probe is no attempt and leaves its delivery unchanged. If the event was acknowledged during the attempt, no
-- row matches the token: the attempt is recorded and changes nothing. If a retry was requested during the attempt
-- (`attempts_before` includes it already), a delivery that did not succeed is due at once: what would have been its
-- last failure starts its new schedule. Rows are locked in primary key order, as in `acknowledge`, because the two
-- would deadlock otherwise.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[], $4 event_id uuid[], $5 endpoint_id uuid[],
-- $6 claim_token uuid[], $7 number int[], $8 at timestamptz[], $9 status_code int[], $10 latency_ms int[],
-- $11 error_class text[], $12 response bytea[], $13 outcome text[]: delivered, failed, retry or probe,
-- $14 retry_s float8[]
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
    where outcome <> 'probe'
    on conflict (organization_id, event_id, endpoint_id, number) do nothing
),
ours as materialized (
    select
        r.organization_id,
        r.epoch,
        r.xid,
        r.event_id,
        r.endpoint_id,
        r.number,
        r.error_class,
        case when r.outcome = 'failed' and o.attempts_before >= r.number then 'retry' else r.outcome end as outcome,
        case when o.attempts_before >= r.number then 0 else r.retry_s end as retry_s,
        e.enabled
    from results as r
    inner join relay.open as o
        on o.organization_id = r.organization_id and o.epoch = r.epoch and o.xid = r.xid
        and o.event_id = r.event_id and o.endpoint_id = r.endpoint_id and o.claim_token = r.claim_token
    -- Skipped for delivered ones: the join on null reads nothing.
    left join relay.endpoints as e
        on e.organization_id = r.organization_id
        and e.id = case when r.outcome <> 'delivered' then r.endpoint_id end
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
        attempts_before = least(o.attempts_before, r.number),
        bucket = case when r.enabled and r.outcome = 'retry' and r.retry_s > 60 then -2 - o.bucket else o.bucket end,
        due_at = case
            when r.enabled and r.outcome = 'probe' then o.due_at
            when r.enabled then now() + r.retry_s * interval '1 second'
        end,
        leased_until = '-infinity',
        claim_token = null,
        claims = 0,
        last_error_class = r.error_class
    from ours as r
    where o.organization_id = r.organization_id and o.epoch = r.epoch and o.xid = r.xid
        and o.event_id = r.event_id and o.endpoint_id = r.endpoint_id
        and r.outcome in ('retry', 'probe')
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
