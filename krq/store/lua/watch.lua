-- See which tasks have ended, and be told of the end of the others.
-- flags: allow-oom
-- ARGV[2] {channel, ids}
-- Reply OK {answers}, for each id: its final state, of a success with the JSON of a short result behind it, as notices have it;
--   '' while it is open and the channel will hear; false: unknown
-- May be repeated.

local why = refused()
if why then return reply(why) end
local answers = {}
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
  answers[i] = s
end
return reply('OK', answers)
