-- name: count_ended
-- Count the matching deliveries among the next 10,000 ended ones after a place. Returns the place where the scan was
-- cut off, or nulls at the end.
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
-- Return whether an organization has this endpoint.
-- $1 organization_id uuid, $2 endpoint_id uuid
-- gives: known bool
select exists (
    select
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.id = $2::uuid and e.kind = 'endpoint'
) as known;

-- name: create_job
-- Create a job. With an Idempotency-Key, create it only if the key is free, and store the response in the same
-- statement.
-- $1 organization_id uuid, $2 id uuid, $3 kind text, $4 endpoint_id uuid or null, $5 statuses text[],
-- $6 error_class text or null, $7 since uuid, $8 until uuid, $9 matched int8, $10 key text or null,
-- $11 digest bytea or null, $12 answer bytea, $13 window_s float8
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
-- Return a page of jobs, newest first, without those from endpoint changes. The statement examines at most 10,000 jobs.
-- A last row with `walked` holds only the id where the scan was cut off.
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
-- Return a job, unless it comes from an endpoint change.
-- $1 organization_id uuid, $2 id uuid
-- gives: id uuid, kind text, status text, matched int8, done int8, failed int8, created_at timestamptz
select j.id, j.kind, j.status, j.matched, j.done, j.failed, j.created_at
from relay.jobs as j
where j.organization_id = $1::uuid and j.id = $2::uuid and j.kind in ('retry', 'replay', 'catch_up');

-- name: stop_job
-- Stop a job at its next batch. A job that has ended does not change.
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
-- Claim the job that has waited longest of the next organization with a job to run. A loose index scan steps from
-- organization to organization, so that a thousand jobs of one cost as much as a single job. The scan skips
-- organizations with a running turn and jobs under a lease. A lease longer than any process takes was written while the
-- clock was ahead, and counts as expired.
-- $1 claim_token uuid, $2 lease_s float8, $3 bool: true for jobs from endpoint changes,
-- false for jobs from API requests, $4 organization_id uuid: the one after which to begin,
-- $5 organization_ids uuid[] to skip
-- gives: organization_id uuid, id uuid, kind text, endpoint_id uuid, statuses text[], error_class text, since uuid,
-- until uuid, at_epoch int4, at_xid int8, at_event_id uuid, at_endpoint_id uuid, created_at timestamptz,
-- claim_token uuid
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
-- Renew the lease of a job and return its progress. No row: the lease is lost or the job was stopped.
-- $1 organization_id uuid, $2 id uuid, $3 claim_token uuid, $4 lease_s float8
-- gives: organization_id uuid, id uuid, kind text, endpoint_id uuid, statuses text[], error_class text, since uuid,
-- until uuid, at_epoch int4, at_xid int8, at_event_id uuid, at_endpoint_id uuid, created_at timestamptz,
-- claim_token uuid
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
-- Release a job. Any process can claim it $4 seconds from now.
-- $1 organization_id uuid, $2 id uuid, $3 claim_token uuid, $4 wait_s float8
update relay.jobs as j
set leased_until = now() + $4::float8 * interval '1 second', claim_token = null
where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid;

-- name: fail_job
-- End a job whose statements PostgreSQL rejects.
-- $1 organization_id uuid, $2 id uuid, $3 claim_token uuid
update relay.jobs as j
set status = 'failed'
where j.organization_id = $1::uuid and j.id = $2::uuid and j.claim_token = $3::uuid and j.status = 'running';

-- name: hold_batch
-- Run one batch of the job that follows the disabling of an endpoint: its open deliveries are no longer due. The job
-- ends when none are left and all transactions that may not have seen the change have ended: those running at a check
-- $8 seconds or more after the change. A flush whose client is gone can commit at any later time. The job ends at once
-- if the endpoint is enabled again.
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
    where o.bucket in ($5::int2, (-2 - $5::int2)::int2, -1) and o.endpoint_id = $4::uuid and o.due_at is not null
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
-- Run one batch of the job that follows the enabling of an endpoint: its held deliveries become due. The job ends as in
-- `hold_batch`, or at once if the endpoint is disabled again.
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
-- Run one batch of the job that follows the deletion of an endpoint: its open deliveries end as cancelled, and an event
-- without any other open row waits for its acknowledgement. All open rows of an event are locked, so that if two
-- endpoints are deleted at once, the second statement knows that its row is the last. If a row of an event disappeared
-- meanwhile, the event is left to the next batch. The job ends as in `hold_batch`, or at once if the endpoint exists.
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
        where o.bucket in ($5::int2, (-2 - $5::int2)::int2, -1) and o.endpoint_id = $4::uuid and o.due_at is not null
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
-- Delete at most $1 jobs that have ended and are older than a week.
-- $1 batch int, $2 now timestamptz, the trusted time
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
