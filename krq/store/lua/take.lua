-- Give ready messages to an incarnation. The only script that raises an attempt.
-- ARGV[2] {incarnation, number, most, queues, unknown_grace_ms}: number rises with each take; queues in the order to serve.
-- Reply OK {tasks, next_due, more}: tasks {id, attempt, failures, deaths, raw, sent, queue, inputs, known}; next_due in ms from
--   now, or false; more, whether ready messages are left. STALE: a later take was seen.
-- May be repeated with the same number: the same tasks, as far as they are still the incarnation's.

local why = refused()
if why then return reply(why) end
local inc, number, most, queues, grace = A[1], A[2], A[3], A[4], A[5]
if call('HEXISTS', K.beats, inc) == 0 then return reply('DEAD') end
local now = now_ms()
local tasks, given = {}, {}

local function inputs_of(id)
  local after = call('GET', K.after(id))
  if not after then return {} end
  local values = {}
  for i, on in ipairs(cmsgpack.unpack(after)) do
    values[i] = call('HGET', K.task(on), 'r') or call('GET', K.result(on)) or 'null'
  end
  return values
end

local function hand_over(id, attempt, t, known)
  local raw = call('GET', K.message(id))
  tasks[#tasks + 1] = {id, attempt, tonumber(t.f) or 0, tonumber(t.i) or 0, raw or '', tonumber(t.ts) or 0, t.q,
    t['in'] and {t['in'], inputs_of(id)} or false, known}
  return raw and #raw or 0
end

local FIELDS = {'s', 'n', 'q', 'a', 'f', 'i', 'ts', 'x', 'c', 'in', 'o', 'un', 'due'}
local function read(id)
  local v, t = call('HMGET', K.task(id), unpack(FIELDS)), {}
  for i, field in ipairs(FIELDS) do t[field] = v[i] end
  return t
end

local last = call('GET', K.taken(inc))
if last then
  last = cmsgpack.unpack(last)
  if last[1] > number then return reply('STALE') end
  if last[1] == number then
    for _, g in ipairs(last[2]) do
      local t = read(g[1])
      if t.s == 'p' and t.o == inc and tonumber(t.a) == g[2] then hand_over(g[1], g[2], t, g[3]) end
    end
    return reply('OK', tasks, false, true)
  end
end

continue_fan()

local every = call('SISMEMBER', K.names(inc), '*') == 1
local names = {}
local function knows(name)
  if every then return true end
  if names[name] == nil then names[name] = call('SISMEMBER', K.names(inc), name) == 1 end
  return names[name]
end

local function give(id, queue)
  local t = read(id)
  if t.s ~= 'q' then return end
  if t.x and tonumber(t.x) < now then
    end_here(id, 'F', 'EXPIRED', 'not started before its expiry')
    return
  end
  if t.c then
    end_here(id, 'C', 'CANCELLED', 'cancelled before it ran again')
    return
  end
  local known = knows(t.n)
  if not known then
    local since = tonumber(t.un) or now
    if not t.un then call('HSET', K.task(id), 'un', now) end
    local opened = tonumber(call('HGET', K.epoch, 'opened_at')) or 0
    if now - math.max(since, opened) < grace then
      count(K.queue(queue), 'bytes', -call('STRLEN', K.message(id)))
      to_scheduled(id, queue, now + math.min(30000, 250 + (now - since)))
      return
    end
  end
  local attempt = (tonumber(t.a) or 0) + 1
  call('HSET', K.task(id), 's', 'p', 'a', attempt, 'o', inc, 'tt', now)
  given[#given + 1] = {id, attempt, known}
  count(K.queue(queue), 'bytes', -hand_over(id, attempt, t, known))
end

local next_due, more = false, false
for _, queue in ipairs(queues) do
  if not call('HGET', K.queue(queue), 'paused') then
    local due = call('ZRANGEBYSCORE', K.scheduled(queue), '-inf', now, 'LIMIT', 0, math.max(most, 1))
    for _, id in ipairs(due) do
      call('ZREM', K.scheduled(queue), id)
      to_ready(id, queue, call('HGET', K.task(id), 'pr'), call('INCR', K.sequence))
    end
    if #given < most then
      local popped = call('ZPOPMIN', K.ready(queue), most - #given)
      for i = 1, #popped, 2 do give(popped[i], queue) end
    end
    wakes[queue] = nil
    if call('EXISTS', K.ready(queue)) == 1 then
      more = true
      wakes[queue] = true
    end
    local first = call('ZRANGE', K.scheduled(queue), 0, 0, 'WITHSCORES')
    if first[2] then
      local wait = math.max(0, tonumber(first[2]) - now)
      if not next_due or wait < next_due then next_due = wait end
    end
  end
end

if #given > 0 then
  local ids = {}
  for i, g in ipairs(given) do ids[i] = g[1] end
  call('SADD', K.held(inc), unpack(ids))
  call('SET', K.taken(inc), cmsgpack.pack({number, given}))
elseif not last or last[1] < number then
  call('SET', K.taken(inc), cmsgpack.pack({number, {}}))
end
tell_dependents()
finish_call()
return reply('OK', tasks, next_due, more)
