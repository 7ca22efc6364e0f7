-- Intake's marks: make those that are missing, and tell how far each partition is complete.
-- flags: allow-oom
-- ARGV[2] {partitions}; partition {queue, number, topic_id, start, caught_up}: start, where a partition without a mark
--   begins, or false: only tell; caught_up, whether intake has read all there is.
-- Reply OK {answers}, for each partition {mark, low} or false where it has no mark: low = min(mark, lowest incomplete).
--   Another topic id: the topic was made anew, its offsets begin again: the mark becomes start.
-- May be repeated.

local why = refused()
if why then return reply(why) end
local now = now_ms()
local answers = {}
for i, p in ipairs(A[1]) do
  local at = p[1] .. ':' .. p[2]
  local m = call('HMGET', K.mark(at), 'next', 'tid')
  if p[4] and (not m[1] or m[2] ~= p[3]) then
    if m[1] then call('DEL', K.incomplete(at)) end
    call('HSET', K.mark(at), 'next', p[4], 'tid', p[3])
    call('SADD', K.queues, p[1])
    m = {p[4]}
  end
  if m[1] then
    local mark = tonumber(m[1])
    local lowest = call('ZRANGE', K.incomplete(at), 0, 0)[1]
    answers[i] = {mark, lowest and math.min(mark, tonumber(lowest)) or mark}
    if p[5] then call('HSET', K.intake, at, now) end
  else answers[i] = false end
end
return reply('OK', answers)
