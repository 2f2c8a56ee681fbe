-- name: set_default_endpoint
-- Set the URL of the organization's default endpoint, creating the endpoint with its secret the first time. The secret
-- stays when the URL changes. A different URL enables an endpoint that relay disabled, and a job releases its held
-- deliveries. An endpoint that its owner disabled stays disabled. Events accepted earlier that wait for an
-- acknowledgement keep waiting. No row: the endpoint would exceed the limit. The organization is locked, so that
-- concurrent requests cannot exceed the limit.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 bucket int2, $4 url text, $5 secret_seal bytea,
-- $6 most endpoints int, $7 switch_job_id uuid
-- gives: id uuid, secret_seal bytea, is_released bool
with counted as materialized (
    select
        o.endpoints < $6::int
        or exists (select from relay.endpoints as e where e.organization_id = $1::uuid and e.is_default) as room
    from relay.organizations as o
    where o.id = $1::uuid
    for update of o
),
before as materialized (
    select e.id, e.enabled
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.is_default
    for update
),
changed as (
    insert into relay.endpoints as e (organization_id, id, bucket, url, secret_seal, is_default)
    select $1::uuid, $2::uuid, $3::int2, $4::text, $5::bytea, true
    from counted as c
    left join before as b on true
    where c.room
    on conflict (organization_id) where is_default do update
    set
        url = excluded.url,
        enabled = e.enabled or (e.disabled_reason is not null and e.url <> excluded.url),
        disabled_reason = case when e.url = excluded.url then e.disabled_reason end,
        disabled_at = case when e.url = excluded.url or e.disabled_reason is null then e.disabled_at end,
        failing_since = case when e.url = excluded.url then e.failing_since end,
        broken_since = case when e.url = excluded.url then e.broken_since end,
        version = e.version + 1,
        updated_at = excluded.updated_at
    returning e.id, e.secret_seal, e.enabled
),
released as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id)
    select $1::uuid, $7::uuid, 'release', c.id
    from changed as c
    inner join before as b on b.id = c.id
    where c.enabled and not b.enabled
    returning id
)
select c.id, c.secret_seal, exists (select from released) as is_released
from changed as c;

-- name: create_endpoint
-- Create an endpoint, with a catch-up job and a stored response if requested. No row: the organization has reached its
-- limit of endpoints or would exceed its limit of filter bytes, or the Idempotency-Key was used before, see
-- `answer_kept`. The organization is locked, so that concurrent requests cannot exceed a limit.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 bucket int2, $4 url text, $5 description text,
-- $6 event_types text[], $7 event_prefixes text[], $8 enabled bool, $9 header_names text[], $10 headers_seal bytea,
-- $11 rate_limit_per_second int, $12 max_in_flight int, $13 timeout_s float8, $14 retry_schedule float8[],
-- $15 signature text, $16 secret_seal bytea, $17 public_key text, $18 catch_up_job_id uuid or null, $19 since uuid,
-- $20 until uuid, $21 idempotency key text or null, $22 digest bytea, $23 answer bytea, $24 window_s float8,
-- $25 most endpoints int, $26 most filter_bytes int
-- gives: id uuid, url text, description text, event_types text[], header_names text[],
-- enabled bool, rate_limit_per_second int4, max_in_flight int4, timeout_s float8, retry_schedule float8[],
-- signature text, public_key text, is_default bool, disabled_reason text, disabled_at timestamptz,
-- failing_since timestamptz, broken_since timestamptz, created_at timestamptz, updated_at timestamptz
with counted as materialized (
    select
        o.endpoints < $25::int
        and (cardinality($6::text[]) = 0 or o.filter_bytes + relay.filter_bytes($6::text[]) <= $26::int) as room
    from relay.organizations as o
    where o.id = $1::uuid
    for update
),
answered as (
    insert into relay.answers as a (organization_id, key, digest, answer, expires_at)
    select $1::uuid, $21::text, $22::bytea, $23::bytea, now() + $24::float8 * interval '1 second'
    from counted
    where room and $21::text is not null
    on conflict (organization_id, key) do update
    set digest = excluded.digest, answer = excluded.answer, expires_at = excluded.expires_at
    where a.expires_at <= now()
    returning a.key
),
made as (
    insert into relay.endpoints as e (
        organization_id, id, bucket, url, description, event_types, event_prefixes, enabled, disabled_at, header_names,
        headers_seal, rate_limit_per_second, max_in_flight, timeout_s, retry_schedule, signature, secret_seal,
        public_key
    )
    select
        $1::uuid, $2::uuid, $3::int2, $4::text, $5::text, $6::text[], $7::text[], $8::bool,
        case when not $8::bool then now() end, coalesce($9::text[], '{}'), $10::bytea, $11::int, $12::int, $13::float8,
        $14::float8[], $15::text, $16::bytea, $17::text
    from counted
    where room and ($21::text is null or exists (select from answered))
    returning
        e.id, e.url, e.description, e.event_types, e.header_names, e.enabled,
        e.rate_limit_per_second, e.max_in_flight, e.timeout_s, e.retry_schedule, e.signature, e.public_key,
        e.is_default, e.disabled_reason, e.disabled_at, e.failing_since, e.broken_since, e.created_at, e.updated_at
),
catching_up as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id, since, until)
    select $1::uuid, $18::uuid, 'catch_up', id, $19::uuid, $20::uuid
    from made
    where $18::uuid is not null
)
select *
from made;

