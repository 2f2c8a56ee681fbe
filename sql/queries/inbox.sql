-- name: inbox_pending_desc
-- Return a page of pending events, newest first. The statement scans the primary key of `open`, which holds open rows
-- only, and examines at most 10,000 rows. An event has one row for each open delivery, so rows are grouped. Matching
-- events are then read up to $8 bytes as JSON and 10,000 open and ended deliveries. `attempts` is their sum. `offset 0`
-- makes PostgreSQL join deliveries event by event. A short page ends with a row without an event id: the position that
-- the scan has reached, with `walked` as the number of rows.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid: the position after which to read, $5 limit int,
-- $6 exact type text or null, $7 type prefix text or null, $8 most bytes int
-- gives: epoch int4, xid int8, event_id uuid, type text, payload bytea, dedup_id text, status text, attempts int4,
-- walked_event_id uuid, walked int4
with page as materialized (
    select x.epoch, x.xid, x.event_id
    from (
        select o.epoch, o.xid, o.event_id, o.acknowledged
        from relay.open as o
        where o.organization_id = $1::uuid
            and (o.epoch, o.xid, o.event_id) < ($2::int, $3::int8, $4::uuid)
        order by o.epoch desc, o.xid desc, o.event_id desc
        limit 10000
    ) as x
    cross join lateral (
        select
        from relay.events as e
        where e.organization_id = $1::uuid and e.id = x.event_id
            and ($6::text is null or e.type = $6::text)
            and ($7::text is null or starts_with(e.type, $7::text))
        limit 1
    ) as wanted
    where not x.acknowledged
    group by x.epoch, x.xid, x.event_id
    order by x.epoch desc, x.xid desc, x.event_id desc
    limit $5::int
),
kept as materialized (
    select p.*
    from (
        select
            p.epoch,
            p.xid,
            p.event_id,
            e.type,
            e.payload,
            e.dedup_id,
            row_number() over (order by p.epoch desc, p.xid desc, p.event_id desc) as place,
            sum(e.size) over (order by p.epoch desc, p.xid desc, p.event_id desc) as bytes
        from page as p
        cross join lateral (
            select
                e.type,
                e.payload,
                e.dedup_id,
                octet_length(e.payload) + 4 * octet_length(e.type) + 2 * coalesce(octet_length(e.dedup_id), 0) + 300
                as size
            from relay.events as e
            where e.organization_id = $1::uuid and e.id = p.event_id
            limit 1
        ) as e
    ) as p
    where p.bytes <= $8::int or p.place = 1
),
counted as materialized (
    select r.place, coalesce(sum(r.attempts), 0)::int as attempts
    from (
        select k.place, d.attempts, row_number() over (order by k.place) as row
        from (select k.* from kept as k order by k.place) as k
        left join lateral (
            select o.attempts
            from relay.open as o
            where o.organization_id = $1::uuid and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
            union all
            select d.attempts
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = k.event_id
            offset 0
        ) as d on true
        order by k.place
        limit 10000
    ) as r
    group by r.place
    having max(r.row) < 10000 or min(r.row) = 1
),
walked as materialized (
    select o.epoch, o.xid, o.event_id
    from relay.open as o
    where (select count(*) from page) < $5::int and (select count(*) from counted) = (select count(*) from page)
        and o.organization_id = $1::uuid
        and (o.epoch, o.xid, o.event_id) < ($2::int, $3::int8, $4::uuid)
    order by o.epoch desc, o.xid desc, o.event_id desc
    limit 10000
)
(
    select
        k.epoch,
        k.xid,
        k.event_id,
        k.type,
        k.payload,
        k.dedup_id,
        'pending' as status,
        c.attempts,
        null::uuid as walked_event_id,
        null::int as walked
    from kept as k
    inner join counted as c on c.place = k.place
    order by k.place
)
union all
(
    select w.epoch, w.xid, null, null, null, null, null, null, w.event_id, (select count(*) from walked)::int
    from walked as w
    order by w.epoch, w.xid, w.event_id
    limit 1
);

