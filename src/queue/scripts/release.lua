-- KEYS run active waiting wake events
-- ARGV uid epoch checkpoint
-- Gives a run back for another worker to go on with. Costs no attempt. Returns 1, or 0 when the lease is lost.
local fields = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'rank')
if fields[1] ~= 'active' or fields[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'waiting', 'checkpoint', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'releases', 1)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], fields[3], ARGV[1])
redis.call('LPUSH', KEYS[4], 1)
redis.call('LTRIM', KEYS[4], 0, 63)
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'uid', ARGV[1])
return 1
