-- ARGV uid format keep suspended cancelled priority approved
-- Suspends, resumes, cancels, reorders or approves a run. One that a worker holds is recalled: its next checkpoint says so.
-- Returns 1, or 0 when there is no such run, or it has ended.
local uid, run = ARGV[1], run_key(1)
local fields = redis.call('HMGET', run, 'format', 'state', 'rank')
local state = fields[2]
if fields[1] ~= ARGV[2] or state == 'completed' or state == 'failed' then return 0 end
redis.call('HSET', run, 'suspended', ARGV[4], 'priority', ARGV[6], 'rank', rank(ARGV[6], fields[3]), 'approved', ARGV[7])
-- A run stays cancelled.
if ARGV[5] ~= '' then redis.call('HSET', run, 'cancelled', ARGV[5]) end
if state ~= 'active' then settle(uid, run, ARGV[3], clock()) end
return 1
