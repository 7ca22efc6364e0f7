-- The little of many tasks that tells which of them a list wants.
-- flags: no-writes
-- ARGV[2] {ids}
-- Reply OK {tasks}, for each id false where it is not known, or {state, name, queue, owner, finished at}, each false where there is none.
-- May be repeated: it changes nothing, and asks for no epoch.

local found = {}
for i, id in ipairs(A[1]) do
  local t = call('HMGET', K.task(id), 's', 'n', 'q', 'o', 'tf')
  found[i] = t[1] and t or false
end
return reply('OK', found)
