-- ARGV uid epoch keep checkpoint
-- Gives a run back. Costs no attempt. Returns 1, or 0 when the lease is lost.
local run = run_key(1)
if not is_held(run, ARGV[2]) then return 0 end
redis.call('HSET', run, 'checkpoint', ARGV[4])
if not is_recalled(run) then redis.call('HINCRBY', run, 'releases', 1) end
settle(ARGV[1], run, ARGV[3], clock())
return 1
