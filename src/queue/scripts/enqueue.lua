-- ARGV uid format keep payload priority started attempts recoveries history suspended_since rollback traceparent installation needs level
-- Returns the state of a run that exists, or false when it was added. An error when the queue is another installation's.
local uid, run, now = ARGV[1], run_key(1), clock()
local state = redis.call('HGET', run, 'state')
if state then return state end
if not agree(redis.call('HGET', OWNER, 'fingerprint'), ARGV[13]) then
  return redis.error_reply('OWNED the queue belongs to another installation')
end

-- Starts at the time in microseconds: a run that is put back after Redis lost it has higher epochs than before.
local time = redis.call('TIME')
local epoch = whole(time[1] * 1000000 + time[2])
redis.call('HSET', run, 'format', ARGV[2], 'payload', ARGV[4], 'priority', ARGV[5], 'rank', rank(ARGV[5], redis.call('INCR', SEQ)),
  'epoch', epoch, 'stalls', 0, 'releases', 0, 'attempts', ARGV[7], 'recoveries', ARGV[8], 'history', ARGV[9], 'rollback', ARGV[11],
  'installation', ARGV[13], 'needs', ARGV[14], 'level', ARGV[15])
if ARGV[6] ~= '' then redis.call('HSET', run, 'started', ARGV[6]) end
if ARGV[10] ~= '' then redis.call('HSET', run, 'suspended', 1, 'parked_at', ARGV[10]) end
if ARGV[12] ~= '' then redis.call('HSET', run, 'traceparent', ARGV[12]) end
settle(uid, run, ARGV[3], now)
return false
