-- Epochs that no two histories of this database share, whatever is restored or promoted.
-- `cell` is locked for a new column only, which rewrites nothing. All else is new.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- When the server was started that `epoch` stands for. Each statement that writes a position asks for it: on a server that
-- was started anew, or on another one, it writes nothing until there is a new epoch.
alter table relay.cell add column started_at timestamptz not null default '-infinity';

-- Raise the epoch if the server is not the one that it stands for; gives the epoch there is now. It is a number of seconds,
-- so that of two servers that go on from one backup the later one has the higher.
-- The lock waits for every write of events under way, and those that come after it see the new epoch: what is committed
-- with a lower one beside readers that have passed it would never be seen by them. It is compatible with reading, and with
-- pg_dump. A cell on Citus has another body here.
create function relay.renew_epoch() returns integer
language plpgsql
set lock_timeout = '3s'
as $$
declare
    server record;
begin
    lock table only relay.events in share mode;
    select
        pg_postmaster_start_time() as started_at,
        control.system_identifier,
        relay.timeline() as timeline,
        -- int4 lasts until 2092.
        least(extract(epoch from now() - '2024-01-01 00:00:00+00'::timestamptz), 2147480000)::integer as epoch
    into server
    from relay.cell cross join pg_control_system() as control;
    update relay.cell as c
    set
        epoch = greatest(c.epoch + 1, server.epoch),
        started_at = server.started_at,
        system_identifier = server.system_identifier,
        timeline = server.timeline
    where (c.started_at, c.system_identifier, c.timeline)
        <> (server.started_at, server.system_identifier, server.timeline);
    return (select c.epoch from relay.cell as c);
end;
$$;
