-- name: stats_of_events
-- How many events were accepted since an id, and how many of them are delivered or failed by now; how many wait at all,
-- and the first of those. It reads no more than the newest $3 rows of each index. Where there are more, the count of
-- what waits stops there, and the others begin at `since`, from which on all rows were read; at that edge the orders of
-- ids and commits may differ by some events. An event that is not acknowledged always has an open row, or a delivery
-- that has been delivered or failed: so one that neither waits nor failed is delivered, and no delivery's row is
-- fetched for it. Of acknowledgements there are no more than events, so none since the edge is missing.
-- $1 organization_id uuid, $2 since uuid, $3 most int
-- gives: since uuid, accepted int8, delivered int8, failed int8, pending int8, oldest_pending uuid, pending_capped bool
with accepted as materialized (
    select e.id
    from relay.events as e
    where e.organization_id = $1::uuid and e.id >= $2::uuid
    order by e.id desc
    limit $3::int
),
waiting as materialized (
    select o.event_id, o.acknowledged
    from relay.open as o
    where o.organization_id = $1::uuid
    order by o.epoch desc, o.xid desc, o.event_id desc, o.endpoint_id desc
    limit $3::int
),
dead as materialized (
    select d.event_id
    from relay.deliveries as d
    where d.organization_id = $1::uuid and d.event_id >= $2::uuid and d.status = 'failed'
    order by d.event_id desc, d.endpoint_id desc
    limit $3::int
),
edge as materialized (
    select greatest(
        $2::uuid,
        (select a.id from accepted as a offset $3::int - 1 limit 1),
        (select d.event_id from dead as d offset $3::int - 1 limit 1),
        (
            select w.event_id
            from waiting as w
            where (select count(*) from waiting) = $3::int
            order by w.event_id
            limit 1
        )
    ) as since
),
acknowledged as materialized (
    select a.event_id
    from relay.acknowledgements as a
    where a.organization_id = $1::uuid and a.event_id >= $2::uuid
    order by a.event_id desc
    limit $3::int
),
failed as materialized (
    select d.event_id
    from dead as d
    where d.event_id >= (select since from edge)
    except
    (
        select a.event_id
        from acknowledged as a
        union all
        select w.event_id
        from waiting as w
    )
),
pending as materialized (
    select distinct w.event_id
    from waiting as w
    where not w.acknowledged
),
counts as materialized (
    select
        (select count(*) from accepted as a where a.id >= e.since) as accepted,
        (select count(*) from failed) as failed,
        (select count(*) from pending) as pending,
        (select count(*) from pending as p where p.event_id >= e.since) as accepted_pending,
        e.since
    from edge as e
)
select
    c.since,
    c.accepted,
    greatest(c.accepted - c.accepted_pending - c.failed, 0) as delivered,
    c.failed,
    c.pending,
    (
        select o.event_id
        from (
            select o.event_id, o.acknowledged
            from relay.open as o
            where o.organization_id = $1::uuid
            order by o.epoch, o.xid, o.event_id, o.endpoint_id
            limit $3::int
        ) as o
        where not o.acknowledged
        limit 1
    ) as oldest_pending,
    (select count(*) from waiting) = $3::int as pending_capped
from counts as c;

-- name: stats_of_endpoints
-- Each endpoint with its health, the share of attempts that succeeded among the newest $3 since an id, and how many
-- deliveries are open for it: counted to its share of $4. An endpoint is one organization's, so its id finds its rows.
-- $1 organization_id uuid, $2 since uuid, $3 most attempts int, $4 most open int
-- gives: endpoint_id uuid, enabled bool, broken_since timestamptz, success_rate float8, pending int8,
-- success_rate_capped bool, pending_capped bool
with fair as materialized (
    select greatest($4::int / greatest(count(*), 1), 1) as share
    from relay.endpoints as e
    where e.organization_id = $1::uuid
),
tried as materialized (
    select a.endpoint_id, a.error_class
    from relay.attempts as a
    where a.organization_id = $1::uuid and a.event_id >= $2::uuid
    order by a.event_id desc, a.endpoint_id desc, a.number desc
    limit $3::int
),
rated as materialized (
    select t.endpoint_id, count(*) filter (where t.error_class is null)::float8 / count(*) as success_rate
    from tried as t
    group by t.endpoint_id
)
select
    e.id as endpoint_id,
    e.enabled,
    e.broken_since,
    r.success_rate,
    due.rows + held.rows as pending,
    (select count(*) from tried) = $3::int as success_rate_capped,
    greatest(due.rows, held.rows) = (select share from fair) as pending_capped
from relay.endpoints as e
left join rated as r on r.endpoint_id = e.id
cross join lateral (
    select count(*) as rows
    from (
        select
        from relay.open as o
        where o.bucket in (e.bucket, (-2 - e.bucket)::int2) and o.endpoint_id = e.id and o.due_at is not null
        limit (select share from fair)
    ) as o
) as due
cross join lateral (
    select count(*) as rows
    from (
        select
        from relay.open as o
        where o.organization_id = $1::uuid and o.endpoint_id = e.id and o.due_at is null
            and o.endpoint_id <> '00000000-0000-0000-0000-000000000000'
        limit (select share from fair)
    ) as o
) as held
where e.organization_id = $1::uuid
order by e.id desc;
