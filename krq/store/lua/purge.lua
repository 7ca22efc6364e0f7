-- Drop what a queue holds and what its log holds up to now, at most 200 tasks a call. Running and waiting ones stay.
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
if #ids < 200 then
  for _, id in ipairs(call('ZRANGE', K.scheduled(queue), 0, 199 - #ids)) do ids[#ids + 1] = id end
end
for _, group in ipairs(call('ZRANGE', K.limited(queue), 0, 49)) do
  local rest = 199 - #ids
  if rest < 0 then break end
  local parked = K.parked(queue .. ':' .. group)
  for _, id in ipairs(call('ZRANGE', parked, 0, rest)) do
    if call('HGET', K.task(id), 's') == 'q' then ids[#ids + 1] = id else call('ZREM', parked, id) end
  end
end
for _, id in ipairs(ids) do
  local s = call('HGET', K.task(id), 's')
  if s == 'q' or s == 'd' then end_here(id, 'C', 'PURGED', 'its queue was purged')
  else
    call('ZREM', K.ready(queue), id)
    call('ZREM', K.scheduled(queue), id)
  end
end
tell_dependents()
finish_call()
return reply('OK', #ids, before)
