-- name: set_plans
-- Set how this session plans prepared statements: for the parameters of each execution, or once.
-- $1 plan_cache_mode text
-- gives: set_config text
select set_config('plan_cache_mode', $1::text, false);

-- name: enter_cell
-- Return the id and epoch of the cell, and whether the epoch belongs to the running server. If the server was replaced
-- or restarted, its transaction ids may be unrelated to those in the positions written so far.
-- gives: id text, epoch int4, is_current bool
select
    c.id,
    c.epoch,
    (c.started_at, c.system_identifier, c.timeline)
    = (pg_postmaster_start_time(), s.system_identifier, relay.timeline()) as is_current
from relay.cell as c
cross join pg_control_system() as s;

-- name: server_clock
-- Return PostgreSQL's time, from which ids are made; the age of the oldest transaction that may still write, which
-- holds back all readers that go forward; and the age of the oldest snapshot in this database, which keeps dead row
-- versions from being removed. A role without pg_read_all_stats sees only its own transactions.
-- gives: seconds float8, oldest_write_s float8, oldest_snapshot_s float8
select
    extract(epoch from clock_timestamp())::float8 as seconds,
    greatest(
        (
            select max(extract(epoch from now() - a.xact_start))
            from pg_stat_activity as a
            where a.backend_xid is not null
        ),
        (select max(extract(epoch from now() - p.prepared)) from pg_prepared_xacts as p),
        0
    )::float8 as oldest_write_s,
    greatest(
        (
            select max(extract(epoch from now() - a.xact_start))
            from pg_stat_activity as a
            where a.backend_xmin is not null
                and a.backend_type = 'client backend'
                and a.datname = current_database()
                and a.pid <> pg_backend_pid()
        ),
        0
    )::float8 as oldest_snapshot_s;

-- name: durability
-- Return the settings that make a commit durable, as this session has them.
-- gives: fsync text, synchronous_commit text, full_page_writes text
select
    current_setting('fsync') as fsync,
    current_setting('synchronous_commit') as synchronous_commit,
    current_setting('full_page_writes') as full_page_writes;

-- name: wake
-- Wake the delivery processes that listen. This transaction writes nothing else: NOTIFY holds a cluster-wide lock until
-- its commit is flushed, and this commit has nothing to flush.
-- $1 channel text
-- gives: pg_notify void
select pg_notify($1::text, '');

-- name: notify
-- Send several notifications, as `wake` sends one.
-- $1 channel text[], $2 payload text[]
-- gives: pg_notify void
select pg_notify(n.channel, n.payload)
from unnest($1::text[], $2::text[]) as n (channel, payload);

-- name: presence
-- Return whether a delivery process is alive, and whether requests wait in another API process, so that a wakeup is of
-- use.
-- $1 process_id uuid: the one that asks
-- gives: delivers bool, waits bool
select
    exists (
        select
        from relay.processes as p
        where p.kind = 'deliver' and p.seen_at > now() - interval '20 seconds'
    ) as delivers,
    exists (
        select
        from relay.processes as p
        where p.waits_at > now() - interval '20 seconds' and p.id <> $1::uuid
    ) as waits;

-- name: renew_epoch
-- Raise the epoch if it does not belong to the running server, and return the current one.
-- gives: epoch int4
select relay.renew_epoch() as epoch;

-- name: horizon
-- Return the position where readers that go forward stop: each transaction below it has ended.
-- gives: epoch int4, xid int8
select epoch, relay.horizon() as xid
from relay.cell;

-- name: backends_left
-- Return which of the abandoned backends are still running. A backend that was started later only reuses the pid.
-- $1 pid int4[], $2 age_s float8[]: the time since each was abandoned
-- gives: pid int4
select a.pid
from unnest($1::int4[], $2::float8[]) as g (pid, age_s)
inner join pg_stat_activity as a on a.pid = g.pid and a.backend_start < now() - g.age_s * interval '1 second';
