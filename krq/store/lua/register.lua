-- Enter an incarnation: from now on it may take, while it beats.
-- ARGV[2] {incarnation, fields, names, queues}; fields {name, value, ...} of the worker; names it knows, {"*"} for all
-- Reply OK {now_ms}
-- May be repeated.

local why = refused()
if why then return reply(why) end
local inc, fields, names, queues = A[1], A[2], A[3], A[4]
call('HSETNX', K.beats, inc, 0)
call('HSET', K.worker(inc), unpack(fields))
call('DEL', K.names(inc))
for i = 1, #names, 500 do call('SADD', K.names(inc), unpack(names, i, math.min(i + 499, #names))) end
for _, queue in ipairs(queues) do call('SADD', K.queues, queue) end
return reply('OK', now_ms())
