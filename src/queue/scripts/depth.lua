-- Returns how many runs wait, are delayed, active and parked, how many workers live, and the milliseconds since the run was
-- due that has waited for a worker the longest (0: none).
local now = clock()
local function first(set) return redis.call('ZRANGEBYSCORE', set, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1)[2] or now end
return { redis.call('ZCARD', SETS.waiting), redis.call('ZCARD', SETS.delayed), redis.call('ZCARD', SETS.active),
  redis.call('ZCARD', SETS.parked), redis.call('ZCOUNT', WORKERS, now, '+inf'), now - math.min(first(DUE), first(SETS.delayed)) }