-- name: change_endpoint
-- Change the given members of an endpoint. Disabling or enabling leaves its deliveries to a job, which this statement
-- creates, so that neither exists without the other. Enabling also resets its health. A different URL enables an
-- endpoint that relay disabled, unless the request says otherwise. No row: the endpoint does not exist, its filters
-- grow beyond the organization's limit, or the Idempotency-Key was used before, see `answer_kept`. When filters change,
-- the organization is locked first. `coalesce` serves members that cannot be null. For the others $3 tells a given null
-- from an absent member.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 members text[] that were given, $4 url text, $5 description text,
-- $6 event_types text[], $7 event_prefixes text[], $8 enabled bool, $9 header_names text[], $10 headers_seal bytea,
-- $11 rate_limit_per_second int, $12 max_in_flight int, $13 timeout_s float8, $14 retry_schedule float8[],
-- $15 switch_job_id uuid, $16 catch_up_job_id uuid or null, $17 since uuid, $18 until uuid,
-- $19 idempotency key text or null, $20 digest bytea, $21 answer bytea, $22 window_s float8, $23 most filter_bytes int
-- gives: id uuid, url text, description text, event_types text[], header_names text[],
-- enabled bool, rate_limit_per_second int4, max_in_flight int4, timeout_s float8, retry_schedule float8[],
-- signature text, public_key text, is_default bool, disabled_reason text, disabled_at timestamptz,
-- failing_since timestamptz, broken_since timestamptz, created_at timestamptz, updated_at timestamptz
with room as materialized (
    select o.filter_bytes
    from relay.organizations as o
    where o.id = $1::uuid and $6::text[] is not null
    for update
),
found as materialized (
    select
        e.id,
        e.enabled,
        coalesce(
            $8::bool, e.enabled or coalesce(e.disabled_reason is not null and $4::text <> e.url, false)
        ) as is_to_be_enabled,
        $6::text[] is null
        or (select filter_bytes from room) + relay.filter_bytes($6::text[]) - relay.filter_bytes(e.event_types)
        <= $23::int
        or relay.filter_bytes($6::text[]) <= relay.filter_bytes(e.event_types) as fits
    from relay.endpoints as e
    where e.organization_id = $1::uuid and e.id = $2::uuid and e.kind = 'endpoint'
    for update of e
),
answered as (
    insert into relay.answers as a (organization_id, key, digest, answer, expires_at)
    select $1::uuid, $19::text, $20::bytea, $21::bytea, now() + $22::float8 * interval '1 second'
    from found
    where fits and $19::text is not null
    on conflict (organization_id, key) do update
    set digest = excluded.digest, answer = excluded.answer, expires_at = excluded.expires_at
    where a.expires_at <= now()
    returning a.key
),
changed as (
    update relay.endpoints as e
    set url = coalesce($4::text, e.url),
        description = coalesce($5::text, e.description),
        event_types = coalesce($6::text[], e.event_types),
        event_prefixes = coalesce($7::text[], e.event_prefixes),
        enabled = f.is_to_be_enabled,
        header_names = coalesce($9::text[], e.header_names),
        headers_seal = case when 'headers' = any($3::text[]) then $10::bytea else e.headers_seal end,
        rate_limit_per_second = case
            when 'rate_limit_per_second' = any($3::text[]) then $11::int else e.rate_limit_per_second
        end,
        max_in_flight = case when 'max_in_flight' = any($3::text[]) then $12::int else e.max_in_flight end,
        timeout_s = case when 'timeout_s' = any($3::text[]) then $13::float8 else e.timeout_s end,
        retry_schedule = case when 'retry_schedule' = any($3::text[]) then $14::float8[] else e.retry_schedule end,
        disabled_reason = case when f.is_to_be_enabled then null else e.disabled_reason end,
        disabled_at = case when f.is_to_be_enabled then null when f.enabled then now() else e.disabled_at end,
        failing_since = case
            when (f.is_to_be_enabled and not f.enabled) or $4::text <> e.url then null else e.failing_since
        end,
        broken_since = case
            when (f.is_to_be_enabled and not f.enabled) or $4::text <> e.url then null else e.broken_since
        end,
        version = e.version + 1,
        updated_at = now()
    from found as f
    where e.organization_id = $1::uuid
        and e.id = f.id
        and f.fits
        and ($19::text is null or exists (select from answered))
    returning
        e.id, e.url, e.description, e.event_types, e.header_names, e.enabled,
        e.rate_limit_per_second, e.max_in_flight, e.timeout_s, e.retry_schedule, e.signature, e.public_key,
        e.is_default, e.disabled_reason, e.disabled_at, e.failing_since, e.broken_since, e.created_at, e.updated_at
),
switched as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id)
    select $1::uuid, $15::uuid, case when c.enabled then 'release' else 'hold' end, c.id
    from changed as c
    inner join found as f on f.id = c.id
    where c.enabled <> f.enabled
),
catching_up as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id, since, until)
    select $1::uuid, $16::uuid, 'catch_up', id, $17::uuid, $18::uuid
    from changed
    where $16::uuid is not null
)
select *
from changed;

