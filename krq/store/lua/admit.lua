-- Enter messages into the schedule. By intake: with the mark of their partition, exactly once. By their submitter: a
-- short cut that must not overtake intake.
-- ARGV[2] {source, window, window_bytes, marker_ttl_s, records}
--   source  intake, ordered: {queue, partition, topic_id, first, next, time} · intake, dealt: {queue, partition} · submitter: {}
--   record  {id, name, queue, partition, offset, raw, checksum, priority, due, expires, after, inputs, sent, generation, ordered}
-- Reply OK {stop, conflicts, complete}: stop, the offset of the first record that found no room, or false; conflicts, the
--   indexes (from 1) of records whose id stands for other bytes; complete, the indexes of records already final and logged.
--   NOMARK this partition has none yet · TOPIC {known topic id} · GAP {mark}: read again from there
-- May be repeated: a known id is not entered again, and the mark only rises.

local why = refused()
if why then return reply(why) end
local source, window, window_bytes, marker_ttl, records = A[1], A[2], A[3], A[4], A[5]
local now = now_ms()
local intake, mark = source[1], nil
local conflicts, complete, queues, rooms = {}, {}, {}, {}

if source[3] then
  local m = call('HMGET', K.mark(source[1] .. ':' .. source[2]), 'next', 'tid')
  if not m[1] then return reply('NOMARK') end
  if m[2] ~= source[3] then return reply('TOPIC', m[2]) end
  mark = tonumber(m[1])
  if source[4] > mark then return reply('GAP', mark) end
end

local function room(queue)
  local r = rooms[queue]
  if not r then
    local q = call('HMGET', K.queue(queue), 'bytes', 'purged')
    r = {n = call('ZCARD', K.ready(queue)), bytes = tonumber(q[1]) or 0, purged = tonumber(q[2]) or 0}
    rooms[queue] = r
  end
  return r
end

local marks = {}
local function submitter_mark(queue, partition)
  local at = queue .. ':' .. partition
  if marks[at] == nil then marks[at] = tonumber(call('HGET', K.mark(at), 'next') or -1) end
  return marks[at]
end

local function open_dependencies(id, after)
  local n, failed = 0, nil
  for _, on in ipairs(after) do
    local s = call('HGET', K.task(on), 's')
    if s == 'F' or s == 'C' then failed = failed or on
    elseif s ~= 'S' then
      call('RPUSH', K.dependents(on), id)
      n = n + 1
    end
    if s then call('HINCRBY', K.task(on), 'rd', 1) end
  end
  return n, failed
end

local function enter(r, s, generation)
  local id, queue = r[1], r[3]
  if s == 'm' then call('PERSIST', K.task(id)) end
  if generation then
    call('HDEL', K.task(id), 'r', 'l', 'c', 'tt', 'tf', 'o', 'f', 'i', 'un')
    call('DEL', K.result(id))
    call('ZREM', K.failed, id)
  end
  call('HSET', K.task(id), 's', 'q', 'n', r[2], 'q', queue, 'ts', r[13], 'h', r[7])
  if r[8] ~= 0 then call('HSET', K.task(id), 'pr', r[8]) end
  if r[9] ~= 0 then call('HSET', K.task(id), 'due', r[9]) end
  if r[10] ~= 0 then call('HSET', K.task(id), 'x', r[10]) end
  if r[12] ~= 0 then call('HSET', K.task(id), 'in', r[12]) end
  if r[14] ~= 0 then call('HSET', K.task(id), 'g', r[14]) end
  call('SET', K.message(id), r[6])
  add_position(id, false, queue, r[4], r[5], r[15])
  queues[queue] = true
  count(K.queue(queue), 'N', 1)
  if s == 'm' and call('HGET', K.task(id), 'c') then
    end_here(id, 'C', 'CANCELLED', 'cancelled before it ran')
    return
  end
  local open, failed = 0, nil
  if #r[11] > 0 then
    call('SET', K.after(id), cmsgpack.pack(r[11]))
    open, failed = open_dependencies(id, r[11])
  end
  if failed then
    end_here(id, 'F', 'DEPENDENCY_FAILED', 'waited for ' .. failed .. ', which did not succeed')
  elseif open > 0 then
    call('HSET', K.task(id), 's', 'w', 'w', open)
    call('ZADD', K.waiting, now, id)
  elseif r[9] > now then
    to_scheduled(id, queue, r[9])
  else
    local sequence = call('INCR', K.sequence)
    to_ready(id, queue, r[8], sequence, #r[6])
    local free = room(queue)
    free.n = free.n + 1
    free.bytes = free.bytes + #r[6]
  end
end

local function full(r)
  if #r[11] > 0 or r[9] > now then return false end
  local free = room(r[3])
  return free.n >= window or (free.n > 0 and free.bytes + #r[6] > window_bytes)
end

-- A record of an id that is here already.
local function known(i, r, t)
  if t[1] and t[4] ~= tostring(r[7]) and (tonumber(t[5]) or 0) == r[14] then
    conflicts[#conflicts + 1] = i
    complete[#complete + 1] = i
  elseif FINAL[t[1]] and t[2] then complete[#complete + 1] = i
  else add_position(r[1], t[3], r[3], r[4], r[5], r[15]) end
end

local function leave_marker(r)
  if call('EXISTS', K.task(r[1])) == 0 then
    call('HSET', K.task(r[1]), 's', 'm', 'n', r[2], 'q', r[3], 'ts', r[13])
    call('EXPIRE', K.task(r[1]), marker_ttl)
  end
end

local stop = false
for i, r in ipairs(records) do
  if mark and r[5] < mark then
    -- admitted before
  else
    local t = call('HMGET', K.task(r[1]), 's', 'l', 'p', 'h', 'g')
    local revived = FINAL[t[1]] and r[14] > (tonumber(t[5]) or 0)
    if (t[1] and t[1] ~= 'm') and not revived then
      if intake then known(i, r, t) end
    elseif intake then
      if r[13] <= room(r[3]).purged then
        complete[#complete + 1] = i
        if t[1] == 'm' then call('DEL', K.task(r[1])) end
      elseif full(r) then stop = r[5]; break
      else enter(r, t[1], revived) end
    else
      local m = r[15] and submitter_mark(r[3], r[4]) or 0
      local near = not r[15] or (m >= 0 and r[5] - m <= 1000)
      if r[15] and r[5] < m then
        -- below the mark: intake had it, and its task is gone since
      elseif not near or full(r) then leave_marker(r)
      else enter(r, t[1], revived) end
    end
  end
end

if mark then
  local to = stop or source[5]
  if to > mark then call('HSET', K.mark(source[1] .. ':' .. source[2]), 'next', to, 'time', source[6]) end
  if source[6] > 0 then call('HSET', K.intake, source[1] .. ':' .. source[2], source[6]) end
end
for queue in pairs(queues) do call('SADD', K.queues, queue) end
tell_dependents()
finish_call()
return reply('OK', stop, conflicts, complete)
