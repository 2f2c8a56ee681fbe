-- name: lead
-- Become, or remain, the one process that does a duty for all: a lease in a row, because what a session holds is lost
-- behind a pooler and unknown to a cluster. Who need not lead leaves it to others for $4 seconds after a lease has
-- ended. One that reaches further than leases do is left from a clock that was ahead, and has ended. No row: somebody
-- else leads.
-- $1 duty text, $2 process_id uuid, $3 lease_s float8, $4 patience_s float8
-- gives: duty text
update relay.leaders
set process_id = $2::uuid, leased_until = now() + $3::float8 * interval '1 second'
where duty = $1::text
    and (
        process_id = $2::uuid
        or leased_until <= now() - $4::float8 * interval '1 second'
        or leased_until > now() + (2 * $3::float8 + 60) * interval '1 second'
    )
returning duty;

-- name: stop_leading
-- Give a duty up, so that another process need not wait for the end of the lease; whoever is patient is so from now on.
-- $1 duty text, $2 process_id uuid
update relay.leaders
set process_id = null, leased_until = now()
where duty = $1::text and process_id = $2::uuid;

-- name: make_partitions
-- Make the partitions from yesterday to $1 days ahead where they are missing.
-- $1 days int
-- gives: made int4
select coalesce(sum(relay.make_partitions((now() at time zone 'UTC')::date + day)), 0)::int as made
from generate_series(-1, $1::int) as day;

-- name: expired_days
-- Days that still have a partition and ended $1 days ago or before, oldest first, with the bounds on the ids of their
-- events. `is_overdue` where they ended $2 days ago or before: then nothing is waited for any more. What is over is so
-- by PostgreSQL's clock and by the one that this process believes.
-- $1 days int, $2 max_days int, $3 now timestamptz as it is believed
-- gives: day date, low uuid, high uuid, is_overdue bool
with children as materialized (
    select c.relname as name
    from pg_inherits as i
    inner join pg_class as c on c.oid = i.inhrelid
    where i.inhparent in (
        'relay.events'::regclass,
        'relay.deliveries'::regclass,
        'relay.attempts'::regclass,
        'relay.acknowledgements'::regclass
    )
),
days as materialized (
    select distinct to_date(right(c.name, 8), 'YYYYMMDD') as day
    from children as c
    where c.name ~ '_[0-9]{8}$'
)
select
    d.day,
    relay.uuid7_floor(d.day::timestamp at time zone 'UTC') as low,
    relay.uuid7_floor((d.day + 1)::timestamp at time zone 'UTC') as high,
    ((d.day + 1 + $2::int)::timestamp at time zone 'UTC') <= least(now(), $3::timestamptz) as is_overdue
from days as d
where ((d.day + 1 + $1::int)::timestamp at time zone 'UTC') <= least(now(), $3::timestamptz)
order by d.day;

