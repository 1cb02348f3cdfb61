-- ARGV uid epoch checkpoint
-- Returns 0 when the lease is lost, 1, or 2 when the worker has to release the run.
local run = run_key(1)
if not is_held(run, ARGV[2]) then return 0 end
write_when_full()
redis.call('HSET', run, 'checkpoint', ARGV[3], 'stalls', 0)
record_change(ARGV[1])
return is_recalled(run) and 2 or 1
