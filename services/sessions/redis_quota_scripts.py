"""The atomic steps of quotas, as Lua that Redis runs. `redis_quotas` says what the keys are. Times are Redis's own."""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

TAKE = (
    _NOW
    + """
-- KEYS: buckets, leases, prefills. ARGV: requests a minute, prompt tokens a minute, requests and prefills at a time
-- (-1: no bound); requests and prompt tokens to take; lease id, or empty for none; ms that it lives. Answers {'ok'},
-- and all of that is taken, and both leases; or {quota, what is used or left of it, ms until there is enough or -1 for
-- never}, and nothing is.
local MINUTE_MS = 60000
local requests, tokens, lease, ttl_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local places = {
  {'concurrent_requests', KEYS[2], tonumber(ARGV[3])},
  {'concurrent_prefills', KEYS[3], tonumber(ARGV[4])},
}

if lease ~= '' then
  if redis.call('ZSCORE', KEYS[2], lease) then return {'ok'} end  -- this very call, sent again: its answer was lost
  for _, place in ipairs(places) do
    local quota, key, bound = unpack(place)
    local held = redis.call('ZCOUNT', key, now, '+inf')
    if bound >= 0 and held >= bound then return {quota, held, 1000} end
  end
end

-- A bucket holds a minute's worth, and is full if nothing is known of it.
local kept = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at_ms')
local passed_ms = math.max(0, now - tonumber(kept[3] or now))
local function level(place, bound)
  return math.min(bound, tonumber(kept[place] or bound) + passed_ms * bound / MINUTE_MS)
end

local buckets = {
  {'requests_per_minute', 'requests', 1, tonumber(ARGV[1]), requests},
  {'prompt_tokens_per_minute', 'tokens', 2, tonumber(ARGV[2]), tokens},
}
local fields = {'at_ms', now}
for _, bucket in ipairs(buckets) do
  local quota, field, place, bound, need = unpack(bucket)
  if bound >= 0 then
    local left = level(place, bound)
    if need > left then
      local wait_ms = need > bound and -1 or math.ceil((need - left) * MINUTE_MS / bound)
      return {quota, math.floor(left), wait_ms}
    end
    fields[#fields + 1], fields[#fields + 2] = field, string.format('%.6f', left - need)
  end
end

if #fields > 2 then
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('PEXPIRE', KEYS[1], 2 * MINUTE_MS)
end
if lease ~= '' then
  for _, place in ipairs(places) do
    redis.call('ZREMRANGEBYSCORE', place[2], '-inf', '(' .. now)
    redis.call('ZADD', place[2], now + ttl_ms, lease)
    redis.call('PEXPIRE', place[2], ttl_ms)
  end
end
return {'ok'}
"""
)

RENEW = (
    _NOW
    + """
-- KEYS: leases, prefills. ARGV: lease id, ms that it lives. One that has ended meanwhile is taken again: its request
-- runs. Of prefills it may be none any more.
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[2], 'XX', now + ARGV[2], ARGV[1])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
"""
)

RELEASE = """
-- KEYS: leases, prefills, or one of them. ARGV: lease id.
for _, key in ipairs(KEYS) do redis.call('ZREM', key, ARGV[1]) end
"""
