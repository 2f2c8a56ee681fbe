-- name: deliveries_open
-- Return a page of open deliveries, newest first, either pending or held. The statement scans the primary key of `open`
-- and examines at most 10,000 rows. A last row with `walked` is the place where the scan was cut off.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid,
-- $5 endpoint_id uuid: the place after which to read, $6 limit int, $7 status text, $8 last epoch int,
-- $9 last xid int8, $10 since uuid or null, $11 until uuid or null, exclusive, $12 endpoint_id uuid or null,
-- $13 error_class text or null
-- gives: epoch int4, xid int8, event_id uuid, endpoint_id uuid, status text, attempts int4,
-- next_attempt_at timestamptz, last_error_class text, walked bool
with walk as not materialized (
    select o.epoch, o.xid, o.event_id, o.endpoint_id, o.attempts, o.due_at, o.last_error_class
    from relay.open as o
    where o.organization_id = $1::uuid
        and (o.epoch, o.xid, o.event_id, o.endpoint_id) < ($2::int, $3::int8, $4::uuid, $5::uuid)
        and (o.epoch, o.xid) >= ($8::int, $9::int8)
    order by o.epoch desc, o.xid desc, o.event_id desc, o.endpoint_id desc
    limit 10000
),
page as materialized (
    select
        w.epoch,
        w.xid,
        w.event_id,
        w.endpoint_id,
        w.attempts,
        case when e.enabled then w.due_at end as next_attempt_at,
        w.last_error_class
    from walk as w
    left join lateral (
        select e.enabled
        from relay.endpoints as e
        where e.organization_id = $1::uuid and e.id = w.endpoint_id
        limit 1
    ) as e on true
    where w.endpoint_id <> '00000000-0000-0000-0000-000000000000'
        and case when w.due_at is null or not e.enabled then 'held' else 'pending' end = $7::text
        and ($10::uuid is null or w.event_id >= $10::uuid)
        and ($11::uuid is null or w.event_id < $11::uuid)
        and ($12::uuid is null or w.endpoint_id = $12::uuid)
        and ($13::text is null or w.last_error_class = $13::text)
    order by w.epoch desc, w.xid desc, w.event_id desc, w.endpoint_id desc
    limit $6::int
)
(
    select
        p.epoch,
        p.xid,
        p.event_id,
        p.endpoint_id,
        $7::text as status,
        p.attempts,
        p.next_attempt_at,
        p.last_error_class,
        false as walked
    from page as p
    order by p.epoch desc, p.xid desc, p.event_id desc, p.endpoint_id desc
)
union all
(
    select w.epoch, w.xid, w.event_id, w.endpoint_id, null, null, null, null, true
    from walk as w
    where (select count(*) from page) < $6::int
    order by w.epoch desc, w.xid desc, w.event_id desc, w.endpoint_id desc
    offset 9999
    limit 1
);

-- name: deliveries_ended
-- Return a page of ended deliveries with one status, newest first. The statement scans the primary key of `deliveries`,
-- or for failed deliveries their partial index, and examines at most 10,000 rows. `walked` as in `deliveries_open`.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid: the place after which to read, $4 limit int,
-- $5 status text, $6 since uuid or null, $7 until uuid or null, exclusive, $8 endpoint_id uuid or null,
-- $9 error_class text or null
-- gives: event_id uuid, endpoint_id uuid, status text, attempts int4, next_attempt_at timestamptz,
-- last_error_class text, walked bool
with walk as not materialized (
    select d.event_id, d.endpoint_id, d.status, d.attempts, d.last_error_class
    from relay.deliveries as d
    where d.organization_id = $1::uuid
        and (d.event_id, d.endpoint_id) < ($2::uuid, $3::uuid)
        and d.event_id <= $2::uuid
        and ($6::uuid is null or d.event_id >= $6::uuid)
        and ($7::uuid is null or d.event_id < $7::uuid)
        and ($5::text <> 'failed' or d.status = 'failed')
    order by d.event_id desc, d.endpoint_id desc
    limit 10000
),
page as materialized (
    select w.event_id, w.endpoint_id, w.status, w.attempts, w.last_error_class
    from walk as w
    where w.status = $5::text
        and ($8::uuid is null or w.endpoint_id = $8::uuid)
        and ($9::text is null or w.last_error_class = $9::text)
    order by w.event_id desc, w.endpoint_id desc
    limit $4::int
)
(
    select
        p.event_id,
        p.endpoint_id,
        p.status,
        p.attempts,
        null::timestamptz as next_attempt_at,
        p.last_error_class,
        false as walked
    from page as p
    order by p.event_id desc, p.endpoint_id desc
)
union all
(
    select w.event_id, w.endpoint_id, null, null, null, null, true
    from walk as w
    where (select count(*) from page) < $4::int
    order by w.event_id desc, w.endpoint_id desc
    offset 9999
    limit 1
);

