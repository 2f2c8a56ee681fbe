-- name: create_consumer
-- Create a consumer, with a job that opens older events for it if requested. Its name must be free. No row: the
-- organization has reached its limit of endpoints and consumers, its filters would exceed their limit, or the name is
-- taken. The organization is locked, so that concurrent requests cannot exceed a limit.
-- $1 organization_id uuid, $2 id uuid, $3 name text, $4 event_types text[], $5 event_prefixes text[], $6 enabled bool,
-- $7 lease_s int, $8 max_attempts int, $9 retry_schedule float8[], $10 secret_seal bytea that nothing uses, $11
-- catch_up_job_id uuid or null, $12 since uuid, $13 until uuid, $14 most endpoints int, $15 most filter_bytes int
-- gives: id uuid, name text, event_types text[], enabled bool, lease_s int4, max_attempts int4, retry_schedule
-- float8[], last_leased_at timestamptz, created_at timestamptz, updated_at timestamptz
with counted as materialized (
    select
        o.endpoints < $14::int
        and (cardinality($4::text[]) = 0 or o.filter_bytes + relay.filter_bytes($4::text[]) <= $15::int) as room
    from relay.organizations as o
    where o.id = $1::uuid
    for update
),
made as (
    insert into relay.endpoints as e (
        organization_id, id, bucket, kind, name, url, event_types, event_prefixes, enabled, disabled_at, lease_s,
        max_attempts, retry_schedule, secret_seal
    )
    select
        $1::uuid, $2::uuid, -1, 'consumer', $3::text, '', $4::text[], $5::text[], $6::bool,
        case when not $6::bool then now() end, $7::int, $8::int, $9::float8[], $10::bytea
    from counted
    where room
    on conflict (organization_id, name) where kind = 'consumer' do nothing
    returning
        e.id, e.name, e.event_types, e.enabled, e.lease_s, e.max_attempts, e.retry_schedule, e.last_leased_at,
        e.created_at, e.updated_at
),
catching_up as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id, since, until)
    select $1::uuid, $11::uuid, 'catch_up', id, $12::uuid, $13::uuid
    from made
    where $11::uuid is not null
)
select *
from made;

-- name: change_consumer
-- Change the given members of a consumer. Disabling or enabling leaves its deliveries to a job, as in
-- `change_endpoint`. `fits` is false if its filters would grow beyond the organization's limit: nothing was changed. No
-- row: there is no such consumer.
-- $1 organization_id uuid, $2 name text, $3 members text[] that were given, $4 event_types text[], $5 event_prefixes
-- text[], $6 enabled bool, $7 lease_s int, $8 max_attempts int, $9 retry_schedule float8[], $10 switch_job_id uuid, $11
-- most filter_bytes int
-- gives: fits bool, id uuid, name text, event_types text[], enabled bool, lease_s int4, max_attempts int4,
-- retry_schedule float8[], last_leased_at timestamptz, created_at timestamptz, updated_at timestamptz
with room as materialized (
    select o.filter_bytes
    from relay.organizations as o
    where o.id = $1::uuid and $4::text[] is not null
    for update
),
found as materialized (
    select
        e.organization_id,
        e.id,
        e.enabled,
        $4::text[] is null
        or (select filter_bytes from room) + relay.filter_bytes($4::text[]) - relay.filter_bytes(e.event_types)
        <= $11::int
        or relay.filter_bytes($4::text[]) <= relay.filter_bytes(e.event_types) as fits,
        now() as at
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.kind = 'consumer' and e.name = $2::text
    for update of e
),
changed as (
    update relay.endpoints as e
    set
        event_types = coalesce($4::text[], e.event_types),
        event_prefixes = coalesce($5::text[], e.event_prefixes),
        enabled = coalesce($6::bool, e.enabled),
        disabled_at = case
            when coalesce($6::bool, e.enabled) then null when f.enabled then f.at else e.disabled_at
        end,
        lease_s = coalesce($7::int, e.lease_s),
        max_attempts = coalesce($8::int, e.max_attempts),
        retry_schedule = case when 'retry_schedule' = any($3::text[]) then $9::float8[] else e.retry_schedule end,
        version = e.version + 1,
        updated_at = f.at
    from found as f
    where e.organization_id = f.organization_id and e.id = f.id and f.fits
    returning
        e.id, e.name, e.event_types, e.enabled, e.lease_s, e.max_attempts, e.retry_schedule, e.last_leased_at,
        e.created_at, e.updated_at
),
switched as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id)
    select $1::uuid, $10::uuid, case when c.enabled then 'release' else 'hold' end, c.id
    from changed as c
    inner join found as f on f.id = c.id
    where c.enabled <> f.enabled
)
select
    f.fits, c.id, c.name, c.event_types, c.enabled, c.lease_s, c.max_attempts, c.retry_schedule, c.last_leased_at,
    c.created_at, c.updated_at
