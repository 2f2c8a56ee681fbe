-- A delivery process renews one row, its own; the rows of bucket runs are written only when a run changes hands. Rewritten
-- every two seconds, 64 of them piled up behind any old snapshot until no process could renew its lease in time.
--
-- A run is held while its process lives: until `processes.leased_until`. Processes of the previous release know nothing of
-- that. They renew `bucket_leases.leased_until` of each run they hold, which this release respects, and take a run once that
-- has passed: so it is `-infinity` in the runs of this release, and a trigger refuses to give away one whose process lives.
-- A run is therefore never held by two, whichever releases run beside each other and in whatever order they start; and of
-- a process of this release that died the other one takes the runs as soon as its lease has ended. The trigger fires when a
-- run changes hands to the previous release, and never once that is gone.
--
-- `processes` is locked for a new column only, which rewrites nothing; `bucket_leases` until the commit, for the trigger.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

-- Until when this process holds its runs; null for one of the previous release.
alter table relay.processes add column leased_until timestamptz;

create function relay.keep_held_run() returns trigger
language plpgsql
as $$
begin
    -- Whoever lets a lease end says so in its row, so that its process, waking at this moment, sees that it has lost it. One
    -- that reaches further than leases do is left from a clock that was ahead.
    update relay.processes as p
    set leased_until = '-infinity'
    where p.id = (
        select h.id
        from relay.processes as h
        where h.id = old.process_id
            and (h.leased_until <= now() or h.leased_until > now() + interval '5 minutes')
        for update skip locked
    );
    if exists (select from relay.processes as p where p.id = old.process_id and p.leased_until > '-infinity') then
        return null;
    end if;
    return new;
end;
$$;

do $$
begin
    create trigger bucket_leases_kept before update on relay.bucket_leases
    for each row
    when (new.process_id <> old.process_id and new.leased_until > '-infinity')
    execute function relay.keep_held_run();
exception
    -- On Citus, where no cell is older than this.
    when feature_not_supported then null;
end;
$$;
