-- name: stats_of_events
-- Count the events accepted since an id and how many of them are delivered or failed, count all pending events, and
-- find the oldest. The statement reads at most the newest $3 rows of each index. If there are more, the count of
-- pending events stops there, and the other counts begin at `since`, from which on all rows were read. At that edge the
-- order of ids and the order of commits may differ by some events. An event that is not acknowledged always has an open
-- row, or a delivered or failed delivery. An event that is neither pending nor failed is therefore delivered, and no
-- row of `deliveries` has to be read for it. There are at most as many acknowledgements as events, so none after the
-- edge is missing.
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
-- Return each endpoint and consumer with its health, the success rate of the newest $3 attempts since an id, and the
-- number of its open deliveries, each counted up to an equal share of $4. An endpoint belongs to one organization, so
-- its id suffices to find its rows.
-- $1 organization_id uuid, $2 since uuid, $3 most attempts int, $4 most open int
-- gives: endpoint_id uuid, consumer text, enabled bool, broken_since timestamptz, success_rate float8, pending int8,
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
    case when e.kind = 'consumer' then e.name end as consumer,
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
