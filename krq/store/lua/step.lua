-- Keep the result of one step of a running task, or tell all that earlier attempts kept.
-- ARGV[2] {incarnation, id, attempt, most, most_bytes, name, value}: without a name and a value, what there is
-- Reply OK {status, steps}: KEPT, with {name, value, ...} where no name was given · LOST, the fence (owner, attempt) is another's · MANY,
--   LARGE, a limit: nothing was kept
-- May be repeated: what a step has come to stays as it is.

local why = refused()
if why then return reply(why) end
local id, name, value = A[2], A[6], A[7]
local t = call('HMGET', K.task(id), 's', 'o', 'a', 'st')
if t[1] ~= 'p' or t[2] ~= A[1] or tonumber(t[3]) ~= A[3] then return reply('OK', 'LOST') end
if not name then return reply('OK', 'KEPT', call('HGETALL', K.steps(id))) end
if call('HEXISTS', K.steps(id), name) == 1 then return reply('OK', 'KEPT') end
local bytes = (tonumber(t[4]) or 0) + #name + #value
if call('HLEN', K.steps(id)) >= A[4] then return reply('OK', 'MANY') end
if bytes > A[5] then return reply('OK', 'LARGE') end
call('HSET', K.steps(id), name, value)
call('HSET', K.task(id), 'st', bytes)
return reply('OK', 'KEPT')