from found as f
left join changed as c on c.id = f.id;

-- name: delete_consumer
-- Delete a consumer, keep its name for its deliveries, and create the job that cancels those that are open. The
-- organization, which counts its endpoints, is locked first, as in `delete_endpoint`.
-- $1 organization_id uuid, $2 name text, $3 job_id uuid
-- gives: id uuid
with organization as materialized (
    select o.id
    from relay.organizations as o
    where o.id = $1::uuid
    for update
),
gone as (
    delete from relay.endpoints as e
    using organization as o
    where e.organization_id = o.id and e.kind = 'consumer' and e.name = $2::text
    returning e.organization_id, e.id, e.name
),
named as (
    insert into relay.deleted_consumers (organization_id, id, name)
    select organization_id, id, name
    from gone
),
cancelling as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id)
    select organization_id, $3::uuid, 'cancel', id
    from gone
)
select id
from gone;

-- name: consumer_by_name
-- Return a consumer.
-- $1 organization_id uuid, $2 name text
-- gives: id uuid, name text, event_types text[], enabled bool, lease_s int4, max_attempts int4, retry_schedule
-- float8[], last_leased_at timestamptz, created_at timestamptz, updated_at timestamptz
select
    id, name, event_types, enabled, lease_s, max_attempts, retry_schedule, last_leased_at, created_at, updated_at
from relay.endpoints
where organization_id = $1::uuid and kind = 'consumer' and name = $2::text;

-- name: consumers_page
-- Return an organization's consumers before an id, newest first, up to 8 MiB as JSON. `more`: further consumers follow.
-- $1 organization_id uuid, $2 before uuid, $3 limit int
-- gives: id uuid, name text, event_types text[], enabled bool, lease_s int4, max_attempts int4, retry_schedule
-- float8[], last_leased_at timestamptz, created_at timestamptz, updated_at timestamptz, more bool
with found as materialized (
    select
        e.*,
        row_number() over (order by e.id desc) as place,
        sum(octet_length(e.event_types::text) + 3 * cardinality(e.event_types) + 3000)
            over (order by e.id desc) as bytes
    from (
        select
            id, name, event_types, enabled, lease_s, max_attempts, retry_schedule, last_leased_at, created_at,
            updated_at
        from relay.endpoints
        where organization_id = $1::uuid and kind = 'consumer' and id < $2::uuid
        order by id desc
        limit $3::int + 1
    ) as e
),
kept as materialized (
    select f.*
    from found as f
    where f.place <= $3::int and f.bytes < 8388096
)
select
    k.id, k.name, k.event_types, k.enabled, k.lease_s, k.max_attempts, k.retry_schedule, k.last_leased_at,
    k.created_at, k.updated_at,
    (select count(*) from found) > (select count(*) from kept) as more
from kept as k
order by k.id desc;

