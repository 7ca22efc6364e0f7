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
local answers, let_go, messages, entries, settled = {}, {}, {}, {}, {S = 0, F = 0, C = 0, R = 0}

-- A cancelled task is ended by the take that would start it again: at once.
local function settle_retry(id, t, value, delay)
  call('HINCRBY', K.task(id), 'f', 1)
  store_value(id, value)
  to_scheduled(id, t[4], now + delay)
  count(K.queue(t[4]), 'R', 1)
end

local function settle_final(id, t, kind, value)
  if kind == 'S' then
    messages[#messages + 1] = K.message(id)
    if t[6] then call('DEL', K.result(id)) end
  end
  if #value <= 64 then call('HSET', K.task(id), 's', kind, 'tf', now, 'r', value)
  else
    call('HSET', K.task(id), 's', kind, 'tf', now)
    store_value(id, value)
  end
  end_task(id, t[4], kind, now)
end

for i, item in ipairs(items) do
  local id, attempt, kind, value, entry, delay = unpack(item)
  local t = call('HMGET', K.task(id), 's', 'o', 'a', 'q', 'c', 'f')
  if t[2] ~= inc or tonumber(t[3]) ~= attempt then answers[i] = 0
  elseif t[1] ~= 'p' then answers[i] = 2
  else
    let_go[#let_go + 1] = id
    entries[#entries + 1] = id .. ':' .. attempt
    entries[#entries + 1] = entry
    if kind == 'R' then settle_retry(id, t, value, t[5] and 0 or delay)
    else settle_final(id, t, kind, value) end
    settled[kind] = settled[kind] + 1
    answers[i] = 1
  end
end

if #let_go > 0 then
  call('SREM', K.held(inc), unpack(let_go))
  call('HSET', K.outbox(inc), unpack(entries))
  if #messages > 0 then call('DEL', unpack(messages)) end
  for kind, n in pairs(settled) do count(K.worker(inc), kind, n) end
end
tell_dependents()
finish_call()
return reply('OK', answers)