-- name: inbox_pending_asc
-- Return a page of pending events, oldest first, up to the horizon. Otherwise as `inbox_pending_desc`.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid: the position after which to read, $5 limit int,
-- $6 exact type text or null, $7 type prefix text or null, $8 most bytes int
-- gives: epoch int4, xid int8, event_id uuid, type text, payload bytea, dedup_id text, status text, attempts int4,
-- walked_event_id uuid, walked int4
with page as materialized (
    select x.epoch, x.xid, x.event_id
    from (
        select o.epoch, o.xid, o.event_id, o.acknowledged
        from relay.open as o
        where o.organization_id = $1::uuid
            and (o.epoch, o.xid, o.event_id) > ($2::int, $3::int8, $4::uuid)
            and (o.epoch, o.xid) < ((select epoch from relay.cell), relay.horizon())
        order by o.epoch, o.xid, o.event_id
        limit 10000
    ) as x
    cross join lateral (
        select
        from relay.events as e
        where e.organization_id = $1::uuid and e.id = x.event_id
            and ($6::text is null or e.type = $6::text)
            and ($7::text is null or starts_with(e.type, $7::text))
        limit 1
    ) as wanted
    where not x.acknowledged
    group by x.epoch, x.xid, x.event_id
    order by x.epoch, x.xid, x.event_id
    limit $5::int
),
kept as materialized (
    select p.*
    from (
        select
            p.epoch,
            p.xid,
            p.event_id,
            e.type,
            e.payload,
            e.dedup_id,
            row_number() over (order by p.epoch, p.xid, p.event_id) as place,
            sum(e.size) over (order by p.epoch, p.xid, p.event_id) as bytes
        from page as p
        cross join lateral (
            select
                e.type,
                e.payload,
                e.dedup_id,
                octet_length(e.payload) + 4 * octet_length(e.type) + 2 * coalesce(octet_length(e.dedup_id), 0) + 300
                as size
            from relay.events as e
            where e.organization_id = $1::uuid and e.id = p.event_id
            limit 1
        ) as e
    ) as p
    where p.bytes <= $8::int or p.place = 1
),
counted as materialized (
    select r.place, coalesce(sum(r.attempts), 0)::int as attempts
    from (
        select k.place, d.attempts, row_number() over (order by k.place) as row
        from (select k.* from kept as k order by k.place) as k
        left join lateral (
            select o.attempts
            from relay.open as o
            where o.organization_id = $1::uuid and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
            union all
            select d.attempts
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = k.event_id
            offset 0
        ) as d on true
        order by k.place
        limit 10000
    ) as r
    group by r.place
    having max(r.row) < 10000 or min(r.row) = 1
),
walked as materialized (
    select o.epoch, o.xid, o.event_id
    from relay.open as o
    where (select count(*) from page) < $5::int and (select count(*) from counted) = (select count(*) from page)
        and o.organization_id = $1::uuid
        and (o.epoch, o.xid, o.event_id) > ($2::int, $3::int8, $4::uuid)
        and (o.epoch, o.xid) < ((select epoch from relay.cell), relay.horizon())
    order by o.epoch, o.xid, o.event_id
    limit 10000
)
(
    select
        k.epoch,
        k.xid,
        k.event_id,
        k.type,
        k.payload,
        k.dedup_id,
        'pending' as status,
        c.attempts,
        null::uuid as walked_event_id,
        null::int as walked
    from kept as k
    inner join counted as c on c.place = k.place
    order by k.place
)
union all
(
    select w.epoch, w.xid, null, null, null, null, null, null, w.event_id, (select count(*) from walked)::int
    from walked as w
    order by w.epoch desc, w.xid desc, w.event_id desc
    limit 1
);

