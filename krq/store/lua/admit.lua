-- Enter messages into the schedule. By intake: with the mark of their partition, exactly once. By their submitter: a
-- short cut that must not overtake intake.
-- ARGV[2] {source, window, window_bytes, marker_ttl_s, records, buried}
--   source  intake, ordered: {queue, partition, topic_id, first, next, time} · intake, dealt: {queue, partition} · submitter: {}
--   record  {id, name, queue, partition, offset, raw, checksum, priority, due, expires, after, inputs, sent, generation, ordered, inbox, flow, key, unique}
--   flow    {on-failure, workflow, needs, parent} of a task that waits or is in a workflow, else false; needs: of each dependency that is run again
--           together with it the generation that counts, as that one's record may come later
--   unique  {ms, claim}: one of this name and claim at a time, or, where ms > 0, within so long; the others end as duplicates
--   buried  offsets of records whose conflict is a dead letter by now: the mark does not pass others. nil: it passes all
-- Reply OK {stop, conflicts, complete}: stop, the offset of the first record that found no room, or is not buried, or false; conflicts, the
--   indexes (from 1) of records whose id stands for other bytes; complete, the indexes of records already final and logged.
--   NOMARK this partition has none yet · TOPIC {known topic id} · GAP {mark}: read again from there
-- May be repeated: a known id is not entered again, and the mark only rises; conflicts are told again.

local why = refused()
if why then return reply(why) end
local source, window, window_bytes, marker_ttl, records = A[1], A[2], A[3], A[4], A[5]
local now = now_ms()
local intake, mark = source[1], nil
local buried = A[6] and {}
for _, offset in ipairs(A[6] or {}) do buried[offset] = true end
local conflicts, complete, queues, rooms, messages, workflows = {}, {}, {}, {}, {}, {}

if source[3] then
  local m = call('HMGET', K.mark(source[1] .. ':' .. source[2]), 'next', 'tid')
  if not m[1] then return reply('NOMARK') end
  if m[2] ~= source[3] then return reply('TOPIC', m[2]) end
  mark = tonumber(m[1])
  if source[4] > mark then return reply('GAP', mark) end
end

-- Where it waits to be taken: the queue it was published to, or the inbox of the one worker it is for.
local function pool(r) return r[16] or r[3] end

-- A submitter takes no short cut past a line: in an ordered log intake admits what is in_order. Where the log has no order of its own
-- the line is what the submitters make, so they always find room.
local function in_order(r)
  local limits = limits_of(r[2])
  return limits and limits.o
end

local function room(queue)
  local r = rooms[queue]
  if not r then
    local q = call('HMGET', K.queue(queue), 'bytes', 'purged', 'parked')
    r = {n = call('ZCARD', K.ready(queue)) + (tonumber(q[3]) or 0), bytes = tonumber(q[1]) or 0, purged = tonumber(q[2]) or 0}
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

-- As many dependencies as this call may enter; the others follow slice by slice. takes: it gets their results.
-- Returns how many are open, and one that failed.
local function open_dependencies(id, queue, after, takes, how)
  local size = size_of(after)
  local first = edges_of(size)
  how[4] = takes and size > EDGES
  local n, failed = add_edges(id, after, 1, first, how)
  call('SET', K.after(id), cmsgpack.pack(after))
  if how[4] then call('HSET', K.task(id), 'mi', 1) end
  if first < size then
    call('HSET', K.task(id), 'ln', first)
    if how[3] then call('HSET', K.task(id), 'nd', cjson.encode(how[3])) end
    call('LPUSH', K.edges, '+' .. id)
    wakes[queue] = true
    n = n + 1
  end
  return n, failed
end

local function optional(fields, name, value)
  if value ~= 0 then
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
end

-- Its value stays until the next: dependents that were told of its end may still ask for it. f is 0, so that settle.lua looks for a long one.
local function forget_generation(id, key, s)
  call('HDEL', key, 'c', 'tt', 'tf', 'o', 'i', 'or', 'ir', 'un', 'e', 'pr', 'due', 'x', 'in', 'w', 'pg', 'of', 'nd', 'mi', 'k', 'l', 'u', 'pk', 'kd')
  call('HSET', key, 'f', 0, 'vs', s)
  call('DEL', K.waited(id), K.children(id))
  call('ZREM', K.failed, id)
  call('ZREM', K.dead, id)
  call('HDEL', K.letters, id)
end

-- Tasks of a workflow that can be found by it.
local INDEXED = 10000

