-- What a worker should know once a second: tasks to stop, and, where it asks, what it holds.
-- flags: allow-oom
-- ARGV[2] {incarnation, audit}
-- Reply OK {stops, held}: ids to stop; ids Redis says it holds, or false
-- May be repeated; a stop whose answer is lost is told again, as it stays with the task (field c) until its end.

local why = refused()
if why then return reply(why) end
local inc = A[1]
if call('HEXISTS', K.beats, inc) == 0 then return reply('DEAD') end
local stops = call('LRANGE', K.stops(inc), 0, 199)
if #stops > 0 then call('LTRIM', K.stops(inc), #stops, -1) end
local held = A[2] and call('SMEMBERS', K.held(inc)) or false
if held then
  for _, id in ipairs(held) do
    if call('HGET', K.task(id), 'c') then stops[#stops + 1] = id end
  end
end
return reply('OK', stops, held)
