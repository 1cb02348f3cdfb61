-- ARGV revision value keep
-- Keeps what is known of a SyncAlert for so many milliseconds, unless something newer is kept.
local alert = run_key(1)
local kept = redis.call('HGET', alert, 'revision')
if kept and tonumber(kept) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', alert, 'revision', ARGV[1], 'value', ARGV[2])
redis.call('PEXPIRE', alert, ARGV[3])
return 1
