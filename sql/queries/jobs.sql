-- name: count_ended
-- How many ended deliveries match, of the next 10,000 after a place. Where the walk was cut off, it says where.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid: the place after which to count, $4 until uuid,
-- exclusive, $5 endpoint_id uuid or null, $6 statuses text[], $7 error_class text or null
-- gives: matched int8, event_id uuid, endpoint_id uuid
with walk as materialized (
    select d.event_id, d.endpoint_id, d.status, d.last_error_class
    from relay.deliveries as d
    where d.organization_id = $1::uuid
        and (d.event_id, d.endpoint_id) > ($2::uuid, $3::uuid)
        and d.event_id >= $2::uuid
        and d.event_id < $4::uuid
        and ($6::text[] <> array['failed'] or d.status = 'failed')
    order by d.event_id, d.endpoint_id
    limit 10000
)
select m.matched, l.event_id, l.endpoint_id
from (
    select count(*) as matched
    from walk as w
    where w.status = any($6::text[])
        and ($5::uuid is null or w.endpoint_id = $5::uuid)
        and ($7::text is null or w.last_error_class = $7::text)
) as m
left join (
    select w.event_id, w.endpoint_id
    from walk as w
    order by w.event_id, w.endpoint_id
    offset 9999
    limit 1
) as l on true;

-- name: endpoint_is_known
-- Whether an organization has this endpoint.
-- $1 organization_id uuid, $2 endpoint_id uuid
-- gives: known bool
select exists (
    select
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.id = $2::uuid
) as known;

-- name: create_job
-- Begin a job; with an Idempotency-Key only if the key is free, and the answer is kept by the same statement.
-- $1 organization_id uuid, $2 id uuid, $3 kind text, $4 endpoint_id uuid or null, $5 statuses text[], $6 error_class text or
-- null, $7 since uuid, $8 until uuid, $9 matched int8, $10 key text or null, $11 digest bytea or null, $12 answer bytea,
-- $13 window_s float8
-- gives: created bool
with won as (
    insert into relay.answers as a (organization_id, key, digest, answer, expires_at)
    select $1::uuid, $10::text, $11::bytea, $12::bytea, now() + $13::float8 * interval '1 second'
    where $10::text is not null
    on conflict (organization_id, key) do update
    set digest = excluded.digest, answer = excluded.answer, expires_at = excluded.expires_at
    where a.expires_at <= now()
    returning key
),
created as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id, statuses, error_class, since, until, matched)
    select $1::uuid, $2::uuid, $3::text, $4::uuid, $5::text[], $6::text, $7::uuid, $8::uuid, $9::int8
    where $10::text is null or exists (select from won)
    returning id
)
select exists (select from created) as created;

-- name: jobs_page
-- A page of jobs, newest first, without those that follow from changes of endpoints. It examines 10,000 jobs at most; a
-- last row with `walked`, of which only the id counts, says that it was cut off there.
-- $1 organization_id uuid, $2 id uuid: after which to read, $3 limit int
-- gives: id uuid, kind text, status text, matched int8, done int8, failed int8, created_at timestamptz, walked bool
with walk as not materialized (
    select j.id, j.kind, j.status, j.matched, j.done, j.failed, j.created_at
    from relay.jobs as j
    where j.organization_id = $1::uuid and j.id < $2::uuid
    order by j.id desc
    limit 10000
),
page as materialized (
    select w.id, w.kind, w.status, w.matched, w.done, w.failed, w.created_at
    from walk as w
    where w.kind in ('retry', 'replay', 'catch_up')
    order by w.id desc
    limit $3::int
)
(
    select p.id, p.kind, p.status, p.matched, p.done, p.failed, p.created_at, false as walked
    from page as p
    order by p.id desc
)
union all
(
    select w.id, null, null, null, null, null, null, true
    from walk as w
    where (select count(*) from page) < $3::int
    order by w.id desc
    offset 9999
    limit 1
);

-- name: job_by_id
-- One job, unless it follows from a change of an endpoint.
-- $1 organization_id uuid, $2 id uuid
-- gives: id uuid, kind text, status text, matched int8, done int8, failed int8, created_at timestamptz
select j.id, j.kind, j.status, j.matched, j.done, j.failed, j.created_at
from relay.jobs as j
where j.organization_id = $1::uuid and j.id = $2::uuid and j.kind in ('retry', 'replay', 'catch_up');

