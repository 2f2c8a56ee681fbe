-- name: share_buckets
-- All that a delivery process says and asks about buckets, every two seconds: it lives, what it holds it keeps, what it
-- gives back is free, and what it wants it takes where nobody's lease runs. Who leaves counts no more when shares are
-- made. Processes that have not said for an hour that they live are forgotten. Runs are locked in order, so that two
-- processes never wait for each other. A run that is free in our snapshot was given back before it, so what its holder
-- still had on the wire there is in the same snapshot. `free_in_s` is when the next lease runs out of what it wants.
-- $1 process_id uuid, $2 wanted int2[], $3 given_back int2[], $4 lease_s float8, $5 alive_s float8: how long a process
-- counts that says nothing, $6 leaves bool, $7 on_wire uuid[]: endpoints with something in flight in runs that it holds
-- no more
-- gives: process_ids uuid[], held int2[], on_wire uuid[], free_in_s float8
with present as (
    insert into relay.processes (id, kind, leaves, on_wire)
    values ($1::uuid, 'deliver', $6::bool, $7::uuid[])
    on conflict (id) do update
    set seen_at = now(), leaves = excluded.leaves, on_wire = excluded.on_wire
),
silent as materialized (
    select id
    from relay.processes
    where id <> $1::uuid and seen_at < now() - interval '1 hour'
    for update skip locked
),
forgotten as (
    delete from relay.processes as p
    using silent as s
    where p.id = s.id
),
others as materialized (
    select id, leaves, on_wire, seen_at
    from relay.processes
    where kind = 'deliver' and id <> $1::uuid
),
sharing as materialized (
    select id
    from others
    where not leaves and seen_at > now() - $5::float8 * interval '1 second'
    union all
    select $1::uuid
    where not $6::bool
),
ours as materialized (
    select first_bucket, first_bucket = any($3::int2[]) as given_back
    from relay.bucket_leases
    where process_id = $1::uuid or (first_bucket = any($2::int2[]) and leased_until <= now())
    order by first_bucket
    for update
),
kept as (
    update relay.bucket_leases as b
    set
        process_id = case when o.given_back then null else $1::uuid end,
        leased_until = case when o.given_back then '-infinity' else now() + $4::float8 * interval '1 second' end
    from ours as o
    where b.first_bucket = o.first_bucket
    returning b.first_bucket, o.given_back
)
select
    array(select id from sharing order by id) as process_ids,
    array(select first_bucket from kept where not given_back order by first_bucket) as held,
    array(
        select unnest(on_wire)
        from others
        where seen_at > now() - $4::float8 * interval '1 second'
    ) as on_wire,
    (
        select extract(epoch from min(leased_until) - now())::float8
        from relay.bucket_leases
        where first_bucket = any($2::int2[]) and process_id <> $1::uuid and leased_until > now()
    ) as free_in_s;

-- name: process_gone
-- This process has left.
-- $1 id uuid
delete from relay.processes
where id = $1::uuid;
