-- End attempts: state, value, counters, dependents, retry, outbox entry and notice, all or nothing for each.
-- flags: allow-oom
-- ARGV[2] {incarnation, items, served}; item {id, attempt, kind, value, entry, delay, history, family}: kind S success, F failed, C cancelled, R retry
--   after delay ms, D the process that ran it alone died, and at delay deaths it is poison; value JSON of the result, or
--   of the error, which is an object, or text of how it died; entry JSON for the log; history JSON for its history, or nil. W success, and it ends when the tasks it made
--   have: family {ids it waits for, how it ends, all ids, on-failure}; it ends with its own value ("own"), with that of the last ("one"), or
--   with the list of the last n, of at most so many bytes ("n bytes").
--   served: queues that a take right behind this call serves: for what is ready in them it wakes nobody, as that take does where it leaves any.
-- Reply OK {answers}, one for each item: 1 settled, 2 was settled so before, 0 refused: the fence (owner, attempt) is another's.
-- May be repeated: an attempt that is settled answers 2. One refused item changes nothing for the others.

local why = refused()
if why then return reply(why) end
local inc, items = A[1], A[2]
if call('HEXISTS', K.beats, inc) == 0 then return reply('DEAD') end
local now = now_ms()
local at = text_of(now)
local answers, let_go, messages, entries, settled = {}, {}, {}, {}, {S = 0, F = 0, C = 0, R = 0, D = 0, W = 0}

-- A cancelled task is ended by the take that would start it again: at once.
local function settle_retry(id, queue, value, delay)
  call('HINCRBY', K.task(id), 'f', 1)
  store_value(id, value)
  to_scheduled(id, queue, now + delay)
  count(K.queue(queue), 'R', 1)
end

-- The death that made it run alone was its own doing, too, as it shows now.
local function settle_death(id, key, t, how, most)
  local d = call('HMGET', key, 'i', 'su', 'pr')
  local deaths = (tonumber(d[1]) or 0) + 1
  if not d[1] and d[2] == '1' then deaths = 2 end
  call('HSET', key, 'i', deaths)
  call('HSETNX', key, 'su', 0)
  call('HINCRBY', key, 'ir', 1)
  if t[5] then end_here(id, 'C', 'CANCELLED', 'cancelled while it ran; its process died')
  elseif deaths >= most then end_here(id, 'F', 'POISON', poison_text(deaths, how))
  else hand_back(id, t[4], d[3]) end
end

local function settle_final(id, key, t, kind, value)
  local queue = t[4]
  if kind == 'S' then messages[#messages + 1] = K.message(id) end
  if #value <= 64 then
    call('HSET', key, 's', kind, 'tf', at, 'r', value)
    if t[6] then call('DEL', K.result(id)) end
  else
    call('HSET', key, 's', kind, 'tf', at)
    store_value(id, value)
  end
  if t[10] then call('ZREM', K.expiring, id) end
  if t[11] then forget_steps(id) end
  end_task(id, queue, kind, now)
  if t[7] or t[8] or t[9] then tell_end(id, queue, kind, t[7], t[8], t[9], kind == 'S' and #value <= 64 and value) end
end

for i, item in ipairs(items) do
  local id, attempt, kind = item[1], item[2], item[3]
  local key = K.task(id)
  local t = call('HMGET', key, 's', 'o', 'a', 'q', 'c', 'f', 'w', 'rd', 'wa', 'x', 'st', 'l', 'u')
  if t[2] ~= inc or tonumber(t[3]) ~= attempt then answers[i] = 0
  elseif t[1] ~= 'p' then answers[i] = 2
  else
    let_go[#let_go + 1] = id
    entries[#entries + 1] = id .. ':' .. t[3]
    entries[#entries + 1] = item[5]
    if item[7] then remember(id, item[7]) end
    local over = kind == 'S' or kind == 'F' or kind == 'C'
    if t[12] or (t[13] and over) then leave_places(id, t[12], over and t[13], over and '' or 'o') end
    if kind == 'R' then settle_retry(id, t[4], item[4], t[5] and 0 or item[6])
    elseif kind == 'W' then wait_for_children(id, t[4], item[4], item[8])
    elseif kind == 'D' then settle_death(id, key, t, item[4], item[6])
    else settle_final(id, key, t, kind, item[4]) end
    settled[kind] = settled[kind] + 1
    answers[i] = 1
  end
end

variadic('SREM', K.held(inc), let_go)
variadic('HSET', K.outbox(inc), entries)
variadic('DEL', nil, messages)
for kind, n in pairs(settled) do count(K.worker(inc), kind, n) end
tell_dependents()
for _, queue in ipairs(A[3] or {}) do wakes[queue] = nil end
finish_call()
return reply('OK', answers)
