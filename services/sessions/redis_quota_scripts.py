"""The atomic steps of quotas, as Lua that Redis runs. `redis_quotas` says what the keys are. Times are Redis's own."""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

TAKE = (
    _NOW
    + """
-- KEYS: buckets, leases. ARGV: requests a minute, prompt tokens a minute, requests at a time (-1: no bound); prompt
-- tokens to take; lease id, or empty for none; ms that it lives. Answers {'ok'}, and then one request, the tokens and a
-- lease are taken; or {quota, what is used or left of it, ms until there is enough or -1 for never}, and nothing is.
local MINUTE_MS = 60000
local concurrent, tokens, lease, ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

if lease ~= '' then
  if redis.call('ZSCORE', KEYS[2], lease) then return {'ok'} end  -- this very call, sent again: its answer was lost
  local running = redis.call('ZCOUNT', KEYS[2], now, '+inf')
  if concurrent >= 0 and running >= concurrent then return {'concurrent_requests', running, 1000} end
end

-- A bucket holds a minute's worth, and is full if nothing is known of it.
local kept = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at_ms')
local passed_ms = math.max(0, now - tonumber(kept[3] or now))
local function level(place, bound)
  return math.min(bound, tonumber(kept[place] or bound) + passed_ms * bound / MINUTE_MS)
end

local buckets = {
  {'requests_per_minute', 'requests', 1, tonumber(ARGV[1]), 1},
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
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. now)
  redis.call('ZADD', KEYS[2], now + ttl_ms, lease)
  redis.call('PEXPIRE', KEYS[2], ttl_ms)
end
return {'ok'}
"""
)

RENEW = (
    _NOW
    + """
-- KEYS: leases. ARGV: lease id, ms that it lives. One that has ended meanwhile is taken again: its request runs.
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
)

RELEASE = """
-- KEYS: leases. ARGV: lease id.
redis.call('ZREM', KEYS[1], ARGV[1])
"""