-- name: inbox_all_desc
-- Return a page of events of any status, or of status $8, newest first. The statement scans the index by position. It
-- examines at most 10,000 events, and at most 10,000 deliveries of those with a matching type and dedup_id. An event
-- whose deliveries are cut off at that limit moves to the next page, unless it is the first. `order by` in an aggregate
-- rules out hashing, which would read to the end even if the page fills up early. `offset 0` rules out a join that does
-- the same. The row without an event id is the position that the scan has reached, as in `inbox_pending_desc`. Bounds
-- on the id exclude whole partitions. $9 and $10 end the scan where the rest of the last partition is out of bounds.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid: the position after which to read, $5 limit int,
-- $6 exact type text or null, $7 type prefix text or null, $8 status text or null, $9 last epoch int,
-- $10 last xid int8, $11 since uuid or null, $12 until uuid or null, exclusive, $13 dedup_id text or null,
-- $14 endpoint_id uuid or null: select events with a delivery to it, open or ended, $15 most bytes int
-- gives: epoch int4, xid int8, event_id uuid, type text, payload bytea, dedup_id text, status text, attempts int4,
-- walked_event_id uuid, walked int4
with walk as not materialized (
    select e.epoch, e.xid, e.id, e.type, e.dedup_id
    from relay.events as e
    where e.organization_id = $1::uuid
        and (e.epoch, e.xid, e.id) < ($2::int, $3::int8, $4::uuid)
        and (e.epoch, e.xid) >= ($9::int, $10::int8)
        and ($11::uuid is null or e.id >= $11::uuid)
        and ($12::uuid is null or e.id < $12::uuid)
    order by e.epoch desc, e.xid desc, e.id desc
    limit 10000
),
met as not materialized (
    select
        r.epoch,
        r.xid,
        r.id,
        min(r.row) as first_row,
        max(r.row order by r.id) as last_row,
        bool_or(r.is_open) as is_open,
        bool_or(r.status = 'failed') as has_failed,
        bool_or(r.status = 'delivered') as is_delivered,
        bool_or(r.endpoint_id = $14::uuid) as is_sent_there,
        coalesce(sum(r.attempts), 0)::int as attempts
    from (
        select
            w.epoch,
            w.xid,
            w.id,
            d.endpoint_id,
            d.is_open,
            d.status,
            d.attempts,
            row_number() over (order by w.epoch desc, w.xid desc, w.id desc) as row
        from walk as w
        left join lateral (
            select o.endpoint_id, true as is_open, null::text as status, o.attempts
            from relay.open as o
            where o.organization_id = $1::uuid and o.epoch = w.epoch and o.xid = w.xid and o.event_id = w.id
            union all
            select d.endpoint_id, false, d.status, d.attempts
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = w.id
            offset 0
        ) as d on true
        where ($6::text is null or w.type = $6::text)
            and ($7::text is null or starts_with(w.type, $7::text))
            and ($13::text is null or w.dedup_id = $13::text)
        order by w.epoch desc, w.xid desc, w.id desc
        limit 10000
    ) as r
    group by r.epoch, r.xid, r.id
    order by r.epoch desc, r.xid desc, r.id desc
),
page as materialized (
    select m.epoch, m.xid, m.id, s.status, m.attempts
    from met as m
    cross join lateral (
        select
            case
                when (
                    select true
                    from relay.acknowledgements as a
                    where a.organization_id = $1::uuid and a.event_id = m.id
                    limit 1
                ) then 'delivered'
                when m.is_open then 'pending'
                when m.has_failed then 'failed'
                when m.is_delivered then 'delivered'
                else 'pending'
            end as status
    ) as s
    where (m.last_row < 10000 or m.first_row = 1)
        and ($8::text is null or s.status = $8::text)
        and ($14::uuid is null or m.is_sent_there)
    order by m.epoch desc, m.xid desc, m.id desc
    limit $5::int
),
kept as materialized (
    select p.*
    from (
        select
            p.*,
            e.type,
            e.payload,
            e.dedup_id,
            row_number() over (order by p.epoch desc, p.xid desc, p.id desc) as place,
            sum(e.size) over (order by p.epoch desc, p.xid desc, p.id desc) as bytes
        from page as p
        cross join lateral (
            select
                e.type,
                e.payload,
                e.dedup_id,
                octet_length(e.payload) + 4 * octet_length(e.type) + 2 * coalesce(octet_length(e.dedup_id), 0) + 300
                as size
            from relay.events as e
            where e.organization_id = $1::uuid and e.id = p.id
            limit 1
        ) as e
    ) as p
    where p.bytes <= $15::int or p.place = 1
),
short as materialized (
    select
        (select count(*) from page) < $5::int
        and (select count(*) from kept) = (select count(*) from page) as is_short
),
walked as materialized (
    select w.epoch, w.xid, w.id
    from walk as w
    where (select is_short from short)
),
counted as materialized (
    select m.epoch, m.xid, m.id, m.first_row, m.last_row
    from met as m
    where (select is_short from short)
),
cut as materialized (
    select exists (select from counted as c where c.last_row = 10000) as is_cut
)
(
    select
        p.epoch,
        p.xid,
        p.id as event_id,
        p.type,
        p.payload,
        p.dedup_id,
        p.status,
        p.attempts,
        null::uuid as walked_event_id,
        null::int as walked
    from kept as p
    order by p.epoch desc, p.xid desc, p.id desc
)
union all
(
    select w.epoch, w.xid, null, null, null, null, null, null, w.id, (select count(*) from walked)::int
    from walked as w
    where not (select is_cut from cut)
    order by w.epoch, w.xid, w.id
    limit 1
)
union all
(
    select c.epoch, c.xid, null, null, null, null, null, null, c.id, 10000
    from counted as c
    where (select is_cut from cut) and (c.last_row < 10000 or c.first_row = 1)
    order by c.last_row desc
    limit 1
);

