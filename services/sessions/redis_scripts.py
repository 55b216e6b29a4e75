"""The store's atomic steps, as Lua that Redis runs. `redis_store` says what the keys are.

Every key of a call carries the tenant as its hash tag, so that all live on one node; the keys of segments and of their
referencers are made here from a prefix. No script writes before it has decided that it will write everything.

A session's hash: `version`; `expires_ms`; `segments`, the ids of its segments, one after the other; `data`, the encoded
manifest, which no script looks into.
"""

from __future__ import annotations

_HELPERS = """
local function ids_of(text)
  local ids = {}
  for at = 1, #text, 32 do ids[#ids + 1] = string.sub(text, at, at + 31) end
  return ids
end

-- A segment goes with its last referencer.
local function drop(root, id, session)
  local referencers = root .. 'refs:' .. id
  redis.call('SREM', referencers, session)
  if redis.call('EXISTS', referencers) == 0 then redis.call('UNLINK', root .. 'segment:' .. id) end
end

-- Time to live only ever grows: a fork with a later end keeps its shared segments.
local function prolong(key, ttl_ms)
  if redis.call('PTTL', key) < ttl_ms then redis.call('PEXPIRE', key, ttl_ms) end
end
"""

COMMIT = (
    _HELPERS
    + """
-- KEYS: session, index. Answers {'ok'}, {'stale', stored version} or {'missing', segment id, ...}.
local root, session = ARGV[1], ARGV[2]
local expected, version, data, segments = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
local now_ms, expires_ms = tonumber(ARGV[7]), ARGV[8]
local segment_ttl_ms, session_ttl_ms = tonumber(ARGV[9]), tonumber(ARGV[10])

local stored = redis.call('HMGET', KEYS[1], 'version', 'expires_ms', 'segments', 'data')
if stored[4] == data then return {'ok'} end  -- this very call, sent again because its answer was lost
local live = stored[1] and tonumber(stored[2]) > now_ms
if expected ~= tonumber(stored[1] or 0) and (expected ~= 0 or live) then
  return {'stale', tonumber(stored[1] or 0)}
end

local ids, used, missing = ids_of(segments), {}, {'missing'}
for _, id in ipairs(ids) do
  used[id] = true
  if redis.call('EXISTS', root .. 'segment:' .. id) == 0 then missing[#missing + 1] = id end
end
if #missing > 1 then return missing end

for _, id in ipairs(ids_of(stored[3] or '')) do
  if not used[id] then drop(root, id, session) end
end
for _, id in ipairs(ids) do
  redis.call('SADD', root .. 'refs:' .. id, session)
  prolong(root .. 'refs:' .. id, segment_ttl_ms)
  prolong(root .. 'segment:' .. id, segment_ttl_ms)
end
redis.call('HSET', KEYS[1], 'version', version, 'expires_ms', expires_ms, 'segments', segments, 'data', data)
redis.call('PEXPIRE', KEYS[1], session_ttl_ms)
redis.call('ZADD', KEYS[2], now_ms, session)
prolong(KEYS[2], session_ttl_ms)
return {'ok'}
"""
)

DELETE = (
    _HELPERS
    + """
-- KEYS: session, index. Answers how many sessions there were: 0 or 1.
local root, session = ARGV[1], ARGV[2]
local segments = redis.call('HGET', KEYS[1], 'segments')
for _, id in ipairs(ids_of(segments or '')) do drop(root, id, session) end
redis.call('ZREM', KEYS[2], session)
return redis.call('UNLINK', KEYS[1])
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
-- KEYS: lease. Takes or prolongs it for owner ARGV[1] by ARGV[2] ms; answers 0 if somebody else has it.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

RELEASE = """
-- KEYS: lease. Gives it back if owner ARGV[1] has it.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('UNLINK', KEYS[1]) end
"""
