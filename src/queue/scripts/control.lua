-- ARGV uid keep suspended cancelled priority approved installation
-- Suspends, resumes, cancels, reorders or approves a run. One that a worker holds is recalled: its next checkpoint says so.
-- Works on a run of any format: only fields that all have are used. The run follows its installation when that has changed.
-- Returns 1, or 0 when there is no such run, or it has ended.
local uid, run = ARGV[1], run_key(1)
local fields = redis.call('HMGET', run, 'state', 'rank')
local state = fields[1]
if not state or state == 'completed' or state == 'failed' then return 0 end
redis.call('HSET', run, 'suspended', ARGV[3], 'priority', ARGV[5], 'rank', rank(ARGV[5], fields[2]), 'approved', ARGV[6],
  'installation', ARGV[7])
-- A run stays cancelled.
if ARGV[4] ~= '' then redis.call('HSET', run, 'cancelled', ARGV[4]) end
if state ~= 'active' then settle(uid, run, ARGV[2], clock()) end
return 1
