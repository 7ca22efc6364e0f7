-- Shared by every script. Before it stand P and K, the keys (keys.py).
-- KEYS[1] the epoch key, which routes the call. ARGV[1] the caller's epoch id. ARGV[2] the rest, packed.
-- Reply: packed {status, ...}. Status OK, or why nothing was done:
--   EMPTY no epoch here · RESTARTED another server life · EPOCH another epoch · CLOSED not open · DEAD no such incarnation
--
-- Fields of a task: s state (m marker, w waiting, d scheduled, q queued, p processing, S F C final) · n name · q queue · ts sent · h checksum
--   a attempt · f failures · i deaths · or leases that expired unreported · g generation · o owner, of the last attempt when it is over
--   tt taken at · tf finished at · r short value · p positions not yet complete (longer than 64 bytes when it was published many times),
--   '' once the end is logged · e holder of the entry of an end that a script made · pr priority · due · x expiry · in inputs · w dependencies
--   still open, where it has any · ln of more than EDGES dependencies: how many are counted · rd dependents not final: a task nobody has published may have this alone · c cancel asked · un not known
--   since · wa somebody waits for its end · as asserted before its record was seen · pg progress

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

-- Taken and not settled: ready again, in front, nobody's.
local function hand_back(id, queue, priority)
  call('HDEL', K.task(id), 'o')
  to_ready(id, queue, priority, 0)
end

local function to_scheduled(id, queue, due)
  call('HSET', K.task(id), 's', 'd', 'due', due)
  call('ZADD', K.scheduled(queue), due, id)
  local first = call('ZRANGE', K.scheduled(queue), 0, 0)[1]
  if first == id then wakes[queue] = true end
end

-- It is out of the ready pool: its bytes are no longer counted.
local function uncount(id, queue)
  count(K.queue(queue), 'bytes', -call('STRLEN', K.message(id)))
end

-- Out of every schedule it may stand in.
local function unschedule(id, state, queue, owner)
  if state == 'q' then
    if call('ZREM', K.ready(queue), id) == 1 then uncount(id, queue) end
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
-- To note that one of several is done costs 1; to make a task ready, or to end it, MOVE.
local BUDGET, MOVE = 1000, 5
local MARKER_S = 86400
local ended = {}

