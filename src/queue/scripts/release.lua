-- ARGV (uid epoch disposition detail checkpoint attempts history)...
-- Takes runs from a worker that releases them: each is completed, failed (detail: why), delayed (detail: for how long),
-- paused (likewise; the time does not count towards the deadline), held (detail: how many documents an approval has to cover) or
-- released, or unsupported (detail: the level that its worker must have). A failed run to be rolled back ends with its
-- second release as failed. Attempts and history are empty when they do not change. Returns 1 for each run, or 0 when its lease is
-- lost.
local now, answers = clock(), {}
write_when_full()
-- Documents carry times of the run's end, too.
stamp_clock(now, 0)
for i = 1, #ARGV, 7 do
  local uid, run, disposition, detail = ARGV[i], run_key((i + 6) / 7), ARGV[i + 2], ARGV[i + 3]
  local held = is_held(run, ARGV[i + 1])
  if held then
    local fields = { 'checkpoint', ARGV[i + 4] }
    if ARGV[i + 5] ~= '' then fields = { 'checkpoint', ARGV[i + 4], 'attempts', ARGV[i + 5], 'history', ARGV[i + 6] } end
    if disposition == 'completed' then
      finish(uid, run, 'active', disposition, detail, now, unpack(fields))
    elseif disposition == 'failed' then
      fail(uid, run, 'active', detail, now, unpack(fields))
    else
      redis.call('HSET', run, unpack(fields))
      if disposition == 'delayed' or disposition == 'paused' then
        redis.call('HSET', run, 'retry_at', now + detail)
        if disposition == 'paused' then redis.call('HINCRBY', run, 'parked_for', detail) end
      elseif disposition == 'held' then
        redis.call('HSET', run, 'held', detail)
      elseif disposition == 'unsupported' then
        redis.call('HSET', run, 'format', 2, 'needs', detail)
      elseif not is_recalled(run) then
        redis.call('HINCRBY', run, 'releases', 1)
      end
      settle(uid, run, now)
    end
  end
  answers[#answers + 1] = held and 1 or 0
end
return answers
