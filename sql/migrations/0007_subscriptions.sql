-- Filters of endpoints one by one, found by an index from an event's type, and what each organization has of both.
-- Nothing is written to `endpoints` while it is read once to fill the new table: about a second for 100,000 filters.
-- At the end `organizations` gets two columns, which rewrites nothing, and is locked until those that have endpoints
-- are counted: about a tenth of a second for 10,000 of them. All else is new.
set local lock_timeout = '5s';
set local statement_timeout = '600s';

-- What each endpoint wants: a row for each of its filters, or one with an empty filter for an endpoint without any. A
-- filter that another of the same endpoint includes has no row, so an endpoint is found once at most for a type.
create table relay.subscriptions (
    organization_id uuid not null,
    -- A type, `order.*` for all that begin with `order.`, or nothing for all.
    filter text not null,
    endpoint_id uuid not null,
    -- Of the endpoint, so that opening a delivery need not look at it.
    bucket smallint not null,
    enabled boolean not null,
    primary key (organization_id, filter, endpoint_id)
);

create index subscriptions_of_endpoint on relay.subscriptions (organization_id, endpoint_id);

-- The filters that match a type: the empty one, the type itself, and a prefix for each of its dots. Not inlined,
-- because ingest sends them along, and asks for them only for types with many dots.
create function relay.filters_matching(type text) returns text[]
language plpgsql immutable parallel safe
as $$
begin
    return array(
        select ''
        union
        select type
        union
        select left(type, place) || '*'
        from generate_series(1, char_length(type)) as place
        where substr(type, place, 1) = '.'
    );
end;
$$;

-- The filters of an endpoint as they stand in `subscriptions`.
create function relay.filters_of(event_types text[]) returns setof text
language sql immutable parallel safe
begin atomic
select f.filter
from unnest(
    case when cardinality(filters_of.event_types) = 0 then array[''] else filters_of.event_types end
) as f (filter)
where not exists (
    select
    from unnest(filters_of.event_types) as w (wider)
    where right(w.wider, 2) = '.*' and f.filter <> w.wider and starts_with(f.filter, left(w.wider, -1))
)
group by f.filter;
end;

-- How many bytes the filters of an endpoint take.
create function relay.filter_bytes(event_types text[]) returns integer
language sql immutable parallel safe
begin atomic
select coalesce(sum(octet_length(f.filter)), 0)::integer
from unnest(filter_bytes.event_types) as f (filter);
end;

lock table relay.endpoints in share row exclusive mode;

insert into relay.subscriptions (organization_id, filter, endpoint_id, bucket, enabled)
select e.organization_id, f.filter, e.id, e.bucket, e.enabled
from relay.endpoints as e
cross join lateral relay.filters_of(e.event_types) as f (filter);

-- Written by a trigger, so that they hold as well while a process of an earlier release makes, changes and deletes
-- endpoints, and whatever else does.
create function relay.keep_subscriptions() returns trigger
language plpgsql
as $$
begin
    if tg_op <> 'INSERT' then
        delete from relay.subscriptions as s
        where s.organization_id = old.organization_id and s.endpoint_id = old.id;
    end if;
    if tg_op <> 'DELETE' then
        insert into relay.subscriptions (organization_id, filter, endpoint_id, bucket, enabled)
        select new.organization_id, f.filter, new.id, new.bucket, new.enabled
        from relay.filters_of(new.event_types) as f (filter);
    end if;
    if tg_op <> 'UPDATE' or new.event_types is distinct from old.event_types then
        update relay.organizations as o
        set
            endpoints = o.endpoints + case tg_op when 'INSERT' then 1 when 'DELETE' then -1 else 0 end,
            filter_bytes = o.filter_bytes
                + case when tg_op = 'DELETE' then 0 else relay.filter_bytes(new.event_types) end
                - case when tg_op = 'INSERT' then 0 else relay.filter_bytes(old.event_types) end
        where o.id = coalesce(new.organization_id, old.organization_id);
    end if;
    return null;
end;
$$;

create trigger endpoint_comes_or_goes
after insert or delete on relay.endpoints
for each row execute function relay.keep_subscriptions();

create trigger endpoint_changes
after update on relay.endpoints
for each row
when (old.event_types is distinct from new.event_types or old.enabled is distinct from new.enabled)
execute function relay.keep_subscriptions();

alter table relay.organizations
    -- How many endpoints it has, and how many bytes of filters.
    add column endpoints integer not null default 0,
    add column filter_bytes integer not null default 0;

update relay.organizations as o
set endpoints = c.endpoints, filter_bytes = c.filter_bytes
from (
    select e.organization_id, count(*) as endpoints, sum(relay.filter_bytes(e.event_types)) as filter_bytes
    from relay.endpoints as e
    group by e.organization_id
) as c
where o.id = c.organization_id;

-- The end of a statement that would open more deliveries than it may. Of SQLSTATE class 54, program limit exceeded.
create function relay.opens_too_many() returns bigint
language plpgsql
as $$
begin
    raise exception 'this would open too many deliveries' using errcode = '54000';
end;
$$;
