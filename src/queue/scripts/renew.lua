-- ARGV worker lease (uid epoch)...
-- Extends the leases of a worker and shows that it lives. Returns the runs it no longer holds, and those it is
-- to let go of.
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
