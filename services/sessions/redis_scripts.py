"""The store's atomic steps, as Lua that Redis runs. `redis_keys` says what the keys are.

Every key of a call carries the tenant as its hash tag, so that all live on one node; keys that a script only learns of
while it runs are made from the tenant's root, the first argument. No script writes before it has decided that it will
write everything: Redis then also decides in front of the first write whether it has the memory.

A session's or prefix's hash has `segments`, that is `id:bytes` of each, one after the other; `bytes`, how many `data`
has; and `data`, the encoded manifest or prefix, which no script looks into.
"""

from __future__ import annotations

_HELPERS = """
local root = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ledger, total, prefixes = root .. 'ledger', root .. 'bytes', root .. 'prefixes'

local function each_segment(text) return string.gmatch(text or '', '(%x+):(%d+)') end

-- Whether a segment is there, as long as it should be. (That its bytes are right is for the reader to find out.)
local function stored(id, bytes) return redis.call('STRLEN', root .. 'segment:' .. id) == tonumber(bytes) end

-- Time to live only ever grows: for keys that belong to many.
local function prolong(key, at)
  if now + redis.call('PTTL', key) < at then redis.call('PEXPIREAT', key, at) end
end

-- The books. What is stored counts as long as it is: an entry is kind:id:bytes, and ends when its key does.
local function enter(entry, at)
  if redis.call('ZADD', ledger, at, entry) == 1 then
    redis.call('INCRBY', total, string.match(entry, '%d+$'))
  end
end

local function strike(entry)
  if redis.call('ZREM', ledger, entry) == 1 then redis.call('DECRBY', total, string.match(entry, '%d+$')) end
end

local function ended() return redis.call('ZRANGEBYSCORE', ledger, '-inf', '(' .. now) end

local function used_bytes()
  local bytes = tonumber(redis.call('GET', total) or 0)
  for _, entry in ipairs(ended()) do bytes = bytes - string.match(entry, '%d+$') end
  return bytes
end

local function strike_ended()
  for _, entry in ipairs(ended()) do
    local prefix = string.match(entry, '^prefix:([^:]+)')
    if prefix then redis.call('ZREM', prefixes, prefix) end
    strike(entry)
  end
end

-- The books go with what they are about.
local function close_books()
  local last = redis.call('ZREVRANGE', ledger, 0, 0, 'WITHSCORES')
  if #last == 0 then return redis.call('UNLINK', total) end
  redis.call('PEXPIREAT', ledger, last[2])
  redis.call('PEXPIREAT', total, last[2])
end

-- A segment lives as long as the last of its users, and goes with it.
local function settle(id, bytes)
  local segment, users, entry = root .. 'segment:' .. id, root .. 'users:' .. id, 'segment:' .. id .. ':' .. bytes
  redis.call('ZREMRANGEBYSCORE', users, '-inf', '(' .. now)
  local last = redis.call('ZREVRANGE', users, 0, 0, 'WITHSCORES')
  if #last == 0 then
    redis.call('UNLINK', segment)
    return strike(entry)
  end
  redis.call('PEXPIREAT', users, last[2])
  if redis.call('PEXPIREAT', segment, last[2]) == 1 then enter(entry, last[2]) else strike(entry) end
end

local function use(user, segments, at)
  for id, bytes in each_segment(segments) do
    redis.call('ZADD', root .. 'users:' .. id, at, user)
    settle(id, bytes)
  end
end

-- `kept`: the ids of segments that stay in use.
local function release(user, segments, kept)
  for id, bytes in each_segment(segments) do
    if not kept[id] then
      redis.call('ZREM', root .. 'users:' .. id, user)
      settle(id, bytes)
    end
  end
end

-- Forget a session or a prefix, named kind:id. Answers how many there were: 0 or 1.
local function drop(name)
  local old = redis.call('HMGET', root .. name, 'segments', 'bytes')
  local dropped = redis.call('UNLINK', root .. name)
  release(name, old[1], {})
  if old[2] then strike(name .. ':' .. old[2]) end
  return dropped
end

local function drop_prefix(id)
  redis.call('ZREM', prefixes, id)
  drop('prefix:' .. id)
end
"""

