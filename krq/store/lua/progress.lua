-- Note how far an attempt is.
-- ARGV[2] {incarnation, id, attempt, done, total}
-- Reply OK {noted}
-- May be repeated. The fence refuses those of an older attempt.

local why = refused()
if why then return reply(why) end
local t = call('HMGET', K.task(A[2]), 's', 'o', 'a')
if t[1] ~= 'p' or t[2] ~= A[1] or tonumber(t[3]) ~= A[3] then return reply('OK', false) end
call('HSET', K.task(A[2]), 'pg', A[4] .. '/' .. A[5])
return reply('OK', true)
