-- ARGV uid epoch keep delay checkpoint history attempts
-- Puts a run aside until its backoff has passed. Returns 1, or 0 when the lease is lost.
local run, now = run_key(1), clock()
if not is_held(run, ARGV[2]) then return 0 end
redis.call('HSET', run, 'checkpoint', ARGV[5], 'history', ARGV[6], 'attempts', ARGV[7], 'retry_at', now + ARGV[4])
settle(ARGV[1], run, ARGV[3], now)
return 1