_COMMIT = (
    _HELPERS
    + """
-- Both commits begin with KEYS: session or prefix, index of its kind. ARGV: root, kind:id, segments, data,
-- ms to live, ms for segments to live, quota or -1.
local name, segments, data = ARGV[2], ARGV[3], ARGV[4]
local ends, segments_end, quota = now + ARGV[5], now + ARGV[6], tonumber(ARGV[7])
local entry = name .. ':' .. #data
local old = redis.call('HMGET', KEYS[1], 'segments', 'bytes', 'data', 'version', 'expires_ms')
local kept = {}
for id in each_segment(segments) do kept[id] = true end

local function lasts(set, member)
  local at = redis.call('ZSCORE', set, member)
  return at and tonumber(at) >= now
end

-- How many bytes become free if `user` gives up its segments, after all whom `left` has seen give up theirs.
local function freed(user, text, left)
  local bytes = 0
  for id, size in each_segment(text) do
    local users = root .. 'users:' .. id
    if lasts(users, user) then
      left[id] = (left[id] or redis.call('ZCOUNT', users, now, '+inf')) - 1
      if left[id] == 0 and not kept[id] and lasts(ledger, 'segment:' .. id .. ':' .. size) then bytes = bytes + size end
    end
  end
  return bytes
end

-- What the commit adds to the tenant's bytes; and the prefixes that make room for it, those first that were not used
-- for longest, or nil if all of them do not.
local function make_room()
  local left, evicted = {}, {}
  if quota < 0 then return 0, evicted end
  local more = #data - (old[2] or 0) - freed(name, old[1], left)
  for id, size in each_segment(segments) do
    if not lasts(ledger, 'segment:' .. id .. ':' .. size) then more = more + size end
  end
  local over = used_bytes() + more - quota
  if over <= 0 then return more, evicted end
  for _, id in ipairs(redis.call('ZRANGE', prefixes, 0, -1)) do
    if 'prefix:' .. id ~= name then
      local prefix = redis.call('HMGET', root .. 'prefix:' .. id, 'segments', 'bytes')
      over = over - (prefix[2] or 0) - freed('prefix:' .. id, prefix[1], left)
      evicted[#evicted + 1] = id
      if over <= 0 then return more, evicted end
    end
  end
  return more, nil
end

-- Answers nil, or why nothing was changed: {'quota', bytes used, bytes needed} or {'missing', segment id, ...}.
local function commit(fields)
  local more, evicted = make_room()
  if not evicted then return {'quota', used_bytes(), more} end
  local missing = {'missing'}
  for id, bytes in each_segment(segments) do
    if not stored(id, bytes) then missing[#missing + 1] = id end
  end
  if #missing > 1 then return missing end

  redis.call('HSET', KEYS[1], 'segments', segments, 'bytes', #data, 'data', data, unpack(fields))
  redis.call('PEXPIREAT', KEYS[1], ends)
  strike_ended()
  use(name, segments, segments_end)  -- first, so that none goes that is still needed
  for _, id in ipairs(evicted) do drop_prefix(id) end
  release(name, old[1], kept)
  if old[2] then strike(name .. ':' .. old[2]) end
  enter(entry, ends)
  close_books()
end
"""
)

COMMIT_SESSION = (
    _COMMIT
    + """
-- KEYS: and fence. ARGV: and session id, expected version, version, the caller's clock, when the session expires by it,
-- fence or -1. Answers {'ok'}, {'stale', stored version}, {'fenced'}, or what `commit` does.
local id, expected, version = ARGV[8], tonumber(ARGV[9]), ARGV[10]
local clock_ms, expires_ms, fence = tonumber(ARGV[11]), ARGV[12], tonumber(ARGV[13])

if old[3] == data then return {'ok'} end  -- this very call, sent again because its answer was lost
local live = old[4] and tonumber(old[5]) > clock_ms
if expected ~= tonumber(old[4] or 0) and (expected ~= 0 or live) then return {'stale', tonumber(old[4] or 0)} end
if fence >= 0 and tonumber(redis.call('HGET', KEYS[3], 'fence') or 0) > fence then return {'fenced'} end

local refused = commit({'version', version, 'expires_ms', expires_ms})
if refused then return refused end
redis.call('ZADD', KEYS[2], clock_ms, id)
prolong(KEYS[2], ends)
return {'ok'}
"""
)

