-- Jobs take turns, and end once every transaction that may have missed what they follow from has ended.
-- `jobs` is locked for new columns, which rewrites nothing, and while an index over its few running rows is built.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

alter table relay.jobs
    -- When its last turn began; for a job that had none yet, when it was created.
    add column worked_at timestamptz not null default now(),
    -- The transaction that saw that there is nothing left to do: what was under way then may still commit some.
    add column settling_xid bigint;

-- Whose turn it is: organizations one after another, and of each the job that has waited longest. What follows from a
-- change of an endpoint has places of its own.
-- squawk-ignore require-concurrent-index-creation
create index jobs_by_turn on relay.jobs ((kind in ('hold', 'release', 'cancel')), organization_id, worked_at)
where status = 'running';

-- Whether each transaction up to this one has ended, of those that may write. One that this server has not given out yet
-- is from before a restore or a failover, which ended it.
-- A cell on Citus has another body here.
create function relay.has_settled(xid bigint) returns boolean
language sql stable parallel safe
return xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    or xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
