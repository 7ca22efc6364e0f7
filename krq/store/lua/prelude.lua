-- Shared by every script. Before it stand P and K, the keys (keys.py).
-- KEYS[1] the epoch key, which routes the call. ARGV[1] the caller's epoch id. ARGV[2] the rest, packed.
-- Reply: packed {status, ...}. Status OK, or why nothing was done:
--   EMPTY no epoch here · RESTARTED another server life · EPOCH another epoch · CLOSED not open · DEAD no such incarnation

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

-- Why this caller may not write here, or nil.
local function refused()
  local e = call('HMGET', K.epoch, 'id', 'run', 'open')
  if not e[1] then return 'EMPTY' end
  if e[2] ~= run_id() then return 'RESTARTED' end
  if e[1] ~= ARGV[1] then return 'EPOCH' end
  if e[3] ~= '1' then return 'CLOSED' end
end

-- Counters of queues and workers, and wakes, are gathered and written once at the end.
local counts, wakes = {}, {}

local function count(key, field, n)
  local of = counts[key]
  if not of then of = {}; counts[key] = of end
  of[field] = (of[field] or 0) + n
end

local function finish_call()
  for key, of in pairs(counts) do
    for field, n in pairs(of) do
      if n ~= 0 then call('HINCRBY', key, field, n) end
    end
  end
  for queue in pairs(wakes) do
    if call('LLEN', K.wake(queue)) == 0 then call('LPUSH', K.wake(queue), 1) end
  end
end

-- Ready again or for the first time. In front: what was handed back. Else: in order of arrival.
local function to_ready(id, queue, priority, sequence, bytes)
  call('HSET', K.task(id), 's', 'q')
  call('ZADD', K.ready(queue), -(tonumber(priority) or 0) * 1e13 + sequence, id)
  count(K.queue(queue), 'bytes', bytes or call('STRLEN', K.message(id)))
  wakes[queue] = true
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

-- Out of every schedule it may stand in.
local function unschedule(id, state, queue, owner)
  if state == 'q' then
    if call('ZREM', K.ready(queue), id) == 1 then
      count(K.queue(queue), 'bytes', -call('STRLEN', K.message(id)))
    end
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

local function add_position(id, known, queue, partition, offset, ordered)
  local at = queue .. ':' .. partition .. ':' .. offset
  if known then
    if string.find(' ' .. known .. ' ', ' ' .. at .. ' ', 1, true) then return end
    at = known .. ' ' .. at
  end
  call('HSET', K.task(id), 'p', at)
  if ordered then call('ZADD', K.incomplete(queue .. ':' .. partition), offset, offset) end
end

-- Ends of tasks. What waits for them is told in slices: at most BUDGET in one call, the rest by the fan list.
local BUDGET = 200
local ended = {}

local function queue_ended(id, ok, why)
  ended[#ended + 1] = {id, ok, why}
end

-- Bookkeeping that every end has in common. The caller has written state and value, and the outbox.
local function end_task(id, queue, state, at)
  call('LPUSH', K.done, id)
  if state == 'F' then call('ZADD', K.failed, at, id) end
  count(K.queue(queue), state, 1)
  local after = call('GET', K.after(id))
  if after then
    for _, on in ipairs(cmsgpack.unpack(after)) do
      if call('EXISTS', K.task(on)) == 1 then call('HINCRBY', K.task(on), 'rd', -1) end
    end
    call('DEL', K.after(id))
  end
  call('PUBLISH', K.ended(id), state)
  if call('EXISTS', K.dependents(id)) == 1 then queue_ended(id, state == 'S') end
end

-- An end that no worker reports: expired, cancelled, poison, a failed dependency. Its entry goes to the outbox "~".
local function end_here(id, state, code, text)
  local t = call('HMGET', K.task(id), 's', 'q', 'n', 'a', 'o', 'f', 'i', 'ts')
  local at = now_ms()
  unschedule(id, t[1], t[2], t[5])
  local err = {type = code, message = text}
  call('HSET', K.task(id), 's', state, 'tf', at)
  store_value(id, cjson.encode(err))
  local entry = {id = id, name = t[3], queue = t[2], outcome = state == 'C' and 'cancelled' or 'failed',
    attempt = tonumber(t[4]) or 0, failures = tonumber(t[6]) or 0, deaths = tonumber(t[7]) or 0,
    worker = t[5] or nil, error = err, sent = tonumber(t[8]) or 0, finished = at}
  call('HSET', K.outbox('~'), id .. ':' .. (t[4] or 0), cjson.encode(entry))
  call('SADD', K.orphans, '~')
  end_task(id, t[2], state, at)
end

local function tell(dependent, id, ok)
  local t = call('HMGET', K.task(dependent), 's', 'q', 'pr', 'due')
  if t[1] ~= 'w' then return end
  if not ok then
    end_here(dependent, 'F', 'DEPENDENCY_FAILED', 'waited for ' .. id .. ', which did not succeed')
  elseif call('HINCRBY', K.task(dependent), 'w', -1) <= 0 then
    call('ZREM', K.waiting, dependent)
    local due = tonumber(t[4]) or 0
    if due > now_ms() then to_scheduled(dependent, t[2], due)
    else to_ready(dependent, t[2], t[3], call('INCR', K.sequence)) end
  end
end

local function tell_dependents()
  local left = BUDGET
  while #ended > 0 do
    local e = table.remove(ended)
    while left > 0 do
      local dependent = call('LPOP', K.dependents(e[1]))
      if not dependent then break end
      tell(dependent, e[1], e[2])
      left = left - 1
    end
    if call('EXISTS', K.dependents(e[1])) == 1 then call('LPUSH', K.fan, e[1]) end
  end
end

-- Go on with cascades that an earlier call cut off.
local function continue_fan()
  local id = call('RPOP', K.fan)
  if id then queue_ended(id, call('HGET', K.task(id), 's') == 'S') end
end
