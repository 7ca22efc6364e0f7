-- Enter an incarnation: from now on it may take, while it beats.
-- flags: allow-oom
-- ARGV[2] {incarnation, fields, names, queues, limits}; fields {name, value, ...} of the worker; names it knows, {"*"} for all;
--   limits {name, JSON or false} of the names it knows (places.lua)
-- Reply OK {now_ms}
-- May be repeated.

local why = refused()
if why then return reply(why) end
local inc, fields, names, queues = A[1], A[2], A[3], A[4]
local now = now_ms()
call('HSET', K.beats, inc, text_of(now)) -- a beat, and a count that no observer can take for one it has seen before, however long ago
variadic('HSET', K.worker(inc), fields)
call('DEL', K.names(inc))
variadic('SADD', K.names(inc), names)
variadic('SADD', K.queues, queues)
for i = 1, #fields, 2 do
  if fields[i] == 'inbox' then call('SREM', K.gone, fields[i + 1]) end
end
define(A[5])
finish_call()
return reply('OK', now)
