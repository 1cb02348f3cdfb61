-- KEYS run events
-- ARGV uid epoch checkpoint
-- Returns 1, or 0 when the lease is lost.
local fields = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if fields[1] ~= 'active' or fields[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'checkpoint', ARGV[3], 'stalls', 0)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', 'uid', ARGV[1])
return 1