-- name: inbox_all_asc
-- Return a page of events of any status, or of status $8, oldest first, up to the horizon. Otherwise as
-- `inbox_all_desc`.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid: the position after which to read, $5 limit int,
-- $6 exact type text or null, $7 type prefix text or null, $8 status text or null, $9 last epoch int,
-- $10 last xid int8, $11 since uuid or null, $12 until uuid or null, exclusive, $13 dedup_id text or null,
-- $14 endpoint_id uuid or null: select events with a delivery to it, open or ended, $15 most bytes int
-- gives: epoch int4, xid int8, event_id uuid, type text, payload bytea, dedup_id text, status text, attempts int4,
-- walked_event_id uuid, walked int4
with walk as not materialized (
    select e.epoch, e.xid, e.id, e.type, e.dedup_id
    from relay.events as e
    where e.organization_id = $1::uuid
        and (e.epoch, e.xid, e.id) > ($2::int, $3::int8, $4::uuid)
        and (e.epoch, e.xid) < ((select epoch from relay.cell), relay.horizon())
        and (e.epoch, e.xid) <= ($9::int, $10::int8)
        and ($11::uuid is null or e.id >= $11::uuid)
        and ($12::uuid is null or e.id < $12::uuid)
    order by e.epoch, e.xid, e.id
    limit 10000
),
met as not materialized (
    select
        r.epoch,
        r.xid,
        r.id,
        min(r.row) as first_row,
        max(r.row order by r.id) as last_row,
        bool_or(r.is_open) as is_open,
        bool_or(r.status = 'failed') as has_failed,
        bool_or(r.status = 'delivered') as is_delivered,
        bool_or(r.endpoint_id = $14::uuid) as is_sent_there,
        coalesce(sum(r.attempts), 0)::int as attempts
    from (
        select
            w.epoch,
            w.xid,
            w.id,
            d.endpoint_id,
            d.is_open,
            d.status,
            d.attempts,
            row_number() over (order by w.epoch, w.xid, w.id) as row
        from walk as w
        left join lateral (
            select o.endpoint_id, true as is_open, null::text as status, o.attempts
            from relay.open as o
            where o.organization_id = $1::uuid and o.epoch = w.epoch and o.xid = w.xid and o.event_id = w.id
            union all
            select d.endpoint_id, false, d.status, d.attempts
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = w.id
            offset 0
        ) as d on true
        where ($6::text is null or w.type = $6::text)
            and ($7::text is null or starts_with(w.type, $7::text))
            and ($13::text is null or w.dedup_id = $13::text)
        order by w.epoch, w.xid, w.id
        limit 10000
    ) as r
    group by r.epoch, r.xid, r.id
    order by r.epoch, r.xid, r.id
),
page as materialized (
    select m.epoch, m.xid, m.id, s.status, m.attempts
    from met as m
    cross join lateral (
        select
            case
                when (
                    select true
                    from relay.acknowledgements as a
                    where a.organization_id = $1::uuid and a.event_id = m.id
                    limit 1
                ) then 'delivered'
                when m.is_open then 'pending'
                when m.has_failed then 'failed'
                when m.is_delivered then 'delivered'
                else 'pending'
            end as status
    ) as s
    where (m.last_row < 10000 or m.first_row = 1)
        and ($8::text is null or s.status = $8::text)
        and ($14::uuid is null or m.is_sent_there)
    order by m.epoch, m.xid, m.id
    limit $5::int
),
kept as materialized (
    select p.*
    from (
        select
            p.*,
            e.type,
            e.payload,
            e.dedup_id,
            row_number() over (order by p.epoch, p.xid, p.id) as place,
            sum(e.size) over (order by p.epoch, p.xid, p.id) as bytes
        from page as p
        cross join lateral (
            select
                e.type,
                e.payload,
                e.dedup_id,
                octet_length(e.payload) + 4 * octet_length(e.type) + 2 * coalesce(octet_length(e.dedup_id), 0) + 300
                as size
            from relay.events as e
            where e.organization_id = $1::uuid and e.id = p.id
            limit 1
        ) as e
    ) as p
    where p.bytes <= $15::int or p.place = 1
),
short as materialized (
    select
        (select count(*) from page) < $5::int
        and (select count(*) from kept) = (select count(*) from page) as is_short
),
walked as materialized (
    select w.epoch, w.xid, w.id
    from walk as w
    where (select is_short from short)
),
counted as materialized (
    select m.epoch, m.xid, m.id, m.first_row, m.last_row
    from met as m
    where (select is_short from short)
),
cut as materialized (
    select exists (select from counted as c where c.last_row = 10000) as is_cut
)
(
    select
        p.epoch,
        p.xid,
        p.id as event_id,
        p.type,
        p.payload,
        p.dedup_id,
        p.status,
        p.attempts,
        null::uuid as walked_event_id,
        null::int as walked
    from kept as p
    order by p.epoch, p.xid, p.id
)
union all
(
    select w.epoch, w.xid, null, null, null, null, null, null, w.id, (select count(*) from walked)::int
    from walked as w
    where not (select is_cut from cut)
    order by w.epoch desc, w.xid desc, w.id desc
    limit 1
)
union all
(
    select c.epoch, c.xid, null, null, null, null, null, null, c.id, 10000
    from counted as c
    where (select is_cut from cut) and (c.last_row < 10000 or c.first_row = 1)
    order by c.last_row desc
    limit 1
);

