-- Records which host name a server has, on which database. KEYS hosts.
-- ARGV server, digest (of database and host name), valid_ms, ttl_ms.
-- Returns the other servers that have the same host name on the same database.
-- A field `server` is a text 'digest at', a field `:digest` the servers that were recorded with it, split by spaces.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local server, digest = ARGV[1], ARGV[2]
local others, kept = {}, {server}
for other in string.gmatch(redis.call('HGET', KEYS[1], ':' .. digest) or '', '%S+') do
  local of, at = string.match(redis.call('HGET', KEYS[1], other) or '', '^(%x+) (%d+)$')
  local age = now - (tonumber(at) or 0)
  -- One from the future was written before Redis's clock was set back.
  if other ~= server and of == digest and age > -5000 and age < tonumber(ARGV[3]) then
    table.insert(others, other)
    table.insert(kept, other)
  end
end
local before = string.match(redis.call('HGET', KEYS[1], server) or '', '^(%x+) ')
if before and before ~= digest then
  local left = {}
  for other in string.gmatch(redis.call('HGET', KEYS[1], ':' .. before) or '', '%S+') do
    if other ~= server then table.insert(left, other) end
  end
  if #left > 0 then redis.call('HSET', KEYS[1], ':' .. before, table.concat(left, ' '))
  else redis.call('HDEL', KEYS[1], ':' .. before) end
end
redis.call('HSET', KEYS[1], server, digest .. ' ' .. string.format('%.0f', now), ':' .. digest, table.concat(kept, ' '))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return others
