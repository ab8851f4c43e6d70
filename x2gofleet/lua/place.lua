-- Chooses the server of a new session, and reserves a place on it. KEYS the reservations of the candidates, each a sorted set of
-- user names, scored by when they expire, then those of the other servers on which the user may have a reservation.
-- ARGV username, ttl_ms (0: choose only), the number of candidates, then for each candidate: what its sessions count, the
-- factor by which they weigh, the number of reservations that were used, and the names of their users.
-- Returns {index of the choice from 1, when its reservation expires in ms, reservations of each candidate before ...}. Of
-- equals the first is chosen.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now)
local username, ttl, candidates = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local at, best, best_score = 4, 0, math.huge
local reply = {0, '0'}
for i = 1, candidates do
  local key = KEYS[i]
  local used = tonumber(ARGV[at + 2])
  local reserved = redis.call('ZCOUNT', key, '(' .. now_text, '+inf')
  local done = {[username] = true}
  for j = at + 3, at + 2 + used do done[ARGV[j]] = true end
  for name in pairs(done) do
    local expires = redis.call('ZSCORE', key, name)
    if expires and tonumber(expires) > now then reserved = reserved - 1 end
  end
  local score = (tonumber(ARGV[at]) + reserved + 1) * tonumber(ARGV[at + 1])
  if best == 0 or score < best_score then best, best_score = i, score end
  reply[2 + i] = reserved
  at = at + 3 + used
end
reply[1] = best
if ttl == 0 then return reply end
at = 4
for i = 1, #KEYS do
  redis.call('ZREM', KEYS[i], username)
  if i <= candidates then
    local used = tonumber(ARGV[at + 2])
    for j = at + 3, at + 2 + used do redis.call('ZREM', KEYS[i], ARGV[j]) end
    at = at + 3 + used
  end
end
local expires = string.format('%.0f', now + ttl)
redis.call('ZREMRANGEBYSCORE', KEYS[best], '-inf', now_text)
redis.call('ZADD', KEYS[best], expires, username)
redis.call('PEXPIRE', KEYS[best], string.format('%.0f', math.max(ttl, redis.call('PTTL', KEYS[best]))))
reply[2] = expires
return reply
