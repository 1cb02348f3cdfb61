-- ARGV lease uid...
-- Makes the sets say again what the hashes say, after part of the data was lost. Returns how many runs were mended,
-- and how many are in a state that is not known here and were left alone.
local now, mended, foreign = clock(), 0, 0
for i = 2, #ARGV do
  local uid, run = ARGV[i], run_key(i - 1)
  local fields = redis.call('HMGET', run, 'state', 'finished')
  local state, places = fields[1], 0
  for _, set in pairs(SETS) do
    if redis.call('ZSCORE', set, uid) then places = places + 1 end
  end
  if redis.call('EXISTS', run) == 0 then
    if places > 0 or redis.call('ZSCORE', DUE, uid) then
      forget(uid)
      mended = mended + 1
    end
  elseif not SETS[state] then
    foreign = foreign + 1
  elseif places ~= 1 or not redis.call('ZSCORE', SETS[state], uid) then
    mended = mended + 1
    forget(uid)
    if state == 'active' then
      -- Its worker may be alive: it has one lease to show that.
      move(uid, run, state, state, now + ARGV[1])
    elseif state == 'completed' or state == 'failed' then
      move(uid, run, state, state, fields[2] or now)
    else
      settle(uid, run, now)
    end
  elseif state == 'waiting' then
    -- A release that knew nothing of this set may have enqueued the run, or claimed it.
    redis.call('ZADD', DUE, 'NX', now, uid)
  else
    redis.call('ZREM', DUE, uid)
  end
end
return { mended, foreign }