COMMIT_PREFIX = (
    _COMMIT
    + """
-- ARGV: and prefix id. Answers {'ok'}, or what `commit` does.
local refused = commit({'ttl_ms', ARGV[5], 'segments_ttl_ms', ARGV[6]})
if refused then return refused end
redis.call('ZADD', prefixes, now, ARGV[8])
prolong(prefixes, ends)
return {'ok'}
"""
)

FIND_PREFIX = (
    _HELPERS
    + """
-- KEYS: prefixes. ARGV: root, prefix ids. Answers nothing, or the place of the first id that is stored, and its data.
-- A prefix that has lost a segment is of no use to anybody: it is dropped, and the search goes on.
for place = 2, #ARGV do
  local id = ARGV[place]
  local key = root .. 'prefix:' .. id
  local found = redis.call('HMGET', key, 'segments', 'data', 'bytes', 'ttl_ms', 'segments_ttl_ms')
  if found[2] then
    local whole = true
    for segment, bytes in each_segment(found[1]) do whole = whole and stored(segment, bytes) end
    if whole then
      redis.call('PEXPIREAT', key, now + found[4])
      redis.call('ZADD', prefixes, now, id)
      prolong(prefixes, now + found[4])
      use('prefix:' .. id, found[1], now + found[5])
      enter('prefix:' .. id .. ':' .. found[3], now + found[4])
      close_books()
      return {place - 2, found[2]}
    end
    drop_prefix(id)
    close_books()
  end
end
return {}
"""
)

DELETE_SESSION = (
    _HELPERS
    + """
-- KEYS: session, index. ARGV: root, session id. Answers how many sessions there were: 0 or 1.
local dropped = drop('session:' .. ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[2])
close_books()
return dropped
"""
)

DELETE_PREFIXES = (
    _HELPERS
    + """
-- KEYS: prefixes. ARGV: root, prefix ids.
for place = 2, #ARGV do drop_prefix(ARGV[place]) end
close_books()
"""
)

DISCARD_SEGMENT = (
    _HELPERS
    + """
-- KEYS: segment. ARGV: root, segment id, bytes it should have, SHA-1 of those it was read with. Removes it, if it still
-- has those; its users stay, and have it again once somebody saves it again.
if redis.sha1hex(redis.call('GET', KEYS[1]) or '') == ARGV[4] then
  redis.call('UNLINK', KEYS[1])
  strike('segment:' .. ARGV[2] .. ':' .. ARGV[3])
  close_books()
end
"""
)

USAGE = (
    _HELPERS
    + """
-- KEYS: ledger. ARGV: root. Answers the tenant's stored bytes.
return used_bytes()
"""
)

FORGET_DEAD = """
-- KEYS: index, then sessions that were seen expired or missing; ARGV: now, then their ids. Forgets those still so.
for at = 2, #KEYS do
  local expires_ms = redis.call('HGET', KEYS[at], 'expires_ms')
  if not expires_ms or tonumber(expires_ms) <= tonumber(ARGV[1]) then redis.call('ZREM', KEYS[1], ARGV[at]) end
end
"""

LEASE = """
-- KEYS: lease, fence. ARGV: owner, ms that the lease lives, ms that the fence lives. Takes or prolongs the lease and
-- answers its fence; 0 if somebody else has it. A fence is never below the time in milliseconds: so it grows even if
-- Redis has forgotten the one before.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local last = redis.call('HMGET', KEYS[2], 'owner', 'fence')
local fence = tonumber(last[2] or 0)
if last[1] ~= ARGV[1] then
  local time = redis.call('TIME')
  fence = math.max(fence + 1, time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('HSET', KEYS[2], 'owner', ARGV[1], 'fence', string.format('%.0f', fence))
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return fence
"""

RELEASE = """
-- KEYS: lease. Gives it back if owner ARGV[1] has it.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('UNLINK', KEYS[1]) end
"""
