-- ARGV level worker lease most offset look fresh installation uid...
-- Takes the best of the given runs that wait, or are delayed and due: at most as many as asked for, and no more than
-- this worker's share of all. Left alone are runs that need a higher level, or are of another installation. Any other run's
-- key is not known here, as a Cluster wants every key to be declared; so unless the ids are fresh, nothing is taken that comes
-- after such a run. Returns the ids and fields of those taken, each with the milliseconds since it was due, the time, the ids
-- to give in the next call, and when there is none, the milliseconds until the next delayed run is due (-1: none; -2: nothing
-- may be claimed before a controller has asserted the runs).
local now, known = clock(), {}
for i = 9, #ARGV do known[ARGV[i]] = run_key(i - 8) end

local first, last = ARGV[5], ARGV[5] + ARGV[6] - 1
local ready = redis.call('ZRANGE', SETS.waiting, first, last)
local due = redis.call('ZRANGEBYSCORE', SETS.delayed, '-inf', now, 'LIMIT', first, ARGV[6])
if #due > 0 then
  local ranks = {}
  for _, uid in ipairs(ready) do ranks[uid] = tonumber(redis.call('ZSCORE', SETS.waiting, uid)) end
  for _, uid in ipairs(due) do
    ready[#ready + 1] = uid
    ranks[uid] = tonumber(known[uid] and redis.call('HGET', known[uid], 'rank') or -1)
  end
  table.sort(ready, function(a, b) return ranks[a] < ranks[b] end)
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
  local due = from == 'waiting' and redis.call('ZSCORE', DUE, uid) or fields[6] or now
  -- At least the time, as when it was enqueued: a failover may have lost a claim, whose epoch must not come again.
  local epoch = whole(math.max((fields[3] or 0) + 1, now * 1000))
  if fields[6] then redis.call('HDEL', run, 'retry_at') end
  move(uid, run, from, 'active', now + ARGV[3], 'epoch', epoch, 'worker', ARGV[2], 'started', started)
  fields[2], fields[3], fields[4], fields[5], fields[6] = 'active', epoch, ARGV[2], started, false
  return { uid, fields, math.max(0, now - due) }
end

-- A run that is first and not known keeps this call from taking any.
if #ready > 0 and (ARGV[7] == '1' or known[ready[1]]) then
  -- Redis may have gone back to a time before runs ended that wait here.
  if redis.call('GET', ASSERTED) ~= replication_id() then return { {}, now, {}, -2 } end
  refuse_when_full()
end

local share = math.ceil((redis.call('ZCARD', SETS.waiting) + #due) / math.max(1, redis.call('ZCARD', WORKERS)))
local most = math.min(ARGV[4], math.max(1, share))
local claims, rest, outdated = {}, {}, false
for _, uid in ipairs(ready) do
  local run = known[uid]
  outdated = outdated or (not run and ARGV[7] ~= '1')
  local fields = run and not outdated and #claims < most and redis.call('HMGET', run, unpack(FIELDS))
  if not fields then
    rest[#rest + 1] = uid
  elseif not fields[1] then
    forget(uid)
  elseif not is_for_me(fields) then
    rest[#rest + 1] = uid
  else
    claims[#claims + 1] = claim(uid, run, fields)
  end
end

local upcoming = {}
if #claims + #rest == 0 then
  upcoming = redis.call('ZRANGEBYSCORE', SETS.delayed, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
end
return { claims, stamp or now, rest, upcoming[2] and math.max(1, math.ceil(upcoming[2] - now)) or -1 }
