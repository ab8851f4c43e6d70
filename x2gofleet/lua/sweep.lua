-- Removes hints of snapshots that have long expired. KEYS fresh. ARGV grace_ms.
-- Returns how many were removed. A hint is a text 'polled_at listed_at expires_at digest'.
local time = redis.call('TIME')
local oldest = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(ARGV[1])
local hints = redis.call('HGETALL', KEYS[1])
local removed = 0
for i = 1, #hints, 2 do
  local expires = tonumber(string.match(hints[i + 1], '^%d+ %d+ (%d+) '))
  if not expires or expires < oldest then removed = removed + redis.call('HDEL', KEYS[1], hints[i]) end
end
return removed
