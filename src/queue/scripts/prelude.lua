-- Stands before every script.
-- KEYS waiting delayed active parked completed failed due wake events seq workers asserted owner clock run...
local SETS = { waiting = KEYS[1], delayed = KEYS[2], active = KEYS[3], parked = KEYS[4], completed = KEYS[5], failed = KEYS[6] }
-- The runs of `waiting` once more, by the time since which each could be claimed: those are ordered by priority.
local DUE = KEYS[7]
local WAKE, EVENTS, SEQ, WORKERS, OWNER, CLOCK = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[13], KEYS[14]
-- The replication id of the server when a controller last asserted all runs on it.
local ASSERTED = KEYS[12]
local function run_key(i) return KEYS[14 + i] end

-- The server's clock in milliseconds.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A full Redis refuses the first write of a script when that write may need memory, and none of those after it. So scripts that
-- keep or end a run begin with a write that is never refused, and scripts that begin one with a write that is. Both change
-- nothing.
local function write_when_full() redis.call('ZREM', SETS.active, '') end
local function refuse_when_full() redis.call('ZADD', SETS.active, 'XX', 0, '') end

-- Names the history of the server's data. A master has another one after each restart, failover or copy of another server.
local function replication_id()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or 'unknown'
end

-- Numbers beyond 2^31 as Redis takes them.
local function whole(number) return string.format('%.0f', number) end

-- True unless two fingerprints of installations differ in a word that both know. domain/installation.rs has the same rule.
local function agree(a, b)
  if not a or not b or a == b then return true end
  local others = b:gmatch('%S+')
  for part in a:gmatch('%S+') do
    local other = others() or '-'
    if part ~= other and part ~= '-' and other ~= '-' then return false end
  end
  return true
end

-- How far ahead of the server's clock stamps may be.
local MAX_AHEAD = 7200000

-- A time for stamps, in milliseconds: the server's, or `step` after the last one that was handed out, whichever is later.
-- Documents carry stamps, and a server whose clock is behind that of the one before would hand out times that are older than
-- those. One that is too far ahead is the mistake of a clock, and forgotten.
local function stamp_clock(now, step)
  local last = tonumber(redis.call('GET', CLOCK) or 0)
  if last > now + MAX_AHEAD then last = 0 end
  local stamp = math.max(now, last + step)
  if stamp ~= last then redis.call('SET', CLOCK, whole(stamp)) end
  return stamp
end

-- Higher priorities first, then arrival. The arrival is kept, so a run that returns to the queue has its former position.
local function rank(priority, arrival) return whole((1000 - priority) * 2 ^ 40 + arrival % 2 ^ 40) end

local function is_held(run, epoch)
  local fields = redis.call('HMGET', run, 'state', 'epoch')
  return fields[1] == 'active' and fields[2] == epoch
end

-- True when the run has failed and only its rollback remains, which cannot be suspended or cancelled.
local function is_rolled_back(run) return redis.call('HEXISTS', run, 'outcome') == 1 end

-- True when the worker that holds the run has to release it.
local function is_recalled(run)
  local fields = redis.call('HMGET', run, 'suspended', 'cancelled')
  return (fields[1] == '1' or (fields[2] or '') ~= '') and not is_rolled_back(run)
end

local function forget(uid)
  for _, set in pairs(SETS) do redis.call('ZREM', set, uid) end
  redis.call('ZREM', DUE, uid)
end

-- Records a change of a run in the stream of changes. Each call of a script trims the stream once.
local is_trimmed = false
local function record_change(uid)
  if is_trimmed then
    redis.call('XADD', EVENTS, '*', 'uid', uid)
  else
    redis.call('XADD', EVENTS, 'MAXLEN', '~', 10000, '*', 'uid', uid)
    is_trimmed = true
  end
end

-- Puts a run from one state, false for none, into another, and from the set that goes with the one into that of the
-- other. More arguments are fields of its hash.
local function move(uid, run, from, state, score, ...)
  local before = SETS[from]
  if not before or redis.call('ZREM', before, uid) == 0 then forget(uid) end
  redis.call('HSET', run, 'state', state, ...)
  redis.call('ZADD', SETS[state], score, uid)
  if from == 'waiting' and state ~= 'waiting' then redis.call('ZREM', DUE, uid) end
  record_change(uid)
end

-- One item wakes one worker, and names the run that it can claim. Empty: any run.
local function notify(uid)
  redis.call('LPUSH', WAKE, uid)
  redis.call('LTRIM', WAKE, 0, math.max(64, redis.call('ZCARD', WORKERS)) - 1)
end

-- A run that has ended stays until a controller forgets it: the SyncJob may not say yet how it ended.
local function finish(uid, run, from, state, outcome, now, ...)
  move(uid, run, from, state, now, 'outcome', outcome, 'finished', now, ...)
end

local settle

-- Ends a run as failed. A run that was claimed, and must be rolled back, is claimed once more before that: it has an
-- outcome.
local function fail(uid, run, from, outcome, now, ...)
  local fields = redis.call('HMGET', run, 'rollback', 'started')
  if fields[1] == '1' and fields[2] and not is_rolled_back(run) then
    redis.call('HSET', run, 'outcome', outcome, 'stalls', 0, ...)
    redis.call('HDEL', run, 'retry_at')
    settle(uid, run, now)
  else
    finish(uid, run, from, 'failed', outcome, now, ...)
  end
end

-- Moves a run that no worker holds to its set: the failed runs when it is cancelled, else the parked or delayed ones while it
-- is suspended, its guard holds more than is approved, or its backoff has not passed, else the waiting ones.
settle = function(uid, run, now)
  local fields = redis.call('HMGET', run, 'cancelled', 'suspended', 'parked_at', 'retry_at', 'rank', 'state', 'held', 'approved',
    'started')
  local cancelled, parked_at, retry_at, from = fields[1] or '', fields[3], fields[4], fields[6]
  local is_parked = fields[2] == '1' or (tonumber(fields[7] or '') or -1) > (tonumber(fields[8] or '') or -1)
  if is_rolled_back(run) then cancelled, is_parked = '', false end
  if parked_at and (not is_parked or cancelled ~= '') then
    -- The deadline begins with the first claim.
    if fields[9] then redis.call('HINCRBY', run, 'parked_for', whole(math.max(0, now - parked_at))) end
    redis.call('HDEL', run, 'parked_at')
  end
  if cancelled ~= '' then
    fail(uid, run, from, cancelled, now)
  elseif is_parked then
    redis.call('HSETNX', run, 'parked_at', now)
    move(uid, run, from, 'parked', now)
  elseif retry_at and tonumber(retry_at) > now then
    move(uid, run, from, 'delayed', retry_at)
    -- A waiting worker must learn the time of its next claim.
    notify(uid)
  else
    move(uid, run, from, 'waiting', fields[5])
    -- One that waits already, and is only reordered, has waited since it began to.
    redis.call('ZADD', DUE, 'NX', from == 'delayed' and retry_at or now, uid)
    notify(uid)
  end
end

