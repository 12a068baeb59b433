-- Takes of several limits at once: of all of them, or of none. One call, by the server's clock.
--
-- KEYS[i]: what limit i is counted under. ARGV: the name of the permit, `anyway` if what is taken was given away already,
-- and for each limit its algorithm, two numbers and the cost.
-- The answer has for each limit: 1 if there is room, what is left, microseconds until all of it is there again, and
-- microseconds to wait.
--
-- Numbers are doubles, exact up to 2^53. Buckets are counted in nanoseconds until they are full.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local permit, anyway = ARGV[1], ARGV[2] == 'anyway'

-- What is kept: two to four numbers.
local function read(key, count)
  local text = redis.call('GET', key)
  if not text or #text ~= 8 * count then return nil end
  return { struct.unpack(string.rep('<d', count), text) }
end

-- Until `left` microseconds from now nothing of it may be forgotten.
local function write(key, left, ...)
  local text = struct.pack(string.rep('<d', select('#', ...)), ...)
  redis.call('SET', key, text, 'PX', math.max(1, math.ceil(left / 1000)))
end

local function bucket(key, interval, burst, cost, waits)
  local depth = interval * burst
  local kept = read(key, 2) or { 0, now }
  -- A clock that was set back gives nothing twice; one that was further ahead than the bucket is deep was wrong.
  if kept[2] > now + depth / 1000 then kept = { 0, now } end
  local passed = math.max(0, now - kept[2]) * 1000
  local level = math.min(math.max(0, kept[1] - passed), depth)
  local next = level + interval * cost
  if anyway then next = math.min(next, depth) end
  local admitted = next <= depth
  local wait = 0
  if not admitted then wait = next - depth elseif waits then wait = level end
  local after = admitted and next or level
  return {
    admitted = admitted,
    left = math.floor((depth - after) / interval),
    reset = math.ceil(after / 1000),
    wait = math.ceil(wait / 1000),
    take = function() write(key, next / 1000, next, now) end,
  }
end

local function window(key, index, left, length, limit, cost)
  local kept = read(key, 2) or { index, 0 }
  -- A clock that was set back gives nothing twice; one that was more than a window ahead was wrong.
  if kept[1] == index + 1 then
    index, left = index + 1, left + length
  elseif kept[1] ~= index then
    kept = { index, 0 }
  end
  local taken = kept[2] + cost
  local admitted = anyway or taken <= limit
  local count = admitted and taken or kept[2]
  return {
    admitted = admitted,
    left = math.max(0, limit - count),
    reset = count > 0 and left or 0,
    wait = admitted and 0 or left,
    take = function() write(key, left + length, index, taken) end,
  }
end

-- Days from 1970, and the first day of a month: Howard Hinnant, chrono-compatible low-level date algorithms.
local function month_of(day)
  day = day + 719468
  local era = math.floor(day / 146097)
  local doe = day - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  return (era * 400 + yoe) * 12 + math.floor((5 * doy + 2) / 153)
end

local function first_day(month)
  local year, from_march = math.floor(month / 12), month % 12
  local era = math.floor(year / 400)
  local yoe = year - era * 400
  local doy = math.floor((153 * from_march + 2) / 5)
  return era * 146097 + yoe * 365 + math.floor(yoe / 4) - math.floor(yoe / 100) + doy - 719468
end

local DAY = 86400000000

local algorithms = {}

function algorithms.token_bucket(key, interval, burst, cost) return bucket(key, interval, burst, cost, false) end

function algorithms.leaky_bucket(key, interval, queue, cost) return bucket(key, interval, queue + 1, cost, true) end

function algorithms.fixed_window(key, length, limit, cost)
  local index = math.floor(now / length)
  return window(key, index, (index + 1) * length - now, length, limit, cost)
end

function algorithms.day(key, _, limit, cost)
  return algorithms.fixed_window(key, DAY, limit, cost)
end

function algorithms.month(key, _, limit, cost)
  local month = month_of(math.floor(now / DAY))
  local stop, after = first_day(month + 1) * DAY, first_day(month + 2) * DAY
  return window(key, month, stop - now, after - stop, limit, cost)
end

