-- ARGV is_any uid...
-- Removes runs: any, or only unfinished ones. The worker of a removed run loses its lease. Returns the number of removed runs.
local removed = 0
for i = 2, #ARGV do
  local run = run_key(i - 1)
  local state = redis.call('HGET', run, 'state')
  if ARGV[1] == '1' or (state ~= 'completed' and state ~= 'failed') then
    if state == 'waiting' then return_rank(run) end
    redis.call('DEL', run)
    forget(ARGV[i])
    removed = removed + 1
  end
end
return removed
