-- ARGV revision value retention
-- Stores the status of a SyncAlert for the retention (milliseconds), unless a newer one is stored. Returns 1 when it is stored, or 0.
local alert = run_key(1)
local kept = redis.call('HGET', alert, 'revision')
if kept and tonumber(kept) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', alert, 'revision', ARGV[1], 'value', ARGV[2])
redis.call('PEXPIRE', alert, ARGV[3])
return 1
