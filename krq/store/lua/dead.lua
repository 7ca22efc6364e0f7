-- Keep dead letters at hand, the newest 1,000; let go of others.
-- flags: allow-oom
-- ARGV[2] {letters, gone}: letter {ref, at_ms, JSON, task, attempt}: task, the id of the task that failed at this attempt, or
--   false; gone, refs
-- Reply OK {number let go}
-- May be repeated: a letter stands here once. One whose task has been sent again since is not kept.

local why = refused()
if why then return reply(why) end

local function stale(task, attempt)
  local t = call('HMGET', K.task(task), 's', 'a')
  return t[1] and (t[1] ~= 'F' or tonumber(t[2] or 0) ~= attempt)
end

for _, letter in ipairs(A[1]) do
  if not (letter[4] and stale(letter[4], letter[5])) then
    call('ZADD', K.dead, letter[2], letter[1])
    call('HSET', K.letters, letter[1], letter[3])
  end
end
local gone = 0
for _, ref in ipairs(A[2]) do
  gone = gone + call('ZREM', K.dead, ref)
  call('HDEL', K.letters, ref)
end
local over = call('ZCARD', K.dead) - 1000
if over > 0 then
  local popped = call('ZPOPMIN', K.dead, over)
  for i = 1, #popped, 2 do call('HDEL', K.letters, popped[i]) end
end
return reply('OK', gone)
