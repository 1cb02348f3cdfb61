-- KEYS run active finished events
-- ARGV uid epoch state checkpoint history attempts outcome keep
-- Ends a run as completed or failed. Returns 1, or 0 when the lease is lost.
local fields = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if fields[1] ~= 'active' or fields[2] ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'checkpoint', ARGV[4], 'history', ARGV[5], 'attempts', ARGV[6],
  'outcome', ARGV[7], 'finished', now)
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[8])
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'uid', ARGV[1])
return 1
