-- Shared by every script. Before it stand P and K, the keys (keys.py).
-- KEYS[1] the epoch key, which routes the call. ARGV[1] the caller's epoch id. ARGV[2] the rest, packed.
-- Reply: packed {status, ...}. Status OK, or why nothing was done:
--   EMPTY no epoch here · RESTARTED another server life · EPOCH another epoch · CLOSED not open · DEAD no such incarnation
--
-- Fields of a task: s state (m marker, w waiting, d scheduled, q queued, p processing, S F C final) · n name · q queue · ts sent · h checksum
--   a attempt · f failures · i deaths of its own · ir interruptions: its worker died while it ran · or leases that expired unreported
--   su runs alone: 1 it is suspected of a death, 0 of lost leases · g generation · o owner, of the last attempt when it is over
--   tt taken at · tf finished at · r short value · p positions not yet complete (longer than 64 bytes when it was published many times),
--   '' once the end is logged · e holder of the entry of an end that a script made · pr priority · due · x expiry · in inputs · w dependencies
--   still open, where it has any · ln where they are too many for one call: how many are counted · nd JSON, the needs of such, see admit.lua
--   mi it waits for more than EDGES and gets their results · of what it does when one fails: c it runs all the same, r it takes the rest with it
--   wf the workflow it is in: the id of its first task · vs how the generation before ended
--   rd dependents not final: a task nobody has published may have this alone · c cancel asked · un not known
--   since · wa somebody waits for its end · as asserted before its record was seen · pg progress · st bytes of its steps, where it keeps any
--   kd it has run and waits for the tasks it made: how it ends, see settle.lua
--   k key, or its digest where it is long · l places it has, pk where it is parked (places.lua) · u its claim, until its end

local call = redis.call
local A = cmsgpack.unpack(ARGV[2])
local FINAL = {S = true, F = true, C = true}

local function reply(...) return cmsgpack.pack({...}) end

local function run_id()
  return string.match(call('INFO', 'server'), 'run_id:(%x+)')
end

local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Why this caller may not write here, or nil. any: also while it is closed.
local function refused(any)
  local e = call('HMGET', K.epoch, 'id', 'run', 'open')
  if not e[1] then return 'EMPTY' end
  if e[2] ~= run_id() then return 'RESTARTED' end
  if e[1] ~= ARGV[1] then return 'EPOCH' end
  if e[3] ~= '1' and not any then return 'CLOSED' end
end

-- What the log got before that time intake has read, in all partitions that it knows of.
local function read_until(now)
  for _, time in ipairs(call('HVALS', K.intake)) do now = math.min(now, tonumber(time)) end
  return now
end

