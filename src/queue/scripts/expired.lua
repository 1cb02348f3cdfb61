-- ARGV offset count
-- Returns the runs whose lease has ended.
return redis.call('ZRANGEBYSCORE', SETS.active, '-inf', clock(), 'LIMIT', ARGV[1], ARGV[2])
