-- ARGV uid epoch checkpoint
-- Returns 0 when the lease is lost, 1, or 2 when the worker has to release the run. A checkpoint is progress only some time after the
-- claim, whose time in microseconds is the epoch. Otherwise a source that stops each worker after the first page could do so without
-- end.
local PROGRESS_AFTER = 300000
local run = run_key(1)
if not is_held(run, ARGV[2]) then return 0 end
write_when_full()
redis.call('HSET', run, 'checkpoint', ARGV[3])
if clock() - ARGV[2] / 1000 >= PROGRESS_AFTER then redis.call('HSET', run, 'stalls', 0) end
record_change(ARGV[1])
return is_recalled(run) and 2 or 1
