-- KEYS: the queue. ARGV: bytes, and numbers of messages. Answers how many of them were looked for, and the payloads of those
-- that are there; not many more than so many bytes.
local m, w = KEYS[1] .. ':m', KEYS[1] .. ':w'
local answer, size = {#ARGV - 1}, 0
for i = 2, #ARGV do
  local payload = call('HGET', m, ARGV[i]) or call('HGET', w, ARGV[i])
  if payload then
    size = size + #payload
    if #answer > 1 and size > tonumber(ARGV[1]) then
      answer[1] = i - 2
      break
    end
    answer[#answer + 1] = payload
  end
end
return answer
