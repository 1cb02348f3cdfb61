-- ARGV every pause
-- Reserves the next request under a rate limit of one request per `every` microseconds, or rejects reservations for
-- `pause` microseconds. Returns whether the request is reserved, and the microseconds to wait. A request is reserved at
-- most one second ahead: a pause does not revoke reservations, and a process may end before it uses its reservation.
-- domain/rate_limit.rs has the same rule for runs without Redis.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local limit, every, pause = run_key(1), tonumber(ARGV[1]), tonumber(ARGV[2])
local free_at = math.max(now, tonumber(redis.call('GET', limit) or '0'))
local is_reserved = pause == 0 and free_at <= now + 1000000
local next_free_at = math.max(is_reserved and free_at + every or free_at, now + pause)
if next_free_at > now then
  write_when_full()
  redis.call('SET', limit, whole(next_free_at), 'PX', whole(math.ceil((next_free_at - now) / 1000) + 1000))
end
return {is_reserved and 1 or 0, free_at - now}
