-- Drops snapshots of a target. KEYS lease, snapshot, ... ARGV nonce, fence. Returns {outcome, now_ms}.
local time = redis.call('TIME')
local now_text = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local lease = redis.call('HMGET', KEYS[1], 'nonce', 'fence')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] then return {'lost', now_text} end
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
return {'stored', now_text}