-- name: endpoint_by_id
-- Return an endpoint without its secrets. Consumers, which are rows of the same table, have statements of their own.
-- $1 organization_id uuid, $2 endpoint_id uuid
-- gives: id uuid, url text, description text, event_types text[], header_names text[],
-- enabled bool, rate_limit_per_second int4, max_in_flight int4, timeout_s float8, retry_schedule float8[],
-- signature text, public_key text, is_default bool, disabled_reason text, disabled_at timestamptz,
-- failing_since timestamptz, broken_since timestamptz, created_at timestamptz, updated_at timestamptz
select
    id, url, description, event_types, header_names, enabled, rate_limit_per_second, max_in_flight, timeout_s,
    retry_schedule, signature, public_key, is_default, disabled_reason, disabled_at, failing_since,
    broken_since, created_at, updated_at
from relay.endpoints
where organization_id = $1::uuid and id = $2::uuid and kind = 'endpoint';

-- name: endpoints_page
-- Return an organization's endpoints before an id, newest first, without their secrets, up to 8 MiB as JSON. `more`:
-- further endpoints follow. In a list, JSON escapes the same characters as the text form of an array, and takes three
-- more bytes for each member.
-- $1 organization_id uuid, $2 before uuid, $3 limit int
-- gives: id uuid, url text, description text, event_types text[], header_names text[],
-- enabled bool, rate_limit_per_second int4, max_in_flight int4, timeout_s float8, retry_schedule float8[],
-- signature text, public_key text, is_default bool, disabled_reason text, disabled_at timestamptz,
-- failing_since timestamptz, broken_since timestamptz, created_at timestamptz, updated_at timestamptz, more bool
with found as materialized (
    select
        e.*,
        row_number() over (order by e.id desc) as place,
        sum(
            2 * (octet_length(e.url) + octet_length(e.description))
            + octet_length(e.event_types::text) + 3 * cardinality(e.event_types)
            + octet_length(e.header_names::text) + 3 * cardinality(e.header_names)
            + 3000
        ) over (order by e.id desc) as bytes
    from (
        select
            id, url, description, event_types, header_names, enabled, rate_limit_per_second, max_in_flight, timeout_s,
            retry_schedule, signature, public_key, is_default, disabled_reason, disabled_at, failing_since,
            broken_since, created_at, updated_at
        from relay.endpoints
        where organization_id = $1::uuid and id < $2::uuid and kind = 'endpoint'
        order by id desc
        limit $3::int + 1
    ) as e
),
kept as materialized (
    select f.*
    from found as f
    where f.place <= $3::int and f.bytes < 8388096
)
select
    k.id, k.url, k.description, k.event_types, k.header_names, k.enabled, k.rate_limit_per_second, k.max_in_flight,
    k.timeout_s, k.retry_schedule, k.signature, k.public_key, k.is_default, k.disabled_reason, k.disabled_at,
    k.failing_since, k.broken_since, k.created_at, k.updated_at,
    (select count(*) from found) > (select count(*) from kept) as more
