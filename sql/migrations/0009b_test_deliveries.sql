-- At most two test deliveries of an organization are under way at once: each has one of two seats.
-- `pings` is locked for new columns and an index; it holds next to nothing, and for seconds.
set local lock_timeout = '5s';
set local statement_timeout = '60s';

alter table relay.pings
    -- 1 or 2; null for one that a process of the previous release asked for.
    add column seat smallint,
    -- Whoever asked has left while it was on the wire; the seat is taken until it ends.
    add column is_left boolean not null default false;

-- squawk-ignore require-concurrent-index-creation
create unique index pings_by_seat on relay.pings (organization_id, seat);
