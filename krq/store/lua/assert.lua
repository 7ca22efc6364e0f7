-- A live incarnation says, under a new epoch, what it runs. Its other tasks are ready again; it is registered again.
-- flags: allow-oom
-- ARGV[1] the new epoch. ARGV[2] {incarnation, fields, names, tasks, limits}; fields, names and limits as in register.lua;
--   task {id, attempt, name, queue, raw, checksum, sent, key}
-- Reply OK {dropped}: ids that are not the incarnation's any more: settled, recovered, or another attempt is known
-- May be repeated: once the epoch is open a repetition only answers, as the incarnation may have taken more since.

local why = refused(true)
if why then return reply(why) end
local inc, fields, names, tasks, limits = A[1], A[2], A[3], A[4], A[5]
local writes = call('HGET', K.epoch, 'open') ~= '1' or call('SISMEMBER', K.asserted, inc) == 0
local dropped, mine, stale = {}, {}, {}

if writes then define(limits) end

local function hold(task, t)
  local id = task[1]
  if t[1] then unschedule(id, t[1], t[4], t[3]) end
  if t[1] == 'm' then call('PERSIST', K.task(id)) end
  call('HSET', K.task(id), 's', 'p', 'a', task[2], 'o', inc, 'n', task[3], 'q', task[4], 'h', task[6], 'ts', task[7])
  if not t[1] or t[1] == 'm' then call('HSET', K.task(id), 'as', 1) end
  call('SET', K.message(id), task[5])
  call('SADD', K.held(inc), id)
  call('SADD', K.queues, task[4])
  hold_places(id, task[3], task[8] or nil)
end

for _, task in ipairs(tasks) do
  local id, attempt = task[1], task[2]
  local t = call('HMGET', K.task(id), 's', 'a', 'o', 'q')
  local known = tonumber(t[2]) or 0
  if FINAL[t[1]] or known > attempt or (known == attempt and (t[1] ~= 'p' or t[3] ~= inc)) then
    dropped[#dropped + 1] = id
  elseif writes then
    mine[id] = true
    hold(task, t)
  end
end
if not writes then return reply('OK', dropped) end

call('HSETNX', K.beats, inc, 0)
variadic('HSET', K.worker(inc), fields)
variadic('SADD', K.names(inc), names)
for _, id in ipairs(call('SMEMBERS', K.held(inc))) do
  if not mine[id] then
    stale[#stale + 1] = id
    local t = call('HMGET', K.task(id), 's', 'o', 'q', 'pr')
    if t[1] == 'p' and t[2] == inc then hand_back(id, t[3], t[4], 'or') end
  end
end
variadic('SREM', K.held(inc), stale)
call('SADD', K.asserted, inc)
finish_call()
return reply('OK', dropped)
