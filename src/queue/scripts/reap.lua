-- KEYS active waiting failed wake events run...
-- ARGV format max_stalls outcome keep uid...
-- Returns runs whose lease has ended to their place in the queue; those that lose one worker after the other
-- without getting any further end as failed. Returns how many were reaped.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reaped = 0
for i = 5, #ARGV do
  local uid, run = ARGV[i], KEYS[i + 1]
  local expiry = redis.call('ZSCORE', KEYS[1], uid)
  local fields = redis.call('HMGET', run, 'format', 'rank')
  if expiry and tonumber(expiry) <= now and (not fields[1] or fields[1] == ARGV[1]) then
    redis.call('ZREM', KEYS[1], uid)
    if fields[1] then
      redis.call('HINCRBY', run, 'recoveries', 1)
      if redis.call('HINCRBY', run, 'stalls', 1) > tonumber(ARGV[2]) then
        redis.call('HSET', run, 'state', 'failed', 'outcome', ARGV[3], 'finished', now)
        redis.call('PEXPIRE', run, ARGV[4])
        redis.call('ZADD', KEYS[3], now, uid)
      else
        redis.call('HSET', run, 'state', 'waiting')
        redis.call('ZADD', KEYS[2], fields[2], uid)
        redis.call('LPUSH', KEYS[4], 1)
        redis.call('LTRIM', KEYS[4], 0, 63)
      end
      redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'uid', uid)
      reaped = reaped + 1
    end
  end
end
return reaped
