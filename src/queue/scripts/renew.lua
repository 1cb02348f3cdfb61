-- ARGV worker lease (uid epoch)...
-- Extends the leases of a worker, and its membership in the set of living workers. Returns the runs whose leases are lost, and
-- the runs that the worker must release.
local now = clock()
write_when_full()
redis.call('ZADD', WORKERS, now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', now)
local lost, recalled = {}, {}
for i = 3, #ARGV, 2 do
  local uid, run = ARGV[i], run_key((i - 1) / 2)
  if not is_held(run, ARGV[i + 1]) then
    lost[#lost + 1] = uid
  else
    redis.call('ZADD', SETS.active, now + ARGV[2], uid)
    if is_recalled(run) then recalled[#recalled + 1] = uid end
  end
end
return { lost, recalled }
