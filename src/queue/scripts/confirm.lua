-- ARGV replication_id
-- Lets workers claim runs again: all were asserted on the server with this replication id. Returns 0 when this is another one.
if replication_id() ~= ARGV[1] then return 0 end
write_when_full()
redis.call('SET', ASSERTED, ARGV[1])
notify('')
return 1
