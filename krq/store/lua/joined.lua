-- Note what the broker's group knows an incarnation by.
-- flags: allow-oom
-- ARGV[2] {incarnation, member}
-- Reply OK {}
-- May be repeated.

local why = refused()
if why then return reply(why) end
if call('HEXISTS', K.beats, A[1]) == 0 then return reply('DEAD') end
call('HSET', K.worker(A[1]), 'member', A[2])
return reply('OK')
