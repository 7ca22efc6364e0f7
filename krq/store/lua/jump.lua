-- Move a mark to where the log begins or ends, because what it named is gone: records were deleted before they were read.
-- flags: allow-oom
-- ARGV[2] {queue, partition, topic_id, mark, to}: mark, the mark the caller saw
-- Reply OK {moved}
-- May be repeated: only from the mark that was seen.

local why = refused()
if why then return reply(why) end
local at = A[1] .. ':' .. A[2]
local m = call('HMGET', K.mark(at), 'next', 'tid')
if m[2] ~= A[3] or tonumber(m[1]) ~= A[4] then return reply('OK', false) end
call('HSET', K.mark(at), 'next', A[5])
return reply('OK', true)
