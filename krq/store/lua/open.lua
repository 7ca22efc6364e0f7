-- Open a closed namespace: when every incarnation that beat has asserted what it runs, or a whole lease has passed.
-- After a wipe nobody knows who lives, so the lease is always waited for.
-- flags: allow-oom
-- ARGV[1] the new epoch. ARGV[2] {lease_ms}
-- Reply OK {open, number, left_ms}
-- May be repeated.

local why = refused(true)
if why then return reply(why) end
local e = call('HMGET', K.epoch, 'id', 'run', 'open', 'number', 'closed_at', 'reason')
if e[3] == '1' then return reply('OK', true, tonumber(e[4]), 0) end
local now = now_ms()
local left = tonumber(e[5]) + A[1] - now
local all = e[6] == 'restarted'
if all then
  for _, inc in ipairs(call('HKEYS', K.beats)) do
    if call('SISMEMBER', K.asserted, inc) == 0 then all = false; break end
  end
end
if left > 0 and not all then return reply('OK', false, tonumber(e[4]), left) end
call('HSET', K.epoch, 'open', 1, 'opened_at', now)
for _, queue in ipairs(call('SMEMBERS', K.queues)) do wakes[queue] = true end
finish_call()
return reply('OK', true, tonumber(e[4]), 0)
