-- name: send_again
-- Send an event again: to endpoint $3 if the event has a delivery for it, or without $3 to every endpoint that takes
-- its type. An ended delivery is reopened: its attempt numbers continue and its schedule starts afresh. An open
-- delivery gets a fresh schedule, which for one in flight begins when that attempt ends. A delivery that never existed
-- is opened. If the endpoint is disabled, the delivery is held. The row that waits for the acknowledgement alone is
-- deleted once there is a delivery. Endpoints are locked, so that none is enabled, disabled or deleted concurrently,
-- and then the open rows in primary key order, as in `acknowledge`. With an Idempotency-Key, the statement does nothing
-- unless the key is free, and stores the response. `steady` is false if rows of this statement's snapshot disappeared
-- while it waited for their locks, because another transaction opened or ended a delivery of the event. Nothing was
-- done then, and the caller must try again. `answer` is a JSON array of the deliveries after the statement. $2
-- determines the day of the event, because PostgreSQL 18 crashes if a joined value selects partitions in a statement
-- that has waited for a lock.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid or null, $4 key text or null, $5 digest bytea or null,
-- $6 window_s float8
-- gives: known bool, steady bool, won bool, due int8, answer bytea
with event as materialized (
    select e.organization_id, e.epoch, e.xid, e.id, e.type
    from relay.events as e
    where e.organization_id = $1::uuid and e.id = $2::uuid
),
targets as materialized (
    select p.id as endpoint_id, p.bucket, p.enabled
    from event as e
    inner join relay.endpoints as p on p.organization_id = e.organization_id
    where p.id = $3::uuid or ($3::uuid is null and relay.subscribes(p.event_types, p.event_prefixes, e.type))
    order by p.id
    for share of p
),
opened_before as materialized (
    select o.endpoint_id, o.attempts, o.due_at, o.leased_until, o.last_error_class
    from event as e
    inner join relay.open as o
        on o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
ended_before as materialized (
    select d.endpoint_id, d.attempts, d.last_error_class
    from relay.deliveries as d
    where d.organization_id = $1::uuid and d.event_id = $2::uuid
    order by d.endpoint_id
    for update of d
),
still as materialized (
    select
        (select count(*) from opened_before) = (
            select count(*)
            from event as e
            inner join relay.open as o
                on o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
        )
        and (select count(*) from ended_before) = (
            select count(*)
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = $2::uuid
        ) as steady
),
states as materialized (
    select
        t.endpoint_id,
        t.bucket,
        t.enabled,
        o.endpoint_id is not null as is_open,
        coalesce(o.leased_until > now(), false) as is_leased,
        coalesce(o.attempts, d.attempts, 0) as attempts,
        coalesce(o.last_error_class, d.last_error_class) as last_error_class,
        case when o.leased_until > now() then o.due_at when t.enabled then now() end as due_at
    from targets as t
    left join opened_before as o on o.endpoint_id = t.endpoint_id
    left join ended_before as d on d.endpoint_id = t.endpoint_id
    where (select steady from still)
        and ($3::uuid is null or o.endpoint_id is not null or d.endpoint_id is not null)
),
answer as materialized (
    select
        convert_to(
            json_agg(
                json_build_object(
                    'endpoint_id', endpoint_id,
                    'status', case when due_at is null or not enabled then 'held' else 'pending' end,
                    'attempts', attempts,
                    'next_attempt_at', case when enabled then due_at end,
                    'last_error_class', last_error_class
                )
            )::text,
            'UTF8'
        ) as answer
    from states
),
won as (
    insert into relay.answers as a (organization_id, key, digest, answer, expires_at)
    select $1::uuid, $4::text, $5::bytea, answer, now() + $6::float8 * interval '1 second'
    from answer
    where $4::text is not null and answer is not null
    on conflict (organization_id, key) do update
    set digest = excluded.digest, answer = excluded.answer, expires_at = excluded.expires_at
    where a.expires_at <= now()
    returning key
),
going as materialized (
    select e.organization_id, e.epoch, e.xid, e.id as event_id, s.*
    from event as e
    cross join states as s
    where $4::text is null or exists (select from won)
),
acknowledged as materialized (
    select a.event_id
    from relay.acknowledgements as a
    where a.organization_id = $1::uuid and a.event_id = $2::uuid
),
refreshed as (
    update relay.open as o
    set
        attempts_before = o.attempts + case when g.is_leased then 1 else 0 end,
        due_at = g.due_at,
        bucket = greatest(o.bucket, -2 - o.bucket),
        away = case when g.is_leased then o.away end,
        back_at = case when g.is_leased then o.back_at end
    from going as g
    where o.organization_id = g.organization_id and o.epoch = g.epoch and o.xid = g.xid and o.event_id = g.event_id
        and o.endpoint_id = g.endpoint_id and g.is_open
),
reopened as (
    delete from relay.deliveries as d
    using going as g
    where d.organization_id = $1::uuid and d.event_id = $2::uuid and d.endpoint_id = g.endpoint_id and not g.is_open
),
relieved as (
    delete from relay.open as o
    using event as e
    where o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
        and o.endpoint_id = '00000000-0000-0000-0000-000000000000'
        and exists (select from going)
),
opened as (
    insert into relay.open (
        organization_id, epoch, xid, event_id, endpoint_id, bucket, acknowledged, attempts, attempts_before, due_at,
        last_error_class
    )
    select
        organization_id,
        epoch,
        xid,
        event_id,
        endpoint_id,
        bucket,
        exists (select from acknowledged),
        attempts,
        attempts,
        due_at,
        last_error_class
    from going
    where not is_open
)
select
    exists (select from event) as known,
    (select steady from still) as steady,
    exists (select from won) as won,
    (select count(*) from going where due_at is not null) as due,
    (select answer from answer) as answer;

-- name: not_attempted
-- Count the due deliveries of a job's last batch that have not been attempted since, and renew the job's lease. Those
-- of consumers are leased when their consumers ask, and not waited for. No row: the lease is lost or the job was
-- stopped.
-- $1 organization_id uuid, $2 id uuid, $3 claim_token uuid, $4 lease_s float8, $5 epoch int[], $6 xid int8[], $7
-- event_id uuid[], $8 endpoint_id uuid[]
-- gives: waiting int8
with kept as (
    update relay.jobs as j
    set leased_until = now() + $4::float8 * interval '1 second'
    where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running'
    returning j.id
),
opened as materialized (
    select *
    from unnest($5::int[], $6::int8[], $7::uuid[], $8::uuid[]) as o (epoch, xid, event_id, endpoint_id)
)
select (
    select count(*)
    from opened as w
    inner join relay.open as o
        on o.organization_id = $1::uuid and o.epoch = w.epoch and o.xid = w.xid and o.event_id = w.event_id
        and o.endpoint_id = w.endpoint_id
    where o.attempts = o.attempts_before and o.due_at is not null and o.bucket <> -1
) as waiting
from kept;

-- name: reopen_batch
-- Run one batch of a retry or a replay: reopen the next matching ended deliveries, continuing their attempt numbers
-- with a fresh schedule, and record the job's progress. Because this is one statement, a process that claims the job
-- after a kill continues at exactly this place. The statement examines at most 5,000 rows. It skips deliveries that
-- ended after the job was created. A delivery whose endpoint is deleted counts as failed. Locks are taken in the order
-- endpoints, deliveries, open rows. Returns the due deliveries that it opened.
-- $1 organization_id uuid, $2 job id uuid, $3 claim_token uuid, $4 event_id uuid,
-- $5 endpoint_id uuid: the place after which to continue, $6 until uuid, exclusive, $7 endpoint_id uuid or null,
-- $8 statuses text[], $9 error_class text or null, $10 created_at timestamptz, $11 batch int, $12 lease_s float8
-- gives: status text, at_event_id uuid, at_endpoint_id uuid, handled int8, epoch int4[], xid int8[], event_id uuid[],
-- endpoint_id uuid[], reopened uuid[]
with job as materialized (
    select j.organization_id, j.id
    from relay.jobs as j
    where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running'
    for update
),
walk as not materialized (
    select d.event_id, d.endpoint_id, d.status, d.last_error_class, d.ended_at
    from relay.deliveries as d
    where d.organization_id = $1::uuid
        and (d.event_id, d.endpoint_id) > ($4::uuid, $5::uuid)
        and d.event_id >= $4::uuid
        and d.event_id < $6::uuid
        and ($8::text[] <> array['failed'] or d.status = 'failed')
    order by d.event_id, d.endpoint_id
    limit 5000
),
found as materialized (
    select w.event_id, w.endpoint_id
    from walk as w
    where exists (select from job)
        and w.status = any($8::text[])
        and ($7::uuid is null or w.endpoint_id = $7::uuid)
        and ($9::text is null or w.last_error_class = $9::text)
        and w.ended_at <= $10::timestamptz
    order by w.event_id, w.endpoint_id
    limit $11::int
),
place as materialized (
    (
        select f.event_id, f.endpoint_id
        from found as f
        where (select count(*) from found) = $11::int
        order by f.event_id desc, f.endpoint_id desc
        limit 1
    )
    union all
    (
        select w.event_id, w.endpoint_id
        from walk as w
        where exists (select from job) and (select count(*) from found) < $11::int
        order by w.event_id, w.endpoint_id
        offset 4999
        limit 1
    )
),
targets as materialized (
    select p.id as endpoint_id, p.bucket, p.enabled
    from relay.endpoints as p
    where p.organization_id = $1::uuid and p.id in (select f.endpoint_id from found as f)
    order by p.id
    for share of p
),
ended as materialized (
    select d.organization_id, d.event_id, d.endpoint_id, d.attempts, d.last_error_class, t.bucket, t.enabled
    from found as f
    inner join targets as t on t.endpoint_id = f.endpoint_id
    inner join relay.deliveries as d
        on d.organization_id = $1::uuid and d.event_id = f.event_id and d.endpoint_id = f.endpoint_id
    order by d.event_id, d.endpoint_id
    for update of d
),
going as materialized (
    select
        d.*,
        e.epoch,
        e.xid,
        exists (
            select
            from relay.acknowledgements as a
            where a.organization_id = $1::uuid and a.event_id = d.event_id
        ) as acknowledged
    from ended as d
    cross join lateral (
        select e.epoch, e.xid
        from relay.events as e
        where e.organization_id = $1::uuid and e.id = d.event_id
        limit 1
    ) as e
),
waiting as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from going as g
    inner join relay.open as o
        on o.organization_id = g.organization_id and o.epoch = g.epoch and o.xid = g.xid and o.event_id = g.event_id
        and o.endpoint_id = '00000000-0000-0000-0000-000000000000'
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
relieved as (
    delete from relay.open as o
    using waiting as w
    where o.organization_id = w.organization_id and o.epoch = w.epoch and o.xid = w.xid and o.event_id = w.event_id
        and o.endpoint_id = w.endpoint_id
),
reopened as (
    delete from relay.deliveries as d
    using going as g
    where d.organization_id = g.organization_id and d.event_id = g.event_id and d.endpoint_id = g.endpoint_id
),
opened as (
    insert into relay.open (
        organization_id, epoch, xid, event_id, endpoint_id, bucket, acknowledged, attempts, attempts_before, due_at,
        last_error_class
    )
    select
        organization_id,
        epoch,
        xid,
        event_id,
        endpoint_id,
        bucket,
        acknowledged,
        attempts,
        attempts,
        case when enabled then now() end,
        last_error_class
    from going
    on conflict (organization_id, epoch, xid, event_id, endpoint_id) do nothing
),
tally as materialized (
    select
        (select count(*) from going) as done,
        (select count(*) from found where endpoint_id not in (select endpoint_id from targets)) as failed
),
moved as (
    update relay.jobs as j
    set
        status = case when p.event_id is null then 'done' else 'running' end,
        at_event_id = coalesce(p.event_id, j.at_event_id),
        at_endpoint_id = coalesce(p.endpoint_id, j.at_endpoint_id),
        done = j.done + t.done,
        failed = j.failed + t.failed,
        matched = greatest(j.matched, j.done + t.done + j.failed + t.failed),
        leased_until = now() + $12::float8 * interval '1 second'
    from tally as t
    left join place as p on true
    where j.organization_id = $1::uuid and j.id = $2::uuid and exists (select from job)
    returning j.status, j.at_event_id, j.at_endpoint_id, t.done + t.failed as handled
)
select
    m.status,
    m.at_event_id,
    m.at_endpoint_id,
    m.handled,
    array(select g.epoch from going as g where g.enabled order by g.event_id, g.endpoint_id) as epoch,
    array(select g.xid from going as g where g.enabled order by g.event_id, g.endpoint_id) as xid,
    array(select g.event_id from going as g where g.enabled order by g.event_id, g.endpoint_id) as event_id,
    array(select g.endpoint_id from going as g where g.enabled order by g.event_id, g.endpoint_id) as endpoint_id,
    array(select g.event_id from going as g) as reopened
from moved as m;

-- name: catch_up_batch
-- Run one batch of a catch-up: open the events before an endpoint's creation, in commit order and below the horizon,
-- unless they have a delivery for it, and record the job's progress in the same statement. It examines at most 5,000
-- events. The default endpoint gets no acknowledged events. The job ends when it has read all events below $9, and all
-- transactions that may not have seen the endpoint have ended: those running at a check $13 seconds or more after the
-- request. Returns the due deliveries that it opened.
-- $1 organization_id uuid, $2 job id uuid, $3 claim_token uuid, $4 epoch int, $5 xid int8,
-- $6 event_id uuid: the position after which to continue, $7 last epoch int, $8 last xid int8, $9 until uuid,
-- exclusive, $10 since uuid, $11 endpoint_id uuid, $12 batch int, $13 settled_s float8, $14 lease_s float8
-- gives: status text, at_epoch int4, at_xid int8, at_event_id uuid, at_end bool, handled int8, epoch int4[],
-- xid int8[], event_id uuid[], endpoint_id uuid[], reopened uuid[]
with job as materialized (
    select j.organization_id, j.id
    from relay.jobs as j
    where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running'
    for update
),
look as materialized (
    select now() as at, relay.stamp() as xid
),
target as materialized (
    select p.id as endpoint_id, p.bucket, p.enabled, p.is_default, p.event_types, p.event_prefixes
    from relay.endpoints as p
    where p.organization_id = $1::uuid and p.id = $11::uuid
    for share of p
),
walk as not materialized (
    select e.epoch, e.xid, e.id, e.type
    from relay.events as e
    where e.organization_id = $1::uuid
        and (e.epoch, e.xid, e.id) > ($4::int, $5::int8, $6::uuid)
        and (e.epoch, e.xid) <= ($7::int, $8::int8)
        and (e.epoch, e.xid) < ((select epoch from relay.cell), relay.horizon())
        and e.id >= $10::uuid
        and e.id < $9::uuid
    order by e.epoch, e.xid, e.id
    limit 5000
),
found as materialized (
    select w.epoch, w.xid, w.id as event_id, t.endpoint_id, t.bucket, t.enabled, a.acknowledged
    from target as t
    cross join walk as w
    cross join lateral (
        select exists (
            select
            from relay.acknowledgements as a
            where a.organization_id = $1::uuid and a.event_id = w.id
        ) as acknowledged
    ) as a
    where exists (select from job)
        and relay.subscribes(t.event_types, t.event_prefixes, w.type)
        and not (t.is_default and a.acknowledged)
        and not exists (
            select
            from relay.open as o
            where o.organization_id = $1::uuid and o.epoch = w.epoch and o.xid = w.xid and o.event_id = w.id
                and o.endpoint_id = $11::uuid
        )
        and not exists (
            select
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = w.id and d.endpoint_id = $11::uuid
        )
    order by w.epoch, w.xid, w.id
    limit $12::int
),
walked as materialized (
    select w.epoch, w.xid, w.id
    from walk as w
    where exists (select from job) and (select count(*) from found) < $12::int
),
place as materialized (
    (
        select f.epoch, f.xid, f.event_id
        from found as f
        where (select count(*) from found) = $12::int
        order by f.epoch desc, f.xid desc, f.event_id desc
        limit 1
    )
    union all
    (
        select w.epoch, w.xid, w.id
        from walked as w
        order by w.epoch desc, w.xid desc, w.id desc
        limit 1
    )
),
seen as materialized (
    select
        (select count(*) from found) < $12::int
        and (select count(*) from walked) < 5000
        and not exists (
            select
            from relay.events as e
            where e.organization_id = $1::uuid
                and (e.epoch, e.xid) >= ((select epoch from relay.cell), relay.horizon())
                and (e.epoch, e.xid) <= ($7::int, $8::int8)
                and e.id >= $10::uuid
                and e.id < $9::uuid
        ) as at_end
),
waiting as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from found as f
    inner join relay.open as o
        on o.organization_id = $1::uuid and o.epoch = f.epoch and o.xid = f.xid and o.event_id = f.event_id
        and o.endpoint_id = '00000000-0000-0000-0000-000000000000'
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
relieved as (
    delete from relay.open as o
    using waiting as w
    where o.organization_id = w.organization_id and o.epoch = w.epoch and o.xid = w.xid and o.event_id = w.event_id
        and o.endpoint_id = w.endpoint_id
),
opened as (
    insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket, acknowledged, due_at)
    select $1::uuid, epoch, xid, event_id, endpoint_id, bucket, acknowledged, case when enabled then now() end
    from found
    on conflict (organization_id, epoch, xid, event_id, endpoint_id) do nothing
),
moved as (
    update relay.jobs as j
    set
        status = case
            when not exists (select from target) then 'failed'
            when s.at_end and relay.has_settled(j.settling_xid) then 'done'
            else 'running'
        end,
        settling_xid = coalesce(
            j.settling_xid, case when j.created_at + $13::float8 * interval '1 second' <= l.at then l.xid end
        ),
        at_epoch = coalesce(p.epoch, j.at_epoch),
        at_xid = coalesce(p.xid, j.at_xid),
        at_event_id = coalesce(p.event_id, j.at_event_id),
        done = j.done + (select count(*) from found),
        matched = greatest(j.matched, j.done + j.failed + (select count(*) from found)),
        leased_until = now() + $14::float8 * interval '1 second'
    from look as l
    cross join seen as s
    left join place as p on true
    where j.organization_id = $1::uuid and j.id = $2::uuid and exists (select from job)
    returning j.status, j.at_epoch, j.at_xid, j.at_event_id, s.at_end
)
select
    m.status,
    m.at_epoch,
    m.at_xid,
    m.at_event_id,
    m.at_end,
    (select count(*) from found) as handled,
    array(select f.epoch from found as f where f.enabled order by f.event_id) as epoch,
    array(select f.xid from found as f where f.enabled order by f.event_id) as xid,
    array(select f.event_id from found as f where f.enabled order by f.event_id) as event_id,
    array(select f.endpoint_id from found as f where f.enabled order by f.event_id) as endpoint_id,
    array(select f.event_id from found as f) as reopened