-- One command over a long list; key: its first argument, or nil. Lua can unpack only so much at once.
local function variadic(command, key, list)
  for i = 1, #list, 2000 do
    local last = math.min(i + 1999, #list)
    if key then call(command, key, unpack(list, i, last)) else call(command, unpack(list, i, last)) end
  end
end

-- Gathered, and written once at the end: counters of queues and workers, wakes, notices to waiting clients,
-- lines of ready tasks, incomplete positions, finished tasks.
local counts, wakes, notices, lines, incompletes, finished = {}, {}, {}, {}, {}, {}

local function count(key, field, n)
  local of = counts[key]
  if not of then of = {}; counts[key] = of end
  of[field] = (of[field] or 0) + n
end

local function gather(lists, name, value, another)
  local list = lists[name]
  if not list then list = {}; lists[name] = list end
  local n = #list
  list[n + 1], list[n + 2] = value, another
end

-- A whole number as text: once, where it is written more than once.
local function text_of(number) return string.format('%d', number) end

local function write_lines()
  for queue, line in pairs(lines) do variadic('ZADD', K.ready(queue), line) end
  lines = {}
end

local function finish_call()
  write_lines()
  for partition, offsets in pairs(incompletes) do variadic('ZADD', K.incomplete(partition), offsets) end
  variadic('LPUSH', K.done, finished)
  for key, of in pairs(counts) do
    for field, n in pairs(of) do
      if n ~= 0 then call('HINCRBY', key, field, n) end
    end
  end
  for queue in pairs(wakes) do
    if call('LLEN', K.wake(queue)) == 0 then call('LPUSH', K.wake(queue), 1) end
  end
  for channel, ends in pairs(notices) do call('PUBLISH', K.notices(channel), cmsgpack.pack(ends)) end
end

local spare, sequence = 0, 0

-- The next number of arrival; expected: how many more this call may need.
local function next_sequence(expected)
  if spare == 0 then
    spare = expected or 1
    sequence = call('INCRBY', K.sequence, spare) - spare
  end
  spare, sequence = spare - 1, sequence + 1
  return sequence
end

-- Into the ready pool; the state is the caller's.
local function line_up(id, queue, priority, arrival, bytes)
  gather(lines, queue, arrival - (tonumber(priority) or 0) * 1e13, id)
  count(K.queue(queue), 'bytes', bytes)
  wakes[queue] = true
end

-- Ready again or for the first time. In front: what was handed back. Else: in order of arrival.
local function to_ready(id, queue, priority, arrival)
  call('HSET', K.task(id), 's', 'q')
  line_up(id, queue, priority, arrival, call('STRLEN', K.message(id)))
end

-- It is out of the ready pool: its bytes are no longer counted.
local function uncount(id, queue)
  count(K.queue(queue), 'bytes', -call('STRLEN', K.message(id)))
end

-- Places, and what is parked: see places.lua.
local function group_of(letter, name, key)
  if letter == 'n' or letter == 'r' then return letter .. name end
  return letter .. name .. '\0' .. (key or '')
end

-- One more may go: whoever serves a queue where some wait for it looks at once.
local function open_group(group)
  for _, queue in ipairs(call('SMEMBERS', K.lots(group))) do
    call('ZADD', K.limited(queue), 0, group)
    wakes[queue] = true
  end
end

-- It lets go of its places, but for the letters in keep, and of a claim that nobody else may have while it is not final.
local function leave_places(id, held, claim, keep)
  local t = call('HMGET', K.task(id), 'n', 'k')
  local kept = ''
  for letter in string.gmatch(held or '', '.') do
    local group = group_of(letter, t[1], t[2])
    if string.find(keep, letter, 1, true) then kept = kept .. letter
    elseif letter == 'o' then
      if call('ZREM', K.line(group), id) == 1 then open_group(group) end
    elseif letter ~= 'r' then
      if call('SREM', K.busy(group), id) == 1 then open_group(group) end
    end
  end
  if kept == '' then call('HDEL', K.task(id), 'l') else call('HSET', K.task(id), 'l', kept) end
  if claim then
    local unique = K.unique(t[1] .. '\0' .. claim)
    if call('GET', unique) == id then call('DEL', unique) end
    call('HDEL', K.task(id), 'u')
  end
end

-- Where none of a group is parked any more nobody looks.
local function close_lot(queue, group)
  if call('EXISTS', K.parked(queue .. ':' .. group)) == 1 then return false end
  call('SREM', K.lots(group), queue)
  call('ZREM', K.limited(queue), group)
  return true
end

-- It waits for a place no more.
local function leave_park(id, queue)
  local t = call('HMGET', K.task(id), 'pk', 'n', 'k')
  if not t[1] then return end
  call('HDEL', K.task(id), 'pk')
  local group = group_of(t[1], t[2], t[3])
  if call('ZREM', K.parked(queue .. ':' .. group), id) == 0 then return end
  count(K.queue(queue), 'parked', -1)
  uncount(id, queue)
  close_lot(queue, group)
end

-- Taken and not settled: ready again, in front, nobody's. keep: the letters of the places it keeps (places.lua).
local function hand_back(id, queue, priority, keep)
  local held = call('HGET', K.task(id), 'l')
  if held then leave_places(id, held, nil, keep or 'o') end
  call('HDEL', K.task(id), 'o')
  to_ready(id, queue, priority, 0)
end

local function to_scheduled(id, queue, due)
  call('HSET', K.task(id), 's', 'd', 'due', due)
  call('ZADD', K.scheduled(queue), due, id)
  local first = call('ZRANGE', K.scheduled(queue), 0, 0)[1]
  if first == id then wakes[queue] = true end
end

-- Out of every schedule it may stand in.
local function unschedule(id, state, queue, owner)
  if state == 'q' then
    if call('ZREM', K.ready(queue), id) == 1 then uncount(id, queue) else leave_park(id, queue) end
  elseif state == 'd' then call('ZREM', K.scheduled(queue), id)
  elseif state == 'w' then call('ZREM', K.waiting, id)
  elseif state == 'p' and owner then call('SREM', K.held(owner), id) end
end

local function store_value(id, value)
  if #value <= 64 then
    call('HSET', K.task(id), 'r', value)
    call('DEL', K.result(id))
  else
    call('HDEL', K.task(id), 'r')
    call('SET', K.result(id), value)
  end
end

-- What a task gave, as who waited for it gets it: JSON of the result; of one that did not succeed "!", its state, and JSON of the error.
-- While it runs again it is what it gave before. An error is an object: of what is none nothing else is asked.
local function value_of(id)
  local key = K.task(id)
  local value = call('HGET', key, 'r')
  if value and string.byte(value) ~= 123 then return value end
  value = value or call('GET', K.result(id)) or 'null'
  local t = call('HMGET', key, 's', 'vs')
  local s = FINAL[t[1]] and t[1] or t[2]
  return (s == 'F' or s == 'C') and '!' .. s .. value or value
end

-- Field p with one position more, or nil where it is among the known already.
local function add_position(known, queue, partition, offset, ordered)
  partition = queue .. ':' .. partition
  offset = type(offset) == 'number' and text_of(offset) or offset
  local at = partition .. ':' .. offset
  if known and known ~= '' then
    if string.find(' ' .. known .. ' ', ' ' .. at .. ' ', 1, true) then return nil end
    at = known .. ' ' .. at
  end
  if ordered then gather(incompletes, partition, offset, offset) end
  return at
end

-- Ends of tasks. What waits for them is told in slices: at most BUDGET in one call, the rest by the fan list.
-- To note that one of several is done costs 1; to make a task ready MOVE, to end it END.
local BUDGET, MOVE, END = 1000, 5, 10
local MARKER_S = 86400
local ended = {}

local function end_task(id, queue, state, at)
  finished[#finished + 1] = id
  if state == 'F' then call('ZADD', K.failed, at, id) end
  count(K.queue(queue), state, 1)
end

-- Edges that one call adds or lets go of, all tasks together; the rest by the list of edges, of which every take does as many.
local EDGES = 250
local edges_left = EDGES

-- What a task waits for: ids, and {prefix, n} for n members of a large group, prefix0 to prefix<n-1>.
local function size_of(after)
  local n = #after
  for _, e in ipairs(after) do
    if type(e) == 'table' then n = n + e[2] - 1 end
  end
  return n
end

-- The ids from one place to another.
local function ids_in(after, first, last)
  local ids, place = {}, 0
  for _, e in ipairs(after) do
    if place >= last then break end
    if type(e) == 'table' then
      for i = math.max(first, place + 1), math.min(last, place + e[2]) do ids[#ids + 1] = e[1] .. i - place - 1 end
      place = place + e[2]
    else
      place = place + 1
      if place >= first then ids[#ids + 1] = e end
    end
  end
  return ids
end

local function let_go(on)
  if call('HINCRBY', K.task(on), 'rd', -1) > 0 then return end
  call('DEL', K.dependents(on)) -- all in it have ended
  local s = call('HGET', K.task(on), 's')
  if not s then call('DEL', K.task(on))
  elseif s == 'm' then call('EXPIRE', K.task(on), MARKER_S) end
end

-- So many edges, or what is left of them for this call.
local function edges_of(n)
  n = math.min(n, math.max(0, edges_left))
  edges_left = edges_left - n
  return n
end

-- It no longer needs what it waited for. all: also where that is much.
local function let_go_of_dependencies(id, all)
  local after = call('GET', K.after(id))
  if not after then return end
  after = cmsgpack.unpack(after)
  local size = size_of(after)
  local ln = call('HGET', K.task(id), 'ln')
  local linked = tonumber(ln or size)
  local rest = all and 0 or linked - edges_of(linked)
  if size > EDGES then call('DEL', K.told(id)) end
  for _, on in ipairs(ids_in(after, rest + 1, linked)) do let_go(on) end
  if rest == 0 then
    call('RENAME', K.after(id), K.waited(id))
    if ln then call('HDEL', K.task(id), 'ln') end
    return
  end
  call('HSET', K.task(id), 'ln', rest)
  call('LPUSH', K.edges, '-' .. id)
  wakes[call('HGET', K.task(id), 'q')] = true
end

local function notify(id, state, result)
  for _, channel in ipairs(call('SMEMBERS', K.watchers(id))) do gather(notices, channel, id, state .. (result or '')) end
  call('DEL', K.watchers(id))
end

local function forget_steps(id)
  call('DEL', K.steps(id))
  call('HDEL', K.task(id), 'st')
end

-- An attempt that did not succeed, for people. entry: JSON, or a table.
local function remember(id, entry)
  call('RPUSH', K.history(id), type(entry) == 'table' and cjson.encode(entry) or entry)
  call('LTRIM', K.history(id), -10, -1)
end

local function poison_text(deaths, cause)
  return 'its process died ' .. deaths .. ' times while it ran; last: ' .. cause
end

-- Tell everybody that this task concerns of its end. waited, depended, watched: its fields w, rd, wa; result: JSON of a short one.
local function tell_end(id, queue, state, waited, depended, watched, result)
  if waited then let_go_of_dependencies(id) end
  if watched then notify(id, state, result) end
  if depended then ended[#ended + 1] = {id, state == 'S', queue, result} end
end

-- An end that no worker reports: expired, cancelled, poison, a failed dependency. Its entry goes to an outbox of the scripts' own: "~", and
-- for later generations "~1" and so on, as they may end at the same attempt.
-- With a value: the end of a task that has run, and whose children have ended.
local function end_here(id, state, code, text, value)
  local t = call('HMGET', K.task(id), 's', 'q', 'n', 'a', 'o', 'f', 'i', 'ts', 'g', 'w', 'rd', 'wa', 'x', 'st', 'of', 'l', 'u', 'kd')
  local at = now_ms()
  if t[14] then forget_steps(id) end
  if t[13] then call('ZREM', K.expiring, id) end
  local holder = '~' .. (t[9] or '')
  unschedule(id, t[1], t[2], t[5])
  if t[16] or t[17] then leave_places(id, t[16], t[17], '') end
  local err = not value and {type = code, message = text} or nil
  call('HSET', K.task(id), 's', state, 'tf', at, 'e', holder)
  store_value(id, value or cjson.encode(err))
  local entry = {id = id, name = t[3], queue = t[2], outcome = value and 'success' or state == 'C' and 'cancelled' or 'failed',
    attempt = tonumber(t[4]) or 0, failures = tonumber(t[6]) or 0, deaths = tonumber(t[7]) or 0,
    worker = t[5] or nil, error = err, sent = tonumber(t[8]) or 0, finished = at}
  local encoded = cjson.encode(entry)
  if value then
    encoded = string.sub(encoded, 1, -2) .. ',"result":' .. value .. '}'
    call('DEL', K.message(id))
  end
  call('HSET', K.outbox(holder), id .. ':' .. (t[4] or 0), encoded)
  call('SADD', K.orphans, holder)
  end_task(id, t[2], state, at)
  tell_end(id, t[2], state, t[10], t[11], t[12])
  if t[15] == 'r' or (t[18] and state == 'C') then
    call('LPUSH', K.edges, '!1:' .. id)
    wakes[t[2]] = true
  end
end