from kept as k
order by k.id desc;

-- name: secret_of_endpoint
-- Return the sealed secret of an endpoint, for the response to a repeated request that created it.
-- $1 organization_id uuid, $2 endpoint_id uuid
-- gives: secret_seal bytea
select secret_seal
from relay.endpoints
where organization_id = $1::uuid and id = $2::uuid;

-- name: delete_endpoint
-- Delete an endpoint and create the job that cancels its open deliveries. The organization, which counts its endpoints,
-- is locked first, as in the statements that create and change endpoints.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 job_id uuid
-- gives: id uuid
with organization as materialized (
    select o.id
    from relay.organizations as o
    where o.id = $1::uuid
    for update
),
gone as (
    delete from relay.endpoints as e
    using organization as o
    where e.organization_id = o.id and e.id = $2::uuid and e.kind = 'endpoint'
    returning e.id
),
cancelling as (
    insert into relay.jobs (organization_id, id, kind, endpoint_id)
    select $1::uuid, $3::uuid, 'cancel', id
    from gone
)
select id
from gone;

-- name: rotate_secret
-- Give an endpoint a new secret. The previous secret signs for one more day, the one before it no longer.
-- $1 organization_id uuid, $2 endpoint_id uuid, $3 secret_seal bytea, $4 public_key text, which v1a keeps
-- gives: id uuid, signature text, public_key text, old_secret_until timestamptz
update relay.endpoints
set old_secret_seal = secret_seal,
    old_secret_until = now() + interval '24 hours',
    secret_seal = $3::bytea,
    public_key = case when signature = 'v1a' then $4::text end,
    version = version + 1,
    updated_at = now()
where organization_id = $1::uuid and id = $2::uuid and kind = 'endpoint'
returning id, signature, public_key, old_secret_until;

-- name: seals_page
-- Return the sealed values after an endpoint, in primary key order. An old secret is included only while it signs.
-- $1 after organization_id uuid, $2 after endpoint_id uuid, $3 limit int
-- gives: organization_id uuid, id uuid, secret_seal bytea, old_secret_seal bytea, headers_seal bytea
select
    organization_id,
    id,
    secret_seal,
    case when old_secret_until > now() then old_secret_seal end as old_secret_seal,
    headers_seal
from relay.endpoints
where (organization_id, id) > ($1::uuid, $2::uuid)
order by organization_id, id
limit $3::int;

-- name: replace_seals
-- Replace seals that have not changed since they were read, and return those endpoints. The plaintext stays the same,
-- so the version does too.
-- $1 organization_id uuid[], $2 endpoint_id uuid[], $3 read secret_seal bytea[], $4 read headers_seal bytea[],
-- $5 new secret_seal bytea[], $6 new old_secret_seal bytea[], $7 new headers_seal bytea[]
-- gives: id uuid
update relay.endpoints as e
set secret_seal = n.secret_seal, old_secret_seal = n.old_secret_seal, headers_seal = n.headers_seal
from unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[])
    as n (organization_id, id, read_secret, read_headers, secret_seal, old_secret_seal, headers_seal)
where e.organization_id = n.organization_id
    and e.id = n.id
    and e.secret_seal = n.read_secret
    and e.headers_seal is not distinct from n.read_headers
returning e.id;
