-- Publishes an inventory unless a newer one is published. KEYS fleet. ARGV version, document, ttl_ms, force ('1' to
-- replace a document that can't be read).
-- Versions compare as text: the time of the file in ms, 13 digits, then a digest of the content.
-- Returns {'stored' or 'older', the version that is published now, when it was first published in ms, now_ms}.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local stored = redis.call('HMGET', KEYS[1], 'version', 'published_at')
-- When it was published is nobody's word but a worker's: what can't be that is forgotten.
if stored[2] and not (string.match(stored[2], '^%d+$') and #stored[2] <= 15) then stored[2] = now end
local function digest(version) return string.match(version, '%-(%x+)$') or version end
local same = stored[1] and ARGV[4] ~= '1' and digest(stored[1]) == digest(ARGV[1])
if stored[1] and not same and ARGV[4] ~= '1' and stored[1] > ARGV[1] then return {'older', stored[1], stored[2] or now, now} end
if same then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'stored', stored[1], stored[2] or now, now}
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'document', ARGV[2], 'published_at', now)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'stored', ARGV[1], now, now}