function algorithms.sliding_window(key, length, limit, cost)
  local index = math.floor(now / length)
  local passed = now - index * length
  local kept = read(key, 3) or { index, 0, 0 }
  local current, previous = kept[2], kept[3]
  if kept[1] == index + 1 then
    index, passed = index + 1, 0
  elseif kept[1] == index - 1 then
    current, previous = 0, kept[2]
  elseif kept[1] ~= index then
    current, previous = 0, 0
  end
  local left = length - passed
  local function used(count) return previous * left + count * length end
  local admitted = used(current + cost) <= limit * length
  local count = admitted and current + cost or current
  -- How much of a window may be left when `fading` of it fits into `room`.
  local function fades(room, fading)
    if fading == 0 then return length end
    return math.min(length, math.floor(room * length / fading))
  end
  local wait = 0
  if not admitted then
    local room = limit - current - cost
    if room >= 0 then
      wait = math.max(0, left - fades(room, previous))
    else
      wait = left + length - fades(math.max(0, limit - cost), current)
    end
  end
  local reset = left + length
  if count == 0 then reset = previous == 0 and 0 or left end
  return {
    admitted = admitted,
    left = math.max(0, limit - math.ceil(previous * left / length) - count),
    reset = reset,
    wait = wait,
    take = function() write(key, left + length, index, count, previous) end,
  }
end

-- A list of when each was taken, the oldest first.
function algorithms.sliding_log(key, length, limit, cost)
  local size = redis.call('LLEN', key)
  local function at(position) return tonumber(redis.call('LINDEX', key, position)) end
  local moment = now
  if size > 0 then
    local newest = at(size - 1)
    if newest > now + length then size = 0 else moment = math.max(now, newest) end
  end
  -- The first that has not left the window, by halving.
  local low, high = 0, size
  while low < high do
    local middle = math.floor((low + high) / 2)
    if at(middle) + length <= moment then low = middle + 1 else high = middle end
  end
  local live = size - low
  local admitted = live + cost <= limit
  local wait, reset = 0, 0
  if admitted then
    reset = moment + length - now
  else
    wait = length
    -- Of those that count the oldest have to leave, as many as there are too many.
    if cost <= limit then wait = at(low + live + cost - limit - 1) + length - now end
    if live > 0 then reset = at(size - 1) + length - now end
  end
  return {
    admitted = admitted,
    left = math.max(0, limit - live - (admitted and cost or 0)),
    reset = reset,
    wait = wait,
    take = function()
      if size == 0 or live == 0 then
        redis.call('DEL', key)
      elseif low > 0 then
        redis.call('LTRIM', key, low, -1)
      end
      for _ = 1, cost do redis.call('RPUSH', key, string.format('%.0f', moment)) end
      redis.call('PEXPIRE', key, math.ceil((moment + length - now) / 1000))
    end,
  }
end

-- A permit for each that is under way, by when it ends unless it is renewed.
function algorithms.concurrency(key, lease, limit)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  local active = redis.call('ZCARD', key)
  local admitted = active < limit
  return {
    admitted = admitted,
    left = math.max(0, limit - active - (admitted and 1 or 0)),
    reset = 0,
    wait = 0,
    take = function()
      redis.call('ZADD', key, string.format('%.0f', now + lease), permit)
      redis.call('PEXPIRE', key, math.ceil(lease / 1000))
    end,
  }
end

local results, all = {}, true
for i, key in ipairs(KEYS) do
  local first = (i - 1) * 4 + 2
  local algorithm = algorithms[ARGV[first + 1]]
  local cost = tonumber(ARGV[first + 4])
  local result = algorithm(key, tonumber(ARGV[first + 2]), tonumber(ARGV[first + 3]), cost)
  result.cost = cost
  all = all and result.admitted
  results[i] = result
end
local answer = {}
for _, result in ipairs(results) do
  if all then result.take() end
  answer[#answer + 1] = result.admitted and 1 or 0
  -- Where another limit refuses, nothing was taken of this one.
  answer[#answer + 1] = result.left + ((result.admitted and not all) and result.cost or 0)
  answer[#answer + 1] = result.reset
  answer[#answer + 1] = result.wait
end
return answer
