-- ARGV uid epoch keep state checkpoint history attempts outcome
-- Ends a run as completed or failed. Returns 1, or 0 when the lease is lost.
local run = run_key(1)
if not is_held(run, ARGV[2]) then return 0 end
finish(ARGV[1], run, ARGV[4], ARGV[8], ARGV[3], clock(), 'checkpoint', ARGV[5], 'history', ARGV[6], 'attempts', ARGV[7])
return 1
