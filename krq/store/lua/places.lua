-- Places: how many tasks of a name run at once, how often, and in which order. A script that calls a function of it gets it.
--
-- A name with limits (hash "limits": JSON of c max_concurrency, k max_concurrency_per_key, t ms between two starts, o in_order) has
--   groups, each a letter and the name: n all of its tasks · k those of one key · o the line of one key · r its rate. Behind k and o: NUL, key.
-- Field l of a task, letters: n, k it has a place in "busy:<group>" · o it stands in "line:<group>" until it is final · r it has
--   paid for its next start. A ready task without a place is parked: out of the ready pool, in "parked:<queue>:<group>" with its score
--   there; field pk has the letter. Its state stays q, and its bytes stay counted. "lots:<group>" has the queues where some are parked,
--   "limited:<queue>" their groups, by the ms at which take.lua looks again. A place given up (prelude.lua) makes that 0.
-- A place or a turn whose holder no longer runs is given up by whoever finds it in the way: every AUDIT ms at the latest.

local AUDIT, LOOKED = 30000, 10
local BURST = 50 -- ms of a rate that may be made up for

local any_limits, definitions, audited = nil, {}, {}

local function limits_of(name)
  if any_limits == nil then any_limits = call('EXISTS', K.limits) == 1 end
  if not any_limits then return nil end
  if definitions[name] == nil then
    local text = call('HGET', K.limits, name)
    definitions[name] = text and cjson.decode(text) or false
  end
  return definitions[name]
end

-- at: when to look, if nobody has said so before.
local function park(id, queue, letter, group, score, at)
  call('HSET', K.task(id), 'pk', letter)
  call('ZADD', K.parked(queue .. ':' .. group), score, id)
  call('SADD', K.lots(group), queue)
  call('ZADD', K.limited(queue), 'LT', math.ceil(at), group)
  count(K.queue(queue), 'parked', 1)
end

-- Into the line of its key, once, at its first arrival. Returns its letters.
local function into_line(id, group, held, arrival)
  call('ZADD', K.line(group), 'NX', arrival, id)
  held = (held or '') .. 'o'
  call('HSET', K.task(id), 'l', held)
  return held
end

-- Who is next in a line: those that are over without having left it are passed by.
local function first_in_line(group)
  for _ = 1, LOOKED do
    local id = call('ZRANGE', K.line(group), 0, 0)[1]
    if not id then return nil end
    local t = call('HMGET', K.task(id), 's', 'l')
    if t[1] and not FINAL[t[1]] and t[2] and string.find(t[2], 'o', 1, true) then return id end
    call('ZREM', K.line(group), id)
  end
end

-- How many more of a group may run.
local function room_in(letter, group, most)
  local room = most - call('SCARD', K.busy(group))
  if room > 0 or audited[group] then return room end
  audited[group] = true
  for _, id in ipairs(call('SRANDMEMBER', K.busy(group), LOOKED)) do
    local t = call('HMGET', K.task(id), 's', 'l')
    if t[1] ~= 'p' or not string.find(t[2] or '', letter, 1, true) then call('SREM', K.busy(group), id) end
  end
  return most - call('SCARD', K.busy(group))
end

-- When the next of a rate is due, and how many are by now. Evenly spaced; what was not used within the last interval, or the last
-- BURST ms where that is longer, is made up for.
local function rate_of(name, interval, now)
  local slack = math.max(interval, BURST)
  local base = math.max(tonumber(call('HGET', K.rates, name) or 0), now)
  return base - slack, math.floor((now + slack - base) / interval) + 1, base
end

-- The letters of places, and how many there are of each.
local function places_of(d)
  local found = {}
  if d.c then found[1] = {'n', d.c} end
  if d.k then found[#found + 1] = {'k', d.k} end
  return found
end

-- What a task that is about to run lacks: a letter, and when to look again; or nil.
local function lacks(id, d, name, key, held, now)
  if d.o and first_in_line(group_of('o', name, key)) ~= id then return 'o', now + AUDIT end
  for _, place in ipairs(places_of(d)) do
    local letter, most = place[1], place[2]
    if not string.find(held, letter, 1, true) and room_in(letter, group_of(letter, name, key), most) <= 0 then return letter, now + AUDIT end
  end
  if d.t and not string.find(held, 'r', 1, true) then
    local at, may = rate_of(name, d.t, now)
    if may < 1 then return 'r', at end
  end
end

-- Give a ready task all the places it needs, or park it and return false. score: of the ready pool, which it has left.
local function enter_places(id, queue, d, name, key, held, score, now)
  if d.o and not string.find(held, 'o', 1, true) then
    held = into_line(id, group_of('o', name, key), held, tonumber(score) > 0 and score or next_sequence())
  end
  local letter, at = lacks(id, d, name, key, held, now)
  if letter then
    park(id, queue, letter, group_of(letter, name, key), score, at)
    return false
  end
  local has = d.o and 'o' or ''
  for _, place in ipairs(places_of(d)) do
    call('SADD', K.busy(group_of(place[1], name, key)), id)
    has = has .. place[1]
  end
  if d.t and not string.find(held, 'r', 1, true) then
    local _, _, base = rate_of(name, d.t, now)
    call('HSET', K.rates, name, string.format('%.3f', base + d.t))
  end
  if d.t then has = has .. 'r' end
  call('HSET', K.task(id), 'l', has)
  return true
end

-- It runs already, whatever the limits say: a worker has asserted it.
local function hold_places(id, name, key)
  local d = limits_of(name)
  if not d then return end
  local held = ''
  if key then call('HSET', K.task(id), 'k', key) end
  for _, place in ipairs(places_of(d)) do
    held = held .. place[1]
    call('SADD', K.busy(group_of(place[1], name, key)), id)
  end
  if d.o then held = into_line(id, group_of('o', name, key), held, 0) end
  if held ~= '' then call('HSET', K.task(id), 'l', held) end
end

-- What is in force for a name: what the code says, and over that what was said at run time. A limit of 'none' is none.
local function enforce(name)
  local text, said = call('HGET', K.limits_defined, name), call('HGET', K.limits_set, name)
  local d = text and cjson.decode(text) or {}
  for field, value in pairs(said and cjson.decode(said) or {}) do d[field] = value ~= 'none' and value or nil end
  if next(d) then call('HSET', K.limits, name, cjson.encode(d)) else call('HDEL', K.limits, name) end
  if not d.t then call('HDEL', K.rates, name) end
  any_limits, definitions[name] = nil, nil
  open_group(group_of('n', name))
  open_group(group_of('r', name))
end

-- Limits as a worker's code has them: {name, JSON or false}. The last to come wins.
local function define(limits)
  for _, limit in ipairs(limits or {}) do
    local name, text = limit[1], limit[2]
    if call('HGET', K.limits_defined, name) ~= text then
      if text then call('HSET', K.limits_defined, name, text) else call('HDEL', K.limits_defined, name) end
      enforce(name)
    end
  end
end
