"""The script that Redis runs at each exchange (EVAL): it takes the news of one worker, and returns what all workers share.

Every key has the prefix in braces, so that a cluster keeps them on one node:

| key | type | holds |
|---|---|---|
| `{prefix}epoch` | string | the name of this set of keys; when it changed, a worker sends everything again |
| `{prefix}workers` | sorted set | each live worker -> when its lease ends, in milliseconds of the Redis's clock |
| `{prefix}of:WORKER` | hash | source -> its connections at this worker; the empty field: number of the last exchange with penalties |
| `{prefix}counts` | sorted set | source -> the sum of those |
| `{prefix}penalties` | sorted set | source -> when its penalty ends, by the same clock |
| `{prefix}kept` | sorted set | those of them that are refused |
| `{prefix}news` | sorted set | the sources of `kept` -> the number of their last change, from `{prefix}number` |

The next exchange of any worker removes a worker whose lease has ended. A worker sends present counts, not differences, and penalties with a
number, so that an exchange whose reply was lost can be repeated.
"""

from __future__ import annotations

from typing import Final

KEYS: Final = ("epoch", "workers", "counts", "penalties", "kept", "news", "number", "of:")

EXCHANGE: Final = """
local epoch, workers, counts, penalties, kept, news, number, mine = unpack(KEYS)
local me, known, fresh = ARGV[1], ARGV[2], ARGV[3] == '1'
local lease, life, since, batch = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
local hot, most, page = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local least, longest = tonumber(ARGV[11]), tonumber(ARGV[12])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local others = string.sub(mine, 1, #mine - #me)

local function add(source, difference)
    if tonumber(redis.call('ZINCRBY', counts, difference, source)) <= 0 then redis.call('ZREM', counts, source) end
end
local function leave(worker)
    local fields = redis.call('HGETALL', others .. worker)
    for at = 1, #fields, 2 do
        if fields[at] ~= '' then add(fields[at], -tonumber(fields[at + 1])) end
    end
    redis.call('DEL', others .. worker)
    redis.call('ZREM', workers, worker)
end

local current = redis.call('GET', epoch)
if not current then
    current = me .. ':' .. now
    redis.call('SET', epoch, current)
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '-inf', now)) do leave(worker) end
if lease == 0 then
    leave(me)
    return {current, since, {}, {}, 0}
end
if fresh then
    leave(me)
elseif current ~= known or not redis.call('ZSCORE', workers, me) then
    return {'', since, {}, {}, 0}
end
redis.call('ZADD', workers, now + lease, me)

local at = 13
for _ = 1, tonumber(ARGV[at]) do
    local source, count = ARGV[at + 1], tonumber(ARGV[at + 2])
    local before = tonumber(redis.call('HGET', mine, source) or 0)
    if count ~= before then add(source, count - before) end
    if count == 0 then redis.call('HDEL', mine, source) else redis.call('HSET', mine, source, count) end
    at = at + 2
end
at = at + 1
local done = redis.call('HGET', mine, '') == batch
for _ = 1, tonumber(ARGV[at]) do
    if not done then
        local source = ARGV[at + 1]
        local ends = math.max(tonumber(redis.call('ZSCORE', penalties, source) or now), now)
        local out = tonumber(redis.call('ZSCORE', kept, source) or 0) > now
        ends = math.min(ends + tonumber(ARGV[at + 2]), now + longest)
        redis.call('ZADD', penalties, ends, source)
        if out or ends - now >= least then
            redis.call('ZADD', kept, ends, source)
            redis.call('ZADD', news, redis.call('INCR', number), source)
        end
    end
    at = at + 2
end
redis.call('HSET', mine, '', batch)

local over = redis.call('ZRANGEBYSCORE', penalties, '-inf', now, 'LIMIT', 0, page)
local excess = redis.call('ZCARD', penalties) - #over - most
if excess > 0 then
    for _, source in ipairs(redis.call('ZRANGE', penalties, #over, #over + math.min(excess, page) - 1)) do over[#over + 1] = source end
end
for _, source in ipairs(over) do
    redis.call('ZREM', penalties, source)
    redis.call('ZREM', kept, source)
    redis.call('ZREM', news, source)
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, life) end

local told = {}
local changed = redis.call('ZRANGEBYSCORE', news, '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, page)
for at = 1, #changed, 2 do
    since = changed[at + 1]
    told[#told + 1] = changed[at]
    told[#told + 1] = tonumber(redis.call('ZSCORE', kept, changed[at]) or now) - now
end
local top = redis.call('ZREVRANGEBYSCORE', counts, '+inf', hot, 'WITHSCORES', 'LIMIT', 0, page)
return {current, since, top, told, redis.call('ZCARD', workers)}
"""
