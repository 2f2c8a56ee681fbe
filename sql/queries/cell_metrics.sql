-- name: backlog
-- Count open deliveries by what they wait for: `due` can be claimed, `leased` are being attempted, `later` wait for
-- their next attempt, `held` for their endpoint to be enabled, and `pulled` for their consumer. Also count the events
-- that only wait for an acknowledgement. Two indexes give exact counts of up to $1 deliveries with a due time, $1 held
-- ones and $1 of consumers. Larger numbers, and that of unacknowledged events, are estimated from a sample of $2 pages
-- of the table, which is exact if the table has no more pages than that.
-- $1 counted int8, $2 pages float8
-- gives: due int8, leased int8, later int8, held int8, pulled int8, unacknowledged int8
with sample as materialized (
    select
        count(*) filter (where s.bucket <> -1 and s.due_at <= now() and s.leased_until <= now()) as due,
        count(*) filter (where s.bucket <> -1 and s.due_at <= now() and s.leased_until > now()) as leased,
        count(*) filter (where s.bucket <> -1 and s.due_at > now()) as later,
        count(*) filter (where s.due_at is null and s.endpoint_id <> '00000000-0000-0000-0000-000000000000') as held,
        count(*) filter (where s.bucket = -1 and s.due_at is not null) as pulled,
        count(*) filter (where s.endpoint_id = '00000000-0000-0000-0000-000000000000') as unacknowledged,
        greatest(pg_relation_size('relay.open') / 8192.0 / $2::float8, 1) as scale
    from relay.open as s tablesample system (
        (select least(100, 100 * $2::float8 / greatest(pg_relation_size('relay.open') / 8192.0, 1)))
    )
),
timed as materialized (
    select
        count(*) filter (where t.due_at <= now() and t.leased_until <= now()) as due,
        count(*) filter (where t.due_at <= now() and t.leased_until > now()) as leased,
        count(*) filter (where t.due_at > now()) as later,
        count(*) >= $1::int8 as is_cut
    from (
        (
            select o.due_at, o.leased_until
            from relay.open as o
            where o.due_at is not null and o.bucket >= 0
            limit $1::int8
        )
        union all
        (
            select o.due_at, o.leased_until
            from relay.open as o
            where o.due_at is not null and o.bucket < -1
            limit $1::int8
        )
    ) as t
),
held as materialized (
    select count(*) as held, count(*) >= $1::int8 as is_cut
    from (
        select
        from relay.open as o
        where o.due_at is null and o.endpoint_id <> '00000000-0000-0000-0000-000000000000'
        limit $1::int8
    ) as h
),
pulled as materialized (
    select count(*) as pulled, count(*) >= $1::int8 as is_cut
    from (
        select
        from relay.open as o
        where o.due_at is not null and o.bucket = -1
        limit $1::int8
    ) as p
)
select
    case when t.is_cut then (s.due * s.scale)::int8 else t.due end as due,
    case when t.is_cut then (s.leased * s.scale)::int8 else t.leased end as leased,
    case when t.is_cut then (s.later * s.scale)::int8 else t.later end as later,
    case when h.is_cut then (s.held * s.scale)::int8 else h.held end as held,
    case when p.is_cut then (s.pulled * s.scale)::int8 else p.pulled end as pulled,
    (s.unacknowledged * s.scale)::int8 as unacknowledged
from sample as s
cross join timed as t
cross join held as h
cross join pulled as p;

-- name: oldest_due
-- Return for how long the oldest unclaimed delivery has been due, among endpoints that are enabled and whose circuit
-- breaker is closed. A loose index scan steps from endpoint to endpoint as in `claim_due`. It begins after a given
-- endpoint, visits at most $3, and examines the first deliveries of each. Parked deliveries that are due are examined
-- too, because `unpark` should have moved them.
-- $1 after_bucket int2, $2 after_endpoint_id uuid, $3 visits int
-- gives: visits int8, last_bucket int2, last_endpoint_id uuid, oldest_s float8
with recursive visited as (
    (
        select o.bucket, o.endpoint_id, o.due_at, o.organization_id, 1 as step
        from relay.open as o
        where o.due_at is not null and (o.bucket, o.endpoint_id) > ($1::int2, $2::uuid)
        order by o.bucket, o.endpoint_id, o.due_at
        limit 1
    )
    union all
    select o.bucket, o.endpoint_id, o.due_at, o.organization_id, v.step + 1
    from visited as v
    cross join lateral (
        select o.bucket, o.endpoint_id, o.due_at, o.organization_id
        from relay.open as o
        where o.due_at is not null and (o.bucket, o.endpoint_id) > (v.bucket, v.endpoint_id)
        order by o.bucket, o.endpoint_id, o.due_at
        limit 1
    ) as o
    where v.step < $3::int
),
waiting as materialized (
    select o.due_at
    from visited as v
    inner join relay.endpoints as e on e.organization_id = v.organization_id and e.id = v.endpoint_id
    cross join lateral (
        select o.due_at
        from relay.open as o
        where o.bucket = v.bucket and o.endpoint_id = v.endpoint_id and o.due_at <= now() and o.leased_until <= now()
        order by o.due_at
        limit 1
    ) as o
    where v.due_at <= now() and e.enabled and e.broken_since is null
    union all
    (
        select p.due_at
        from (
            select o.due_at, o.organization_id, o.endpoint_id
            from relay.open as o
            where o.bucket < -1 and o.due_at <= now()
            order by o.due_at
            limit 100
        ) as p
        inner join relay.endpoints as e on e.organization_id = p.organization_id and e.id = p.endpoint_id
        where e.enabled and e.broken_since is null
    )
)
select
    (select count(*) from visited) as visits,
    l.bucket as last_bucket,
    l.endpoint_id as last_endpoint_id,
    coalesce((select extract(epoch from now() - min(due_at))::float8 from waiting), 0) as oldest_s
from (values (true)) as one (row)
left join (select bucket, endpoint_id from visited order by step desc limit 1) as l on true;

-- name: endpoints_by_state
-- Count the endpoints that are enabled with a closed breaker, enabled with an open one, and disabled. If the table has
-- more than $1 pages, the counts are estimated from a sample of that many.
-- $1 pages float8
-- gives: closed int8, open int8, disabled int8
with sample as materialized (
    select
        count(*) filter (where e.enabled and e.broken_since is null) as closed,
        count(*) filter (where e.enabled and e.broken_since is not null) as open,
        count(*) filter (where not e.enabled) as disabled,
        greatest(pg_relation_size('relay.endpoints') / 8192.0 / $1::float8, 1) as scale
    from relay.endpoints as e tablesample system (
        (select least(100, 100 * $1::float8 / greatest(pg_relation_size('relay.endpoints') / 8192.0, 1)))
    )
    where e.kind = 'endpoint'
)
select (closed * scale)::int8 as closed, (open * scale)::int8 as open, (disabled * scale)::int8 as disabled
from sample;

-- name: server_connections
-- Return how many clients are connected to the server, and the limit for clients that are not superusers. A role
-- without pg_read_all_stats does not see what other clients do, but it sees that they are connected.
-- gives: connected int8, most int4
select
    (
        select count(*)
        from pg_stat_activity as a
        where a.backend_type = 'client backend' or (a.backend_type is null and a.datid is not null)
    ) as connected,
    current_setting('max_connections')::int
    - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true), '0')::int as most;
