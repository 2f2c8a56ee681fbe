-- name: set_plans
-- How statements of this session are planned from now on: anew for the parameters of each execution, or once.
-- $1 plan_cache_mode text
-- gives: set_config text
select set_config('plan_cache_mode', $1::text, false);

-- name: enter_cell
-- Say which cell this is, and whether its epoch stands for the server below: not the one of the last time, or started
-- anew, its transaction ids may have nothing to do with those in the positions written so far.
-- gives: id text, epoch int4, is_current bool
select
    c.id,
    c.epoch,
    (c.started_at, c.system_identifier, c.timeline)
    = (pg_postmaster_start_time(), s.system_identifier, relay.timeline()) as is_current
from relay.cell as c
cross join pg_control_system() as s;

-- name: server_clock
-- PostgreSQL's clock, by which ids are made, and how old the oldest transaction is that may still write: it holds back
-- every reader that goes forward; and how old the oldest is that holds a snapshot in this database: what it might still
-- see is kept, each version of each row. A role sees only its own transactions unless it has pg_read_all_stats.
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
-- The settings that a 201 stands on, as this session has them.
-- gives: fsync text, synchronous_commit text, full_page_writes text
select
    current_setting('fsync') as fsync,
    current_setting('synchronous_commit') as synchronous_commit,
    current_setting('full_page_writes') as full_page_writes;

-- name: wake
-- Wake the delivery processes that listen. In a transaction of its own that writes nothing: NOTIFY holds a lock of the
-- whole cluster until its commit is flushed, and this commit has nothing to flush.
-- $1 channel text
-- gives: pg_notify void
select pg_notify($1::text, '');

-- name: somebody_delivers
-- Whether a delivery process has been seen lately, and is worth waking.
-- gives: delivers bool
select exists (
    select
    from relay.processes
    where kind = 'deliver' and seen_at > now() - interval '20 seconds'
) as delivers;

-- name: renew_epoch
-- Raise the epoch if it does not stand for the server below; gives the one there is then.
-- gives: epoch int4
select relay.renew_epoch() as epoch;

-- name: horizon
-- Where readers that go forward stop: every position below has been committed, or never will be.
-- gives: epoch int4, xid int8
select epoch, relay.horizon() as xid
from relay.cell;

-- name: backends_left
-- Of backends that were given up, those that live; one that was started later has the id of one that has ended.
-- $1 pid int4[], $2 age_s float8[]: how long ago each was given up
-- gives: pid int4
select a.pid
from unnest($1::int4[], $2::float8[]) as g (pid, age_s)
inner join pg_stat_activity as a on a.pid = g.pid and a.backend_start < now() - g.age_s * interval '1 second';
