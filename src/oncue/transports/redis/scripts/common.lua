-- What all scripts begin with. The keys of a queue, all under its name's key B, which is a hash of its settings and its
-- counter `seq`:
--   B:m  hash  seq to payload, of all that is ready or leased      B:w  hash  the same of what is delayed
--   B:r  list  entries that are on offer                           B:s  list  entries of suspects that are on offer
--   B:l  zset  entry:token of what is leased, by its lease's end   B:d  zset  entries that are delayed, by when they are due
--   B:h  zset  subscriptions that wait, by when they said so       B:b  channel on which they are woken
--   B:k  zset  seq by when it is too old, negative while it may not be dropped; only where there is a retention
--   B:f  zset  lane and seq, B:n  hash  seq to lane; only in fifo queues
-- An entry is seq:attempts:lapses, or the bare seq while both are 0. Times are microseconds.
local call = redis.call
local find, match, sub, format = string.find, string.match, string.sub, string.format
local SUSPECT, PIECE, ATONCE = 2, 4000, 500
local FORGOTTEN = 25000000  -- who waits says so every ten seconds

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local opened = {}

local function queue(base)
  local q = opened[base]
  if q == nil then
    local spec = call('HMGET', base, 'lease', 'kept', 'fifo')
    q = false
    if spec[1] then
      q = {
        base = base, lease = tonumber(spec[1]), kept = tonumber(spec[2]), fifo = spec[3] == '1',
        m = base .. ':m', w = base .. ':w', r = base .. ':r', s = base .. ':s', l = base .. ':l', d = base .. ':d',
        h = base .. ':h', k = base .. ':k', f = base .. ':f', n = base .. ':n',
        offered = 0, taken = 0, refused = 0,
      }
    end
    opened[base] = q
  end
  return q
end

-- A command on one key with any number of arguments; PIECE is even, so that pairs stay together.
local function many(command, key, list)
  for i = 1, #list, PIECE do call(command, key, unpack(list, i, math.min(i + PIECE - 1, #list))) end
end