-- name: stop_job
-- Stop a job at its next batch. One that has ended stays as it is.
-- $1 organization_id uuid, $2 id uuid
-- gives: known bool
with stopped as (
    update relay.jobs as j
    set status = 'cancelled'
    where j.organization_id = $1::uuid and j.id = $2::uuid and j.kind in ('retry', 'replay', 'catch_up')
        and j.status = 'running'
)
select exists (
    select
    from relay.jobs as j
    where j.organization_id = $1::uuid and j.id = $2::uuid and j.kind in ('retry', 'replay', 'catch_up')
) as known;

-- name: take_job
-- Begin a turn at the job that has waited longest, of the next organization that has one to work at: a loose index scan
-- steps from organization to organization, so that a thousand jobs of one cost as much as a single one. Passed over are
-- organizations that have their turn already, and jobs under a lease; one that reaches further than leases do is left from
-- a clock that was ahead, and has ended.
-- $1 claim_token uuid, $2 lease_s float8, $3 bool: whether jobs that follow from a change of an endpoint are wanted, or
-- those that were asked for, $4 organization_id uuid: the one after which to begin, $5 organization_ids uuid[] to pass over
-- gives: organization_id uuid, id uuid, kind text, endpoint_id uuid, statuses text[], error_class text, since uuid,
-- until uuid, at_epoch int4, at_xid int8, at_event_id uuid, at_endpoint_id uuid, created_at timestamptz, claim_token uuid
with recursive visited as (
    (
        select j.organization_id
        from relay.jobs as j
        where j.status = 'running' and (j.kind in ('hold', 'release', 'cancel')) = $3::bool
            and j.organization_id > $4::uuid
        order by j.organization_id
        limit 1
    )
    union all
    select j.organization_id
    from visited as v
    cross join lateral (
        select j.organization_id
        from relay.jobs as j
        where j.status = 'running' and (j.kind in ('hold', 'release', 'cancel')) = $3::bool
            and j.organization_id > v.organization_id
        order by j.organization_id
        limit 1
    ) as j
),
free as materialized (
    select j.organization_id, j.id
    from visited as v
    cross join lateral (
        select j.organization_id, j.id
        from relay.jobs as j
        where j.status = 'running' and (j.kind in ('hold', 'release', 'cancel')) = $3::bool
            and j.organization_id = v.organization_id
            and (j.leased_until <= now() or j.leased_until > now() + (2 * $2::float8 + 60) * interval '1 second')
        order by j.worked_at
        limit 1
        for update skip locked
    ) as j
    where v.organization_id <> all($5::uuid[])
    limit 1
)
update relay.jobs as j
set claim_token = $1::uuid, leased_until = now() + $2::float8 * interval '1 second', worked_at = now()
from free as f
where j.organization_id = f.organization_id and j.id = f.id
returning
    j.organization_id,
    j.id,
    j.kind,
    j.endpoint_id,
    j.statuses,
    j.error_class,
    j.since,
    j.until,
    j.at_epoch,
    j.at_xid,
    j.at_event_id,
    j.at_endpoint_id,
    j.created_at,
    j.claim_token;

-- name: keep_job
-- Renew the lease of a job and read how far it has come. No row: it is no longer ours, or was stopped.
-- $1 organization_id uuid, $2 id uuid, $3 claim_token uuid, $4 lease_s float8
-- gives: organization_id uuid, id uuid, kind text, endpoint_id uuid, statuses text[], error_class text, since uuid,
-- until uuid, at_epoch int4, at_xid int8, at_event_id uuid, at_endpoint_id uuid, created_at timestamptz, claim_token uuid
update relay.jobs as j
set leased_until = now() + $4::float8 * interval '1 second'
where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running'
returning
    j.organization_id,
    j.id,
    j.kind,
    j.endpoint_id,
    j.statuses,
    j.error_class,
    j.since,
    j.until,
    j.at_epoch,
    j.at_xid,
    j.at_event_id,
    j.at_endpoint_id,
    j.created_at,
    j.claim_token;

-- name: leave_job
-- Give a job back, to be taken up again by anybody $4 seconds from now.
-- $1 organization_id uuid, $2 id uuid, $3 claim_token uuid, $4 wait_s float8
update relay.jobs as j
set leased_until = now() + $4::float8 * interval '1 second', claim_token = null
where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid;

