-- See which tasks have ended, and be told of the end of the others.
-- flags: allow-oom
-- ARGV[2] {channel, ids}
-- Reply OK {answers}, for each id: its final state, of a success with the JSON of a short result behind it, as notices have it;
--   '' while it is open and the channel will hear, or where it may be in the log alone: ask again; false: unknown
-- May be repeated.

local why = refused()
if why then return reply(why) end
local answers = {}

-- After a loss Redis reads the log again. Within this time of the opening all partitions have begun.
local BEGIN = 10000
local unknown
local function of_the_unknown()
  if unknown == nil then
    local e = call('HMGET', K.epoch, 'reason', 'opened_at')
    unknown = e[1] ~= 'fresh' and read_until(now_ms()) < e[2] + BEGIN and ''
  end
  return unknown
end

for i, id in ipairs(A[2]) do
  local t = call('HMGET', K.task(id), 's', 'r')
  local s = t[1]
  if s == 'S' then s = s .. (t[2] or '')
  elseif s and not FINAL[s] then
    call('HSET', K.task(id), 'wa', 1)
    call('SADD', K.watchers(id), A[1])
    call('EXPIRE', K.watchers(id), 3600)
    s = ''
  end
  answers[i] = s or of_the_unknown()
end
return reply('OK', answers)
