-- Returns how many runs wait, are delayed, active and parked, and how many workers live.
return { redis.call('ZCARD', SETS.waiting), redis.call('ZCARD', SETS.delayed), redis.call('ZCARD', SETS.active),
  redis.call('ZCARD', SETS.parked), redis.call('ZCOUNT', WORKERS, clock(), '+inf') }
