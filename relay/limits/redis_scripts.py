"""What Redis runs for us: each script is atomic, and takes its time from Redis, whose clock all nodes share.

A caller's key holds its theoretical arrival time in microseconds since 1970, and goes when its allowance is full again.
"""

from __future__ import annotations

from typing import Final

#: KEYS: the caller. ARGV: interval in microseconds, burst, wanted, needed; how far ahead of its rate the asking process
#: knows the caller to be, in microseconds, for a Redis that has forgotten it; 1 if it is at least that far ahead,
#: whatever Redis remembers. Gives how many were granted, as many as are there between needed and wanted, else none; and
#: how far ahead the caller is then. Nobody is further ahead than a burst: clocks that step back shut nobody out.
GRANT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local known = now + tonumber(ARGV[5])
local arrival = tonumber(redis.call('GET', KEYS[1]) or '') or known
if ARGV[6] == '1' then arrival = math.max(arrival, known) end
if not (arrival > now) then arrival = now end
arrival = math.min(arrival, now + burst * interval)
local left = math.floor(burst - (arrival - now) / interval + 0.001)
local granted = math.min(left, tonumber(ARGV[3]))
if granted < tonumber(ARGV[4]) then granted = 0 end
if granted > 0 then
    arrival = arrival + granted * interval
    redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
end
return {granted, string.format('%.0f', arrival - now)}
"""

#: KEYS: the caller. ARGV: interval in microseconds, how many were granted and not used. Gives nothing.
RETURN: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local arrival = (tonumber(redis.call('GET', KEYS[1]) or '') or 0) - tonumber(ARGV[1]) * tonumber(ARGV[2])
if arrival > now then
    redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
else
    redis.call('DEL', KEYS[1])
end
return 0
"""

#: KEYS: the set of processes. ARGV: this process, seconds after which one that is not heard of is gone. Gives how many
#: there are.
PRESENT: Final = """
local now = redis.call('TIME')
redis.call('ZADD', KEYS[1], now[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now[1] - ARGV[2])
redis.call('EXPIRE', KEYS[1], 60)
return redis.call('ZCARD', KEYS[1])
"""

#: KEYS: the set of processes. ARGV: this process, which leaves. Gives nothing.
ABSENT: Final = """
redis.call('ZREM', KEYS[1], ARGV[1])
return 0
"""
