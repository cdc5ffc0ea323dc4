-- KEYS: the queue. ARGV: tokens of claims whose answers were lost. What they leased goes back, uncounted.
local q = queue(KEYS[1])
if not q then return 0 end
local lost, entries, members = {}, {}, {}
for _, token in ipairs(ARGV) do lost[token] = true end
for _, member in ipairs(call('ZRANGEBYSCORE', q.l, '(' .. format('%.0f', now), '+inf')) do
  local seq, attempts, lapses = parts(member)
  if lost[match(member, '[^:]+$')] then
    members[#members + 1] = member
    entries[#entries + 1] = entry_of(seq, attempts - 1, lapses)
  end
end
many('ZREM', q.l, members)
offer(q, entries, true)
ring(q)
return #members
