-- Drop what a queue holds and what its log holds up to now, at most 200 tasks a call.
-- flags: allow-oom
-- ARGV[2] {queue, before_ms}: before_ms, false at the first call
-- Reply OK {dropped, before_ms}: call again with before_ms until dropped is 0
-- May be repeated. Records appended before before_ms and not yet admitted are dropped by intake.

local why = refused()
if why then return reply(why) end
local queue = A[1]
local before = A[2] or now_ms()
if (tonumber(call('HGET', K.queue(queue), 'purged')) or 0) < before then call('HSET', K.queue(queue), 'purged', before) end
local ids = call('ZRANGE', K.ready(queue), 0, 199)
for _, id in ipairs(call('ZRANGE', K.scheduled(queue), 0, 199 - #ids)) do ids[#ids + 1] = id end
for _, id in ipairs(ids) do
  call('ZREM', K.ready(queue), id)
  call('ZREM', K.scheduled(queue), id)
  if call('EXISTS', K.task(id)) == 1 then end_here(id, 'C', 'PURGED', 'its queue was purged') end
end
if #ids == 0 then call('HSET', K.queue(queue), 'bytes', 0) end
tell_dependents()
finish_call()
return reply('OK', #ids, before)
