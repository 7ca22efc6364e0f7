-- Which schedules are due: for one who fires them, before all others do the same.
-- flags: allow-oom
-- ARGV[2] {holder, mine, claim_ms, most}; mine: names of schedules in the code of the caller. Those of other code are left to others
-- Reply OK {now_ms, next, {{name, tick, definition}, ...}}; next: the first tick to come, or false
-- May be repeated: the same holder is told the same. Who has died with a schedule in hand keeps others away for claim_ms.

local why = refused()
if why then return reply(why) end
local holder, claim, most = A[1], A[3], A[4]
local now, mine, due = now_ms(), {}, {}
local DAY = 86400000
for _, name in ipairs(A[2]) do mine[name] = true end

local function claimed(h)
  local till = tonumber(h[4])
  return till and h[3] ~= holder and till > now and till <= now + claim -- further off: the clock was set back
end

local found = call('ZRANGEBYSCORE', K.ticks, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1000)
for i = 1, #found, 2 do
  local name = found[i]
  local key = K.schedule(name)
  local h = call('HMGET', key, 'd', 's', 'o', 'c', 'seen')
  if not h[1] then call('ZREM', K.ticks, name)
  elseif h[2] == 'code' and not mine[name] then
    if now - (tonumber(h[5]) or 0) > DAY then
      call('DEL', key)
      call('ZREM', K.ticks, name)
    end
  elseif not claimed(h) then
    call('HSET', key, 'o', holder, 'c', now + claim)
    due[#due + 1] = {name, tonumber(found[i + 1]), h[1]}
    if #due >= most then break end
  end
end
local following = call('ZRANGEBYSCORE', K.ticks, '(' .. now, '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return reply('OK', now, following[2] and tonumber(following[2]) or false, due)