-- name: positions_desc
-- Return the positions before one, newest first, of events of any status: a page without a filter. The statement scans
-- the index by position of every partition, and its plan is cached. `events_at` then reads the events by id.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid, $5 limit int
-- gives: epoch int4, xid int8, event_id uuid
select e.epoch, e.xid, e.id as event_id
from relay.events as e
where e.organization_id = $1::uuid
    and (e.epoch, e.xid, e.id) < ($2::int, $3::int8, $4::uuid)
order by e.epoch desc, e.xid desc, e.id desc
limit $5::int;

-- name: positions_asc
-- Return the positions after one, oldest first, up to the horizon. Otherwise as `positions_desc`.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid, $5 limit int
-- gives: epoch int4, xid int8, event_id uuid
select e.epoch, e.xid, e.id as event_id
from relay.events as e
where e.organization_id = $1::uuid
    and (e.epoch, e.xid, e.id) > ($2::int, $3::int8, $4::uuid)
    and (e.epoch, e.xid) < ((select epoch from relay.cell), relay.horizon())
order by e.epoch, e.xid, e.id
limit $5::int;

-- name: events_at
-- Return events by id, in the given order, up to $5 bytes as JSON and 10,000 deliveries. The least and the greatest id
-- exclude all partitions outside them.
-- $1 organization_id uuid, $2 event_id uuid[], $3 least uuid, $4 greatest uuid, $5 most bytes int
-- gives: epoch int4, xid int8, event_id uuid, type text, payload bytea, dedup_id text, status text, attempts int4
with kept as materialized (
    select p.*
    from (
        select
            w.place,
            e.epoch,
            e.xid,
            e.id,
            e.type,
            e.payload,
            e.dedup_id,
            sum(e.size) over (order by w.place) as bytes
        from unnest($2::uuid[]) with ordinality as w (event_id, place)
        cross join lateral (
            select
                e.epoch,
                e.xid,
                e.id,
                e.type,
                e.payload,
                e.dedup_id,
                octet_length(e.payload) + 4 * octet_length(e.type) + 2 * coalesce(octet_length(e.dedup_id), 0) + 300
                as size
            from relay.events as e
            where e.organization_id = $1::uuid and e.id = w.event_id and e.id >= $3::uuid and e.id <= $4::uuid
            limit 1
        ) as e
    ) as p
    where p.bytes <= $5::int or p.place = 1
),
counted as materialized (
    select
        r.place,
        bool_or(r.is_open) as is_open,
        bool_or(r.status = 'failed') as has_failed,
        bool_or(r.status = 'delivered') as is_delivered,
        coalesce(sum(r.attempts), 0)::int as attempts
    from (
        select k.place, d.is_open, d.status, d.attempts, row_number() over (order by k.place) as row
        from (select k.* from kept as k order by k.place) as k
        left join lateral (
            select true as is_open, null::text as status, o.attempts
            from relay.open as o
            where o.organization_id = $1::uuid and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.id
            union all
            select false, d.status, d.attempts
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = k.id
                and d.event_id >= $3::uuid and d.event_id <= $4::uuid
            offset 0
        ) as d on true
        order by k.place
        limit 10000
    ) as r
    group by r.place
    having max(r.row) < 10000 or min(r.row) = 1
)
select
    k.epoch,
    k.xid,
    k.id as event_id,
    k.type,
    k.payload,
    k.dedup_id,
    case
        when (
            select true
            from relay.acknowledgements as a
            where a.organization_id = $1::uuid and a.event_id = k.id
                and a.event_id >= $3::uuid and a.event_id <= $4::uuid
            limit 1
        ) then 'delivered'
        when c.is_open then 'pending'
        when c.has_failed then 'failed'
        when c.is_delivered then 'delivered'
        else 'pending'
    end as status,
    c.attempts
