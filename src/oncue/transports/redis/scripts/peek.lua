-- KEYS: the queue. ARGV: how many. Answers that many entries of each kind, or nothing if there is no such queue.
local q = queue(KEYS[1])
if not q then return false end
local most = tonumber(ARGV[1])
if most < 1 then return {} end
if q.kept then
  catch_up(q)
  ring(q)
end
local found = {call('LRANGE', q.r, 0, most - 1), call('LRANGE', q.s, 0, most - 1)}
found[3], found[4] = call('ZRANGE', q.l, 0, most - 1), call('ZRANGE', q.d, 0, most - 1)
found[5] = q.fifo and call('HKEYS', q.n) or {}
return found
