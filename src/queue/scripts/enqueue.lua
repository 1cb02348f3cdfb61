-- KEYS run waiting seq wake events
-- ARGV uid format payload priority started attempts recoveries history
-- Returns the state of a run that exists, or false when it was added.
local state = redis.call('HGET', KEYS[1], 'state')
if state then return state end

local seq = redis.call('INCR', KEYS[3])
-- Higher priorities first, then arrival. The rank is kept, so a run that comes back takes its old place.
local rank = string.format('%.0f', (1000 - ARGV[4]) * 2 ^ 40 + seq)
-- Starts at the time in microseconds: a run that is put back after Redis lost it has higher epochs than before.
local time = redis.call('TIME')
local epoch = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSET', KEYS[1], 'format', ARGV[2], 'payload', ARGV[3], 'state', 'waiting', 'rank', rank,
  'epoch', epoch, 'stalls', 0, 'releases', 0, 'attempts', ARGV[6], 'recoveries', ARGV[7], 'history', ARGV[8])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'started', ARGV[5]) end
redis.call('ZADD', KEYS[2], rank, ARGV[1])
redis.call('LPUSH', KEYS[4], 1)
redis.call('LTRIM', KEYS[4], 0, 63)
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'uid', ARGV[1])
return false
