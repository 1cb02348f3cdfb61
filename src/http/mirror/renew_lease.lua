-- Takes or renews the lease of the mirror. KEYS: meta, id, then the lists (3) and the sorted sets. ARGV: the process, length of the lease
-- in milliseconds, milliseconds until keys expire that are not renewed. Answers with {-1, key} when the key belongs to a queue of BullMQ,
-- {0} when another process holds the lease, and otherwise with 1 and the length of each list and set.
local meta, id = KEYS[1], KEYS[2]
local writer, expires = unpack(redis.call('HMGET', meta, 'sync-operator', 'sync-operator.until'))
-- BullMQ counts every job there that was ever added to a queue.
if redis.call('EXISTS', id) == 1 then
  return {-1, id}
end
if not writer then
  for i = 3, #KEYS do
    -- Ours end by themselves, also after meta was lost.
    if redis.call('PTTL', KEYS[i]) == -1 then
      return {-1, KEYS[i]}
    end
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if writer and writer ~= ARGV[1] and tonumber(expires) > now then
  return {0}
end
-- No job is ever given to a worker of BullMQ that is pointed here by mistake.
redis.call('HSET', meta, 'sync-operator', ARGV[1], 'sync-operator.until', string.format('%d', now + ARGV[2]), 'concurrency', '0')
redis.call('PEXPIRE', meta, ARGV[3])
local answer = {1}
for i = 3, #KEYS do
  answer[#answer + 1] = redis.call(i < 6 and 'LLEN' or 'ZCARD', KEYS[i])
end
return answer
