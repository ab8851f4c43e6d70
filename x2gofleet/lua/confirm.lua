-- Confirms that nothing changed since a stored listing. KEYS lease, snapshot, state, events.
-- ARGV nonce, fence, seq, polled_at, ttl_ms, state_ttl_ms, kind, digest, events_kept, events_ttl_ms.
-- Returns {outcome, now_ms}: 'stored', 'lost', 'older', 'expired', 'future' as in store.lua, or 'absent' where the
-- stored snapshot is gone or is not the one that the writer means: then a full listing is due at once.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now)
local lease = redis.call('HMGET', KEYS[1], 'nonce', 'fence')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] then return {'lost', now_text} end
local old = redis.call('HMGET', KEYS[2], 'fence', 'seq', 'digest')
if old[1] ~= ARGV[2] or old[3] ~= ARGV[8] or not tonumber(old[2]) then return {'absent', now_text} end
local seq, polled = tonumber(ARGV[3]), tonumber(ARGV[4])
if tonumber(old[2]) == seq then return {'stored', now_text} end
if tonumber(old[2]) > seq then return {'older', now_text} end
if polled > now then return {'future', now_text} end
local expires = polled + tonumber(ARGV[5])
if expires <= now then return {'expired', now_text} end
redis.call('HSET', KEYS[2], 'seq', ARGV[3], 'polled_at', ARGV[4])
redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', expires))
local kind = ARGV[7]
local failures = redis.call('HGET', KEYS[3], kind .. '.failures')
if failures ~= '0' then
  redis.call('HSET', KEYS[3], kind .. '.since', ARGV[4])
  redis.call('HDEL', KEYS[3], kind .. '.error_class', kind .. '.error_text')
  if failures and kind == 'sessions' then
    add_events(KEYS[4], {{'kind', 'server_up', 'at', ARGV[4]}}, ARGV[9], ARGV[10])
  end
end
redis.call('HSET', KEYS[3], kind .. '.good_at', ARGV[4], kind .. '.failures', '0')
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return {'stored', now_text}
