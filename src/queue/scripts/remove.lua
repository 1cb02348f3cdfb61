-- ARGV uid
-- Forgets a run. A worker that has it loses its lease.
redis.call('DEL', run_key(1))
forget(ARGV[1])
return 1
