-- A SQLSTATE of its own for statements that would open too many deliveries; PostgreSQL itself raises 54000 for others.
-- It replaces a function that nothing calls yet, and locks no table.
set local lock_timeout = '2s';
set local statement_timeout = '30s';

create or replace function relay.opens_too_many() returns bigint
language plpgsql
as $$
begin
    raise exception 'this would open too many deliveries' using errcode = '54R01';
end;
$$;
