-- The values of tasks that somebody has waited for and will not let go before it has ended.
-- flags: allow-oom
-- ARGV[2] {ids}
-- Reply OK {values}, for each id: JSON, null where it has none; of one that did not succeed "!", its state, and its error as JSON
-- May be repeated.

local why = refused()
if why then return reply(why) end
local values = {}
for i, id in ipairs(A[1]) do values[i] = value_of(id) end
return reply('OK', values)
