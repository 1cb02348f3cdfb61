-- ARGV every rest
-- Takes a turn at a gate that lets one through in so many microseconds, or keeps it shut for so many. Returns whether
-- the turn is taken, and for how many microseconds to wait. A turn is taken at most a second ahead: those who have one
-- do not hear of a gate that is shut afterwards, and may end before it comes.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local gate, every, rest = run_key(1), tonumber(ARGV[1]), tonumber(ARGV[2])
local turn = math.max(now, tonumber(redis.call('GET', gate) or '0'))
local is_taken = rest == 0 and turn <= now + 1000000
local next_turn = math.max(is_taken and turn + every or turn, now + rest)
if next_turn > now then
  redis.call('SET', gate, whole(next_turn), 'PX', whole(math.ceil((next_turn - now) / 1000) + 1000))
end
return {is_taken and 1 or 0, turn - now}