from moved as m;

-- name: discard_delivery
-- Cancel one delivery that is pending, held or failed. As when an endpoint is deleted, an event that has no other
-- delivery left than cancelled ones waits for its acknowledgement. All rows of the event are locked in primary key
-- order, so that two requests at once know which of them is the last. `steady` is false if rows of this statement's
-- snapshot disappeared while it waited for their locks: nothing was done then, and the caller must try again. `status`
-- is null if there is no such delivery, else its status before; `cancelled` says whether this statement cancelled it.
-- $2 determines the day of the event, as in `send_again`.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid
-- gives: steady bool, status text, cancelled bool, attempts int4, last_error_class text
with event as materialized (
    select e.organization_id, e.epoch, e.xid, e.id
    from relay.events as e
    where e.organization_id = $1::uuid and e.id = $2::uuid
),
opened as materialized (
    select o.endpoint_id, o.acknowledged, o.attempts, o.last_error_class
    from event as e
    inner join relay.open as o
        on o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
ended as materialized (
    select d.endpoint_id, d.status, d.attempts, d.last_error_class
    from relay.deliveries as d
    where d.organization_id = $1::uuid and d.event_id = $2::uuid
    order by d.endpoint_id
    for update of d
),
still as materialized (
    select
        (select count(*) from opened) = (
            select count(*)
            from event as e
            inner join relay.open as o
                on o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
        )
        and (select count(*) from ended) = (
            select count(*)
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = $2::uuid
        ) as steady
),
found as materialized (
    select o.attempts, o.last_error_class, 'pending' as status
    from opened as o
    where o.endpoint_id = $3::uuid
    union all
    select d.attempts, d.last_error_class, d.status
    from ended as d
    where d.endpoint_id = $3::uuid
    limit 1
),
going as materialized (
    select f.*
    from found as f
    where (select steady from still) and f.status in ('pending', 'failed')
),
gone as (
    delete from relay.open as o
    using event as e
    where o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
        and o.endpoint_id = $3::uuid and exists (select from going)
),
kept as (
    insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts, last_error_class)
    select $1::uuid, $2::uuid, $3::uuid, 'cancelled', g.attempts, g.last_error_class
    from going as g
    on conflict (organization_id, event_id, endpoint_id) do update
    set
        status = excluded.status,
        attempts = excluded.attempts,
        last_error_class = excluded.last_error_class,
        ended_at = excluded.ended_at
),
waiting as (
    insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket)
    select e.organization_id, e.epoch, e.xid, e.id, '00000000-0000-0000-0000-000000000000', 0
    from event as e
    where exists (select from going)
        and not exists (select from opened as o where o.endpoint_id <> $3::uuid or o.acknowledged)
        and not exists (select from ended as d where d.endpoint_id <> $3::uuid and d.status <> 'cancelled')
        and not exists (
            select
            from relay.acknowledgements as a
            where a.organization_id = $1::uuid and a.event_id = $2::uuid
        )
    on conflict (organization_id, epoch, xid, event_id, endpoint_id) do nothing
)
select s.steady, f.status, exists (select from going) as cancelled, f.attempts, f.last_error_class
from still as s
left join found as f on true;
