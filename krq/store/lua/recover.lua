-- End an incarnation and make its tasks ready again, at most 200 in one call.
-- flags: allow-oom
-- ARGV[2] {incarnation, counter, started, cause, max_deaths, suspects, tail}: counter, the beat an observer saw last, or false where the
--   worker's own supervisor reports; started, ids that were running, or false where nobody knows; cause, text for the history, '' where it left in
--   order; suspects, those of the started that may have killed it: each runs alone from now on; tail, the last lines of its log.
-- Reply OK {left, recovered}: left, how many it still holds: call again, or whoever beats will. ALIVE: it has beaten since.
-- May be repeated: a task is recovered once, since its owner is gone afterwards.

local why = refused()
if why then return reply(why) end
local inc, counter, started, cause, max_deaths, tail = A[1], A[2], A[3], A[4], A[5], A[7]
local beat = call('HGET', K.beats, inc)
if beat and counter and tonumber(beat) ~= counter then return reply('ALIVE') end
local now = now_ms()
local function set_of(ids)
  local set = {}
  for _, id in ipairs(ids or {}) do set[id] = true end
  return set
end
local ran, suspected = set_of(started), set_of(A[6])

if beat and cause == '' then call('HDEL', K.beats, inc)
elseif beat then
  call('HDEL', K.beats, inc)
  local w = call('HGETALL', K.worker(inc))
  local record = {incarnation = inc, at = now, cause = cause, held = call('SCARD', K.held(inc)), ran = started or {}, tail = tail}
  for i = 1, #w, 2 do record[w[i]] = w[i + 1] end
  if record.member then
    call('LPUSH', K.expel, record.member)
    call('LTRIM', K.expel, 0, 999)
  end
  call('LPUSH', K.deaths, cjson.encode(record))
  call('LTRIM', K.deaths, 0, 999)
end

-- Where nobody knows what ran, whoever was held at two ends runs alone; if it is at an end again then, it counts as a death of its own.
local function orphan(id, t)
  call('HSET', K.task(id), 'or', (tonumber(t[7]) or 0) + 1)
  if t[9] then return call('HINCRBY', K.task(id), 'i', 1) end
  if (tonumber(t[7]) or 0) >= 1 then call('HSET', K.task(id), 'su', 0) end
  return 0
end

local function recover(id, t)
  local deaths = 0
  if ran[id] then call('HINCRBY', K.task(id), 'ir', 1)
  elseif not started then deaths = orphan(id, t) end
  if suspected[id] then call('HSET', K.task(id), 'su', 1) end
  if cause == '' then count(K.queue(t[4]), 'B', 1) end
  if ran[id] or not started or cause == '' then
    remember(id, {outcome = cause == '' and 'handed back' or 'interrupted', attempt = tonumber(t[3]), worker = inc,
      started = ran[id] and tonumber(t[10]) or nil, finished = now, cause = cause})
  end
  if t[8] then end_here(id, 'C', 'CANCELLED', 'cancelled while it ran; its worker died')
  elseif deaths >= max_deaths then end_here(id, 'F', 'POISON', poison_text(deaths, cause))
  else hand_back(id, t[4], t[5]) end
end

local ids = call('SRANDMEMBER', K.held(inc), 200)
local recovered = 0
variadic('SREM', K.held(inc), ids)
for _, id in ipairs(ids) do
  local t = call('HMGET', K.task(id), 's', 'o', 'a', 'q', 'pr', 'i', 'or', 'c', 'su', 'tt')
  if t[1] == 'p' and t[2] == inc then
    recover(id, t)
    recovered = recovered + 1
  end
end
local left = call('SCARD', K.held(inc))
if left == 0 then
  local w = call('HMGET', K.worker(inc), 'inbox', 'queues')
  if w[1] then call('SADD', K.gone, w[1]) end
  -- it may have died between a settle that woke nobody and the take that was to follow
  for queue in string.gmatch(w[2] or '', '[^,]+') do wakes[queue] = true end
  call('DEL', K.names(inc), K.taken(inc), K.stops(inc), K.worker(inc))
  if call('EXISTS', K.outbox(inc)) == 1 then call('SADD', K.orphans, inc) end
  call('HDEL', K.remains, inc)
else call('HSET', K.remains, inc, cjson.encode({started = started, cause = cause, suspects = A[6]})) end
tell_dependents()
finish_call()
return reply('OK', left, recovered)