-- What waits and says of no workflow is in that of what it waits for first.
local function optional_flow(fields, r)
  local first = ids_in(r[11], 1, 1)[1]
  local root = r[17][2] or call('HGET', K.task(first), 'wf') or first
  optional(fields, 'of', r[17][1])
  optional(fields, 'wf', root)
  optional(fields, 'pa', r[17][4] or 0)
  gather(workflows, root, r[1])
end

-- Write a new task in state s; more: a field and its value, or nothing.
local function write(r, key, known, s, more, value)
  local fields = {key, 's', s, 'n', r[2], 'q', pool(r), 'ts', r[13], 'h', r[7], 'p', add_position(known, r[3], r[4], r[5], r[15]) or known}
  optional(fields, 'pr', r[8])
  optional(fields, 'due', r[9])
  optional(fields, 'x', r[10])
  optional(fields, 'in', r[12])
  optional(fields, 'g', r[14])
  if r[17] then optional_flow(fields, r) end
  optional(fields, 'k', r[18] or 0)
  if more then optional(fields, more, value) end
  if r[10] ~= 0 then call('ZADD', K.expiring, r[10], r[1]) end
  call('HSET', unpack(fields))
end

-- The id of the task that this one repeats, or nil: then its claim stands from now on.
local function repeats(r)
  if not r[19] then return nil end
  local id, ms, claim = r[1], r[19][1], K.unique(r[2] .. '\0' .. r[19][2])
  local other = call('GET', claim)
  if other and other ~= id and (call('PTTL', claim) > 0 or not FINAL[call('HGET', K.task(other), 's') or 'F']) then return other end
  if ms > 0 then
    if other ~= id then call('SET', claim, id, 'PX', ms) end
  else
    call('SET', claim, id)
    call('HSET', K.task(id), 'u', r[19][2])
  end
end

