-- A new epoch, because Redis is not what it was: empty, or another server life. Closed until open.lua; or open at once where
-- nobody can have lost anything.
-- flags: allow-oom
-- ARGV[1] the epoch the caller knew, or ''. ARGV[2] {new_id, known_number, seen_epoch, suspicious}: seen_epoch, what is stored as the caller saw it, or
--   false; suspicious, whether the caller worked under an epoch that is missing here
-- Reply OK {id, number, open, reason}: the epoch in force, whoever made it
-- May be repeated: it closes only what the caller saw.

local new_id, known_number, seen, suspicious = A[1], A[2], A[3], A[4]
local e = call('HMGET', K.epoch, 'id', 'run', 'open', 'number', 'reason')
local run = run_id()
local now = now_ms()
if e[1] and e[2] == run and (e[1] ~= seen or not suspicious) then
  return reply('OK', e[1], tonumber(e[4]), e[3] == '1', e[5])
end
local number = math.max(math.floor(now / 1000), known_number + 1, (tonumber(e[4]) or 0) + 1)
local alive = call('HKEYS', K.beats)
local open = not suspicious and #alive == 0
local reason = e[1] and e[2] ~= run and 'restarted' or (suspicious and 'emptied' or 'fresh')
call('HSET', K.epoch, 'id', new_id, 'number', number, 'run', run, 'open', open and 1 or 0, 'reason', reason,
  'closed_at', now, 'opened_at', now)
call('DEL', K.asserted)
return reply('OK', new_id, number, open, reason)
