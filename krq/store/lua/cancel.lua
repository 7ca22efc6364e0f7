-- End tasks that have not started, and tell the workers of those that run.
-- flags: allow-oom
-- ARGV[2] {ids}
-- Reply OK {answers}, for each id: C cancelled now · p it runs, and its worker will hear · m the log has it, and intake will end it · its final state · false, unknown
-- May be repeated.

local why = refused()
if why then return reply(why) end
local answers = {}
for i, id in ipairs(A[1]) do answers[i] = cancel_task(id, 'cancelled before it ran') end
tell_dependents()
finish_call()
return reply('OK', answers)