-- name: consumer_counts
-- Count what consumers have: open deliveries that are not leased, and when the oldest of them was accepted; live
-- leases; and dead letters. Each is counted up to an equal share of $3 rows of `open`, the dead letters among the
-- newest $3 of the organization. The oldest is the first that is ready, or one of those that wait for their next
-- attempt.
-- $1 organization_id uuid, $2 id uuid[], $3 most int
-- gives: id uuid, pending int8, leased int8, failed int8, oldest_pending uuid, is_capped bool
with fair as materialized (
    select greatest($3::int / greatest(3 * cardinality($2::uuid[]), 1), 1) as share
),
dead as materialized (
    select d.endpoint_id
    from relay.deliveries as d
    where d.organization_id = $1::uuid and d.status = 'failed'
    order by d.event_id desc, d.endpoint_id desc
    limit $3::int
),
failed as materialized (
    select d.endpoint_id, count(*) as rows
    from dead as d
    group by d.endpoint_id
)
select
    w.id,
    ready.rows + waiting.rows as pending,
    leased.rows as leased,
    coalesce(f.rows, 0) as failed,
    least(ready.oldest, waiting.oldest) as oldest_pending,
    greatest(ready.rows, waiting.rows, leased.rows) = (select share from fair)
    or (select count(*) from dead) = $3::int as is_capped
from unnest($2::uuid[]) as w (id)
left join failed as f on f.endpoint_id = w.id
cross join lateral (
    select count(*) as rows, (array_agg(o.event_id))[1] as oldest
    from (
        select o.event_id
        from relay.open as o
        where case
                when o.endpoint_id = '00000000-0000-0000-0000-000000000000' then o.organization_id else o.endpoint_id
            end = w.id
            and (o.bucket = -1 or o.endpoint_id = '00000000-0000-0000-0000-000000000000')
            and o.away is null
            and o.organization_id = $1::uuid
        order by o.epoch, o.xid, o.event_id
        limit (select share from fair)
    ) as o
) as ready
cross join lateral (
    select count(*) as rows, (array_agg(o.event_id order by o.event_id))[1] as oldest
    from (
        select o.event_id
        from relay.open as o
        where o.organization_id = $1::uuid and o.endpoint_id = w.id and o.away = 'waiting'
        limit (select share from fair)
    ) as o
) as waiting
cross join lateral (
    select count(*) as rows
    from (
        select
        from relay.open as o
        where o.organization_id = $1::uuid and o.endpoint_id = w.id and o.away = 'leased'
        limit (select share from fair)
    ) as o
) as leased;

-- name: names_of_consumers
-- Return the names of those destinations that are consumers, or were.
-- $1 organization_id uuid, $2 id uuid[]
-- gives: id uuid, name text
select e.id, e.name
from relay.endpoints as e
where e.organization_id = $1::uuid and e.id = any($2::uuid[]) and e.kind = 'consumer'
union all
select d.id, d.name
from relay.deleted_consumers as d
where d.organization_id = $1::uuid and d.id = any($2::uuid[]);

-- name: consumer_named
-- Return the consumer with this name; without one, the last deleted consumer that had it.
-- $1 organization_id uuid, $2 name text
-- gives: id uuid
(
    select e.id
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.kind = 'consumer' and e.name = $2::text
)
union all
(
    select d.id
    from relay.deleted_consumers as d
    where d.organization_id = $1::uuid and d.name = $2::text
    order by d.deleted_at desc
    limit 1
)
limit 1;

-- name: forget_consumers
-- Delete at most $1 names of consumers that were deleted so long ago that retention has dropped their deliveries. $2 is
-- the time that this process considers plausible.
-- $1 batch int, $2 now timestamptz, as this process believes it, $3 days int
-- gives: forgotten int8
with old as materialized (
    select d.organization_id, d.id
    from relay.deleted_consumers as d
    where d.deleted_at < least(now(), $2::timestamptz) - $3::int * interval '1 day'
    order by d.deleted_at
    limit $1::int
    for update skip locked
),
forgotten as (
    delete from relay.deleted_consumers as d
    using old as o
    where d.organization_id = o.organization_id and d.id = o.id
    returning d.id
)
select count(*) as forgotten
from forgotten;
