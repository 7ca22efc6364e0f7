-- The log has these entries: out of the outbox; the positions of final tasks are complete.
-- flags: allow-oom
-- ARGV[2] {holder, items, tell}: holder, whose outbox; item {id, attempt, final}
-- Reply OK {positions}: "queue:partition:offset" of what became complete; where tell is true {positions, taken}: the numbers of the items
--   that this call took out, and no other
-- May be repeated. The entry must be the one that ended the task: of this holder, at this attempt.

local why = refused()
if why then return reply(why) end
local holder, items, tell = A[1], A[2], A[3]
local fields, positions, offsets, taken = {}, {}, {}, {}

local function complete(id, attempt)
  local key = K.task(id)
  local t = call('HMGET', key, 's', 'p', 'a', 'e', 'o')
  if not FINAL[t[1]] or (tonumber(t[3]) or 0) ~= attempt or (t[4] or t[5]) ~= holder or t[2] == '' then return end
  for at in string.gmatch(t[2] or '', '%S+') do
    local partition, offset = string.match(at, '^(.*):([^:]*)$')
    gather(offsets, partition, offset)
    positions[#positions + 1] = at
  end
  call('HSET', key, 'p', '')
end

for _, item in ipairs(items) do
  fields[#fields + 1] = item[1] .. (item[2] == 1 and ':1' or ':' .. item[2])
  if item[3] then complete(item[1], item[2]) end
end
for partition, list in pairs(offsets) do variadic('ZREM', K.incomplete(partition), list) end
if tell then
  for i, field in ipairs(fields) do
    if call('HDEL', K.outbox(holder), field) == 1 then taken[#taken + 1] = i end
  end
else variadic('HDEL', K.outbox(holder), fields) end
if call('EXISTS', K.outbox(holder)) == 0 then call('SREM', K.orphans, holder) end
if tell then return reply('OK', positions, taken) end
return reply('OK', positions)
