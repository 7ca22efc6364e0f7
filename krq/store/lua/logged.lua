-- The log has these entries: out of the outbox; the positions of final tasks are complete.
-- flags: allow-oom
-- ARGV[2] {holder, items}: holder, whose outbox; item {id, attempt, final}
-- Reply OK {positions}: "queue:partition:offset" of what became complete
-- May be repeated.

local why = refused()
if why then return reply(why) end
local holder, items = A[1], A[2]
local fields, positions = {}, {}

local function complete(id, attempt)
  local t = call('HMGET', K.task(id), 's', 'p', 'a')
  if not FINAL[t[1]] or (tonumber(t[3]) or 0) ~= attempt then return end
  for at in string.gmatch(t[2] or '', '%S+') do
    local partition, offset = string.match(at, '^(.*):([^:]*)$')
    call('ZREM', K.incomplete(partition), offset)
    positions[#positions + 1] = at
  end
  call('HDEL', K.task(id), 'p')
  call('HSET', K.task(id), 'l', 1)
end

for _, item in ipairs(items) do
  fields[#fields + 1] = item[1] .. ':' .. item[2]
  if item[3] then complete(item[1], item[2]) end
end
if #fields > 0 then call('HDEL', K.outbox(holder), unpack(fields)) end
if call('EXISTS', K.outbox(holder)) == 0 then call('SREM', K.orphans, holder) end
return reply('OK', positions)
