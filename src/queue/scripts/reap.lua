-- ARGV max_stalls outcome uid...
-- Returns the runs whose lease has ended to the queue, of any format. A run that lost its worker repeatedly, without
-- progress in between, fails; a rollback waits instead. Returns the number of reaped runs.
local REST = 60000
local now, reaped = clock(), 0
write_when_full()
for i = 3, #ARGV do
  local uid, run = ARGV[i], run_key(i - 2)
  local expiry = redis.call('ZSCORE', SETS.active, uid)
  if expiry and tonumber(expiry) <= now then
    reaped = reaped + 1
    if redis.call('EXISTS', run) == 0 then
      forget(uid)
    else
      redis.call('HINCRBY', run, 'recoveries', 1)
      local is_stalled = redis.call('HINCRBY', run, 'stalls', 1) > tonumber(ARGV[1])
      if is_stalled and is_rolled_back(run) then redis.call('HSET', run, 'retry_at', now + REST) end
      if is_stalled and not is_rolled_back(run) and not is_recalled(run) then
        fail(uid, run, 'active', ARGV[2], now)
      else
        settle(uid, run, now)
      end
    end
  end
end
return reaped
