-- name: new_events
-- Return the horizon, and the newest events of each organization from a position on, for the requests that wait for
-- them. One statement looks for all waiting requests of a process, at any number of organizations. It reads at most $5
-- events of each, from the end of its index by position. The least id excludes the partitions of earlier days. A row
-- without a place is the horizon. Events above it are returned too: readers that list the newest first see them.
-- With a process id it also records that requests wait in that process, so that others send it notifications.
-- $1 organization_id uuid[], $2 epoch int[], $3 xid int8[]: the horizon up to which each has been looked at,
-- $4 least uuid, $5 limit int, $6 process_id uuid or null
-- gives: place int8, epoch int4, xid int8, event_id uuid, type text, size int4
with moment as materialized (
    select c.epoch, relay.horizon() as xid, now() as at
    from relay.cell as c
),
present as (
    insert into relay.processes (id, kind, seen_at, waits_at)
    select $6::uuid, 'serve', m.at, m.at
    from moment as m
    where $6::uuid is not null
    on conflict (id) do update set seen_at = excluded.seen_at, waits_at = excluded.waits_at
)
select null::int8 as place, m.epoch, m.xid, null::uuid as event_id, null::text as type, null::int as size
from moment as m
union all
select w.place, e.epoch, e.xid, e.event_id, e.type, e.size
from unnest($1::uuid[], $2::int[], $3::int8[]) with ordinality as w (organization_id, epoch, xid, place)
cross join lateral (
    select e.epoch, e.xid, e.id as event_id, e.type, octet_length(e.payload) as size
    from relay.events as e
    where e.organization_id = w.organization_id
        and (e.epoch, e.xid) >= (w.epoch, w.xid)
        and e.id >= $4::uuid
    order by e.epoch desc, e.xid desc, e.id desc
    limit $5::int
) as e;
