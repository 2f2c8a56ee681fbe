-- Who keeps house: one process of all, elected through a row. Days that are dropped. And servers told apart by their
-- timeline too.
-- `cell` is locked for a new column only, which rewrites nothing. All else is new.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- A row for each duty that one process at a time does for all of them.
create table relay.leaders (
    duty text not null primary key,
    process_id uuid,
    leased_until timestamptz not null default now()
) with (fillfactor = 50);

insert into relay.leaders (duty) values ('retention');

-- Which history of this server we are in. After a recovery to a point in time, and on a standby that was promoted, the
-- system identifier is what it was, but transaction ids are given again that positions hold already; only the timeline
-- tells. The control file would name the old one until the next checkpoint, so it is read from the name of the WAL file.
-- A server that cannot say gets another body here.
create function relay.timeline() returns integer
language sql stable parallel safe
return ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer;

alter table relay.cell add column timeline integer not null default 0;

-- Where we are is where we have been: a higher epoch while others write would let readers pass by what they write.
update relay.cell set timeline = relay.timeline() where true;

-- Drop one partition of one UTC day: `dropped`, `absent` where there is none, `locked` where somebody reads it.
-- It needs the parent for itself, for the milliseconds until its commit, and all that comes after queues behind it
-- meanwhile: so it waits for 75 ms at most, and holds nothing when it gives up.
create function relay.drop_partition(parent text, day date) returns text
language plpgsql
set lock_timeout = '75ms'
as $$
declare
    child text := parent || '_' || to_char(day, 'YYYYMMDD');
begin
    if to_regclass(format('relay.%I', child)) is null then
        return 'absent';
    end if;
    execute format('drop table relay.%I', child);
    return 'dropped';
exception
    when lock_not_available then
        return 'locked';
    when undefined_table then
        return 'absent';
end;
$$;
