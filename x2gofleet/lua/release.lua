-- Gives a lease back. KEYS lease. ARGV nonce. Returns 1, or 0 where the lease is somebody else's or gone.
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
