-- Shared by the scripts that call a function of it, behind the prelude: what waits for a task, and what becomes of it at that task's end.

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

-- The list of the last n results; nil, and why, where one did not succeed or it is too large.
local function list_of(ids, most)
  local values, size = {}, 1
  for i, on in ipairs(ids) do
    local value = value_of(on)
    if string.byte(value) == 33 then return nil, on end
    values[i] = value
    size = size + #value + 1
    if size > most then return nil end
  end
  return '[' .. table.concat(values, ',') .. ']'
end

-- All that it made has ended, and so has it: with its own value, with that of the last, or with the list of the last ones. how: its field kd.
local function end_parent(id, how)
  local n, most = string.match(how, '^(%d+) (%d+)$')
  local value, failed
  if how == 'own' then
    value = call('HGET', K.children(id), 'value')
    call('HDEL', K.children(id), 'value')
  else
    local after = cmsgpack.unpack(call('GET', K.after(id)))
    local size = size_of(after)
    local ids = ids_in(after, size - (n or 1) + 1, size)
    if n then value, failed = list_of(ids, tonumber(most))
    else
      value = value_of(ids[1])
      if string.byte(value) == 33 then value, failed = nil, ids[1] end
    end
  end
  if value then end_here(id, 'S', nil, nil, value)
  elseif failed then end_here(id, 'F', 'DEPENDENCY_FAILED', cause(failed))
  else end_here(id, 'F', 'MESSAGE_TOO_LARGE', 'the results of its ' .. n .. ' children are larger than ' .. most .. ' bytes together') end
end

-- n of its dependencies have succeeded: ready, or scheduled, when they were the last. Returns what it cost.
local function release(id, n)
  if call('HINCRBY', K.task(id), 'w', 0 - n) > 0 then return 1 end -- -n would be -0, which Redis 7.0 refuses
  call('ZREM', K.waiting, id)
  local t = call('HMGET', K.task(id), 'q', 'pr', 'due', 'kd')
  if t[4] then
    end_parent(id, t[4])
    return END
  end
  local due = tonumber(t[3]) or 0
  if due > now_ms() then to_scheduled(id, t[1], due)
  else to_ready(id, t[1], t[2], next_sequence()) end
  return MOVE
end

-- Who waits, as its dependencies list it. Of a later generation than the first with that: it may stand there of an earlier one, too.
local function waiter(id, generation)
  return generation and generation ~= 0 and '\1' .. generation .. ' ' .. id or id
end

-- The same the other way: id and generation, or nil.
local function read_waiter(entry)
  if string.byte(entry) ~= 1 then return entry end
  local generation, id = string.match(entry, '^\1(%d+) (.*)$')
  return id, generation
end

-- Who is told, and of what: many that end in one call may have one that waits for them. It is told once, of all.
local waiters, news = {}, {}

