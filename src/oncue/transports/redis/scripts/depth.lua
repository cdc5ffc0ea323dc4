-- KEYS: the queue. Answers how many are ready, leased and delayed, or nothing if there is no such queue.
local q = queue(KEYS[1])
if not q then return false end
if q.kept then
  catch_up(q)
  ring(q)
end
local leased = call('ZCOUNT', q.l, '(' .. format('%.0f', now), '+inf')
local delayed = call('ZCOUNT', q.d, '(' .. format('%.0f', now), '+inf')
return {call('HLEN', q.m) - leased + call('ZCARD', q.d) - delayed, leased, delayed}
