-- ARGV installation is_restored (uid suspended cancelled priority approved started attempts recoveries history parked_for parked_since
-- held)...
-- Asserts unfinished runs from their SyncJobs: suspends, resumes, cancels, reorders or approves them, and restores
-- what Redis lost. What the SyncJob does not know is empty or 0. After a restore of Redis (is_restored), the SyncJob is also right
-- about the time since which a run is parked, and its hold. A run that a worker holds is recalled: its next checkpoint says so.
-- Works on runs of any format: only fields that all have are used. A run follows its installation when that has changed.
-- Returns 1 for each, or 0 when there is no such run, or it has ended.
local now, answers = clock(), {}
write_when_full()

local function assert_run(uid, run, suspended, cancelled, priority, approved, started, attempts, recoveries, history, parked_for,
    parked_since, held)
  local fields = redis.call('HMGET', run, 'installation', 'state', 'suspended', 'cancelled', 'priority', 'approved', 'started',
    'attempts', 'recoveries', 'parked_for', 'parked_at', 'held')
  local state = fields[2]
  if not state or state == 'completed' or state == 'failed' then return 0 end
  local changes = {}
  local function set(field, value)
    changes[#changes + 1] = field
    changes[#changes + 1] = value
  end
  if ARGV[1] ~= fields[1] then set('installation', ARGV[1]) end
  if suspended ~= (fields[3] or '0') then set('suspended', suspended) end
  -- A run stays cancelled.
  if cancelled ~= '' and (fields[4] or '') == '' then set('cancelled', cancelled) end
  -- The run gets a rank of its new priority when it waits.
  if priority ~= fields[5] then set('priority', priority) end
  if approved ~= (fields[6] or '') then set('approved', approved) end
  if started ~= '' and started ~= fields[7] then set('started', started) end
  if tonumber(attempts) > tonumber(fields[8] or 0) then
    set('attempts', attempts)
    set('history', history)
  end
  if tonumber(recoveries) > tonumber(fields[9] or 0) then set('recoveries', recoveries) end
  if tonumber(parked_for) > tonumber(fields[10] or 0) then set('parked_for', parked_for) end
  local is_resumed = false
  if ARGV[2] == '1' then
    if parked_since ~= '' and parked_since ~= fields[11] then set('parked_at', parked_since) end
    if held ~= '' and not fields[12] then set('held', held) end
    is_resumed = parked_since == '' and fields[11]
    if is_resumed then redis.call('HDEL', run, 'parked_at') end
  end
  if #changes > 0 then redis.call('HSET', run, unpack(changes)) end
  local is_lost = not SETS[state] or not redis.call('ZSCORE', SETS[state], uid)
  if (#changes > 0 or is_resumed or is_lost) and state ~= 'active' then settle(uid, run, now) end
  return 1
end

for i = 3, #ARGV, 12 do
  answers[#answers + 1] = assert_run(ARGV[i], run_key((i + 9) / 12), unpack(ARGV, i + 1, i + 11))
end
return answers
