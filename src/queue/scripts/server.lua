-- Returns an error where nothing can be written, as on a replica. Otherwise returns the replication id of the server, whether
-- a controller has asserted all runs on it, and how many workers live.
write_when_full()
local id = replication_id()
return { id, redis.call('GET', ASSERTED) == id and 1 or 0, redis.call('ZCOUNT', WORKERS, clock(), '+inf') }