-- name: fail_job
-- End a job that PostgreSQL refuses.
-- $1 organization_id uuid, $2 id uuid, $3 claim_token uuid
update relay.jobs as j
set status = 'failed'
where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running';

-- name: not_attempted
-- How many of the deliveries that the last batch opened have not been attempted since and are due; the job's lease is
-- renewed. No row: the job is no longer ours, or was stopped.
-- $1 organization_id uuid, $2 id uuid, $3 claim_token uuid, $4 lease_s float8, $5 epoch int[], $6 xid int8[],
-- $7 event_id uuid[], $8 endpoint_id uuid[]
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
    where o.attempts = o.attempts_before and o.due_at is not null
) as waiting
from kept;

-- name: reopen_batch
-- One batch of a retry or a replay: the next ended deliveries that match are opened again, their numbers going on and
-- their schedule fresh, and the job moves on, all in one statement: whoever takes it up after a kill goes on exactly
-- here. It examines 5,000 rows at most. What ended after the job was asked for is left alone. A delivery whose endpoint
-- is gone counts as failed. Locked in the order endpoints, deliveries, open rows. Gives what it opened that is due.
-- $1 organization_id uuid, $2 job id uuid, $3 claim_token uuid, $4 event_id uuid, $5 endpoint_id uuid: the place after
-- which to go on, $6 until uuid, exclusive, $7 endpoint_id uuid or null, $8 statuses text[], $9 error_class text or null,
-- $10 created_at timestamptz, $11 batch int, $12 lease_s float8
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
-- One batch of a catch-up: events from before an endpoint was there, in the order of commits and below the horizon, are
-- opened for it where it has no delivery of them, and the job moves on, all in one statement. It examines 5,000 events at
-- most. Of acknowledged events the default endpoint gets none. The job ends when it has seen all below $9 and nothing is
-- left of the transactions that may not have seen the endpoint: all that were under way at a look $13 seconds after it was
-- asked for, or later. Gives what it opened that is due.
-- $1 organization_id uuid, $2 job id uuid, $3 claim_token uuid, $4 epoch int, $5 xid int8, $6 event_id uuid: the position
-- after which to go on, $7 last epoch int, $8 last xid int8, $9 until uuid, exclusive, $10 since uuid,
-- $11 endpoint_id uuid, $12 batch int, $13 settled_s float8, $14 lease_s float8
-- gives: status text, at_epoch int4, at_xid int8, at_event_id uuid, at_end bool, handled int8, epoch int4[], xid int8[],
-- event_id uuid[], endpoint_id uuid[], reopened uuid[]
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

-- name: hold_batch
-- One batch of what follows from a disabled endpoint: its open deliveries are not due any more. It ends when there are
-- none left and nothing is left of the transactions that may not have seen the change: all that were under way at a look
-- $8 seconds after it, or later. A flush whose client has gone may commit after any time. Or it ends at once when the
-- endpoint is enabled again.
-- $1 organization_id uuid, $2 job id uuid, $3 claim_token uuid, $4 endpoint_id uuid, $5 bucket int2, $6 batch int,
-- $7 lease_s float8, $8 settled_s float8
-- gives: status text, handled int8
with job as materialized (
    select j.organization_id, j.id
    from relay.jobs as j
    where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running'
    for update
),
look as materialized (
    select now() as at, relay.stamp() as xid
),
disabled as materialized (
    select p.id
    from relay.endpoints as p
    where p.organization_id = $1::uuid and p.id = $4::uuid and not p.enabled
    for share of p
),
found as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from relay.open as o
    where o.bucket in ($5::int2, (-2 - $5::int2)::int2) and o.endpoint_id = $4::uuid and o.due_at is not null
        and o.organization_id = $1::uuid
        and exists (select from job) and exists (select from disabled)
    limit $6::int
),
locked as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from found as f
    inner join relay.open as o
        on o.organization_id = f.organization_id and o.epoch = f.epoch and o.xid = f.xid and o.event_id = f.event_id
        and o.endpoint_id = f.endpoint_id
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
changed as (
    update relay.open as o
    set due_at = null, bucket = greatest(o.bucket, -2 - o.bucket)
    from locked as k
    where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
        and o.endpoint_id = k.endpoint_id
),
moved as (
    update relay.jobs as j
    set
        status = case
            when not exists (select from disabled) then 'done'
            when not exists (select from found) and relay.has_settled(j.settling_xid) then 'done'
            else 'running'
        end,
        settling_xid = coalesce(
            j.settling_xid, case when j.created_at + $8::float8 * interval '1 second' <= l.at then l.xid end
        ),
        done = j.done + (select count(*) from locked),
        matched = j.matched + (select count(*) from locked),
        leased_until = now() + $7::float8 * interval '1 second'
    from look as l
    where j.organization_id = $1::uuid and j.id = $2::uuid and exists (select from job)
    returning j.status
)
select m.status, (select count(*) from found) as handled
from moved as m;

