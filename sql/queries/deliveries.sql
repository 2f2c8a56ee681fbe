-- name: deliveries_open
-- A page of open deliveries, newest first, pending or held. It walks the primary key of `open` and examines 10,000 rows
-- at most. A last row with `walked`, of which only the place counts, says that the walk was cut off there.
-- $1 organization_id uuid, $2 epoch int, $3 xid int8, $4 event_id uuid, $5 endpoint_id uuid: the place after which to
-- read, $6 limit int, $7 status text, $8 last epoch int, $9 last xid int8, $10 since uuid or null, $11 until uuid or
-- null, exclusive, $12 endpoint_id uuid or null, $13 error_class text or null
-- gives: epoch int4, xid int8, event_id uuid, endpoint_id uuid, status text, attempts int4, next_attempt_at timestamptz,
-- last_error_class text, walked bool
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
-- A page of ended deliveries of one status, newest first. It walks the primary key of `deliveries`, or for the failed
-- ones the index that holds no others, and examines 10,000 rows at most. The last row as above.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid: the place after which to read, $4 limit int,
-- $5 status text, $6 since uuid or null, $7 until uuid or null, exclusive, $8 endpoint_id uuid or null,
-- $9 error_class text or null
-- gives: event_id uuid, endpoint_id uuid, status text, attempts int4, next_attempt_at timestamptz, last_error_class text,
-- walked bool
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
-- A page of deliveries in whatever state, by their event's id, newest first. It walks the primary key of `events` and
-- examines 10,000 rows at most, an event without deliveries being one. The last row as above.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid: the place after which to read, $4 limit int,
-- $5 since uuid or null, $6 until uuid or null, exclusive, $7 endpoint_id uuid or null, $8 error_class text or null
-- gives: event_id uuid, endpoint_id uuid, status text, attempts int4, next_attempt_at timestamptz, last_error_class text,
-- walked bool
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
-- The deliveries of the events with ids from one to another, of which there is one or next to none: a delivery's id
-- shares all but its last 62 bits with that of its event. At most 10,000 of them.
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

