-- Give ready messages to an incarnation. The only script that raises an attempt.
-- flags: allow-oom
-- ARGV[2] {incarnation, number, most, queues, unknown_grace_ms}: number rises with each take; queues in the order to serve.
-- Reply OK {tasks, next_due, more}: tasks {id, attempt, failures, deaths, raw, sent, queue, inputs, known, alone}; next_due in ms
--   from now, or false; more, whether there is more to do; alone: in a process of its own. STALE: a later take was seen.
-- May be repeated with the same number: the same tasks, as far as they are still the incarnation's.

local why = refused()
if why then return reply(why) end
local inc, number, most, queues, grace = A[1], A[2], A[3], A[4], A[5]
if call('HEXISTS', K.beats, inc) == 0 then return reply('DEAD') end
local now = now_ms()
local at = text_of(now)
local tasks, given, ids, messages = {}, {}, {}, {}

-- The results it waited for; false where there are too many for this call: its worker reads them by itself.
local inputs_left = 2 * EDGES
local function inputs_of(id)
  local after = call('GET', K.after(id))
  if not after then return {} end
  local values = {}
  after = cmsgpack.unpack(after)
  local size = size_of(after)
  if size > math.min(EDGES, inputs_left) then return false end
  inputs_left = inputs_left - size
  for i, on in ipairs(ids_in(after, 1, size)) do values[i] = value_of(on) end
  return values
end

local function read(key)
  return call('HMGET', key, 's', 'n', 'a', 'f', 'i', 'ts', 'x', 'c', 'in', 'un', 'su', 'k', 'l')
end

