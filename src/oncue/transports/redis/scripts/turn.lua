-- All that the coroutines of one process asked in one moment: messages to store, leases to settle, messages to lease.
-- KEYS: the queues. ARGV[1]: what is asked, as a msgpack document, which names the payloads, from ARGV[3] on, by
-- their places.
--   sends   [[queue, first, count, [delay, ...]], ...]     first the payloads that are ready, then those that are delayed
--   settles [[queue, [member, ...], [[member, kind, argument], ...]], ...]
--   claims  [[queue, most, size, suspects, token, subscription], ...], together not many more than ARGV[2] bytes
-- Answers: 0, an error, or the queues that are missing, for all of sends; for each of settles the places of those that were not
-- held, and of each other place the queue that was missing; for each of claims {left, next, entry, payload, ...} or nothing.
local asked = cmsgpack.unpack(ARGV[1])
local NACK, RELEASE, EXTEND, HOP = 1, 2, 3, 4
local room = tonumber(ARGV[2])

-- What is to be stored, for each queue: places of payloads, and {place, delay, ...}
local function plan(plans, groups)
  for _, group in ipairs(groups) do
    local base, at = KEYS[group[1]], group[2]
    local p = plans[base]
    if not p then
      p = {ready = {}, delayed = {}}
      plans[base] = p
    end
    for i = at, at + group[3] - 1 do p.ready[#p.ready + 1] = i end
    at = at + group[3]
    for i, delay in ipairs(group[4]) do
      p.delayed[#p.delayed + 1] = at + i - 1
      p.delayed[#p.delayed + 1] = delay
    end
  end
end

local function missing(groups)
  for _, group in ipairs(groups) do
    if not queue(KEYS[group[1]]) then return group[1] end
  end
end

local function store_ready(q, places, seq)
  local fields, seqs, kept = {}, {}, {}
  for i, place in ipairs(places) do
    local name = format('%.0f', seq + i)
    fields[2 * i - 1] = name
    fields[2 * i] = ARGV[place]
    seqs[i] = name
    if q.kept then
      kept[2 * i - 1] = now + q.kept
      kept[2 * i] = name
    end
  end
  many('HSET', q.m, fields)
  many('ZADD', q.k, kept)
  if q.fifo then
    local firsts = {}
    for i, name in ipairs(seqs) do
      enter_lane(q, name, ARGV[places[i]])
      if is_first(q, name) then firsts[#firsts + 1] = name end
    end
    seqs = firsts
  end
  many('RPUSH', q.r, seqs)
  q.offered = q.offered + #seqs
end

local function store_delayed(q, pairs_, seq)
  local fields, scored, kept = {}, {}, {}
  for i = 1, #pairs_, 2 do
    seq = seq + 1
    local name, payload, delay = format('%.0f', seq), ARGV[pairs_[i]], pairs_[i + 1]
    fields[i], fields[i + 1] = name, payload
    scored[i], scored[i + 1] = now + delay, name
    if q.kept then kept[i], kept[i + 1] = -(now + delay + q.kept), name end
    if q.fifo then enter_lane(q, name, payload) end
  end
  many('HSET', q.w, fields)
  many('ZADD', q.k, kept)
  schedule(q, scored)
end

local function store(plans)
  for base, p in pairs(plans) do
    local q = queue(base)
    local count = #p.ready + #p.delayed / 2
    local seq = call('HINCRBY', base, 'seq', count) - count
    if #p.ready > 0 then store_ready(q, p.ready, seq) end
    if #p.delayed > 0 then store_delayed(q, p.delayed, seq + #p.ready) end
  end
end

local function send(groups)
  if #groups == 0 then return 0 end
  local absent = {}
  for _, group in ipairs(groups) do
    if not queue(KEYS[group[1]]) then absent[#absent + 1] = group[1] end
  end
  if #absent > 0 then return absent end
  local plans = {}
  plan(plans, groups)
  -- Without room the first command fails, before anything is written; the rest of the turn has to go on all the same.
  local done, problem = pcall(store, plans)
  if done then return 0 end
  local text = type(problem) == 'table' and problem.err or tostring(problem)
  if not find(text, 'OOM', 1, true) then error(problem, 0) end
  return text
end

local function finish(q, gone)
  local seqs = {}
  for i, member in ipairs(gone) do seqs[i] = seq_of(member) end
  many('HDEL', q.m, seqs)
  if q.kept then many('ZREM', q.k, seqs) end
  if q.fifo then
    for _, seq in ipairs(seqs) do leave_lane(q, seq) end
  end
end

local function settle(q, acks, others, plans)
  local members, lost, held, gone = {}, {}, {}, {}
  for i, member in ipairs(acks) do members[i] = member end
  for i, item in ipairs(others) do members[#acks + i] = item[1] end
  local ends = q and ask('ZMSCORE', q.l, members) or {}
  for i = 1, #members do
    if ends[i] and tonumber(ends[i]) > now then held[i] = true else lost[#lost + 1] = i end
  end
  local over, front, back, later, longer, absent = {}, {}, {}, {}, {}, {}
  for i, member in ipairs(acks) do
    if held[i] then
      over[#over + 1] = member
      gone[#gone + 1] = member
    end
  end
  for i, item in ipairs(others) do
    local place = #acks + i
    if held[place] then
      local member, kind, argument = item[1], item[2], item[3]
      local seq, attempts, lapses = parts(member)
      if kind == HOP then
        local first = missing(argument)
        if first then
          absent[#absent + 1] = place
          absent[#absent + 1] = first
          q.refused = q.refused + 1
        else
          over[#over + 1] = member
          gone[#gone + 1] = member
          plan(plans, argument)
        end
      elseif kind == EXTEND then
        longer[#longer + 1] = now + argument
        longer[#longer + 1] = member
        if now + argument < tonumber(ends[place]) then q.sooner = true end
      else
        over[#over + 1] = member
        if kind == RELEASE then
          front[#front + 1] = entry_of(seq, attempts - 1, lapses)
        elseif argument > 0 then
          later[#later + 1] = entry_of(seq, attempts, lapses)
          later[#later + 1] = now + argument
        else
          back[#back + 1] = entry_of(seq, attempts, lapses)
        end
      end
    end
  end
  if q then
    many('ZREM', q.l, over)
    -- XX, because a lease may be extended and settled in the same moment.
    for i = 1, #longer, PIECE do call('ZADD', q.l, 'XX', unpack(longer, i, math.min(i + PIECE - 1, #longer))) end
    finish(q, gone)
    postpone(q, later)
    offer(q, front, true)
    offer(q, back, false)
  end
  return {lost, absent}
end

local function take(q, line, most, budget, token, answer)
  local scored, seqs = {}, {}
  while #seqs < most and room > 0 and budget > 0 do
    local entries, names, count = call('LRANGE', line, 0, math.min(most - #seqs, 100) - 1), {}, 0
    if #entries == 0 then break end
    for i, entry in ipairs(entries) do
      names[i] = find(entry, ':', 1, true) and seq_of(entry) or entry
      local size = call('HSTRLEN', q.m, names[i])
      if i > 1 and (size > room or size > budget) then
        names[i] = nil
        break
      end
      count, room, budget = i, room - size, budget - size
    end
    call('LPOP', line, count)
    local payloads = call('HMGET', q.m, unpack(names))
    for i, name in ipairs(names) do
      local entry, payload = entries[i], payloads[i]
      if payload then  -- else it was too old
        local leased = name .. ':1:0'
        if entry ~= name then
          local _, attempts, lapses = parts(entry)
          leased = name .. ':' .. format('%d', attempts + 1) .. ':' .. format('%d', lapses)
        end
        scored[#scored + 1] = now + q.lease
        scored[#scored + 1] = leased .. ':' .. token
        seqs[#seqs + 1] = name
        answer[#answer + 1] = leased
        answer[#answer + 1] = payload
      end
    end
  end
  many('ZADD', q.l, scored)
  droppable(q, seqs, false)
  q.taken = q.taken + #seqs
  return #seqs, budget
end

local function claim(q, most, budget, suspects, token)
  local answer = {0, -1}
  most = most - q.refused
  if most > 0 then
    catch_up(q)
    local taken = 0
    if suspects == 1 then taken, budget = take(q, q.s, 1, budget, token, answer) end
    take(q, q.r, most - taken, budget, token, answer)
  end
  return answer
end

local sent = send(asked[1])
-- Settling and leasing must go on without room. A script may do whatever it wants after a first write that frees some.
call('DEL', KEYS[1] .. ':x')
local settled, plans, claimed = {}, {}, {}
for i, each in ipairs(asked[2]) do settled[i] = settle(queue(KEYS[each[1]]), each[2], each[3], plans) end
store(plans)
for i, each in ipairs(asked[3]) do
  local q = queue(KEYS[each[1]])
  if q and each[2] == 0 then  -- its turn is somebody else's
    call('ZREM', q.h, each[6])
    if call('EXISTS', q.r) == 1 then q.offered = q.offered + 1 end
  end
  claimed[i] = q and claim(q, each[2], each[3], each[4], each[5])
end
for _, q in pairs(opened) do
  if q then ring(q) end
end
for i, each in ipairs(asked[3]) do
  local q, answer = queue(KEYS[each[1]]), claimed[i]
  if q and each[2] > 0 then
    answer[1] = call('LLEN', q.r)
    local ending, due = first_score(q.l), first_score(q.d)
    if ending and due then due = math.min(ending, due) end
    due = due or ending
    if due then answer[2] = math.max(0, due - now) end
    if (#answer - 2) / 2 < each[2] and answer[1] == 0 then
      call('ZADD', q.h, now, each[6])
    else
      call('ZREM', q.h, each[6])
    end
  end
end
return {sent, settled, claimed}
