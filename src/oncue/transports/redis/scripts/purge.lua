-- KEYS: the queue. Answers how many messages were dropped, or nothing if there is no such queue.
local q = queue(KEYS[1])
if not q then return false end
local before = call('HLEN', q.m) + call('HLEN', q.w)
local members = call('ZRANGEBYSCORE', q.l, '(' .. format('%.0f', now), '+inf')
local seqs, payloads, marks, lanes = {}, {}, {}, {}
for i, member in ipairs(members) do seqs[i] = seq_of(member) end
for i, payload in ipairs(ask('HMGET', q.m, seqs)) do
  payloads[2 * i - 1], payloads[2 * i] = seqs[i], payload
end
if q.kept then
  for i, score in ipairs(ask('ZMSCORE', q.k, seqs)) do
    marks[2 * i - 1], marks[2 * i] = score, seqs[i]
  end
end
if q.fifo then
  for i, lane in ipairs(ask('HMGET', q.n, seqs)) do
    lanes[2 * i - 1], lanes[2 * i] = seqs[i], lane
  end
end
call('ZREMRANGEBYSCORE', q.l, '-inf', now)
call('UNLINK', q.m, q.w, q.r, q.s, q.d, q.k, q.f, q.n)
many('HSET', q.m, payloads)
many('ZADD', q.k, marks)
many('HSET', q.n, lanes)
for i = 1, #lanes, 2 do call('ZADD', q.f, 0, lanes[i + 1] .. format('%016.0f', tonumber(lanes[i]))) end
return before - #members
