-- Stores one full listing, and the events that tell what it changed. KEYS lease, snapshot, state, events.
-- ARGV nonce, fence, seq, polled_at, ttl_ms, state_ttl_ms, kind, digest, replaces, events, events_kept, events_ttl_ms,
-- host_name ('' where it is not known), then the other fields as name, value, ... `events` is a JSON list of entries, each a list of names and values: what
-- changed since the listing whose digest is `replaces` ('' where there is none, '*' for any).
-- Returns {outcome, now_ms}: 'stored' (also when this very write was made before and its reply was lost), 'lost' (the
-- lease is not the writer's), 'older' (a newer listing is stored), 'expired' or 'future' (polled_at can't be stored),
-- 'replaced' (another listing than `replaces` is stored: compare with that one, and try again).
-- Checks first, writes last: a refused write changes nothing.
-- `since` begins anew where no listing is stored: until now nobody knew whether the server was up.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now)
local lease = redis.call('HMGET', KEYS[1], 'nonce', 'fence')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] then return {'lost', now_text} end
local fence, seq, polled = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if polled > now then return {'future', now_text} end
local expires = polled + tonumber(ARGV[5])
if expires <= now then return {'expired', now_text} end
local old = redis.call('HMGET', KEYS[2], 'fence', 'seq', 'digest', 'changed_at')
if old[1] then
  -- What are no numbers, or a fence of days to come, was not written by a worker: it is replaced.
  local old_fence, old_seq = tonumber(old[1]) or -1, tonumber(old[2]) or -1
  if not (old_fence < now + 864e5) then old_fence = -1 end
  if old_fence == fence and old_seq == seq then return {'stored', now_text} end
  if old_fence > fence or (old_fence == fence and old_seq > seq) then return {'older', now_text} end
end
if old[3] and ARGV[9] ~= '*' and old[3] ~= ARGV[9] then return {'replaced', now_text} end
local changed = ARGV[4]
if old[3] == ARGV[8] and old[4] then changed = old[4] end
-- The state comes first: its HSET is refused at maxmemory, with nothing written yet. A DEL is not, and after one write
-- Redis lets a script go on beyond the limit.
local kind = ARGV[7]
local before = redis.call('HMGET', KEYS[3], kind .. '.failures', kind .. '.since')
redis.call('HSET', KEYS[3], kind .. '.good_at', ARGV[4], kind .. '.failures', '0')
if before[1] ~= '0' or not before[2] or not old[1] then redis.call('HSET', KEYS[3], kind .. '.since', ARGV[4]) end
redis.call('HDEL', KEYS[3], kind .. '.error_class', kind .. '.error_text')
if ARGV[13] ~= '' then redis.call('HSET', KEYS[3], 'host_name', ARGV[13]) end
redis.call('PEXPIRE', KEYS[3], ARGV[6])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'fence', ARGV[2], 'seq', ARGV[3], 'polled_at', ARGV[4], 'digest', ARGV[8],
  'changed_at', changed, unpack(ARGV, 14))
redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', expires))
local entries = cjson.decode(ARGV[10])
if kind == 'sessions' and before[1] and before[1] ~= '0' then
  table.insert(entries, 1, {'kind', 'server_up', 'at', ARGV[4]})
end
add_events(KEYS[4], entries, ARGV[11], ARGV[12])
return {'stored', now_text}
