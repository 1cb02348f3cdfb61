-- ARGV format worker lease uid...
-- Takes the best of the given runs that is still waiting, or delayed and due. Returns its id, the time and its
-- hash, or false.
local now = clock()
local best, best_rank
for i = 4, #ARGV do
  local uid, run = ARGV[i], run_key(i - 3)
  local due = redis.call('ZSCORE', SETS.delayed, uid)
  if redis.call('ZSCORE', SETS.waiting, uid) or (due and tonumber(due) <= now) then
    local fields = redis.call('HMGET', run, 'format', 'rank')
    if not fields[1] then
      forget(uid)
    elseif fields[1] == ARGV[1] and (not best_rank or tonumber(fields[2]) < best_rank) then
      best, best_rank = i, tonumber(fields[2])
    end
  end
end
if not best then return false end

local uid, run = ARGV[best], run_key(best - 3)
redis.call('HINCRBY', run, 'epoch', 1)
redis.call('HSETNX', run, 'started', now)
redis.call('HSET', run, 'worker', ARGV[2])
redis.call('HDEL', run, 'retry_at')
move(uid, run, 'active', now + ARGV[3])
return { uid, now, redis.call('HGETALL', run) }
