-- A live incarnation says, under a closed epoch, what it runs. Its other tasks are ready again; it is registered again.
-- flags: allow-oom
-- ARGV[1] the new epoch. ARGV[2] {incarnation, fields, names, tasks}; fields and names as in register.lua; task {id, attempt, name, queue, raw, checksum, sent}
-- Reply OK {dropped}: ids that are not the incarnation's any more: settled, recovered, or another attempt is known
-- May be repeated.

local e = call('HMGET', K.epoch, 'id', 'run')
if not e[1] then return reply('EMPTY') end
if e[2] ~= run_id() then return reply('RESTARTED') end
if e[1] ~= ARGV[1] then return reply('EPOCH') end
local inc, fields, names, tasks = A[1], A[2], A[3], A[4]
call('HSETNX', K.beats, inc, 0)
call('HSET', K.worker(inc), unpack(fields))
call('SADD', K.names(inc), unpack(names))
local dropped, mine = {}, {}

for _, task in ipairs(tasks) do
  local id, attempt = task[1], task[2]
  local t = call('HMGET', K.task(id), 's', 'a', 'o', 'q')
  local known = tonumber(t[2]) or 0
  if FINAL[t[1]] or known > attempt or (known == attempt and (t[1] ~= 'p' or t[3] ~= inc)) then
    dropped[#dropped + 1] = id
  else
    if t[1] then unschedule(id, t[1], t[4], t[3]) end
    if t[1] == 'm' then call('PERSIST', K.task(id)) end
    call('HSET', K.task(id), 's', 'p', 'a', attempt, 'o', inc, 'n', task[3], 'q', task[4], 'h', task[6], 'ts', task[7])
    call('SET', K.message(id), task[5])
    call('SADD', K.held(inc), id)
    call('SADD', K.queues, task[4])
    mine[id] = true
  end
end

for _, id in ipairs(call('SMEMBERS', K.held(inc))) do
  if not mine[id] then
    call('SREM', K.held(inc), id)
    local t = call('HMGET', K.task(id), 's', 'o', 'q', 'pr')
    if t[1] == 'p' and t[2] == inc then hand_back(id, t[3], t[4]) end
  end
end
call('SADD', K.asserted, inc)
finish_call()
return reply('OK', dropped)