from kept as k
inner join counted as c on c.place = k.place
order by k.place;

-- name: position_bounds
-- Return the positions between which events with ids in a range lie. An event is committed soon after its id is made,
-- so these are the positions of the last event safely before the range and of the first event safely after it.
-- $1 organization_id uuid, $2 before uuid or null, $3 after uuid or null
-- gives: low_epoch int4, low_xid int8, high_epoch int4, high_xid int8
select
    coalesce(l.epoch, -1) as low_epoch,
    coalesce(l.xid, 0) as low_xid,
    coalesce(h.epoch, 2147483647) as high_epoch,
    coalesce(h.xid, 9223372036854775807) as high_xid
from (values (true)) as one (row)
left join lateral (
    select e.epoch, e.xid
    from relay.events as e
    where e.organization_id = $1::uuid and e.id < $2::uuid
    order by e.id desc
    limit 1
) as l on true
left join lateral (
    select e.epoch, e.xid
    from relay.events as e
    where e.organization_id = $1::uuid and e.id >= $3::uuid
    order by e.id
    limit 1
) as h on true;

-- name: holder_of_dedup_id
-- Return the newest event with a dedup_id according to the deduplication table, and the end of its window. No row:
-- retention has dropped the event or the key.
-- $1 organization_id uuid, $2 dedup_id text
-- gives: event_id uuid, expires_at timestamptz, epoch int4, xid int8
select d.event_id, d.expires_at, e.epoch, e.xid
from relay.dedup as d
cross join lateral (
    select e.epoch, e.xid
    from relay.events as e
    where e.organization_id = $1::uuid and e.id = d.event_id
    limit 1
) as e
where d.organization_id = $1::uuid and d.kind = 'd' and d.key = $2::text;

-- name: position_of_event
-- Return the position of an event in commit order.
-- $1 organization_id uuid, $2 event_id uuid
-- gives: epoch int4, xid int8
select e.epoch, e.xid
from relay.events as e
where e.organization_id = $1::uuid and e.id = $2::uuid;

