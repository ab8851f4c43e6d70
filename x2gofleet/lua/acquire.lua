-- Takes a free lease. KEYS lease, fence. ARGV owner, nonce, ttl_ms.
-- Returns {'acquired', fence} or {'held', owner}. The fence grows at every change of owner, also after the counter
-- was lost: it is never less than the time of Redis in ms.
local held = redis.call('HMGET', KEYS[1], 'owner', 'nonce', 'fence')
if held[2] == ARGV[2] then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'acquired', held[3]}
end
if held[1] then return {'held', held[1]} end
local time = redis.call('TIME')
local fence = time[1] * 1000 + math.floor(time[2] / 1000)
-- Text, or a number that a script can't count on from, was not written by a worker.
local previous = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
if not (previous < 9e15) then previous = 0 end
if previous >= fence then fence = previous + 1 end
local text = string.format('%.0f', fence)
redis.call('SET', KEYS[2], text)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'nonce', ARGV[2], 'fence', text)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'acquired', text}
