-- Keeps a lease. KEYS lease. ARGV nonce, ttl_ms. Returns 1, or 0 where the lease is somebody else's or gone.
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