-- name: event_by_id
-- Return an event with its status and the number of its deliveries and attempts, counting at most 10,000 deliveries.
-- Conditions use parameters instead of the row's columns where possible, so that planning excludes all partitions but
-- one of each table.
-- $1 organization_id uuid, $2 event_id uuid
-- gives: epoch int4, xid int8, id uuid, type text, payload bytea, dedup_id text, status text, attempts int4,
-- deliveries_total int4
with event as materialized (
    select e.epoch, e.xid, e.id, e.type, e.payload, e.dedup_id
    from relay.events as e
    where e.organization_id = $1::uuid and e.id = $2::uuid
),
counted as materialized (
    select
        bool_or(d.is_open) as is_open,
        bool_or(d.status = 'failed') as has_failed,
        bool_or(d.status = 'delivered') as is_delivered,
        coalesce(sum(d.attempts), 0)::int as attempts,
        (count(*) filter (where d.endpoint_id <> '00000000-0000-0000-0000-000000000000'))::int as deliveries
    from (
        select o.endpoint_id, true as is_open, null::text as status, o.attempts
        from event as e
        inner join relay.open as o
            on o.organization_id = $1::uuid and o.epoch = e.epoch and o.xid = e.xid and o.event_id = $2::uuid
        union all
        select d.endpoint_id, false, d.status, d.attempts
        from relay.deliveries as d
        where d.organization_id = $1::uuid and d.event_id = $2::uuid
        limit 10000
    ) as d
)
select
    e.epoch,
    e.xid,
    e.id,
    e.type,
    e.payload,
    e.dedup_id,
    case
        when (
            select true
            from relay.acknowledgements as a
            where a.organization_id = $1::uuid and a.event_id = $2::uuid
            limit 1
        ) then 'delivered'
        when c.is_open then 'pending'
        when c.has_failed then 'failed'
        when c.is_delivered then 'delivered'
        else 'pending'
    end as status,
    c.attempts,
    c.deliveries as deliveries_total
from event as e
cross join counted as c;

-- name: deliveries_of_event
-- Return the open and ended deliveries of an event, those to the newest endpoints first. An open delivery is held while
-- its endpoint is disabled.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid, $5 limit int
-- gives: endpoint_id uuid, status text, attempts int4, next_attempt_at timestamptz, last_error_class text
with found as materialized (
    (
        select o.endpoint_id, null::text as status, o.attempts, o.due_at, o.last_error_class
        from relay.open as o
        where o.organization_id = $1::uuid and o.epoch = $2::int and o.xid = $3::int8 and o.event_id = $4::uuid
            and o.endpoint_id <> '00000000-0000-0000-0000-000000000000'
        order by o.endpoint_id desc
        limit $5::int
    )
    union all
    (
        select d.endpoint_id, d.status, d.attempts, null, d.last_error_class
        from relay.deliveries as d
        where d.organization_id = $1::uuid and d.event_id = $4::uuid
        order by d.endpoint_id desc
        limit $5::int
    )
)
select
    f.endpoint_id,
    coalesce(f.status, case when f.due_at is null or not e.enabled then 'held' else 'pending' end) as status,
    f.attempts,
    case when e.enabled then f.due_at end as next_attempt_at,
    f.last_error_class
from found as f
left join lateral (
    select e.enabled
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.id = f.endpoint_id
    limit 1
) as e on true
order by f.endpoint_id desc
limit $5::int;

-- name: attempts_of_event
-- Return the newest attempts of some deliveries of an event: the last of each delivery first, then the second to last
-- of each, and so on.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid[], $4 most of each int
-- gives: endpoint_id uuid, number int4, at timestamptz, status_code int4, latency_ms int4, error_class text, response
-- bytea
select w.endpoint_id, a.number, a.at, a.status_code, a.latency_ms, a.error_class, a.response
from unnest($3::uuid[]) with ordinality as w (endpoint_id, place)
cross join lateral (
    select
        a.number,
        a.at,
        a.status_code,
        a.latency_ms,
        a.error_class,
        a.response,
        row_number() over (order by a.number desc) as age
    from relay.attempts as a
    where a.organization_id = $1::uuid and a.event_id = $2::uuid and a.endpoint_id = w.endpoint_id
    order by a.number desc
    limit $4::int
) as a
order by a.age, w.place;

-- name: attempts_of_delivery
-- Return a page of the attempts of a delivery, newest first.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid, $4 before number int, $5 limit int
-- gives: number int4, at timestamptz, status_code int4, latency_ms int4, error_class text, response bytea
select a.number, a.at, a.status_code, a.latency_ms, a.error_class, a.response
from relay.attempts as a
where a.organization_id = $1::uuid and a.event_id = $2::uuid and a.endpoint_id = $3::uuid and a.number < $4::int
order by a.number desc
limit $5::int;