-- name: events_are_recent
-- Whether there are events of yesterday, today or tomorrow: their ids were made by clocks that others believe.
-- gives: are_recent bool
select exists (
    select
    from relay.events as e
    where e.id >= relay.uuid7_floor(date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' - interval '1 day')
        and e.id < relay.uuid7_floor(date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' + interval '2 days')
) as are_recent;

-- name: kept_days
-- How long events were kept when retention last had nothing left to drop; null at first.
-- gives: retention_days int4
select c.retention_days
from relay.cell as c;

-- name: note_kept_days
-- Events are kept for so long, and there is nothing left to drop.
-- $1 retention_days int
update relay.cell
set retention_days = $1::int
where retention_days is distinct from $1::int;

-- name: first_day
-- The least id that an event may have: where the oldest partition begins, or null without any.
-- gives: low uuid
with children as materialized (
    select c.relname as name
    from pg_inherits as i
    inner join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = 'relay.events'::regclass
)
select relay.uuid7_floor(min(to_date(right(c.name, 8), 'YYYYMMDD'))::timestamp at time zone 'UTC') as low
from children as c
where c.name ~ '_[0-9]{8}$';

-- name: organizations_with_open
-- The next organizations that have anything open, and whether the first of it is from before $2: positions are in the
-- order of commits, so what is old comes first. Found by stepping from one to the next (a loose index scan), so that a
-- million open rows of one cost as much as one.
-- $1 organization_id uuid: after which, $2 before event_id uuid, $3 organizations int
-- gives: organization_id uuid, is_old bool
with recursive visited as (
    (
        select o.organization_id, o.event_id, 1 as step
        from relay.open as o
        where o.organization_id > $1::uuid
        order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
        limit 1
    )
    union all
    select o.organization_id, o.event_id, v.step + 1
    from visited as v
    cross join lateral (
        select o.organization_id, o.event_id
        from relay.open as o
        where o.organization_id > v.organization_id
        order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
        limit 1
    ) as o
    where v.step < $3::int
)
select v.organization_id, v.event_id < $2::uuid as is_old
from visited as v
order by v.step;

-- name: open_of_day
-- How many of an organization's next open rows are deliveries of events between $6 and $7, and the last row looked at.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid, $5 endpoint_id uuid: the place after which,
-- $6 low uuid, $7 high uuid, exclusive, $8 rows int
-- gives: deliveries int8, looked_at int8, epoch int4, xid int8, event_id uuid, endpoint_id uuid
with walk as materialized (
    select o.epoch, o.xid, o.event_id, o.endpoint_id
    from relay.open as o
    where o.organization_id = $1::uuid
        and (o.epoch, o.xid, o.event_id, o.endpoint_id) > ($2::int, $3::int8, $4::uuid, $5::uuid)
    order by o.epoch, o.xid, o.event_id, o.endpoint_id
    limit $8::int
)
select t.deliveries, t.looked_at, l.epoch, l.xid, l.event_id, l.endpoint_id
from (
    select
        count(*) filter (
            where w.event_id >= $6::uuid and w.event_id < $7::uuid
                and w.endpoint_id <> '00000000-0000-0000-0000-000000000000'
        ) as deliveries,
        count(*) as looked_at
    from walk as w
) as t
left join (
    select w.epoch, w.xid, w.event_id, w.endpoint_id
    from walk as w
    order by w.epoch desc, w.xid desc, w.event_id desc, w.endpoint_id desc
    limit 1
) as l on true;

-- name: forget_open
-- Delete those of an organization's next open rows whose events are between $6 and $7: all of them, or without $8 only
-- what waits for its acknowledgement alone. Locked in the order of the primary key, as whoever records or acknowledges
-- does. Gives how many of each, and the last row looked at.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid, $5 endpoint_id uuid: the place after which,
-- $6 low uuid, $7 high uuid, exclusive, $8 deliveries bool, $9 rows int
-- gives: deliveries int8, unacknowledged int8, looked_at int8, epoch int4, xid int8, event_id uuid, endpoint_id uuid
with walk as materialized (
    select o.epoch, o.xid, o.event_id, o.endpoint_id
    from relay.open as o
    where o.organization_id = $1::uuid
        and (o.epoch, o.xid, o.event_id, o.endpoint_id) > ($2::int, $3::int8, $4::uuid, $5::uuid)
    order by o.epoch, o.xid, o.event_id, o.endpoint_id
    limit $9::int
),
old as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from walk as w
    inner join relay.open as o
        on o.organization_id = $1::uuid and o.epoch = w.epoch and o.xid = w.xid and o.event_id = w.event_id
        and o.endpoint_id = w.endpoint_id
    where w.event_id >= $6::uuid
        and w.event_id < $7::uuid
        and ($8::bool or w.endpoint_id = '00000000-0000-0000-0000-000000000000')
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
forgotten as (
    delete from relay.open as o
    using old as g
    where o.organization_id = g.organization_id and o.epoch = g.epoch and o.xid = g.xid and o.event_id = g.event_id
        and o.endpoint_id = g.endpoint_id
    returning o.endpoint_id
)
select t.deliveries, t.unacknowledged, c.looked_at, l.epoch, l.xid, l.event_id, l.endpoint_id
from (
    select
        count(*) filter (where f.endpoint_id <> '00000000-0000-0000-0000-000000000000') as deliveries,
        count(*) filter (where f.endpoint_id = '00000000-0000-0000-0000-000000000000') as unacknowledged
    from forgotten as f
) as t
cross join (
    select count(*) as looked_at
    from walk
) as c
left join (
    select w.epoch, w.xid, w.event_id, w.endpoint_id
    from walk as w
    order by w.epoch desc, w.xid desc, w.event_id desc, w.endpoint_id desc
    limit 1
) as l on true;

-- name: dead_letters_of_day
-- How many of the next dead letters of a day each organization has; the last row's place is where to go on.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid: the place after which, $4 low uuid, $5 high uuid,
-- exclusive, $6 rows int
-- gives: organization_id uuid, dead_letters int8, last_organization_id uuid, last_event_id uuid, last_endpoint_id uuid
with walk as materialized (
    select d.organization_id, d.event_id, d.endpoint_id
    from relay.deliveries as d
    where d.status = 'failed'
        and d.event_id >= $4::uuid
        and d.event_id < $5::uuid
        and (d.organization_id, d.event_id, d.endpoint_id) > ($1::uuid, $2::uuid, $3::uuid)
    order by d.organization_id, d.event_id, d.endpoint_id
    limit $6::int
)
select
    t.organization_id,
    t.dead_letters,
    l.organization_id as last_organization_id,
    l.event_id as last_event_id,
    l.endpoint_id as last_endpoint_id
from (
    select w.organization_id, count(*) as dead_letters
    from walk as w
    group by w.organization_id
) as t
cross join (
    select w.organization_id, w.event_id, w.endpoint_id
    from walk as w
    order by w.organization_id desc, w.event_id desc, w.endpoint_id desc
    limit 1
) as l
order by t.organization_id;

-- name: holders_of_day
-- Which transactions hold locks on the partitions of a day or on their parents, ourselves left out. Asked twice, a
-- moment apart, it tells whether somebody reads for long, without getting into anybody's way.
-- $1 day date
-- gives: holders text[]
select array(
    select distinct l.virtualtransaction
    from pg_locks as l
    where l.locktype = 'relation'
        and l.granted
        and l.pid is distinct from pg_backend_pid()
        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
        and l.relation in (
            'relay.events'::regclass,
            'relay.deliveries'::regclass,
            'relay.attempts'::regclass,
            'relay.acknowledgements'::regclass,
            to_regclass('relay.events_' || to_char($1::date, 'YYYYMMDD')),
            to_regclass('relay.deliveries_' || to_char($1::date, 'YYYYMMDD')),
            to_regclass('relay.attempts_' || to_char($1::date, 'YYYYMMDD')),
            to_regclass('relay.acknowledgements_' || to_char($1::date, 'YYYYMMDD'))
        )
) as holders;

-- name: drop_partition
-- Drop the partition of $1 for a day: `dropped`, `absent` or `locked`.
-- $1 parent text, $2 day date
-- gives: outcome text
select relay.drop_partition($1::text, $2::date) as outcome;

-- name: forget_dedup_keys
-- Delete the keys of deduplication that have run out from $2 pages of the table, and say how many pages it has. It is
-- walked from end to end, in the order of its pages: an index on `expires_at` would cost ingest 4% (measured with a key
-- on every event, 300 a flush), and deleting through it takes three times as long. What ingest is taking at this moment
-- is left alone. What has run out has done so by PostgreSQL's clock and by the one that this process believes.
-- $1 first_page int8, $2 pages int8, $3 now timestamptz as it is believed
-- gives: forgotten int8, pages int8
with old as materialized (
    select d.ctid as place
    from relay.dedup as d
    where d.ctid >= format('(%s,0)', $1::int8)::tid
        and d.ctid < format('(%s,0)', $1::int8 + $2::int8)::tid
        and d.expires_at <= least(now(), $3::timestamptz)
    for update skip locked
),
forgotten as (
    delete from relay.dedup as d
    where d.ctid = any(array(select place from old)) and d.expires_at <= least(now(), $3::timestamptz)
    returning d.key
)
select
    (select count(*) from forgotten) as forgotten,
    pg_relation_size('relay.dedup'::regclass) / current_setting('block_size')::int8 as pages;
