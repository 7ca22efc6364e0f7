-- Enter, change, pause, resume or remove a schedule.
-- ARGV[2] {act, name, ...}
--   set {definition, timing, source, tick, paused, force}  source: code or runtime · tick: the next one under this timing · paused: true, false, or nil
--     to leave it so · force: replace what the code of other workers says
--   pause {} · resume {tick} · remove {}
-- Reply OK {what}: new, changed, same · kept: a change made at run time, or what other live workers define, stays · full · paused, resumed, removed
--   missing · live: workers define it
-- Its fields: d definition · t timing · s source · p paused · seen when a worker last had this in its code · l last tick, i its task · o who is firing it,
--   c until when nobody else shall
-- May be repeated: the tick that is next stays while the timing does.

local why = refused()
if why then return reply(why) end
local act, name = A[1], A[2]
local key, now = K.schedule(name), now_ms()
local h = call('HMGET', key, 'd', 't', 's', 'p', 'seen')
local FRESH, MOST = 180000, 10000
local fresh = math.abs(now - (tonumber(h[5]) or 0)) < FRESH

local function set(definition, timing, source, tick, paused, force)
  if source == 'code' and h[1] then
    if h[3] == 'runtime' then return 'kept' end
    if h[1] == definition then
      call('HSET', key, 'seen', now)
      return 'same'
    end
    if fresh and not force then return 'kept' end
  end
  if not h[1] and call('ZCARD', K.ticks) >= MOST then return 'full' end
  local was = h[4] == '1'
  if paused == nil then paused = was end
  call('HSET', key, 'd', definition, 't', timing, 's', source, 'p', paused and 1 or 0, 'seen', source == 'code' and now or 0)
  if paused then call('ZADD', K.ticks, '+inf', name)
  elseif h[2] ~= timing or was then call('ZADD', K.ticks, tick, name) end
  return h[1] and 'changed' or 'new'
end

if act == 'set' then return reply('OK', set(A[3], A[4], A[5], A[6], A[7], A[8])) end
if not h[1] then return reply('OK', 'missing') end
if act == 'pause' then
  call('HSET', key, 'p', 1)
  call('ZADD', K.ticks, '+inf', name)
  return reply('OK', 'paused')
elseif act == 'resume' then
  if h[4] == '1' then
    call('HSET', key, 'p', 0)
    call('ZADD', K.ticks, A[3], name)
  end
  return reply('OK', 'resumed')
end
if h[3] == 'code' and fresh then return reply('OK', 'live') end
call('DEL', key)
call('ZREM', K.ticks, name)
return reply('OK', 'removed')
