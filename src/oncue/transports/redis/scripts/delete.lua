-- KEYS: the queue, the list of all queues. ARGV: name.
local base = KEYS[1]
call('HDEL', KEYS[2], ARGV[1])
local keys = {base}
for key in string.gmatch('mwrsldhkfn', '.') do keys[#keys + 1] = base .. ':' .. key end
call('UNLINK', unpack(keys))
call('PUBLISH', base .. ':b', '*')
return 1
