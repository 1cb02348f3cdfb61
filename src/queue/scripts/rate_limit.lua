-- ARGV pause every...
-- Reserves the next request under rate limits of one request per `every` microseconds each, or under none of them, or
-- rejects reservations for `pause` microseconds. Returns whether the request is reserved, and the microseconds to wait. A
-- request is reserved at most one second ahead: a pause does not revoke reservations, and a process may end before it
-- uses its reservation. domain/rate_limit.rs has the same rule for runs without Redis.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local pause, times, free_at = tonumber(ARGV[1]), {}, now
for i = 1, #ARGV - 1 do
  times[i] = math.max(now, tonumber(redis.call('GET', run_key(i)) or '0'))
  free_at = math.max(free_at, times[i])
end
local is_reserved = pause == 0 and free_at <= now + 1000000
for i, time_of_limit in ipairs(times) do
  local next_free_at = math.max(is_reserved and free_at + tonumber(ARGV[i + 1]) or time_of_limit, now + pause)
  if next_free_at > now then
    write_when_full()
    redis.call('SET', run_key(i), whole(next_free_at), 'PX', whole(math.ceil((next_free_at - now) / 1000) + 1000))
  end
end
return {is_reserved and 1 or 0, free_at - now}
