-- End attempts: state, value, counters, dependents, retry, outbox entry and notice, all or nothing for each.
-- flags: allow-oom
-- ARGV[2] {incarnation, items}; item {id, attempt, kind, value, entry, delay}: kind S success, F failed, C cancelled, R retry
--   after delay ms; value JSON of the result or error; entry JSON for the log.
-- Reply OK {answers}, one for each item: 1 settled, 2 was settled so before, 0 refused: the fence (owner, attempt) is another's.
-- May be repeated: an attempt that is settled answers 2. One refused item changes nothing for the others.

local why = refused()
if why then return reply(why) end
local inc, items = A[1], A[2]
if call('HEXISTS', K.beats, inc) == 0 then return reply('DEAD') end
local now = now_ms()
local at = text_of(now)
local answers, let_go, messages, entries, settled = {}, {}, {}, {}, {S = 0, F = 0, C = 0, R = 0}

-- A cancelled task is ended by the take that would start it again: at once.
local function settle_retry(id, queue, value, delay)
  call('HINCRBY', K.task(id), 'f', 1)
  store_value(id, value)
  to_scheduled(id, queue, now + delay)
  count(K.queue(queue), 'R', 1)
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
  end_task(id, queue, kind, now)
  if t[7] or t[8] or t[9] then tell_end(id, queue, kind, t[7], t[8], t[9]) end
end

for i, item in ipairs(items) do
  local id, attempt, kind = item[1], item[2], item[3]
  local key = K.task(id)
  local t = call('HMGET', key, 's', 'o', 'a', 'q', 'c', 'f', 'w', 'rd', 'wa', 'x')
  if t[2] ~= inc or tonumber(t[3]) ~= attempt then answers[i] = 0
  elseif t[1] ~= 'p' then answers[i] = 2
  else
    let_go[#let_go + 1] = id
    entries[#entries + 1] = id .. ':' .. t[3]
    entries[#entries + 1] = item[5]
    if kind == 'R' then settle_retry(id, t[4], item[4], t[5] and 0 or item[6])
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
finish_call()
return reply('OK', answers)
