-- KEYS waiting delayed active events run...
-- ARGV format worker lease uid...
-- Takes the best of the given runs that is still waiting, or delayed and due. Returns its hash and the time, or false.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local best, best_rank
for i = 4, #ARGV do
  local uid, run = ARGV[i], KEYS[i + 1]
  local due = redis.call('ZSCORE', KEYS[2], uid)
  if redis.call('ZSCORE', KEYS[1], uid) or (due and tonumber(due) <= now) then
    local fields = redis.call('HMGET', run, 'format', 'rank')
    if not fields[1] then
      redis.call('ZREM', KEYS[1], uid)
      redis.call('ZREM', KEYS[2], uid)
    elseif fields[1] == ARGV[1] and (not best_rank or tonumber(fields[2]) < best_rank) then
      best, best_rank = i, tonumber(fields[2])
    end
  end
end
if not best then return false end

local uid, run = ARGV[best], KEYS[best + 1]
redis.call('ZREM', KEYS[1], uid)
redis.call('ZREM', KEYS[2], uid)
redis.call('ZADD', KEYS[3], now + ARGV[3], uid)
redis.call('HINCRBY', run, 'epoch', 1)
redis.call('HSETNX', run, 'started', now)
redis.call('HSET', run, 'state', 'active', 'worker', ARGV[2])
redis.call('HDEL', run, 'retry_at')
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'uid', uid)
return { uid, now, redis.call('HGETALL', run) }
