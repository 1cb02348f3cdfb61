-- KEYS run waiting delayed active parked completed failed
-- ARGV uid
-- Forgets a run. A worker that has it loses its lease.
redis.call('DEL', KEYS[1])
for i = 2, #KEYS do
  if i == 5 then redis.call('SREM', KEYS[i], ARGV[1]) else redis.call('ZREM', KEYS[i], ARGV[1]) end
end
return 1
