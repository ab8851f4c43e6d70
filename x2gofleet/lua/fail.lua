-- Records that a poll failed; the last good snapshot is left to age out. KEYS lease, state, events.
-- ARGV nonce, fence, failed_at, state_ttl_ms, error_class, error_text, events_kept, events_ttl_ms, then the kinds that were
-- asked for.
-- Returns {outcome, now_ms}: 'stored' or 'lost'.
local time = redis.call('TIME')
local now_text = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local lease = redis.call('HMGET', KEYS[1], 'nonce', 'fence')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] then return {'lost', now_text} end
for i = 9, #ARGV do
  local kind = ARGV[i]
  local failures = tonumber(redis.call('HGET', KEYS[2], kind .. '.failures') or '0') or 0
  if not (failures >= 0 and failures < 9e15) then failures = 0 end
  failures = math.floor(failures) + 1
  redis.call('HSET', KEYS[2], kind .. '.failures', string.format('%.0f', failures))
  if failures == 1 then
    redis.call('HSET', KEYS[2], kind .. '.since', ARGV[3])
    if kind == 'sessions' then
      local event = {'kind', 'server_down', 'at', ARGV[3], 'text', ARGV[5] .. ': ' .. ARGV[6]}
      add_events(KEYS[3], {event}, ARGV[7], ARGV[8])
    end
  end
  redis.call('HSET', KEYS[2], kind .. '.failed_at', ARGV[3], kind .. '.error_class', ARGV[5],
    kind .. '.error_text', ARGV[6])
end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {'stored', now_text}
