-- Stands before every script.
-- KEYS waiting delayed active parked completed failed due wake events seq workers asserted owner clock shares run...
local SETS = { waiting = KEYS[1], delayed = KEYS[2], active = KEYS[3], parked = KEYS[4], completed = KEYS[5], failed = KEYS[6] }
-- The runs of `waiting` once more, by the time since which each could be claimed: those are ordered by priority.
local DUE = KEYS[7]
local WAKE, EVENTS, SEQ, WORKERS, OWNER, CLOCK = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[13], KEYS[14]
-- The replication id of the server when a controller last asserted all runs on it.
local ASSERTED = KEYS[12]
-- For each priority the virtual time, which is the rank of its latest claim, and for each flow the rank of its next run.
local SHARES = KEYS[15]
local function run_key(i) return KEYS[15 + i] end

-- The server's clock in microseconds.
local function micros()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The server's clock in milliseconds.
local function clock() return math.floor(micros() / 1000) end

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

-- Runs are claimed by rank: higher priorities first, then by start tag.
local TAGS = 2 ^ 40
local function rank(priority, tag) return (1000 - priority) * TAGS + tag % TAGS end
local function priority_of(place) return whole(1000 - math.floor(place / TAGS)) end

-- The flow of a run: the runs of one namespace and priority, which alternate with those of other namespaces. Runs that were claimed
-- before are a flow of their own: their deadline has begun, so they do not wait for the other runs of their namespace.
local function flow(priority, namespace, started) return priority .. '/' .. (namespace or '') .. (started and '/claimed' or '') end

-- The next rank of a flow, for a run that begins to wait: at least the virtual time, so that a flow has no claim to shares that it did
-- not use. Each tag increases the counter of arrivals, which orders the runs of releases without flows.
local function next_rank(priority, namespace, started)
  local arrivals, virtual = redis.call('INCR', SEQ), tonumber(redis.call('ZSCORE', SHARES, priority))
  if not virtual then
    local first, last = whole(rank(priority, 0)), '(' .. whole(rank(priority - 1, 0))
    local waits = redis.call('ZRANGEBYSCORE', SETS.waiting, first, last, 'WITHSCORES', 'LIMIT', 0, 1)
    virtual = tonumber(waits[2]) or rank(priority, arrivals)
    redis.call('ZADD', SHARES, whole(virtual), priority)
  end
  local own = flow(priority, namespace, started)
  local place = math.max(virtual, tonumber(redis.call('ZSCORE', SHARES, own)) or 0)
  redis.call('ZADD', SHARES, whole(place + 1), own)
  return whole(place)
end

-- Returns the rank of a run that stops waiting without a claim, if it is the latest of its flow. Otherwise a schedule that replaces its
-- waiting run again and again would raise the rank each time, and might never start a run.
local function return_rank(run)
  local fields = redis.call('HMGET', run, 'rank', 'namespace', 'started')
  local place = tonumber(fields[1])
  local own = place and flow(priority_of(place), fields[2], fields[3])
  if own and tonumber(redis.call('ZSCORE', SHARES, own)) == place + 1 then redis.call('ZADD', SHARES, fields[1], own) end
end

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
  if from == 'waiting' and state ~= 'waiting' then
    redis.call('ZREM', DUE, uid)
    if state ~= 'active' then return_rank(run) end
  end
  record_change(uid)
end

-- Puts a run with a rank among the waiting runs. It could be claimed since a time; a run that is only reordered keeps its own.
local function admit(uid, run, from, place, since)
  move(uid, run, from, 'waiting', place, 'rank', place)
  redis.call('ZADD', DUE, 'NX', since, uid)
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
-- is suspended, its guard holds more than is approved, or its backoff has not passed, else the waiting ones. There it keeps its rank
-- if it waited already, or its worker was lost or stopped, unless its priority has changed.
settle = function(uid, run, now)
  local fields = redis.call('HMGET', run, 'cancelled', 'suspended', 'parked_at', 'retry_at', 'rank', 'state', 'held', 'approved',
    'started', 'priority', 'namespace', 'outcome')
  local cancelled, parked_at, retry_at, from = fields[1] or '', fields[3], fields[4], fields[6]
  local is_parked = fields[2] == '1' or (tonumber(fields[7] or '') or -1) > (tonumber(fields[8] or '') or -1)
  -- Only its rollback remains.
  if fields[12] then cancelled, is_parked = '', false end
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
    local place, priority = fields[5], fields[10] or '0'
    local keeps = from == 'waiting' or (from == 'active' and not retry_at)
    if not keeps or not place or priority_of(place) ~= priority then
      if from == 'waiting' then return_rank(run) end
      place = next_rank(priority, fields[11], fields[9])
    end
    admit(uid, run, from, place, from == 'delayed' and retry_at or now)
    notify(uid)
  end
end

