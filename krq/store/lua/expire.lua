-- Forget finished tasks, oldest first, at most 200 a call; fail a few of those that wait for what the log does not have, and of
--   those that were not started before their expiry, whoever serves their queue. And note the totals of the queues, for rates.
-- flags: allow-oom
-- ARGV[2] {keep_ms}
-- A task goes when it is logged, all known dependents are final, and intake of every partition is past its finish + keep:
--   a second copy of it that is still in the log is met while its marker lives. By then a dependency must be known, too.
-- Reply OK {number forgotten}
-- May be repeated.

local why = refused()
if why then return reply(why) end
local now = now_ms()

-- What has ended in each queue, every ten seconds, in a ring of 16 minutes: krq/rates.py reads it. By the first call of each ten seconds.
-- A queue without a ring is new since the note before: then it had nothing.
local SLOT, SLOTS, NOTE, KEPT = 10000, 96, '<I8I8I8', 1000

local function note(queue, before)
  local ring, slot = K.totals(queue), math.floor(now / SLOT)
  if before and call('EXISTS', ring) == 0 then
    call('SETRANGE', ring, (math.floor(before / SLOT) % SLOTS) * 24, struct.pack(NOTE, before, 0, 0))
  end
  local t = call('HMGET', K.queue(queue), 'S', 'F')
  call('SETRANGE', ring, (slot % SLOTS) * 24, struct.pack(NOTE, now, tonumber(t[1] or 0), tonumber(t[2] or 0)))
  call('EXPIRE', ring, KEPT)
end

local before = tonumber(call('GET', K.noted) or nil)
if not before or math.floor(before / SLOT) ~= math.floor(now / SLOT) then
  for _, queue in ipairs(call('SMEMBERS', K.queues)) do note(queue, before) end
  call('SET', K.noted, text_of(now), 'EX', KEPT)
end

local horizon = read_until(now) - A[1]
local n = 0

local function forget(id, workflow)
  call('DEL', K.task(id), K.message(id), K.result(id), K.dependents(id), K.history(id), K.waited(id), K.blocked(id), K.children(id))
  call('ZREM', K.failed, id)
  if workflow then call('SREM', K.workflow(workflow), id) end
  n = n + 1
end

for _ = 1, 200 do
  local id = call('LINDEX', K.done, -1)
  if not id then break end
  local t = call('HMGET', K.task(id), 's', 'tf', 'p', 'rd', 'wf')
  if not FINAL[t[1]] then call('RPOP', K.done)
  elseif tonumber(t[2]) > horizon then break
  elseif t[3] ~= '' or (tonumber(t[4]) or 0) > 0 then call('LMOVE', K.done, K.done, 'RIGHT', 'LEFT')
  else
    call('RPOP', K.done)
    forget(id, t[5])
  end
end

for _, id in ipairs(call('ZRANGEBYSCORE', K.expiring, '-inf', now, 'LIMIT', 0, 100)) do
  local s = call('HGET', K.task(id), 's')
  if s == 'q' or s == 'd' or s == 'w' then end_here(id, 'F', 'EXPIRED', 'not started before its expiry')
  elseif s == 'p' then call('ZADD', K.expiring, now + 30000, id) -- again when its worker dies
  else call('ZREM', K.expiring, id) end
end

-- At most 1,000 of them, from another place each time.
local looks = 0
local function missing(id)
  local after = cmsgpack.unpack(call('GET', K.after(id)) or '\144')
  local first = now % math.max(1, size_of(after) - 999) + 1
  for _, on in ipairs(ids_in(after, first, first + 999)) do
    looks = looks + 1
    local t = call('HMGET', K.task(on), 's', 'ts')
    if not t[1] or (t[1] == 'm' and tonumber(t[2]) <= horizon) then return on end
  end
end

for _, id in ipairs(call('ZRANGEBYSCORE', K.waiting, '-inf', horizon, 'LIMIT', 0, 50)) do
  if looks > 1000 then break end
  local on = missing(id)
  if on then end_here(id, 'F', 'DEPENDENCY_FAILED', 'waited for ' .. on .. ', which the log does not have')
  else call('ZADD', K.waiting, now, id) end
end
-- Nobody takes from the inbox of a worker that is gone: what has expired there ends here.
for _, inbox in ipairs(call('SRANDMEMBER', K.gone, 5)) do
  for _, key in ipairs({K.ready(inbox), K.scheduled(inbox)}) do
    for _, id in ipairs(call('ZRANGE', key, 0, 49)) do
      local expires = tonumber(call('HGET', K.task(id), 'x') or 0)
      if expires > 0 and expires < now then end_here(id, 'F', 'EXPIRED', 'its worker was gone until its expiry') end
    end
  end
  if call('EXISTS', K.ready(inbox), K.scheduled(inbox), K.limited(inbox)) == 0 then
    call('SREM', K.gone, inbox)
    if string.sub(inbox, 1, 6) == 'inbox.' then
      call('SREM', K.queues, inbox)
      call('DEL', K.queue(inbox), K.wake(inbox))
    end
  end
end
tell_dependents()
finish_call()
return reply('OK', n)
