-- Move schedules to their next tick: they have been fired, or older ticks are passed over.
-- flags: allow-oom
-- ARGV[2] {moves}; a move {name, from, to, last, id}: last, the tick that was fired, and its task; both false where ticks are passed over
-- Reply OK {answers}: 1 moved, 0 not: it was another's, or changed, meanwhile
-- May be repeated: it moves only from the tick it names.

local why = refused()
if why then return reply(why) end
local answers = {}
for i, m in ipairs(A[1]) do
  local name, from, to, last, id = unpack(m)
  answers[i] = 0
  if tonumber(call('ZSCORE', K.ticks, name) or '') == from then
    call('ZADD', K.ticks, to, name)
    if last then
      call('HSET', K.schedule(name), 'l', last, 'i', id)
      call('HDEL', K.schedule(name), 'o', 'c')
    end
    answers[i] = 1
  end
end
return reply('OK', answers)