-- name: acknowledge
-- Acknowledge events and end their open rows for the default endpoint and for the acknowledgement itself. Deliveries to
-- other endpoints go on, because one reader must not silence another team's endpoint. Returns the events that exist.
-- Acknowledging an event twice changes nothing. `moved`: rows in this statement's snapshot disappeared while it waited
-- for their locks, so there may be new ones that it has not seen: a reopened delivery, or a wait for the
-- acknowledgement alone. `waited`: the statement ended such a wait. If not, a delivery may have been reopened
-- concurrently, see `mark_acknowledged`. `cancelled`: the number of deliveries that it cancelled.
-- $1 organization_id uuid, $2 event_id uuid[]
-- gives: id uuid, moved bool, waited bool, cancelled int8
with wanted as materialized (
    select distinct w.event_id
    from unnest($2::uuid[]) as w (event_id)
),
known as materialized (
    select e.organization_id, e.epoch, e.xid, e.id
    from wanted as w
    cross join lateral (
        select e.organization_id, e.epoch, e.xid, e.id
        from relay.events as e
        where e.organization_id = $1::uuid and e.id = w.event_id
        limit 1
    ) as e
),
silenced as materialized (
    select e.id as endpoint_id
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.is_default
    union all
    select '00000000-0000-0000-0000-000000000000'
),
acknowledged as (
    insert into relay.acknowledgements (organization_id, event_id)
    select organization_id, id
    from known
    on conflict (organization_id, event_id) do nothing
),
locked as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from known as k
    inner join relay.open as o
        on o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.id
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
ended as (
    delete from relay.open as o
    using locked as k
    where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
        and o.endpoint_id = k.endpoint_id and o.endpoint_id in (select endpoint_id from silenced)
    returning o.organization_id, o.event_id, o.endpoint_id, o.attempts, o.last_error_class
),
marked as (
    update relay.open as o
    set acknowledged = true
    from locked as k
    where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
        and o.endpoint_id = k.endpoint_id and o.endpoint_id not in (select endpoint_id from silenced)
        and not o.acknowledged
),
cancelled as (
    insert into relay.deliveries (organization_id, event_id, endpoint_id, status, attempts, last_error_class)
    select organization_id, event_id, endpoint_id, 'cancelled', attempts, last_error_class
    from ended
    where endpoint_id <> '00000000-0000-0000-0000-000000000000'
    on conflict (organization_id, event_id, endpoint_id) do nothing
)
select
    k.id,
    coalesce(o.seen, 0) <> coalesce(l.locked, 0) as moved,
    coalesce(c.waited, false) as waited,
    coalesce(c.cancelled, 0) as cancelled
from known as k
left join (
    select l.event_id, count(*) as locked
    from locked as l
    group by l.event_id
) as l on l.event_id = k.id
left join (
    select
        e.event_id,
        count(*) filter (where e.endpoint_id <> '00000000-0000-0000-0000-000000000000') as cancelled,
        bool_or(e.endpoint_id = '00000000-0000-0000-0000-000000000000') as waited
    from ended as e
    group by e.event_id
) as c on c.event_id = k.id
cross join lateral (
    select count(*) as seen
    from relay.open as o
    where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.id
) as o;

-- name: mark_acknowledged
-- Mark the open rows of acknowledged events, and end those that wait for nothing else. If a delivery is opened,
-- reopened or discarded while its event is acknowledged, neither statement may see the other. Both therefore run this
-- one after their commit, and the later one sees the other.
-- $1 organization_id uuid, $2 event_id uuid[]
with known as materialized (
    select e.organization_id, e.epoch, e.xid, e.id
    from unnest($2::uuid[]) as w (event_id)
    cross join lateral (
        select e.organization_id, e.epoch, e.xid, e.id
        from relay.events as e
        where e.organization_id = $1::uuid and e.id = w.event_id
        limit 1
    ) as e
    where exists (
        select
        from relay.acknowledgements as a
        where a.organization_id = $1::uuid and a.event_id = w.event_id
    )
),
locked as materialized (
    select o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    from known as k
    inner join relay.open as o
        on o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.id
    where not o.acknowledged
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
ended as (
    delete from relay.open as o
    using locked as k
    where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
        and o.endpoint_id = k.endpoint_id and o.endpoint_id = '00000000-0000-0000-0000-000000000000'
)
update relay.open as o
set acknowledged = true
from locked as k
where o.organization_id = k.organization_id and o.epoch = k.epoch and o.xid = k.xid and o.event_id = k.event_id
    and o.endpoint_id = k.endpoint_id and o.endpoint_id <> '00000000-0000-0000-0000-000000000000';
