-- name: share_buckets
-- Renew the lease of a delivery process, return runs, take wanted runs that are free, and read the other processes.
-- Each process does this every two seconds. Its lease is one row, by which it holds all of its runs. The row is written
-- once three eighths of the lease have passed, or when its contents change. `lives` is false if the lease had expired:
-- then the process holds nothing.
-- A run whose owner's lease has expired is taken only after this statement has ended that lease, under a lock on the
-- owner's row. So an owner that renews at this moment either commits first and keeps its runs, or sees that it has lost
-- them. A run is changed only if it still matches the snapshot. Runs of the previous release have leases of their own.
-- Leaving processes do not count when shares are computed. Rows that were not renewed for an hour are deleted.
-- Runs are locked in order, and the statement never waits for another process's row. A run that is free in the snapshot
-- was returned before it, so the endpoints that its owner still had in flight are in the same snapshot. `free_in_s` is
-- the time until the next lease on a wanted run expires. `far_ids` are processes whose leases end too late to be valid,
-- written while the clock was ahead. Those unchanged for the length of a lease ($8, $9) count as expired. `orphaned`
-- are runs just taken whose owner died: its claims on them may be taken at once.
-- $1 process_id uuid, $2 wanted int2[], $3 given_back int2[], $4 lease_s float8, $5 alive_s float8: the time for which
-- a silent process counts, $6 leaves bool, $7 on_wire uuid[]: endpoints in flight in runs that it no longer holds,
-- $8 stuck process_id uuid[], $9 stuck leased_until timestamptz[]
-- gives: lives bool, renewed bool, process_ids uuid[], held int2[], orphaned int2[], on_wire uuid[], free_in_s float8,
-- far_ids uuid[], far_until timestamptz[]
with clock as materialized (
    select
        now() as at,
        $4::float8 * interval '1 second' as lease,
        $5::float8 * interval '1 second' as alive
),
present as materialized (
    select
        p.id,
        p.leased_until not between c.at + c.lease * 5 / 8 and c.at + c.lease
        or p.leaves <> $6::bool
        or p.on_wire <> $7::uuid[] as is_due
    from relay.processes as p
    cross join clock as c
    where p.id = $1::uuid and p.leased_until > c.at
),
renewed as (
    update relay.processes as p
    set seen_at = c.at, leased_until = c.at + c.lease, leaves = $6::bool, on_wire = $7::uuid[]
    from present as w
    cross join clock as c
    where p.id = w.id and w.is_due and p.leased_until > c.at
    returning p.id
),
living as materialized (
    select id from renewed
    union all
    select id from present where not is_due
),
silent as materialized (
    select p.id
    from relay.processes as p
    cross join clock as c
    where p.id <> $1::uuid and p.seen_at < c.at - interval '1 hour'
    for update of p skip locked
),
forgotten as (
    delete from relay.processes as p
    using silent as s
    where p.id = s.id
),
others as materialized (
    select p.id, p.leaves, p.on_wire, p.seen_at, p.leased_until
    from relay.processes as p
    where p.kind = 'deliver' and p.id <> $1::uuid
),
sharing as materialized (
    select o.id
    from others as o
    cross join clock as c
    where not o.leaves and o.seen_at between c.at - c.alive and c.at + c.alive
        and (o.leased_until is null or o.leased_until > c.at)
    union all
    select l.id
    from living as l
    where not $6::bool
),
runs as materialized (
    select b.first_bucket, b.process_id, b.leased_until
    from relay.bucket_leases as b
),
dead as materialized (
    select p.id
    from relay.processes as p
    cross join clock as c
    where p.id in (
        select r.process_id from runs as r where r.first_bucket = any($2::int2[]) and r.process_id <> $1::uuid
    )
        and (
            p.leased_until <= c.at
            or (p.id, p.leased_until) in (select * from unnest($8::uuid[], $9::timestamptz[]))
        )
        and exists (select from living)
    for update of p skip locked
),
ended as (
    update relay.processes as p
    set leased_until = '-infinity'
    from dead as d
    where p.id = d.id and p.leased_until > '-infinity'
),
changing as materialized (
    select b.first_bucket, r.is_given_back
    from (
        select r.*, true as is_given_back
        from runs as r
        where r.process_id = $1::uuid and r.first_bucket = any($3::int2[])
        union all
        select r.*, false
        from runs as r
        cross join clock as c
        where r.first_bucket = any($2::int2[])
            and r.process_id is distinct from $1::uuid
            and (r.leased_until <= c.at or r.leased_until > c.at + interval '5 minutes')
            and exists (select from living)
            and not exists (
                select
                from others as o
                where o.id = r.process_id and o.leased_until is not null and o.id not in (select d.id from dead as d)
            )
    ) as r
    inner join relay.bucket_leases as b on b.first_bucket = r.first_bucket
    where b.process_id is not distinct from r.process_id and b.leased_until = r.leased_until
    order by b.first_bucket
    for update of b
),
changed as (
    update relay.bucket_leases as b
    set process_id = case when not g.is_given_back then $1::uuid end, leased_until = '-infinity'
    from changing as g
    where b.first_bucket = g.first_bucket
    returning b.first_bucket, g.is_given_back
)
select
    exists (select from living) as lives,
    exists (select from renewed) as renewed,
    array(select s.id from sharing as s order by s.id) as process_ids,
    array(
        select r.first_bucket
        from runs as r
        where r.process_id = $1::uuid and not r.first_bucket = any($3::int2[]) and exists (select from living)
        union all
        select g.first_bucket
        from changed as g
        where not g.is_given_back
        order by first_bucket
    ) as held,
    array(
        select g.first_bucket
        from changed as g
        inner join runs as r on r.first_bucket = g.first_bucket
        where not g.is_given_back and r.process_id in (select d.id from dead as d)
    ) as orphaned,
    array(
        select unnest(o.on_wire)
        from others as o
        cross join clock as c
        where o.seen_at between c.at - c.lease and c.at + c.lease
    ) as on_wire,
    (
        select extract(epoch from min(coalesce(o.leased_until, r.leased_until)) - min(c.at))::float8
        from runs as r
        cross join clock as c
        inner join others as o on o.id = r.process_id
        where r.first_bucket = any($2::int2[]) and coalesce(o.leased_until, r.leased_until) > c.at
    ) as free_in_s,
    array(
        select o.id from others as o cross join clock as c where o.leased_until > c.at + c.lease order by o.id
    ) as far_ids,
    array(
        select o.leased_until from others as o cross join clock as c where o.leased_until > c.at + c.lease order by o.id
    ) as far_until;

-- name: process_gone
-- Delete the row of a process that has left.
-- $1 id uuid
delete from relay.processes
where id = $1::uuid;

-- name: join_sharing
-- Insert a delivery process. It gets a new id each time, also after its lease has expired, so that it cannot be
-- mistaken for the process whose runs another has taken.
-- $1 process_id uuid, $2 leaves bool, $3 on_wire uuid[], $4 lease_s float8
insert into relay.processes (id, kind, leaves, on_wire, leased_until)
values ($1::uuid, 'deliver', $2::bool, $3::uuid[], now() + $4::float8 * interval '1 second')
on conflict (id) do nothing;
