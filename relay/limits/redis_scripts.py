"""The Redis scripts. Each is atomic and reads the time from Redis, whose clock all nodes share.

A caller's key holds its theoretical arrival time in microseconds since 1970. It expires when the full burst is
available again.
"""

from __future__ import annotations

from typing import Final

#: KEYS: the caller. ARGV: interval in microseconds; burst; wanted; needed; how far ahead of its rate the calling
#: process knows the caller to be, in microseconds, for a Redis that has lost its key; 1 if the caller is at least that
#: far ahead, whatever Redis has stored. Returns how many tokens were granted, between needed and wanted or 0, and how
#: far ahead the caller then is. That is at most one burst, so a clock that steps back locks no caller out.
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

#: KEYS: the caller. ARGV: interval in microseconds, how many tokens were granted and not used. Returns nothing.
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

#: KEYS: the set of processes. ARGV: this process, seconds after which a process without a heartbeat is gone. Returns
#: the number of processes.
PRESENT: Final = """
local now = redis.call('TIME')
redis.call('ZADD', KEYS[1], now[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now[1] - ARGV[2])
redis.call('EXPIRE', KEYS[1], 60)
return redis.call('ZCARD', KEYS[1])
"""

#: KEYS: the set of processes. ARGV: this process, which stops. Returns nothing.
ABSENT: Final = """
redis.call('ZREM', KEYS[1], ARGV[1])
return 0
"""
