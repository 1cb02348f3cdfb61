-- Stands before every script.
-- KEYS waiting delayed active parked completed failed wake events seq workers run...
local SETS = { waiting = KEYS[1], delayed = KEYS[2], active = KEYS[3], parked = KEYS[4], completed = KEYS[5], failed = KEYS[6] }
local WAKE, EVENTS, SEQ, WORKERS = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local function run_key(i) return KEYS[10 + i] end

-- The server's clock in milliseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Numbers beyond 2^31 as Redis takes them.
local function whole(number) return string.format('%.0f', number) end

-- Higher priorities first, then arrival. The arrival is kept, so a run that comes back takes its old place.
local function rank(priority, arrival) return whole((1000 - priority) * 2 ^ 40 + arrival % 2 ^ 40) end

local function is_held(run, epoch)
  local fields = redis.call('HMGET', run, 'state', 'epoch')
  return fields[1] == 'active' and fields[2] == epoch
end

-- True when the worker that holds the run is to let go of it.
local function is_recalled(run)
  local fields = redis.call('HMGET', run, 'suspended', 'cancelled')
  return fields[1] == '1' or (fields[2] or '') ~= ''
end

local function forget(uid)
  for _, set in pairs(SETS) do redis.call('ZREM', set, uid) end
end

-- Puts a run into a state, and from the one set that goes with the old state into that of the new one. More arguments
-- are fields of its hash.
local function move(uid, run, state, score, ...)
  local before = SETS[redis.call('HGET', run, 'state')]
  if not before or redis.call('ZREM', before, uid) == 0 then forget(uid) end
  redis.call('HSET', run, 'state', state, ...)
  redis.call('ZADD', SETS[state], score, uid)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', 10000, '*', 'uid', uid)
end

local function ring()
  redis.call('LPUSH', WAKE, 1)
  redis.call('LTRIM', WAKE, 0, 63)
end

local function finish(uid, run, state, outcome, keep, now, ...)
  redis.call('ZREMRANGEBYSCORE', SETS[state], '-inf', now - keep)
  move(uid, run, state, now, 'outcome', outcome, 'finished', now, ...)
  redis.call('PEXPIRE', run, keep)
end

-- Puts a run that no worker holds where it belongs: to the failed ones when it is cancelled, else aside while it
-- is suspended or its backoff has not passed, else among those that wait.
local function settle(uid, run, keep, now)
  local fields = redis.call('HMGET', run, 'cancelled', 'suspended', 'parked_at', 'retry_at', 'rank')
  local cancelled, suspended, parked_at, retry_at = fields[1] or '', fields[2], fields[3], fields[4]
  if parked_at and (suspended ~= '1' or cancelled ~= '') then
    redis.call('HINCRBY', run, 'parked_for', whole(math.max(0, now - parked_at)))
    redis.call('HDEL', run, 'parked_at')
  end
  if cancelled ~= '' then
    finish(uid, run, 'failed', cancelled, keep, now)
  elseif suspended == '1' then
    redis.call('HSETNX', run, 'parked_at', now)
    move(uid, run, 'parked', now)
  elseif retry_at and tonumber(retry_at) > now then
    move(uid, run, 'delayed', retry_at)
    -- A waiting worker must learn when to look again.
    ring()
  else
    move(uid, run, 'waiting', fields[5])
    ring()
  end
end