-- The message is filled in afterwards, for all at once.
local function hand_over(id, attempt, queue, t, known)
  messages[#messages + 1] = K.message(id)
  tasks[#tasks + 1] = {id, attempt, t[4] and tonumber(t[4]) or 0, t[5] and tonumber(t[5]) or 0, '', tonumber(t[6]) or 0, queue,
    t[9] and {t[9], inputs_of(id)} or false, known, t[11] and true}
end

local function fill_in()
  local n = 0
  for i = 1, #messages, 2000 do
    for _, raw in ipairs(call('MGET', unpack(messages, i, math.min(i + 1999, #messages)))) do
      n = n + 1
      tasks[n][5] = raw or ''
    end
  end
end

local last = call('GET', K.taken(inc))
if last then
  last = cmsgpack.unpack(last)
  if last[1] > number then return reply('STALE') end
  if last[1] == number then
    for _, g in ipairs(last[2]) do
      local key = K.task(g[1])
      local t, o = read(key), call('HMGET', key, 'o', 'q')
      if t[1] == 'p' and o[1] == inc and tonumber(t[3]) == g[2] then hand_over(g[1], g[2], o[2], t, g[3]) end
    end
    fill_in()
    return reply('OK', tasks, false, true)
  end
end

local every = call('SISMEMBER', K.names(inc), '*') == 1
local names = {}
local function knows(name)
  if every then return true end
  if names[name] == nil then names[name] = call('SISMEMBER', K.names(inc), name) == 1 end
  return names[name]
end

-- Whether a task of an unknown name is put off: somebody who knows it may come.
local function put_off(id, key, since, queue)
  if not since then call('HSET', key, 'un', now) end
  since = tonumber(since) or now
  local opened = tonumber(call('HGET', K.epoch, 'opened_at')) or 0
  if now - math.max(since, opened) >= grace then return false end
  uncount(id, queue)
  to_scheduled(id, queue, now + math.min(30000, 250 + (now - since)))
  return true
end

local others, parks = {}, 0
local function give(id, queue, score)
  local key = K.task(id)
  local t = read(key)
  if t[1] ~= 'q' then return end
  if t[7] and tonumber(t[7]) < now then
    uncount(id, queue)
    return end_here(id, 'F', 'EXPIRED', 'not started before its expiry')
  end
  if t[8] then
    uncount(id, queue)
    return end_here(id, 'C', 'CANCELLED', 'cancelled before it ran again')
  end
  local known = knows(t[2])
  if not known and put_off(id, key, t[10], queue) then
    others[queue] = true
    return
  end
  local limits = limits_of(t[2])
  if limits and not enter_places(id, queue, limits, t[2], t[12], t[13] or '', score, now) then
    parks = parks + 1
    return
  end
  local attempt = t[3] and t[3] + 1 or 1
  call('HSET', key, 's', 'p', 'a', t[3] and attempt or '1', 'o', inc, 'tt', at)
  given[#given + 1] = {id, attempt, known}
  ids[#ids + 1] = id
  hand_over(id, attempt, queue, t, known)
end

local function ready_what_is_due(queue)
  local due = call('ZRANGEBYSCORE', K.scheduled(queue), '-inf', now, 'LIMIT', 0, math.max(most, 1))
  for i, id in ipairs(due) do to_ready(id, queue, call('HGET', K.task(id), 'pr'), next_sequence(#due - i + 1)) end
  variadic('ZREM', K.scheduled(queue), due)
  write_lines()
end

-- Groups that one take looks at in a queue, tasks that it moves in a group, and tasks that it parks before it gives up to find others.
local LOOKS, LOOK, PARKS = 64, 200, 100

local function move(id, queue, parked, score)
  call('ZREM', parked, id)
  count(K.queue(queue), 'parked', -1)
  call('HDEL', K.task(id), 'pk')
  if call('HGET', K.task(id), 's') == 'q' then gather(lines, queue, score, id) else uncount(id, queue) end
end

-- Out of what is parked in a group as many as may run by now, first come first served: to where they stood in the ready pool.
local function look_at(queue, group, name, key)
  local letter, d = string.sub(group, 1, 1), limits_of(name) or {}
  local parked = K.parked(queue .. ':' .. group)
  local room, again = LOOK, 1000
  if letter == 'o' and d.o then
    room = 0
    local id = first_in_line(group)
    local score = id and call('ZSCORE', parked, id)
    if score then move(id, queue, parked, score) else again = AUDIT end
  elseif letter == 'n' and d.c or letter == 'k' and d.k then
    room = math.min(LOOK, room_in(letter, group, letter == 'n' and d.c or d.k))
    if room < 1 then again = AUDIT end
  elseif letter == 'r' and d.t then
    local at
    at, room = rate_of(name, d.t, now)
    again = math.max(1, at + math.max(0, room) * d.t - now)
  end
  if room > 0 then
    local ids = call('ZRANGE', parked, 0, room - 1, 'WITHSCORES')
    for i = 1, #ids, 2 do move(ids[i], queue, parked, ids[i + 1]) end
  end
  if not close_lot(queue, group) then call('ZADD', K.limited(queue), math.ceil(now + again), group) end
end

local function look_at_limited(queue)
  for _, group in ipairs(call('ZRANGEBYSCORE', K.limited(queue), '-inf', now, 'LIMIT', 0, LOOKS)) do
    look_at(queue, group, string.match(group, '^.(%Z*)%z?(.*)$'))
  end
  write_lines()
end

local next_due, more = false, false
local function due_at(score)
  if not score then return end
  local wait = math.max(0, tonumber(score) - now)
  if not next_due or wait < next_due then next_due = wait end
end

for _, queue in ipairs(queues) do
  if not call('HGET', K.queue(queue), 'paused') then
    ready_what_is_due(queue)
    look_at_limited(queue)
    local before
    while #given < most and parks < PARKS and before ~= parks do
      before = parks
      local popped = call('ZPOPMIN', K.ready(queue), most - #given)
      for i = 1, #popped, 2 do give(popped[i], queue, popped[i + 1]) end
    end
    local left = call('EXISTS', K.ready(queue)) == 1
    more = more or left
    -- wake another: for what is left, and for a name that another may know
    wakes[queue] = left or others[queue] or nil
    due_at(call('ZRANGE', K.scheduled(queue), 0, 0, 'WITHSCORES')[2])
    due_at(call('ZRANGE', K.limited(queue), 0, 0, 'WITHSCORES')[2])
  end
end

fill_in()
for _, task in ipairs(tasks) do count(K.queue(task[7]), 'bytes', -#task[5]) end
variadic('SADD', K.held(inc), ids)
call('SET', K.taken(inc), cmsgpack.pack({number, given}))
edges_left = math.max(100, edges_left - 3 * #given) -- what it gives out takes its time, too
more = work_on_edges() or more
more = tell_dependents(true) or more
finish_call()
return reply('OK', tasks, next_due, more)
