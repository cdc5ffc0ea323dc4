-- KEYS: the queue. ARGV: how many. Answers payloads, the oldest first, or nothing if there is no such queue.
local q = queue(KEYS[1])
if not q then return false end
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
local payloads = {}
for _, seq in ipairs(seqs) do
  local payload = call('HGET', q.m, seq) or call('HGET', q.w, seq)
  if payload then payloads[#payloads + 1] = payload end
  if #payloads == most then break end
end
return payloads