local function enter(i, r, key, s, known, revived)
  local id, queue = r[1], pool(r)
  local cancelled = s == 'm' and call('HGET', key, 'c')
  if s == 'm' then call('PERSIST', key) end
  if revived then
    let_go_of_dependencies(id, true)
    forget_generation(id, key, s)
  end
  messages[#messages + 1] = K.message(id)
  messages[#messages + 1] = r[6]
  queues[queue] = (queues[queue] or 0) + 1
  local open, failed, waits = 0, nil, #r[11] > 0
  if waits and cancelled then call('SET', K.waited(id), cmsgpack.pack(r[11]))
  elseif waits then open, failed = open_dependencies(id, queue, r[11], r[12] ~= 0, {r[17][1], r[14], r[17][3]}) end
  local other = not cancelled and not failed and repeats(r)
  if cancelled or failed or other then
    write(r, key, known, 'q', 'w', waits and not cancelled and open .. '' or 0)
    if cancelled then end_here(id, 'C', 'CANCELLED', 'cancelled before it ran')
    elseif other then end_here(id, 'C', 'DUPLICATE', 'the same as ' .. other .. ', which was there before')
    else end_here(id, 'F', 'DEPENDENCY_FAILED', cause(failed)) end
  elseif open > 0 then
    write(r, key, known, 'w', 'w', open)
    call('ZADD', K.waiting, now, id)
    suspect_circle(id, queue)
  elseif r[9] > now then
    write(r, key, known, 'd', 'w', waits and '0' or 0)
    to_scheduled(id, queue, r[9])
  else
    write(r, key, known, 'q', 'w', waits and '0' or 0)
    local arrival = next_sequence(#records - i + 1)
    line_up(id, queue, r[8], arrival, #r[6])
    if in_order(r) then into_line(id, group_of('o', r[2], r[18]), '', arrival) end
    local free = room(queue)
    free.n = free.n + 1
    free.bytes = free.bytes + #r[6]
  end
end

local function full(r)
  if #r[11] > 0 or r[9] > now then return false end
  local free = room(pool(r))
  return free.n >= window or (free.n > 0 and free.bytes + #r[6] > window_bytes)
end

local function conflicting(r, t)
  return t[1] and t[1] ~= 'm' and t[3] and t[3] ~= tostring(r[7]) and (tonumber(t[4]) or 0) == r[14]
end

-- A task that its worker asserted before its record was seen lacks what only the record knows.
local function fill_in(r, key)
  local fields = {key, 'as', 0}
  optional(fields, 'pr', r[8])
  optional(fields, 'x', r[10])
  optional(fields, 'in', r[12])
  optional(fields, 'g', r[14])
  optional(fields, 'k', r[18] or 0)
  if r[10] ~= 0 then call('ZADD', K.expiring, r[10], r[1]) end
  if #r[11] > 0 then
    call('SET', K.after(r[1]), cmsgpack.pack(r[11]))
    for _, on in ipairs(ids_in(r[11], 1, size_of(r[11]))) do call('HINCRBY', K.task(on), 'rd', 1) end
    optional(fields, 'w', '0')
  end
  if r[17] then optional_flow(fields, r) end
  call('HSET', unpack(fields))
  call('HDEL', key, 'as')
  repeats(r)
end

local clash = false

-- A record of an id that is here already. Returns whether the mark may pass it.
local function known(i, r, key, t)
  if conflicting(r, t) then
    conflicts[#conflicts + 1] = i
    if mark and buried and not buried[r[5]] then
      clash = true
      return false
    end
    complete[#complete + 1] = i
  elseif FINAL[t[1]] and t[2] == '' then complete[#complete + 1] = i
  else
    if t[5] and not FINAL[t[1]] then fill_in(r, key) end
    local p = add_position(t[2], r[3], r[4], r[5], r[15])
    if p then call('HSET', key, 'p', p) end
  end
  return true
end

local function leave_marker(r, key, s)
  if s then return end
  call('HSET', key, 's', 'm', 'n', r[2], 'q', pool(r), 'ts', r[13])
  if not call('HGET', key, 'rd') then call('EXPIRE', key, marker_ttl) end
end

-- Of a purged queue, appended before the purge.
local function drop(i, key, s)
  complete[#complete + 1] = i
  if s ~= 'm' then return end
  call('PERSIST', key)
  call('HDEL', key, 's', 'n', 'q', 'ts', 'c', 'wa')
end

-- Mostly all of a batch is new, or none: one look tells.
local function all_new()
  local names, n = {}, 0
  for i, r in ipairs(records) do names[i] = K.task(r[1]) end
  for i = 1, #names, 2000 do n = n + call('EXISTS', unpack(names, i, math.min(i + 1999, #names))) end
  return n == 0
end

local fresh, seen = all_new(), {}
local NOTHING = {false, false, false, false, false}

local function read(key)
  if fresh and not seen[key] then
    seen[key] = true
    return NOTHING
  end
  return call('HMGET', key, 's', 'p', 'h', 'g', 'as')
end

-- Returns whether the record found room.
local function admit(i, r)
  local key = K.task(r[1])
  local t = read(key)
  local revived = FINAL[t[1]] and r[14] > (tonumber(t[4]) or 0)
  if t[1] and t[1] ~= 'm' and not revived then
    if intake then return known(i, r, key, t) end
  elseif r[13] <= room(r[3]).purged then
    if intake then drop(i, key, t[1]) end
  elseif intake then
    if full(r) then return false end
    enter(i, r, key, t[1], t[2], revived)
  else
    local m = r[15] and submitter_mark(r[3], r[4]) or 0
    local near = not r[15] or (m >= 0 and r[5] - m <= 1000)
    if r[15] and r[5] < m then return true end -- below the mark: intake had it, and its task is gone since
    local line = in_order(r)
    if not near or (line and r[15]) or (not line and full(r)) then leave_marker(r, key, t[1]) else enter(i, r, key, t[1], t[2], revived) end
  end
  return true
end

local stop = false
for i, r in ipairs(records) do
  if mark and r[5] < mark then
    if not buried and conflicting(r, read(K.task(r[1]))) then conflicts[#conflicts + 1] = i end
  elseif clash then -- the others of this call, so that one more is enough
    if conflicting(r, read(K.task(r[1]))) then conflicts[#conflicts + 1] = i end
  elseif not admit(i, r) then
    stop = r[5]
    if not clash then break end
  end
end

local to = stop or source[5]
if mark and to > mark then
  call('HSET', K.mark(source[1] .. ':' .. source[2]), 'next', to)
  if not stop and source[6] > 0 then
    call('HSET', K.mark(source[1] .. ':' .. source[2]), 'time', source[6])
    call('HSET', K.intake, source[1] .. ':' .. source[2], source[6])
  end
end
variadic('MSET', nil, messages)
for root, ids in pairs(workflows) do
  if call('SCARD', K.workflow(root)) < INDEXED then variadic('SADD', K.workflow(root), ids) end
end
for queue, n in pairs(queues) do
  call('SADD', K.queues, queue)
  count(K.queue(queue), 'N', n)
end
tell_dependents()
finish_call()
return reply('OK', stop, conflicts, complete)
