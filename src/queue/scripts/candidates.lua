-- KEYS waiting delayed
-- ARGV offset count
-- Returns the runs that could be claimed now, and the milliseconds until the next delayed one is due (-1: none).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local uids = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[1] + ARGV[2] - 1)
for _, uid in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', ARGV[1], ARGV[2])) do
  uids[#uids + 1] = uid
end
local upcoming = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return { uids, upcoming[2] and math.max(1, math.ceil(upcoming[2] - now)) or -1 }
