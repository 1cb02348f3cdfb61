-- ARGV fingerprint lease keep expected
-- Records the installation that owns the queue, for so many milliseconds, unless what is recorded is not what the caller
-- expects. Returns 1 when it was recorded.
write_when_full()
local recorded = redis.call('HMGET', OWNER, 'fingerprint', 'lease')
local found = recorded[1] and recorded[1] .. '\n' .. (recorded[2] or '') or ''
if found ~= ARGV[4] then return 0 end
redis.call('HSET', OWNER, 'fingerprint', ARGV[1], 'lease', ARGV[2], 'renewed', clock())
redis.call('PEXPIRE', OWNER, ARGV[3])
return 1