-- name: deliveries_any
-- Return a page of deliveries of any status, by event id, newest first. The statement scans the primary key of `events`
-- and examines at most 10,000 rows. An event without deliveries is one row. `walked` as in `deliveries_open`.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid: the place after which to read, $4 limit int,
-- $5 since uuid or null, $6 until uuid or null, exclusive, $7 endpoint_id uuid or null, $8 error_class text or null
-- gives: event_id uuid, endpoint_id uuid, status text, attempts int4, next_attempt_at timestamptz,
-- last_error_class text, walked bool
with walk as not materialized (
    select e.id as event_id, d.endpoint_id, d.status, d.attempts, d.next_attempt_at, d.last_error_class
    from relay.events as e
    left join lateral (
        select
            o.endpoint_id,
            case when o.due_at is null or not p.enabled then 'held' else 'pending' end as status,
            o.attempts,
            case when p.enabled then o.due_at end as next_attempt_at,
            o.last_error_class
        from relay.open as o
        left join lateral (
            select p.enabled
            from relay.endpoints as p
            where p.organization_id = $1::uuid and p.id = o.endpoint_id
            limit 1
        ) as p on true
        where o.organization_id = $1::uuid and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
            and o.endpoint_id <> '00000000-0000-0000-0000-000000000000'
        union all
        select d.endpoint_id, d.status, d.attempts, null, d.last_error_class
        from relay.deliveries as d
        where d.organization_id = $1::uuid and d.event_id = e.id
    ) as d on true
    where e.organization_id = $1::uuid
        and e.id <= $2::uuid
        and (e.id < $2::uuid or d.endpoint_id < $3::uuid)
        and ($5::uuid is null or e.id >= $5::uuid)
        and ($6::uuid is null or e.id < $6::uuid)
    order by e.id desc, d.endpoint_id desc nulls last
    limit 10000
),
page as materialized (
    select w.event_id, w.endpoint_id, w.status, w.attempts, w.next_attempt_at, w.last_error_class
    from walk as w
    where w.endpoint_id is not null
        and ($7::uuid is null or w.endpoint_id = $7::uuid)
        and ($8::text is null or w.last_error_class = $8::text)
    order by w.event_id desc, w.endpoint_id desc
    limit $4::int
)
(
    select
        p.event_id,
        p.endpoint_id,
        p.status,
        p.attempts,
        p.next_attempt_at,
        p.last_error_class,
        false as walked
    from page as p
    order by p.event_id desc, p.endpoint_id desc
)
union all
(
    select
        w.event_id,
        coalesce(w.endpoint_id, '00000000-0000-0000-0000-000000000000'),
        null,
        null,
        null,
        null,
        true
    from walk as w
    where (select count(*) from page) < $4::int
    order by w.event_id desc, w.endpoint_id desc nulls last
    offset 9999
    limit 1
);

-- name: deliveries_near
-- Return at most 10,000 deliveries of the events with ids in a range. A delivery's id shares all but its last 62 bits
-- with its event's id, so the range holds one event and hardly ever a second.
-- $1 organization_id uuid, $2 least event_id uuid, $3 greatest event_id uuid
-- gives: event_id uuid, endpoint_id uuid
select e.id as event_id, d.endpoint_id
from relay.events as e
cross join lateral (
    select o.endpoint_id
    from relay.open as o
    where o.organization_id = $1::uuid and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
    union all
    select d.endpoint_id
    from relay.deliveries as d
    where d.organization_id = $1::uuid and d.event_id = e.id
) as d
where e.organization_id = $1::uuid and e.id between $2::uuid and $3::uuid
limit 10000;
