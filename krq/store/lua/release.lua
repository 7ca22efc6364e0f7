-- Hand back what was taken and not started: ready again, in front, nothing counted.
-- flags: allow-oom
-- ARGV[2] {incarnation, items}; item {id, attempt}
-- Reply OK {number released}.
-- May be repeated: what is not the incarnation's any more is left alone.

local why = refused()
if why then return reply(why) end
local inc, items = A[1], A[2]
local let_go = {}
for _, item in ipairs(items) do
  local id = item[1]
  local t = call('HMGET', K.task(id), 's', 'o', 'a', 'q', 'pr')
  if t[1] == 'p' and t[2] == inc and tonumber(t[3]) == item[2] then
    let_go[#let_go + 1] = id
    hand_back(id, t[4], t[5], 'or')
  end
end
variadic('SREM', K.held(inc), let_go)
finish_call()
return reply('OK', #let_go)