-- Returns what it may cost.
local function note(entry, id, result)
  local of = news[entry]
  local cost = of and 1 or MOVE
  if not of then
    of = {n = 0}
    news[entry], waiters[#waiters + 1] = of, entry
  end
  of.n = of.n + 1
  if result then of[#of + 1], of[#of + 2] = id, result end
  return cost
end

-- Returns what it cost beyond what was noted.
local function tell_news()
  local all, of, cost = waiters, news, 0
  waiters, news = {}, {}
  for _, entry in ipairs(all) do
    local id, generation = read_waiter(entry)
    local t = call('HMGET', K.task(id), 's', 'g', 'mi')
    if t[1] == 'w' and (t[2] or nil) == generation then
      local n = of[entry].n
      of[entry].n = nil
      if t[3] and #of[entry] > 0 then call('RPUSH', K.told(id), cmsgpack.pack(of[entry])) end
      cost = cost + math.max(0, release(id, n) - MOVE)
    end
  end
  return cost
end

-- Returns what it cost.
local function tell(entry, id, ok, result)
  if ok then return note(entry, id, result) end
  local dependent, generation = read_waiter(entry)
  local t = call('HMGET', K.task(dependent), 's', 'of', 'g')
  if t[1] ~= 'w' or (t[3] or nil) ~= generation then return 1 end
  if t[2] == 'c' then return note(entry, id) end
  call('RPUSH', K.blocked(id), dependent)
  end_here(dependent, 'F', 'DEPENDENCY_FAILED', cause(id))
  return END
end

-- Each dependency from the first to the last counts who depends on it, also one that nobody has published yet.
-- how: {on-failure, generation, needs, mi}; mi: it is told the short results of those that have ended before, too.
-- Returns how many are open, and one that failed.
local function add_edges(id, after, first, last, how)
  local n, failed, entry, needs, page = 0, nil, waiter(id, how[2]), how[3] or {}, {}
  for _, on in ipairs(ids_in(after, first, last)) do
    local t = call('HMGET', K.task(on), 's', 'r')
    local s = t[1]
    local again = needs[on] and needs[on] > tonumber(call('HGET', K.task(on), 'g') or 0)
    if on == id or (not again and how[1] ~= 'c' and (s == 'F' or s == 'C')) then failed = failed or on
    elseif again or not FINAL[s] then
      call('RPUSH', K.dependents(on), entry)
      n = n + 1
      if s == 'm' then call('PERSIST', K.task(on)) end
    elseif how[4] and s == 'S' and t[2] then page[#page + 1], page[#page + 2] = on, t[2] end
    call('HINCRBY', K.task(on), 'rd', 1)
  end
  if #page > 0 then call('RPUSH', K.told(id), cmsgpack.pack(page)) end
  if failed then call('RPUSH', K.blocked(failed), id) end
  return n, failed
end

-- It has run, and ends when what it made has. family: see settle.lua.
local function wait_for_children(id, queue, value, family)
  local key, packed = K.task(id), call('GET', K.after(id))
  local t = call('HMGET', key, 'g', 'c', 'x')
  local after = packed and cmsgpack.unpack(packed) or {}
  local linked = size_of(after)
  for _, span in ipairs(family[1]) do after[#after + 1] = span end
  local size = size_of(after)
  local last = linked + edges_of(size - linked)
  call('SET', K.after(id), cmsgpack.pack(after))
  call('HSET', K.children(id), 'ids', cmsgpack.pack(family[3]), 'value', value)
  local n, failed = add_edges(id, after, linked + 1, last, {family[4], t[1]})
  if last < size then
    n = n + 1
    call('HSET', key, 'ln', last)
    call('LPUSH', K.edges, '+' .. id)
    wakes[queue] = true
  end
  call('HSET', key, 's', 'w', 'w', n, 'kd', family[2], 'of', family[4] or '')
  call('HDEL', key, 'x', 'c', 'nd')
  call('ZADD', K.waiting, now_ms(), id)
  if t[3] then call('ZREM', K.expiring, id) end
  if t[2] then end_here(id, 'C', 'CANCELLED', 'cancelled while it ran')
  elseif failed then end_here(id, 'F', 'DEPENDENCY_FAILED', cause(failed))
  elseif n == 0 then
    call('ZREM', K.waiting, id)
    end_parent(id, family[2])
  end
end

-- The first that waits for it was here before it: perhaps it waits for that one.
local function suspect_circle(id, queue)
  if call('EXISTS', K.dependents(id)) == 0 then return end
  call('LPUSH', K.edges, '?' .. id)
  wakes[queue] = true
end

-- While edges are missing the task waits for one more than it knows of.
local function add_more_edges(id)
  local t = call('HMGET', K.task(id), 's', 'ln', 'q', 'of', 'g', 'nd', 'mi')
  if t[1] ~= 'w' or not t[2] then return end
  local after = cmsgpack.unpack(call('GET', K.after(id)))
  local size = size_of(after)
  local last = t[2] + edges_of(size - t[2])
  local n, failed = add_edges(id, after, t[2] + 1, last, {t[4], t[5], t[6] and cjson.decode(t[6]), t[7]})
  if last == size then call('HDEL', K.task(id), 'ln', 'nd') else call('HSET', K.task(id), 'ln', last) end
  if failed then return end_here(id, 'F', 'DEPENDENCY_FAILED', cause(failed)) end
  if last == size then
    suspect_circle(id, t[3])
    return release(id, 1 - n)
  end
  call('HINCRBY', K.task(id), 'w', n)
  call('LPUSH', K.edges, '+' .. id)
  wakes[t[3]] = true
end

-- Ends what has not started and tells who runs it; what the log has and nobody has admitted will end when it comes. Returns what cancel.lua says.
local function cancel_task(id, text)
  local t = call('HMGET', K.task(id), 's', 'o')
  local s = t[1]
  if s == 'p' then
    -- told once; afterwards sync.lua's audit tells it again, until its end
    if call('HSETNX', K.task(id), 'c', 1) == 1 then call('RPUSH', K.stops(t[2]), id) end
  elseif s == 'q' or s == 'd' or s == 'w' then
    end_here(id, 'C', 'CANCELLED', text)
    return 'C'
  elseif s == 'm' then call('HSET', K.task(id), 'c', 1) end
  return s
end

-- Of a task that takes the rest with it: what it waited for, from one place on. Returns what it cost.
local function cancel_rest(id, from)
  local after = call('GET', K.waited(id)) or call('GET', K.after(id))
  local t = call('HMGET', K.task(id), 's', 'q')
  if not after or (t[1] ~= 'F' and t[1] ~= 'C') then return 1 end
  after = cmsgpack.unpack(after)
  local size = size_of(after)
  local last, text = math.min(from + BUDGET / END - 1, size), 'cancelled with ' .. id .. ': ' .. cause(id)
  for _, on in ipairs(ids_in(after, from, last)) do
    if not cancel_task(on, text) then
      call('HSET', K.task(on), 's', 'm', 'c', 1, 'ts', now_ms())
      if not call('HGET', K.task(on), 'rd') then call('EXPIRE', K.task(on), MARKER_S) end
    end
  end
  if last < size then
    call('LPUSH', K.edges, '!' .. last + 1 .. ':' .. id)
    wakes[t[2]] = true
  end
  return (last - from + 1) * END
end

-- Whether it waits for itself, through whomever: it could never run. A walk of so many steps, then it is given up. Returns what it cost.
local function break_circle(id, most)
  local from, todo, n = {}, {id}, 0
  while #todo > 0 and n < most do
    local one = table.remove(todo)
    local after = call('GET', K.after(one))
    n = n + 1
    for _, on in ipairs(after and ids_in(cmsgpack.unpack(after), 1, most) or {}) do
      if on == id then
        local text = id
        while one ~= id do one, text = from[one], one .. ' -> ' .. text end
        if call('HGET', K.task(id), 's') == 'w' then end_here(id, 'F', 'DEPENDENCY_CYCLE', 'waits for itself: ' .. id .. ' -> ' .. text) end
        return n
      end
      if not from[on] then from[on], todo[#todo + 1] = one, on end
    end
  end
  return n
end

-- As many as this call may. Returns whether there is more.
local function work_on_edges()
  while edges_left > 0 do
    local item = call('RPOP', K.edges)
    if not item then return false end
    local what, id = string.sub(item, 1, 1), string.sub(item, 2)
    if what == '?' then edges_left = edges_left - break_circle(id, 4 * EDGES)
    elseif what == '!' then
      local from, of = string.match(id, '^(%d+):(.*)$')
      edges_left = edges_left - cancel_rest(of, tonumber(from))
    elseif what == '+' then add_more_edges(id)
    elseif FINAL[call('HGET', K.task(id), 's')] then let_go_of_dependencies(id) end
  end
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
      local most = math.ceil(left / (e[2] and MOVE or END))
      local dependents = call('LPOP', K.dependents(e[1]), most) or {}
      for _, dependent in ipairs(dependents) do left = left - tell(dependent, e[1], e[2], e[4]) end
      more = #dependents == most
    end
    if left <= 0 and call('EXISTS', K.dependents(e[1])) == 1 then
      call('LPUSH', K.fan, (e[2] and '+' or '-') .. e[1])
      if e[3] then wakes[e[3]] = true end
    end
    e = next_ended(fan and left > 0)
    if not e then
      left = left - tell_news()
      e = next_ended(fan and left > 0)
    end
  end
  return left <= 0
end
