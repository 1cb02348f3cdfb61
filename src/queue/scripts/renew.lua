-- KEYS active workers run...
-- ARGV worker lease (uid epoch)...
-- Extends the leases of a worker and shows that it lives. Returns the runs it no longer holds.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local lost = {}
for i = 3, #ARGV, 2 do
  local fields = redis.call('HMGET', KEYS[(i - 3) / 2 + 3], 'state', 'epoch')
  if fields[1] == 'active' and fields[2] == ARGV[i + 1] then
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
