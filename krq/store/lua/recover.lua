-- End an incarnation and make its tasks ready again, at most 200 in one call.
-- flags: allow-oom
-- ARGV[2] {incarnation, counter, started, cause, max_deaths}: counter, the beat an observer saw last, or false where the
--   worker's own supervisor reports; started, ids that were running, or false where nobody knows; cause, text for the history; '' where it left in order.
-- Reply OK {left, recovered}: left, how many it still holds: call again. ALIVE: it has beaten since.
-- May be repeated: a task is recovered once, since its owner is gone afterwards.

local why = refused()
if why then return reply(why) end
local inc, counter, started, cause, max_deaths = A[1], A[2], A[3], A[4], A[5]
local beat = call('HGET', K.beats, inc)
if beat and counter and tonumber(beat) ~= counter then return reply('ALIVE') end
local now = now_ms()
local ran = {}
for _, id in ipairs(started or {}) do ran[id] = true end

if beat and cause == '' then call('HDEL', K.beats, inc)
elseif beat then
  call('HDEL', K.beats, inc)
  local w = call('HGETALL', K.worker(inc))
  local record = {incarnation = inc, at = now, cause = cause, held = call('SCARD', K.held(inc)), ran = started or {}}
  for i = 1, #w, 2 do record[w[i]] = w[i + 1] end
  if record.member then
    call('LPUSH', K.expel, record.member)
    call('LTRIM', K.expel, 0, 999)
  end
  call('LPUSH', K.deaths, cjson.encode(record))
  call('LTRIM', K.deaths, 0, 999)
end

local function recover(id, t)
  local deaths = tonumber(t[6]) or 0
  local orphaned = tonumber(t[7]) or 0
  if ran[id] then
    deaths = deaths + 1
    call('HSET', K.task(id), 'i', deaths)
  elseif not started then
    orphaned = orphaned + 1
    call('HSET', K.task(id), 'or', orphaned)
  end
  if t[8] then end_here(id, 'C', 'CANCELLED', 'cancelled while it ran; its worker died')
  elseif deaths + math.floor(orphaned / 2) >= max_deaths then
    end_here(id, 'F', 'POISON', 'its worker died ' .. (deaths + orphaned) .. ' times while it ran; last: ' .. cause)
  else hand_back(id, t[4], t[5]) end
end

local ids = call('SRANDMEMBER', K.held(inc), 200)
local recovered = 0
variadic('SREM', K.held(inc), ids)
for _, id in ipairs(ids) do
  local t = call('HMGET', K.task(id), 's', 'o', 'a', 'q', 'pr', 'i', 'or', 'c')
  if t[1] == 'p' and t[2] == inc then
    recover(id, t)
    recovered = recovered + 1
  end
end
local left = call('SCARD', K.held(inc))
if left == 0 then
  local inbox = call('HGET', K.worker(inc), 'inbox')
  if inbox then call('SADD', K.gone, inbox) end
  call('DEL', K.names(inc), K.taken(inc), K.stops(inc), K.worker(inc))
  if call('EXISTS', K.outbox(inc)) == 1 then call('SADD', K.orphans, inc) end
end
tell_dependents()
finish_call()
return reply('OK', left, recovered)
