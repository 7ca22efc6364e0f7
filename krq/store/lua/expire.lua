-- Forget finished tasks, oldest first, at most 200 a call.
-- flags: allow-oom
-- ARGV[2] {keep_ms}
-- A task goes when it is logged, all known dependents are final, and intake of every partition is past its finish + keep:
--   a second copy of it that is still in the log is met while its marker lives.
-- Reply OK {number forgotten}
-- May be repeated.

local why = refused()
if why then return reply(why) end
local now = now_ms()
local horizon = now
for _, time in ipairs(call('HVALS', K.intake)) do horizon = math.min(horizon, tonumber(time)) end
horizon = horizon - A[1]
local n = 0
for _ = 1, 200 do
  local id = call('LINDEX', K.done, -1)
  if not id then break end
  local t = call('HMGET', K.task(id), 's', 'tf', 'l', 'rd')
  if not FINAL[t[1]] then call('RPOP', K.done)
  elseif tonumber(t[2]) > horizon then break
  elseif not t[3] or (tonumber(t[4]) or 0) > 0 then call('LMOVE', K.done, K.done, 'RIGHT', 'LEFT')
  else
    call('RPOP', K.done)
    call('DEL', K.task(id), K.message(id), K.result(id), K.dependents(id))
    call('ZREM', K.failed, id)
    n = n + 1
  end
end
return reply('OK', n)
