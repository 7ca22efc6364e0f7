-- Set limits of a task name at run time, over what its code says, or unset them.
-- flags: allow-oom
-- ARGV[2] {name, limits}: limits, JSON with what places.lua reads, each a number or "none", or false: as the code says
-- Reply OK {}
-- May be repeated.

local why = refused()
if why then return reply(why) end
if A[2] then call('HSET', K.limits_set, A[1], A[2]) else call('HDEL', K.limits_set, A[1]) end
enforce(A[1])
finish_call()
return reply('OK')
