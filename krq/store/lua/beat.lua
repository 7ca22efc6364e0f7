-- Renew leases, and see who else beats. Runs while the namespace is closed, too.
-- flags: allow-oom
-- ARGV[2] {incarnations}
-- Reply OK {dead, beats, now_ms, remains}: dead, those of the given that are not registered; beats {incarnation, counter, ...} of all;
--   remains {incarnation, JSON of {started, cause, suspects}, ...} of the dead whose recovery was broken off
-- May be repeated: a beat more does no harm.

local why = refused(true)
if why then return reply(why) end
local dead = {}
local now = now_ms()
for _, inc in ipairs(A[1]) do
  if call('HEXISTS', K.beats, inc) == 0 then dead[#dead + 1] = inc
  else
    call('HINCRBY', K.beats, inc, 1)
    call('HSET', K.worker(inc), 'beat', now)
  end
end
return reply('OK', dead, call('HGETALL', K.beats), now, call('HGETALL', K.remains))
