-- End tasks that have not started, and tell the workers of those that run.
-- flags: allow-oom
-- ARGV[2] {ids}
-- Reply OK {answers}, for each id: C cancelled now · p it runs, and its worker will hear · m the log has it, and intake will end it · its final state · false, unknown
-- May be repeated.

local why = refused()
if why then return reply(why) end
local answers = {}
for i, id in ipairs(A[1]) do
  local t = call('HMGET', K.task(id), 's', 'o')
  local s = t[1]
  if s == 'p' then
    -- told once; afterwards sync.lua's audit tells it again, until its end
    if call('HSETNX', K.task(id), 'c', 1) == 1 then call('RPUSH', K.stops(t[2]), id) end
  elseif s == 'q' or s == 'd' or s == 'w' then
    end_here(id, 'C', 'CANCELLED', 'cancelled before it ran')
    s = 'C'
  elseif s == 'm' then
    call('HSET', K.task(id), 'c', 1)
  end
  answers[i] = s
end
tell_dependents()
finish_call()
return reply('OK', answers)
