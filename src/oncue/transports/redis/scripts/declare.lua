-- KEYS: the queue, the list of all queues. ARGV: name, specification, lease, retention or nothing, 1 for fifo.
-- Answers the specification of the queue, which is the one asked for unless it was there already.
local have = call('HGET', KEYS[2], ARGV[1])
if have and queue(KEYS[1]) then return have end
call('HSET', KEYS[1], 'lease', ARGV[3], 'kept', ARGV[4], 'fifo', ARGV[5])
call('HSET', KEYS[2], ARGV[1], ARGV[2])
return ARGV[2]
