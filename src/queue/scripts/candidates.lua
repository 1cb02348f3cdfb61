-- ARGV offset count
-- Returns the runs that could be claimed now, and the milliseconds until the next delayed one is due (-1: none).
local now = clock()
local uids = redis.call('ZRANGE', SETS.waiting, ARGV[1], ARGV[1] + ARGV[2] - 1)
for _, uid in ipairs(redis.call('ZRANGEBYSCORE', SETS.delayed, '-inf', now, 'LIMIT', ARGV[1], ARGV[2])) do
  uids[#uids + 1] = uid
end
local upcoming = redis.call('ZRANGEBYSCORE', SETS.delayed, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return { uids, upcoming[2] and math.max(1, math.ceil(upcoming[2] - now)) or -1 }
