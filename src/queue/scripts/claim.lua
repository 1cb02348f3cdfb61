-- ARGV level worker lease most offset look fresh installation uid...
-- Takes the best of the given runs that wait: at most as many as asked for, and no more than this worker's share of all. Left alone
-- are runs that need a higher level, or are of another installation. Delayed runs that are due begin to wait before that, since their
-- flows alternate with the others. Any other run's key is not known here, as a Cluster wants every key to be declared; so
-- unless the ids are fresh, nothing is taken that comes after such a run. Returns the ids and fields of those taken, each with the
-- milliseconds since it was due, the time, the ids to give in the next call, and when there is none, the milliseconds until the next
-- delayed run is due (-1: none; -2: nothing may be claimed before a controller has asserted the runs; -3: more runs are due, call
-- again).
local now, known, is_fresh = clock(), {}, ARGV[7] == '1'
for i = 9, #ARGV do known[ARGV[i]] = run_key(i - 8) end

-- Delayed runs that one call lets wait. Redis is blocked meanwhile, for about 2 ms.
local MOST_DUE = 128
-- Flows that one call removes, more than it can add.
local MOST_OUTDATED = 64
local function list_due() return redis.call('ZRANGEBYSCORE', SETS.delayed, '-inf', now, 'LIMIT', 0, MOST_DUE) end

-- The runs that wait, each followed by its rank.
local function list_waiting() return redis.call('ZRANGE', SETS.waiting, ARGV[5], ARGV[5] + ARGV[6] - 1, 'WITHSCORES') end

local due, waiting = list_due(), list_waiting()

local function call_again(reason)
  local rest = due
  for i = 1, #waiting, 2 do rest[#rest + 1] = waiting[i] end
  return { {}, now, rest, reason }
end

-- A run that must be first and is not known keeps this call from taking any.
local is_known = is_fresh or #due > 0 or known[waiting[1]]
for _, uid in ipairs(due) do is_known = is_known and (is_fresh or known[uid]) end
if #due + #waiting > 0 then
  if not is_known then return call_again(-1) end
  -- Redis may have gone back to a time before runs ended that wait here.
  if redis.call('GET', ASSERTED) ~= replication_id() then return { {}, now, {}, -2 } end
  refuse_when_full()
end

local promoted = {}
for _, uid in ipairs(due) do
  local run = known[uid]
  local fields = run and redis.call('HMGET', run, 'state', 'priority', 'namespace', 'started', 'retry_at')
  if fields and not fields[1] then
    forget(uid)
  elseif fields then
    admit(uid, run, 'delayed', next_rank(fields[2] or '0', fields[3], fields[4]), fields[5] or now)
    promoted[uid] = true
  end
end
if #due > 0 then
  local is_full = #due == MOST_DUE
  due, waiting = list_due(), list_waiting()
  if is_full and #due > 0 then
    notify('')
    return call_again(-3)
  end
end

-- In the order in which they are read from the answer.
local FIELDS = { 'format', 'state', 'epoch', 'worker', 'started', 'retry_at', 'finished', 'payload', 'priority', 'attempts',
  'recoveries', 'checkpoint', 'history', 'outcome', 'suspended', 'cancelled', 'parked_for',
  'traceparent', 'approved', 'installation', 'needs', 'level' }
local INSTALLATION, NEEDS = 20, 21

-- Runs of format 2 say what they need; workers that know format 1 only leave them alone.
local function is_for_me(fields)
  local is_known = fields[1] == '1' or fields[1] == '2'
  return is_known and tonumber(fields[NEEDS] or 1) <= tonumber(ARGV[1]) and agree(fields[INSTALLATION], ARGV[8])
end

local stamp
local function claim(uid, run, fields)
  stamp = stamp or stamp_clock(now, 1)
  local from, started = fields[2], tonumber(fields[5] or stamp)
  -- A server whose clock was ahead said when the run started.
  started = whole(started > stamp + MAX_AHEAD and stamp or started)
  local since = redis.call('ZSCORE', DUE, uid) or now
  -- At least the time, as when it was enqueued: a failover may have lost a claim, whose epoch must not come again.
  local epoch = whole(math.max((fields[3] or 0) + 1, now * 1000))
  if fields[6] then redis.call('HDEL', run, 'retry_at') end
  move(uid, run, from, 'active', now + ARGV[3], 'epoch', epoch, 'worker', ARGV[2], 'started', started)
  fields[2], fields[3], fields[4], fields[5], fields[6] = 'active', epoch, ARGV[2], started, false
  return { uid, fields, math.max(0, now - since) }
end

local share = math.ceil(redis.call('ZCARD', SETS.waiting) / math.max(1, redis.call('ZCARD', WORKERS)))
local most = math.min(ARGV[4], math.max(1, share))
local claims, rest, outdated, times = {}, {}, false, {}
for i = 1, #waiting, 2 do
  local uid, place = waiting[i], waiting[i + 1]
  local run = known[uid]
  outdated = outdated or (not run and not is_fresh)
  local fields = run and not outdated and #claims < most and redis.call('HMGET', run, unpack(FIELDS))
  if not fields then
    rest[#rest + 1] = uid
  elseif not fields[1] then
    forget(uid)
  elseif not is_for_me(fields) then
    rest[#rest + 1] = uid
  else
    claims[#claims + 1] = claim(uid, run, fields)
    times[priority_of(place)], promoted[uid] = place, nil
  end
end

-- Other workers can claim the rest of these runs.
for uid in pairs(promoted) do notify(uid) end

-- The virtual time never goes back. A flow whose next rank is lower has the same meaning as one that does not exist.
for priority, place in pairs(times) do
  if redis.call('ZADD', SHARES, 'GT', 'CH', place, priority) == 1 then
    local outdated_flows = redis.call('ZRANGEBYSCORE', SHARES, whole(rank(priority, 0)), '(' .. place, 'LIMIT', 0, MOST_OUTDATED)
    if #outdated_flows > 0 then redis.call('ZREM', SHARES, unpack(outdated_flows)) end
  end
end

local upcoming = {}
if #claims + #rest == 0 then
  upcoming = redis.call('ZRANGEBYSCORE', SETS.delayed, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
end
return { claims, stamp or now, rest, upcoming[2] and math.max(1, math.ceil(upcoming[2] - now)) or -1 }
