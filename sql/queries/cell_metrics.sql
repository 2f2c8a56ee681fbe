-- name: backlog
-- How many open deliveries there are, by what they wait for: `due` may be claimed, `leased` are being attempted,
-- `later` wait for their next attempt, `held` for their disabled endpoint; and how many events wait for an
-- acknowledgement alone. Exact up to $1 of what has a time and $1 of what is held, which two indexes give. Past that,
-- and for what is unacknowledged, it is reckoned from a sample of $2 of the table's pages: exact again where it has no
-- more.
-- $1 counted int8, $2 pages float8
-- gives: due int8, leased int8, later int8, held int8, unacknowledged int8
with sample as materialized (
    select
        count(*) filter (where s.due_at <= now() and s.leased_until <= now()) as due,
        count(*) filter (where s.due_at <= now() and s.leased_until > now()) as leased,
        count(*) filter (where s.due_at > now()) as later,
        count(*) filter (where s.due_at is null and s.endpoint_id <> '00000000-0000-0000-0000-000000000000') as held,
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
        select o.due_at, o.leased_until
        from relay.open as o
        where o.due_at is not null
        limit $1::int8
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
)
select
    case when t.is_cut then (s.due * s.scale)::int8 else t.due end as due,
    case when t.is_cut then (s.leased * s.scale)::int8 else t.leased end as leased,
    case when t.is_cut then (s.later * s.scale)::int8 else t.later end as later,
    case when h.is_cut then (s.held * s.scale)::int8 else h.held end as held,
    (s.unacknowledged * s.scale)::int8 as unacknowledged
from sample as s
cross join timed as t
cross join held as h;

-- name: oldest_due
-- For how long the oldest delivery has been due that nobody attempts, though its endpoint is enabled and not given a
-- rest by its breaker. A loose index scan steps from endpoint to endpoint as in `claim_due`, after a given one and at
-- most $3 of them, and looks at each one's first deliveries; and at the first that are parked, which `unpark` should
-- have seen.
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
-- How many endpoints are enabled with a closed breaker, enabled with an open one, and disabled; past $1 of the table's
-- pages reckoned from a sample of so many.
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
)
select (closed * scale)::int8 as closed, (open * scale)::int8 as open, (disabled * scale)::int8 as disabled
from sample;

-- name: server_connections
-- How many clients are connected to the server, and how many there may be who are no superusers. What others do is not
-- told to a role without pg_read_all_stats, but that they are connected is.
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
