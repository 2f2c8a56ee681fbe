-- How processes shared buckets up to migration 0009c_process_leases: a release from before it may run beside this one.
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
