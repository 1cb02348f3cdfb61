-- ARGV is_any uid...
-- Forgets runs: any, or only those that have not ended. A worker that has one loses its lease. Returns how many it forgot.
local removed = 0
for i = 2, #ARGV do
  local run = run_key(i - 1)
  local state = redis.call('HGET', run, 'state')
  if ARGV[1] == '1' or (state ~= 'completed' and state ~= 'failed') then
    redis.call('DEL', run)
    forget(ARGV[i])
    removed = removed + 1
  end
end
return removed