local function end_task(id, queue, state, at)
  finished[#finished + 1] = id
  if state == 'F' then call('ZADD', K.failed, at, id) end
  count(K.queue(queue), state, 1)
end

-- Edges that one call adds or lets go of a task; the rest by the list of edges, of which every take does one slice.
local EDGES = 500

local function let_go(on)
  if call('HINCRBY', K.task(on), 'rd', -1) > 0 then return end
  call('DEL', K.dependents(on)) -- all in it have ended
  local s = call('HGET', K.task(on), 's')
  if not s then call('DEL', K.task(on))
  elseif s == 'm' then call('EXPIRE', K.task(on), MARKER_S) end
end

-- It no longer needs what it waited for. all: also where that is much.
local function let_go_of_dependencies(id, all)
  local after = call('GET', K.after(id))
  if not after then return end
  after = cmsgpack.unpack(after)
  local linked = tonumber(call('HGET', K.task(id), 'ln') or #after)
  local rest = all and 0 or math.max(0, linked - EDGES)
  for i = linked, rest + 1, -1 do let_go(after[i]) end
  if rest == 0 then
    call('DEL', K.after(id))
    if #after > EDGES then call('HDEL', K.task(id), 'ln') end
    return
  end
  call('HSET', K.task(id), 'ln', rest)
  call('LPUSH', K.edges, '-' .. id)
  wakes[call('HGET', K.task(id), 'q')] = true
end

local function notify(id, state)
  for _, channel in ipairs(call('SMEMBERS', K.watchers(id))) do gather(notices, channel, id, state) end
  call('DEL', K.watchers(id))
end

-- Tell everybody that this task concerns of its end. waited, depended, watched: its fields w, rd, wa.
local function tell_end(id, queue, state, waited, depended, watched)
  if waited then let_go_of_dependencies(id) end
  if watched then notify(id, state) end
  if depended then ended[#ended + 1] = {id, state == 'S', queue} end
end

-- An end that no worker reports: expired, cancelled, poison, a failed dependency. Its entry goes to an outbox of the scripts' own: "~", and
-- for later generations "~1" and so on, as they may end at the same attempt.
local function end_here(id, state, code, text)
  local t = call('HMGET', K.task(id), 's', 'q', 'n', 'a', 'o', 'f', 'i', 'ts', 'g', 'w', 'rd', 'wa', 'x')
  local at = now_ms()
  if t[13] then call('ZREM', K.expiring, id) end
  local holder = '~' .. (t[9] or '')
  unschedule(id, t[1], t[2], t[5])
  local err = {type = code, message = text}
  call('HSET', K.task(id), 's', state, 'tf', at, 'e', holder)
  store_value(id, cjson.encode(err))
  local entry = {id = id, name = t[3], queue = t[2], outcome = state == 'C' and 'cancelled' or 'failed',
    attempt = tonumber(t[4]) or 0, failures = tonumber(t[6]) or 0, deaths = tonumber(t[7]) or 0,
    worker = t[5] or nil, error = err, sent = tonumber(t[8]) or 0, finished = at}
  call('HSET', K.outbox(holder), id .. ':' .. (t[4] or 0), cjson.encode(entry))
  call('SADD', K.orphans, holder)
  end_task(id, t[2], state, at)
  tell_end(id, t[2], state, t[10], t[11], t[12])
end

-- What to say of a task that did not succeed: the first cause, however long the chain from there.
local causes = {}
local function cause(on)
  if causes[on] then return causes[on] end
  local t = call('HMGET', K.task(on), 'n', 'r')
  local read, err = pcall(cjson.decode, t[2] or call('GET', K.result(on)) or '')
  if not read or type(err) ~= 'table' then err = {} end
  local text = tostring(err.message or 'no reason is known')
  if err.type ~= 'DEPENDENCY_FAILED' then
    if #text > 300 then text = string.gsub(string.sub(text, 1, 300), '[\192-\255][\128-\191]*$', '') .. ' ...' end
    text = 'waited for ' .. on .. ' (' .. (t[1] or '?') .. '), which did not succeed: ' .. tostring(err.type or '?') .. ': ' .. text
  end
  causes[on] = text
  return text
end

-- n of its dependencies have succeeded: ready, or scheduled, when they were the last. Returns what it cost.
local function release(id, n)
  if call('HINCRBY', K.task(id), 'w', -n) > 0 then return 1 end
  call('ZREM', K.waiting, id)
  local t = call('HMGET', K.task(id), 'q', 'pr', 'due')
  local due = tonumber(t[3]) or 0
  if due > now_ms() then to_scheduled(id, t[1], due)
  else to_ready(id, t[1], t[2], next_sequence()) end
  return MOVE
end

-- Returns what it cost.
local function tell(dependent, id, ok)
  if call('HGET', K.task(dependent), 's') ~= 'w' then return 1 end
  if ok then return release(dependent, 1) end
  end_here(dependent, 'F', 'DEPENDENCY_FAILED', cause(id))
  return MOVE
end

-- Each dependency from the first to the last counts who depends on it, also one that nobody has published yet.
-- Returns how many are open, and one that failed.
local function add_edges(id, after, first, last)
  local n, failed = 0, nil
  for i = first, last do
    local on = after[i]
    local s = call('HGET', K.task(on), 's')
    if s == 'F' or s == 'C' or on == id then failed = failed or on
    elseif s ~= 'S' then
      call('RPUSH', K.dependents(on), id)
      n = n + 1
      if s == 'm' then call('PERSIST', K.task(on)) end
    end
    call('HINCRBY', K.task(on), 'rd', 1)
  end
  return n, failed
end

-- While edges are missing the task waits for one more than it knows of.
local function add_more_edges(id, slice)
  local t = call('HMGET', K.task(id), 's', 'ln', 'q')
  if t[1] ~= 'w' or not t[2] then return end
  local after = cmsgpack.unpack(call('GET', K.after(id)))
  local last = math.min(t[2] + slice, #after)
  local n, failed = add_edges(id, after, t[2] + 1, last)
  if last == #after then call('HDEL', K.task(id), 'ln') else call('HSET', K.task(id), 'ln', last) end
  if failed then return end_here(id, 'F', 'DEPENDENCY_FAILED', cause(failed)) end
  if last == #after then return release(id, 1 - n) end
  call('HINCRBY', K.task(id), 'w', n)
  call('LPUSH', K.edges, '+' .. id)
  wakes[t[3]] = true
end

-- One slice, at most so large. Returns whether there is more.
local function work_on_edges(slice)
  local item = call('RPOP', K.edges)
  if not item then return false end
  local id = string.sub(item, 2)
  if string.sub(item, 1, 1) == '+' then add_more_edges(id, slice)
  elseif FINAL[call('HGET', K.task(id), 's')] then let_go_of_dependencies(id) end
  return call('EXISTS', K.edges) == 1
end

-- The next end whose dependents must be told: of this call, or, where fan is true, of an earlier one that was cut off.
local function next_ended(fan)
  local e = table.remove(ended)
  if e or not fan then return e end
  local item = call('RPOP', K.fan)
  return item and {string.sub(item, 2), string.sub(item, 1, 1) == '+'}
end

-- Returns whether there may be more to tell. Each item of the fan list: + or - for success, and the id.
local function tell_dependents(fan)
  local left = BUDGET
  local e = next_ended(fan)
  while e do
    local more = true
    while left > 0 and more do
      local most = math.ceil(left / MOVE)
      local dependents = call('LPOP', K.dependents(e[1]), most) or {}
      for _, dependent in ipairs(dependents) do left = left - tell(dependent, e[1], e[2]) end
      more = #dependents == most
    end
    if left <= 0 and call('EXISTS', K.dependents(e[1])) == 1 then
      call('LPUSH', K.fan, (e[2] and '+' or '-') .. e[1])
      if e[3] then wakes[e[3]] = true end
    end
    e = next_ended(fan and left > 0)
  end
  return left <= 0
end