-- name: release_batch
-- One batch of what follows from an enabled endpoint: its held deliveries are due. It ends as above, or at once when the
-- endpoint is disabled again.
-- $1 organization_id uuid, $2 job id uuid, $3 claim_token uuid, $4 endpoint_id uuid, $5 batch int, $6 lease_s float8,
-- $7 settled_s float8
-- gives: status text, handled int8
with job as materialized (
    select j.organization_id, j.id
    from relay.jobs as j
    where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running'
    for update
),
look as materialized (
    select now() as at, relay.stamp() as xid
),
enabled as materialized (
    select p.id
    from relay.endpoints as p
    where p.organization_id = $1::uuid and p.id = $4::uuid and p.enabled
    for share of p
),
found as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from relay.open as o
    where o.organization_id = $1::uuid and o.endpoint_id = $4::uuid and o.due_at is null
        and o.endpoint_id <> '00000000-0000-0000-0000-000000000000'
        and exists (select from job) and exists (select from enabled)
    limit $5::int
),
locked as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from found as f
    inner join relay.open as o
        on o.organization_id = f.organization_id and o.epoch = f.epoch and o.xid = f.xid and o.event_id = f.event_id
        and o.endpoint_id = f.endpoint_id
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
changed as (
    update relay.open as o
    set due_at = now(), bucket = greatest(o.bucket, -2 - o.bucket)
    from locked as k
    where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
        and o.endpoint_id = k.endpoint_id
),
moved as (
    update relay.jobs as j
    set
        status = case
            when not exists (select from enabled) then 'done'
            when not exists (select from found) and relay.has_settled(j.settling_xid) then 'done'
            else 'running'
        end,
        settling_xid = coalesce(
            j.settling_xid, case when j.created_at + $7::float8 * interval '1 second' <= l.at then l.xid end
        ),
        done = j.done + (select count(*) from locked),
        matched = j.matched + (select count(*) from locked),
        leased_until = now() + $6::float8 * interval '1 second'
    from look as l
    where j.organization_id = $1::uuid and j.id = $2::uuid and exists (select from job)
    returning j.status
)
select m.status, (select count(*) from found) as handled
from moved as m;

