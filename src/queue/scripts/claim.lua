-- ARGV format worker lease most offset look fresh uid...
-- Takes the best of the given runs that wait, or are delayed and due: at most as many as asked for, and no more than
-- this worker's share of all. Any other run's key is not known here, as a Cluster wants every key to be declared; so
-- unless the ids are fresh, nothing is taken that comes after such a run.
-- Returns the ids and hashes of those taken, the time, the ids to give in the next call, and when there is none, the
-- milliseconds until the next delayed run is due (-1: none).
local now, known = clock(), {}
for i = 8, #ARGV do known[ARGV[i]] = run_key(i - 7) end

local ready = {}
local waiting = redis.call('ZRANGE', SETS.waiting, ARGV[5], ARGV[5] + ARGV[6] - 1, 'WITHSCORES')
for i = 1, #waiting, 2 do ready[#ready + 1] = { uid = waiting[i], rank = tonumber(waiting[i + 1]) } end
local due = redis.call('ZRANGEBYSCORE', SETS.delayed, '-inf', now, 'LIMIT', ARGV[5], ARGV[6])
for _, uid in ipairs(due) do
  ready[#ready + 1] = { uid = uid, rank = tonumber(known[uid] and redis.call('HGET', known[uid], 'rank') or -1) }
end
if #due > 0 then table.sort(ready, function(a, b) return a.rank < b.rank end) end

local share = math.ceil((redis.call('ZCARD', SETS.waiting) + #due) / math.max(1, redis.call('ZCARD', WORKERS)))
local most = math.min(ARGV[4], math.max(1, share))
local claims, rest, outdated = {}, {}, false
for _, candidate in ipairs(ready) do
  local uid, run = candidate.uid, known[candidate.uid]
  outdated = outdated or (not run and ARGV[7] ~= '1')
  local format, epoch
  if run and not outdated and #claims < most then
    local fields = redis.call('HMGET', run, 'format', 'epoch')
    format, epoch = fields[1], fields[2] or 0
    if not format then forget(uid) end
  end
  if format == ARGV[1] then
    redis.call('HSETNX', run, 'started', now)
    redis.call('HDEL', run, 'retry_at')
    -- At least the time, as when it was enqueued: a failover may have lost a claim, whose epoch must not come again.
    move(uid, run, 'active', now + ARGV[3], 'worker', ARGV[2], 'epoch', whole(math.max(epoch + 1, now * 1000)))
    claims[#claims + 1] = { uid, redis.call('HGETALL', run) }
  elseif format ~= false then
    rest[#rest + 1] = uid
  end
end

local upcoming = {}
if #claims + #rest == 0 then
  upcoming = redis.call('ZRANGEBYSCORE', SETS.delayed, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
end
return { claims, now, rest, upcoming[2] and math.max(1, math.ceil(upcoming[2] - now)) or -1 }
