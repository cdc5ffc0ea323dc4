-- KEYS: the queue. ARGV: how many, after how many, and bytes. Answers payloads, the oldest first, not many more than so many
-- bytes; or nothing if there is no such queue.
local q = queue(KEYS[1])
if not q then return false end
if q.kept then
  catch_up(q)
  ring(q)
end
local most = tonumber(ARGV[1])
if most < 1 then return {} end
local seqs, seen = {}, {}
local function collect(entries)
  for _, entry in ipairs(entries) do
    local seq = seq_of(entry)
    if not seen[seq] then
      seen[seq] = true
      seqs[#seqs + 1] = seq
    end
  end
end
for _, line in ipairs({q.r, q.s}) do collect(call('LRANGE', line, 0, most - 1)) end
for _, set in ipairs({q.l, q.d}) do collect(call('ZRANGE', set, 0, most - 1)) end
if q.fifo then collect(call('HKEYS', q.n)) end
table.sort(seqs, function(one, other) return tonumber(one) < tonumber(other) end)
local payloads, size = {}, 0
for i = tonumber(ARGV[2]) + 1, math.min(#seqs, most) do
  local payload = call('HGET', q.m, seqs[i]) or call('HGET', q.w, seqs[i])
  if payload then
    size = size + #payload
    if #payloads > 0 and size > tonumber(ARGV[3]) then break end
    payloads[#payloads + 1] = payload
  end
end
return payloads