-- name: cancel_batch
-- One batch of what follows from a deleted endpoint: its open deliveries end as cancelled, and an event that is left with
-- nothing else waits for its acknowledgement. All open rows of an event are locked, so that of two endpoints that go at
-- once the second knows that it is the last; an event of which a row went meanwhile is left to the next batch. It ends as
-- above, or at once when there is such an endpoint.
-- $1 organization_id uuid, $2 job id uuid, $3 claim_token uuid, $4 endpoint_id uuid, $5 bucket int2, $6 batch int,
-- $7 lease_s float8, $8 settled_s float8
-- gives: status text, handled int8, cancelled int8
with job as materialized (
    select j.organization_id, j.id
    from relay.jobs as j
    where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running'
    for update
),
look as materialized (
    select now() as at, relay.stamp() as xid
),
there as materialized (
    select p.id
    from relay.endpoints as p
    where p.organization_id = $1::uuid and p.id = $4::uuid
),
found as materialized (
    (
        select o.epoch, o.xid, o.event_id
        from relay.open as o
        where o.bucket in ($5::int2, (-2 - $5::int2)::int2) and o.endpoint_id = $4::uuid and o.due_at is not null
            and o.organization_id = $1::uuid
            and exists (select from job) and not exists (select from there)
        limit $6::int
    )
    union all
    (
        select o.epoch, o.xid, o.event_id
        from relay.open as o
        where o.organization_id = $1::uuid and o.endpoint_id = $4::uuid and o.due_at is null
            and o.endpoint_id <> '00000000-0000-0000-0000-000000000000'
            and exists (select from job) and not exists (select from there)
        limit $6::int
    )
),
before as materialized (
    select o.event_id, count(*) as rows_before
    from found as f
    inner join relay.open as o
        on o.organization_id = $1::uuid and o.epoch = f.epoch and o.xid = f.xid and o.event_id = f.event_id
    group by o.event_id
),
locked as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id, o.acknowledged
    from found as f
    inner join relay.open as o
        on o.organization_id = $1::uuid and o.epoch = f.epoch and o.xid = f.xid and o.event_id = f.event_id
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
steady as materialized (
    select
        k.organization_id,
        k.epoch,
        k.xid,
        k.event_id,
        bool_and(k.endpoint_id = $4::uuid) and not bool_or(k.acknowledged) as is_alone
    from locked as k
    inner join before as b on b.event_id = k.event_id
    group by k.organization_id, k.epoch, k.xid, k.event_id, b.rows_before
    having count(*) = b.rows_before
),
alone as materialized (
    select s.organization_id, s.epoch, s.xid, s.event_id
    from steady as s
    where s.is_alone
        and not exists (
            select
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = s.event_id and d.status <> 'cancelled'
        )
        and not exists (
            select
            from relay.acknowledgements as a
            where a.organization_id = $1::uuid and a.event_id = s.event_id
        )
),
ended as (
    delete from relay.open as o
    using steady as s
    where o.organization_id = s.organization_id and o.epoch = s.epoch and o.xid = s.xid and o.event_id = s.event_id
        and o.endpoint_id = $4::uuid
    returning o.organization_id, o.event_id, o.endpoint_id, o.attempts, o.last_error_class
),
cancelled as (
    insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts, last_error_class)
    select organization_id, event_id, endpoint_id, 'cancelled', attempts, last_error_class
    from ended
    on conflict (organization_id, event_id, endpoint_id) do nothing
),
waiting as (
    insert into relay.open (organization_id, epoch, xid, event_id, endpoint_id, bucket)
    select organization_id, epoch, xid, event_id, '00000000-0000-0000-0000-000000000000', 0
    from alone
    on conflict (organization_id, epoch, xid, event_id, endpoint_id) do nothing
),
moved as (
    update relay.jobs as j
    set
        status = case
            when exists (select from there) then 'done'
            when not exists (select from found) and relay.has_settled(j.settling_xid) then 'done'
            else 'running'
        end,
        settling_xid = coalesce(
            j.settling_xid, case when j.created_at + $8::float8 * interval '1 second' <= l.at then l.xid end
        ),
        done = j.done + (select count(*) from ended),
        matched = j.matched + (select count(*) from ended),
        leased_until = now() + $7::float8 * interval '1 second'
    from look as l
    where j.organization_id = $1::uuid and j.id = $2::uuid and exists (select from job)
    returning j.status
)
select m.status, (select count(*) from found) as handled, (select count(*) from ended) as cancelled
from moved as m;

-- name: forget_jobs
-- Delete up to $1 jobs that are older than a week and have ended.
-- $1 batch int, $2 now timestamptz as it is believed
-- gives: forgotten int8
with old as materialized (
    select j.organization_id, j.id
    from relay.jobs as j
    where j.status <> 'running' and j.id < relay.uuid7_floor(least(now(), $2::timestamptz) - interval '7 days')
    order by j.id
    limit $1::int
    for update skip locked
),
forgotten as (
    delete from relay.jobs as j
    using old as o
    where j.organization_id = o.organization_id and j.id = o.id
    returning j.id
)
select count(*) as forgotten
from forgotten;

-- name: forget_answers
-- Delete up to $1 answers whose Idempotency-Keys have run out.
-- $1 batch int, $2 now timestamptz as it is believed
-- gives: forgotten int8
with old as materialized (
    select a.organization_id, a.key
    from relay.answers as a
    where a.expires_at <= least(now(), $2::timestamptz)
    order by a.expires_at
    limit $1::int
    for update skip locked
),
forgotten as (
    delete from relay.answers as a
    using old as o
    where a.organization_id = o.organization_id and a.key = o.key and a.expires_at <= least(now(), $2::timestamptz)
    returning a.key
)
select count(*) as forgotten
from forgotten;