-- name: send_again
-- Send one event again: to the endpoint $3 if it has a delivery for it, or with a null to every endpoint that takes events
-- of its type. An ended delivery is opened again, its numbers going on and its schedule fresh; an open one gets a fresh
-- schedule, which for one on the wire begins with the end of that attempt; one that never was is opened. Where the
-- endpoint is disabled it is held. The row that waits for the acknowledgement alone goes once there is a real one.
-- Endpoints are locked, so that none is enabled,
-- disabled or deleted meanwhile, and then what is open, in the order of the primary key, as `acknowledge` does.
-- With an Idempotency-Key nothing is done unless the key is free; the answer is kept by the same statement. `steady` is
-- false where rows of this statement's snapshot went while their locks were waited for, as somebody else opened or ended
-- a delivery of this event: nothing was done, and it is to be tried again. `answer` is a JSON array of the deliveries as
-- they are now. The day of the event is known from $2: PostgreSQL 18 crashes where partitions are chosen by a joined value
-- in a statement that has waited for a lock.
-- $1 organization_id uuid, $2 event_id uuid, $3 endpoint_id uuid or null, $4 key text or null, $5 digest bytea or null,
-- $6 window_s float8
-- gives: known bool, steady bool, won bool, due int8, answer bytea
with event as materialized (
    select e.organization_id, e.epoch, e.xid, e.id, e.type
    from relay.events as e
    where e.organization_id = $1::uuid and e.id = $2::uuid
),
targets as materialized (
    select p.id as endpoint_id, p.bucket, p.enabled
    from event as e
    inner join relay.endpoints as p on p.organization_id = e.organization_id
    where p.id = $3::uuid or ($3::uuid is null and relay.subscribes(p.event_types, p.event_prefixes, e.type))
    order by p.id
    for share of p
),
opened_before as materialized (
    select o.endpoint_id, o.attempts, o.due_at, o.leased_until, o.last_error_class
    from event as e
    inner join relay.open as o
        on o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
    order by o.organization_id, o.epoch, o.xid, o.event_id, o.endpoint_id
    for update of o
),
ended_before as materialized (
    select d.endpoint_id, d.attempts, d.last_error_class
    from relay.deliveries as d
    where d.organization_id = $1::uuid and d.event_id = $2::uuid
    order by d.endpoint_id
    for update of d
),
still as materialized (
    select
        (select count(*) from opened_before) = (
            select count(*)
            from event as e
            inner join relay.open as o
                on o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
        )
        and (select count(*) from ended_before) = (
            select count(*)
            from relay.deliveries as d
            where d.organization_id = $1::uuid and d.event_id = $2::uuid
        ) as steady
),
states as materialized (
    select
        t.endpoint_id,
        t.bucket,
        t.enabled,
        o.endpoint_id is not null as is_open,
        coalesce(o.leased_until > now(), false) as is_leased,
        coalesce(o.attempts, d.attempts, 0) as attempts,
        coalesce(o.last_error_class, d.last_error_class) as last_error_class,
        case when o.leased_until > now() then o.due_at when t.enabled then now() end as due_at
    from targets as t
    left join opened_before as o on o.endpoint_id = t.endpoint_id
    left join ended_before as d on d.endpoint_id = t.endpoint_id
    where (select steady from still)
        and ($3::uuid is null or o.endpoint_id is not null or d.endpoint_id is not null)
),
answer as materialized (
    select
        convert_to(
            json_agg(
                json_build_object(
                    'endpoint_id', endpoint_id,
                    'status', case when due_at is null or not enabled then 'held' else 'pending' end,
                    'attempts', attempts,
                    'next_attempt_at', case when enabled then due_at end,
                    'last_error_class', last_error_class
                )
            )::text,
            'UTF8'
        ) as answer
    from states
),
won as (
    insert into relay.answers as a (organization_id, key, digest, answer, expires_at)
    select $1::uuid, $4::text, $5::bytea, answer, now() + $6::float8 * interval '1 second'
    from answer
    where $4::text is not null and answer is not null
    on conflict (organization_id, key) do update
    set digest = excluded.digest, answer = excluded.answer, expires_at = excluded.expires_at
    where a.expires_at <= now()
    returning key
),
going as materialized (
    select e.organization_id, e.epoch, e.xid, e.id as event_id, s.*
    from event as e
    cross join states as s
    where $4::text is null or exists (select from won)
),
acknowledged as materialized (
    select a.event_id
    from relay.acknowledgements as a
    where a.organization_id = $1::uuid and a.event_id = $2::uuid
),
refreshed as (
    update relay.open as o
    set
        attempts_before = o.attempts + case when g.is_leased then 1 else 0 end,
        due_at = g.due_at,
        bucket = greatest(o.bucket, -2 - o.bucket)
    from going as g
    where o.organization_id = g.organization_id and o.epoch = g.epoch and o.xid = g.xid and o.event_id = g.event_id
        and o.endpoint_id = g.endpoint_id and g.is_open
),
reopened as (
    delete from relay.deliveries as d
    using going as g
    where d.organization_id = $1::uuid and d.event_id = $2::uuid and d.endpoint_id = g.endpoint_id and not g.is_open
),
relieved as (
    delete from relay.open as o
    using event as e
    where o.organization_id = e.organization_id and o.epoch = e.epoch and o.xid = e.xid and o.event_id = e.id
        and o.endpoint_id = '00000000-0000-0000-0000-000000000000'
        and exists (select from going)
),
opened as (
    insert into relay.open (
        organization_id, epoch, xid, event_id, endpoint_id, bucket, acknowledged, attempts, attempts_before, due_at,
        last_error_class
    )
    select
        organization_id,
        epoch,
        xid,
        event_id,
        endpoint_id,
        bucket,
        exists (select from acknowledged),
        attempts,
        attempts,
        due_at,
        last_error_class
    from going
    where not is_open
)
select
    exists (select from event) as known,
    (select steady from still) as steady,
    exists (select from won) as won,
    (select count(*) from going where due_at is not null) as due,
    (select answer from answer) as answer;

-- name: answer_kept
-- What was answered to the first request with this Idempotency-Key.
-- $1 organization_id uuid, $2 key text
-- gives: digest bytea, answer bytea
select a.digest, a.answer
from relay.answers as a
where a.organization_id = $1::uuid and a.key = $2::text and a.expires_at > now();
