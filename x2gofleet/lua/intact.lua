-- Says whether the inventory that is stored is the one that a worker published. KEYS fleet. ARGV version, SHA-1 of the
-- document in hex digits. Returns 1, or 0 where anything of it is another one, or missing.
local stored = redis.call('HMGET', KEYS[1], 'version', 'document', 'published_at')
if stored[1] ~= ARGV[1] or not stored[2] or not stored[3] then return 0 end
if not string.match(stored[3], '^%d+$') or #stored[3] > 15 then return 0 end
return redis.sha1hex(stored[2]) == ARGV[2] and 1 or 0
