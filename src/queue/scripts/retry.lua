-- KEYS run active delayed wake events
-- ARGV uid epoch delay checkpoint history attempts
-- Puts a run aside until its backoff has passed. Returns 1, or 0 when the lease is lost.
local fields = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if fields[1] ~= 'active' or fields[2] ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
redis.call('HSET', KEYS[1], 'state', 'delayed', 'checkpoint', ARGV[4], 'history', ARGV[5], 'attempts', ARGV[6],
  'retry_at', due)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], due, ARGV[1])
-- A waiting worker must learn when to look again.
redis.call('LPUSH', KEYS[4], 1)
redis.call('LTRIM', KEYS[4], 0, 63)
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'uid', ARGV[1])
return 1