-- The same for commands that answer each of the arguments.
local function ask(command, key, list)
  if #list == 0 then return {} end
  if #list <= PIECE then return call(command, key, unpack(list)) end
  local answers = {}
  for i = 1, #list, PIECE do
    for _, answer in ipairs(call(command, key, unpack(list, i, math.min(i + PIECE - 1, #list)))) do
      answers[#answers + 1] = answer
    end
  end
  return answers
end

local function seq_of(entry) return match(entry, '^%d+') end

local function parts(entry)
  local seq, attempts, lapses = match(entry, '^(%d+):(%d+):(%d+)')
  if seq then return seq, tonumber(attempts), tonumber(lapses) end
  return seq_of(entry), 0, 0
end

local function entry_of(seq, attempts, lapses)
  if attempts == 0 and lapses == 0 then return seq end
  return seq .. ':' .. format('%d', attempts) .. ':' .. format('%d', lapses)
end

-- Fifo: only the first message of each lane is on offer, leased or delayed; the others wait in B:m and B:f alone.
local function lane_of(payload)
  local _, head = cmsgpack.unpack_one(payload, 4)
  return redis.sha1hex(head[2] == nil and 'none' or 'key ' .. head[2])
end

local function first_of(q, lane)
  local found = call('ZRANGEBYLEX', q.f, '[' .. lane, '[' .. lane .. ':', 'LIMIT', 0, 1)[1]
  return found and format('%.0f', tonumber(sub(found, 41)))
end

local function enter_lane(q, seq, payload)
  local lane = lane_of(payload)
  call('HSET', q.n, seq, lane)
  call('ZADD', q.f, 0, lane .. format('%016.0f', tonumber(seq)))
end

local function is_first(q, seq)
  local lane = call('HGET', q.n, seq)
  return not lane or first_of(q, lane) == seq
end

local function leave_lane(q, seq)
  local lane = call('HGET', q.n, seq)
  if not lane then return end
  local was_first = first_of(q, lane) == seq
  call('HDEL', q.n, seq)
  call('ZREM', q.f, lane .. format('%016.0f', tonumber(seq)))
  local after = was_first and first_of(q, lane)
  if after and call('HEXISTS', q.m, after) == 1 then
    call('RPUSH', q.r, after)
    q.offered = q.offered + 1
  end
end

-- Retention: whether these may be dropped when they are too old.
local function droppable(q, seqs, may)
  if not q.kept then return end
  local scores, marks = ask('ZMSCORE', q.k, seqs), {}
  for i, seq in ipairs(seqs) do
    local score = tonumber(scores[i] or nil)
    if score then
      marks[#marks + 1] = may and math.abs(score) or -math.abs(score)
      marks[#marks + 1] = seq
    end
  end
  many('ZADD', q.k, marks)
end

-- Put entries on offer, behind the others, or in front of them in their old order.
local function offer(q, entries, front)
  if #entries == 0 then return end
  local ready, suspects, seqs = {}, {}, {}
  if front then
    table.sort(entries, function(one, other) return tonumber(seq_of(one)) > tonumber(seq_of(other)) end)
  end
  for _, entry in ipairs(entries) do
    local seq, _, lapses = parts(entry)
    local line = lapses >= SUSPECT and suspects or ready
    line[#line + 1] = entry
    seqs[#seqs + 1] = seq
  end
  local push = front and 'LPUSH' or 'RPUSH'
  many(push, q.r, ready)
  many(push, q.s, suspects)
  droppable(q, seqs, true)
  q.offered = q.offered + #entries
end

local function first_score(key)
  return tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or nil)
end

local function schedule(q, pairs_)
  local before = first_score(q.d)
  many('ZADD', q.d, pairs_)
  if before == nil or first_score(q.d) < before then q.sooner = true end
end

-- Messages that were leased, and are to come later: {entry, due, ...}
local function postpone(q, pairs_)
  if #pairs_ == 0 then return end
  local seqs, fields, scored = {}, {}, {}
  for i = 1, #pairs_, 2 do
    seqs[#seqs + 1] = seq_of(pairs_[i])
    scored[#scored + 1] = pairs_[i + 1]
    scored[#scored + 1] = pairs_[i]
  end
  local payloads = ask('HMGET', q.m, seqs)
  for i, seq in ipairs(seqs) do
    fields[#fields + 1] = seq
    fields[#fields + 1] = payloads[i]
  end
  many('HDEL', q.m, seqs)
  many('HSET', q.w, fields)
  schedule(q, scored)
end

local function drop_old(q)
  if not q.kept then return end
  local old = call('ZRANGEBYSCORE', q.k, 0, now, 'LIMIT', 0, ATONCE)
  if #old == 0 then return end
  many('ZREM', q.k, old)
  many('HDEL', q.m, old)
  if q.fifo then
    for _, seq in ipairs(old) do leave_lane(q, seq) end
  end
  for _, line in ipairs({q.r, q.s}) do
    while true do
      local entry = call('LINDEX', line, 0)
      if not entry or call('HEXISTS', q.m, seq_of(entry)) == 1 then break end
      call('LPOP', line)
    end
  end
end

-- Do what has come due: end leases, offer what was delayed, drop what is too old.
local function catch_up(q)
  local over = call('ZRANGEBYSCORE', q.l, '-inf', now, 'LIMIT', 0, ATONCE)
  if #over > 0 then
    many('ZREM', q.l, over)
    for i, member in ipairs(over) do
      local seq, attempts, lapses = parts(member)
      over[i] = entry_of(seq, attempts, lapses + 1)
    end
    offer(q, over, true)
  end
  local due = call('ZRANGEBYSCORE', q.d, '-inf', now, 'LIMIT', 0, ATONCE)
  if #due > 0 then
    many('ZREM', q.d, due)
    local seqs, fields, on_offer = {}, {}, {}
    for i, entry in ipairs(due) do seqs[i] = seq_of(entry) end
    local payloads = ask('HMGET', q.w, seqs)
    many('HDEL', q.w, seqs)
    for i, seq in ipairs(seqs) do
      fields[#fields + 1] = seq
      fields[#fields + 1] = payloads[i]
      if not q.fifo or is_first(q, seq) then on_offer[#on_offer + 1] = due[i] end
    end
    many('HSET', q.m, fields)
    droppable(q, seqs, true)
    offer(q, on_offer, false)
  end
  drop_old(q)
end

-- Wake those who wait: as many as there are messages on offer by name, who came last first; the others learn that there is
-- news.
local function ring(q)
  if q.offered == 0 and q.taken == 0 and not q.sooner then return end
  local winners = {}
  local free = q.offered - q.taken
  if free > 0 then
    call('ZREMRANGEBYSCORE', q.h, '-inf', now - FORGOTTEN)
    local popped = call('ZPOPMAX', q.h, free)
    for i = 1, #popped, 2 do winners[#winners + 1] = popped[i] end
  end
  if #winners == 0 and call('EXISTS', q.h) == 0 then return end
  local due = first_score(q.d)
  call('PUBLISH', q.base .. ':b', table.concat(winners, ',') .. '|' .. (due and format('%.0f', due - now) or ''))
end
