-- Pause or resume a queue.
-- flags: allow-oom
-- ARGV[2] {queue, paused}
-- Reply OK {}
-- May be repeated.

local why = refused()
if why then return reply(why) end
if A[2] then call('HSET', K.queue(A[1]), 'paused', 1)
else
  call('HDEL', K.queue(A[1]), 'paused')
  wakes[A[1]] = true
end
call('SADD', K.queues, A[1])
finish_call()
return reply('OK')
