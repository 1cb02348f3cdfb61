-- ARGV uid format payload priority started attempts recoveries history suspended_since rollback traceparent parked_for installation
-- needs level namespace
-- Returns the state of a run that exists, or false when it was added. An error when the queue is another installation's.
local uid, run, time = ARGV[1], run_key(1), micros()
local state = redis.call('HGET', run, 'state')
if state then return state end
if not agree(redis.call('HGET', OWNER, 'fingerprint'), ARGV[13]) then
  return redis.error_reply('OWNED the queue belongs to another installation')
end

-- Where there is no run, there is none to assert.
local is_empty = redis.call('EXISTS', ASSERTED) == 0
for _, set in ipairs({ 'waiting', 'delayed', 'active', 'parked' }) do is_empty = is_empty and redis.call('ZCARD', SETS[set]) == 0 end
if is_empty then redis.call('SET', ASSERTED, replication_id()) end

-- The epoch starts at the time in microseconds: a run that is restored after Redis lost it has higher epochs than before.
redis.call('HSET', run, 'format', ARGV[2], 'payload', ARGV[3], 'priority', ARGV[4], 'namespace', ARGV[16],
  'epoch', whole(time), 'stalls', 0, 'releases', 0, 'attempts', ARGV[6], 'recoveries', ARGV[7], 'history', ARGV[8], 'rollback', ARGV[10],
  'parked_for', ARGV[12], 'installation', ARGV[13], 'needs', ARGV[14], 'level', ARGV[15])
if ARGV[5] ~= '' then redis.call('HSET', run, 'started', ARGV[5]) end
if ARGV[9] ~= '' then
  -- Releases without flows need a rank in every state.
  local place = whole(rank(ARGV[4], redis.call('INCR', SEQ)))
  redis.call('HSET', run, 'suspended', 1, 'parked_at', ARGV[9], 'rank', place)
end
if ARGV[11] ~= '' then redis.call('HSET', run, 'traceparent', ARGV[11]) end
settle(uid, run, math.floor(time / 1000))
return false
