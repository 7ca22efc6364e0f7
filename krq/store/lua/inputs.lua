-- The results of tasks that somebody has waited for and will not let go before it has ended.
-- flags: allow-oom
-- ARGV[2] {ids}
-- Reply OK {values}, JSON, for each id: null where it has none
-- May be repeated.

local why = refused()
if why then return reply(why) end
local values = {}
for i, id in ipairs(A[1]) do values[i] = call('HGET', K.task(id), 'r') or call('GET', K.result(id)) or 'null' end
return reply('OK', values)
