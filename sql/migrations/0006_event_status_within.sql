-- The status of an event whose id is known to lie between two bounds. They say the same again, in a form that planning and
-- starting a statement leave out partitions by: asked by the id of each row alone, all partitions of two tables are opened.
-- It only adds a function, and locks no table.
set local lock_timeout = '2s';
set local statement_timeout = '30s';

create function relay.event_status_within(
    organization_id uuid, epoch integer, xid bigint, event_id uuid, low uuid, high uuid
)
returns table (status text, attempts integer)
language sql stable rows 1
begin atomic
select
    case
        when exists (
            select
            from relay.acknowledgements as a
            where a.organization_id = event_status_within.organization_id
                and a.event_id = event_status_within.event_id
                and a.event_id >= event_status_within.low and a.event_id <= event_status_within.high
        ) then 'delivered'
        when o.held > 0 then 'pending'
        when d.failed then 'failed'
        when d.delivered then 'delivered'
        else 'pending'
    end,
    coalesce(o.attempts, 0)::int + coalesce(d.attempts, 0)::int
from (
    select count(*) as held, sum(o.attempts) as attempts
    from relay.open as o
    where o.organization_id = event_status_within.organization_id
        and o.epoch = event_status_within.epoch
        and o.xid = event_status_within.xid
        and o.event_id = event_status_within.event_id
) as o
cross join (
    select bool_or(d.status = 'failed') as failed, bool_or(d.status = 'delivered') as delivered, sum(d.attempts) as attempts
    from relay.deliveries as d
    where d.organization_id = event_status_within.organization_id
        and d.event_id = event_status_within.event_id
        and d.event_id >= event_status_within.low and d.event_id <= event_status_within.high
) as d;
end;
