-- What a worker should know once a second: tasks to stop, and, where it asks, what it holds.
-- flags: allow-oom
-- ARGV[2] {incarnation, audit}
-- Reply OK {stops, held}: ids to stop; {id, attempt} of what Redis says it holds, or false
-- May be repeated; a stop whose answer is lost is told again, as it stays with the task (field c) until its end.

local why = refused()
if why then return reply(why) end
local inc = A[1]
if call('HEXISTS', K.beats, inc) == 0 then return reply('DEAD') end
local stops = call('LRANGE', K.stops(inc), 0, 199)
if #stops > 0 then call('LTRIM', K.stops(inc), #stops, -1) end
local held = A[2] and {}
if held then
  for i, id in ipairs(call('SMEMBERS', K.held(inc))) do
    local t = call('HMGET', K.task(id), 'a', 'c')
    held[i] = {id, tonumber(t[1]) or 0}
    if t[2] then stops[#stops + 1] = id end
  end
end
return reply('OK', stops, held)
