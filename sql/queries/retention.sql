-- name: lead
-- Become or remain the leader of a duty. The lease is a row, because a session lock is lost behind a pooler and unknown
-- to a cluster. A process with patience waits $4 seconds after a lease has expired and leaves the duty to others until
-- then. A lease longer than any process takes was written while the clock was ahead, and counts as expired. No row:
-- another process leads.
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
-- Give up a duty, so that another process need not wait until the lease expires. The wait of patient processes starts
-- now.
-- $1 duty text, $2 process_id uuid
update relay.leaders
set process_id = null, leased_until = now()
where duty = $1::text and process_id = $2::uuid;

-- name: make_partitions
-- Create the missing partitions from yesterday to $1 days ahead.
-- $1 days int
-- gives: made int4
select coalesce(sum(relay.make_partitions((now() at time zone 'UTC')::date + day)), 0)::int as made
from generate_series(-1, $1::int) as day;

-- name: expired_days
-- Return the days with a partition that ended at least $1 days ago, oldest first, with the bounds of their event ids.
-- `is_overdue`: the day ended at least $2 days ago, so its open deliveries are not waited for. A day counts as over
-- only if it is over both by PostgreSQL's clock and by the time that this process considers plausible.
-- $1 days int, $2 max_days int, $3 now timestamptz, the trusted time
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
-- Return whether there are events of yesterday, today or tomorrow. Their ids were made by clocks that other processes
-- trust.
-- gives: are_recent bool
select exists (
    select
    from relay.events as e
    where e.id >= relay.uuid7_floor(date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' - interval '1 day')
        and e.id < relay.uuid7_floor(date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' + interval '2 days')
) as are_recent;

-- name: kept_days
-- Return the retention time when retention last had nothing left to drop. Null: never yet.
-- gives: retention_days int4
select c.retention_days
from relay.cell as c;

-- name: note_kept_days
-- Record the retention time when there is nothing left to drop.
-- $1 retention_days int
update relay.cell
set retention_days = $1::int
where retention_days is distinct from $1::int;

-- name: first_day
-- Return the least possible event id: the start of the oldest partition. Null: there are no partitions.
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
-- Return the next organizations with open rows, and whether the first row of each is older than $2. Positions are in
-- commit order, so old rows come first. A loose index scan steps from organization to organization, so that a million
-- open rows of one cost as much as a single row.
-- $1 organization_id uuid: the one after which to begin, $2 before event_id uuid, $3 organizations int
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
-- Count the deliveries of events between $6 and $7 among an organization's next open rows, and return the last row
-- examined.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid,
-- $5 endpoint_id uuid: the place after which to begin, $6 low uuid, $7 high uuid, exclusive, $8 rows int
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
-- Delete those of an organization's next open rows whose events are between $6 and $7. Without $8, delete only rows
-- that wait for an acknowledgement alone. Rows are locked in primary key order, as in the statements that record or
-- acknowledge. Returns the number of each kind, and the last row examined.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid,
-- $5 endpoint_id uuid: the place after which to begin, $6 low uuid, $7 high uuid, exclusive, $8 deliveries bool,
-- $9 rows int
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
-- Count the next dead letters of a day by organization. The place of the last row is where to continue.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid: the place after which to begin, $4 low uuid,
-- $5 high uuid, exclusive, $6 rows int
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
-- Return the transactions of other sessions that hold locks on the partitions of a day or on their parents. Two calls a
-- moment apart tell whether a transaction reads for long, without blocking any.
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
-- Drop the partition of $1 for a day. Returns `dropped`, `absent` or `locked`.
-- $1 parent text, $2 day date
-- gives: outcome text
select relay.drop_partition($1::text, $2::date) as outcome;

-- name: forget_dedup_keys
-- Delete the expired deduplication keys from $2 pages of the table, and return the table's number of pages. The table
-- is scanned from end to end in page order: an index on `expires_at` would cost ingest 4% (measured with a key on every
-- event, 300 a flush), and deleting through it takes three times as long. Rows that ingest has locked are skipped. A
-- key counts as expired only if it is expired both by PostgreSQL's clock and by the time that this process considers
-- plausible.
-- $1 first_page int8, $2 pages int8, $3 now timestamptz, the trusted time
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
