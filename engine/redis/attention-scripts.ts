/**
 * Who did not do it, in Redis: counts in the channel's slot that change in the same script as what they count, so that nothing is counted to answer a
 * request. They are kept as `engine/sqlite/attention.ts` describes: events to all that become overdue are numbered, and a device that answers none of
 * them is silent from a number on.
 *
 *     troubled         hash  device = `failed missing overdue silent oldest since`; `/` = the channel's counts, which begin with the first epoch that
 *                            they are about, and end with the scan of the event that became overdue last
 *     worst            zset  the devices in trouble, as `<since, 15 digits>/<device>`, those of one part in the order of their weight
 *     troubles         zset  all with score 0: `<device>/<seq, 15 digits>/<f, m or o>` for failed, missing, overdue although it names the device;
 *                            `<device>//<after, 15 digits>/<up to, 15 digits>` for numbers of its past silence that it still owes;
 *                            `/<seq, 15 digits>/<number or 0>` for events that were withdrawn when they were overdue: see below
 *     oldest           zset  the devices in trouble, scored by the oldest of their events
 *     numbered         zset  the events to all that became overdue, scored by their number
 *     troubled-events  zset  the events with trouble, `<seq, 15 digits>`, scored by minus their sum; `<seq>:x` in tallies: `failed missing overdue`
 *
 * Nobody owes a withdrawn event. The counts of the event and its channel say so at once; the rows of its devices are corrected in slices, as if each
 * of them had answered it. In `troubled`, the field `//` has the last one that was.
 *
 * `aged` in the counters says up to where events are overdue if they have no deadline. Channels of earlier versions have none: then what is kept is
 * counted once, in slices.
 */
import { OVERDUE_MS } from "../attention.ts";

/** The parts of a channel for attention, in the order of `KEYS`, where they come last. */
export const ATTENTION_PARTS = ["troubled", "worst", "troubles", "oldest", "numbered", "troubled-events"] as const;

/** Devices in one visit of retention; what one of them counts. */
const VISIT_DEVICES = 50;
const VISIT_WORK = 4;

/** Library functions: paragraphs as in `scripts.ts`, which uses those above that of `keep`. */
export const ATTENTION_LIBRARY = `
local NOT_SILENT, WHOLE, PART = -2, -1, 2e12
local troubledDevices, worstDevices, troubles = KEYS[#KEYS - 5], KEYS[#KEYS - 4], KEYS[#KEYS - 3]
local oldestTroubles, numberedEvents, troubledEvents = KEYS[#KEYS - 2], KEYS[#KEYS - 1], KEYS[#KEYS]

local function padded(number) return string.format('%015.0f', number) end

-- The counts of the channel, read once per script.
local function attentionOf(channel)
  if channel.attention then return channel.attention end
  local life = redis.call('HGET', counters, 'life') or channel.epoch
  local stored, n = redis.call('HGET', troubledDevices, '/'), {}
  if stored and stored:match('^%S+') ~= life then
    -- What is left over from a lost epoch.
    for part = #KEYS - 5, #KEYS do redis.call('UNLINK', KEYS[part]) end
    stored = false
  end
  for number in (stored or '- 0 0 0 0 0 0 0 0 0 '):match(' .*$'):gmatch('(%d+) ') do n[#n + 1] = tonumber(number) end
  channel.attention = { life = life, numbers = n[1], dropped = n[2], devices = n[3], silent = n[4], idle = n[5], failed = n[6], missing = n[7],
    overdue = n[8], revision = n[9], scan = stored and stored:match('%S*$') or '', events = {} }
  return channel.attention
end

-- The counts of an event.
local function troubleOf(channel, event)
  local events = attentionOf(channel).events
  if not events[event] then
    local f, m, o = (redis.call('HGET', tallies, event .. ':x') or '0 0 0'):match('^(%d+) (%d+) (%d+)$')
    events[event] = { failed = tonumber(f), missing = tonumber(m), overdue = tonumber(o) }
  end
  return events[event]
end

-- Changes the counts of an event and its channel.
local function countTrouble(channel, event, kind, by)
  local about, counts = troubleOf(channel, event), attentionOf(channel)
  about[kind], about.moved = about[kind] + by, true
  counts[kind], counts.moved = counts[kind] + by, true
end

local function pushedAt(event) return tonumber(redis.call('HGET', tallies, text(event) .. ':at') or 0) end

-- The channel in short: 'revision devices failed missing overdue since'; 'since' is 0 where it is not known yet.
local function summaryOf(channel)
  local counts = attentionOf(channel)
  local oldest = redis.call('ZRANGE', oldestTroubles, 0, 0, 'WITHSCORES')[2]
  local isWhole = counts.silent > 0 and redis.call('ZRANGEBYSCORE', worstDevices, text(2 * PART), '+inf', 'LIMIT', 0, 1)[1]
  local first = isWhole and redis.call('ZRANGEBYSCORE', numberedEvents, '(' .. text(counts.dropped), '+inf', 'LIMIT', 0, 1)[1]
  if first then oldest = math.min(tonumber(oldest or first), tonumber(first)) end
  local idle = counts.numbers == counts.dropped and counts.idle or 0
  return table.concat({ text(counts.revision), text(counts.devices - idle), text(counts.failed), text(counts.missing), text(counts.overdue),
    text(oldest and pushedAt(tonumber(oldest)) or 0) }, ' ')
end

-- At the end of a script: writes the counts that changed. Returns the channel in short, or '': nothing changed.
local function saveAttention(channel)
  local counts = channel and channel.attention
  if not counts or not (counts.moved or counts.scanned) then return '' end
  for event, about in pairs(counts.events) do
    local sum = about.failed + about.missing + about.overdue
    if about.moved and sum > 0 then
      redis.call('HSET', tallies, event .. ':x', text(about.failed) .. ' ' .. text(about.missing) .. ' ' .. text(about.overdue))
      redis.call('ZADD', troubledEvents, text(-sum), padded(event))
    elseif about.moved then
      redis.call('HDEL', tallies, event .. ':x')
      redis.call('ZREM', troubledEvents, padded(event))
    end
  end
  if counts.moved then counts.revision = counts.revision + 1 end
  local fields = { counts.life }
  for _, name in ipairs({ 'numbers', 'dropped', 'devices', 'silent', 'idle', 'failed', 'missing', 'overdue', 'revision' }) do
    fields[#fields + 1] = text(counts[name])
  end
  redis.call('HSET', troubledDevices, '/', table.concat(fields, ' ') .. ' ' .. counts.scan)
  if not counts.moved then return '' end
  return summaryOf(channel)
end

-- A device's row; nil: it is not in trouble. 'oldest' is -1 where there is none, and 0 where it is no longer kept.
local function troubledDevice(device)
  local stored, n = redis.call('HGET', troubledDevices, device), {}
  if not stored then return nil end
  for number in stored:gmatch('%S+') do n[#n + 1] = tonumber(number) end
  return { failed = n[1], missing = n[2], overdue = n[3], silent = n[4], oldest = n[5], since = n[6] }
end

local function copyOf(row)
  if not row then return { failed = 0, missing = 0, overdue = 0, silent = NOT_SILENT, oldest = -1, since = 0 } end
  return { failed = row.failed, missing = row.missing, overdue = row.overdue, silent = row.silent, oldest = row.oldest, since = row.since }
end

local function troubleSum(row) return row.failed + row.missing + row.overdue end

-- Writes a device's row, or removes it if the device is not in trouble.
local function putTrouble(channel, device, before, row)
  local counts = attentionOf(channel)
  counts.moved = true
  if row and troubleSum(row) == 0 and row.silent == NOT_SILENT then row = nil end
  for by = -1, 1, 2 do
    local one = by == -1 and before or by == 1 and row or nil
    if one then
      counts.devices = counts.devices + by
      if one.silent ~= NOT_SILENT then counts.silent = counts.silent + by end
      if one.silent == WHOLE and troubleSum(one) == 0 then counts.idle = counts.idle + by end
    end
  end
  if before and (not row or row.since ~= before.since) then redis.call('ZREM', worstDevices, padded(before.since) .. '/' .. device) end
  if not row then
    if before then redis.call('HDEL', troubledDevices, device) redis.call('ZREM', oldestTroubles, device) end
    return
  end
  local part = row.silent == NOT_SILENT and 0 or row.silent == WHOLE and 2 or 1
  redis.call('ZADD', worstDevices, text(part * PART + PART / 2 - troubleSum(row) + math.max(row.silent, 0)), padded(row.since) .. '/' .. device)
  if row.oldest >= 0 then redis.call('ZADD', oldestTroubles, text(row.oldest), device) else redis.call('ZREM', oldestTroubles, device) end
  redis.call('HSET', troubledDevices, device, table.concat({ text(row.failed), text(row.missing), text(row.overdue), text(row.silent),
    text(row.oldest), text(row.since) }, ' '))
end

-- An event of the device has come to its row.
local function older(row, event)
  if row.oldest >= 0 and row.oldest <= event then return end
  row.oldest, row.since = event, pushedAt(event)
end

-- The first member of 'troubles' of a device, from there up to there.
local function firstTrouble(device, from, upTo)
  return redis.call('ZRANGEBYLEX', troubles, '[' .. device .. from, '(' .. device .. upTo, 'LIMIT', 0, 1)[1]
end

-- An event has left the device's row: finds the oldest of the others.
local function findOldest(channel, device, row)
  local counts = attentionOf(channel)
  local left = channel.leaving and channel.leaving.device == device and channel.leaving.upTo or 0
  local trouble, silence = firstTrouble(device, '/' .. padded(left + 1), '/:'), firstTrouble(device, '//', '/0')
  local oldest = trouble and tonumber(trouble:match('/(%d+)/')) or -1
  local number = silence and tonumber(silence:match('//(%d+)/'))
  if row.silent >= 0 then number = math.min(number or row.silent, row.silent) end
  if number then
    -- A silence that begins with what retention dropped is found by it soon.
    local first = number >= counts.dropped and redis.call('ZRANGEBYSCORE', numberedEvents, text(number + 1), '+inf', 'LIMIT', 0, 1)[1] or 0
    oldest = oldest == -1 and tonumber(first) or math.min(oldest, tonumber(first))
  end
  row.oldest = oldest
  if oldest == -1 then row.since = 0 elseif oldest > channel.floor then row.since = pushedAt(oldest) end
end

local function keepSilence(device, after, upTo)
  if after < upTo then redis.call('ZADD', troubles, 0, device .. '//' .. padded(after) .. '/' .. padded(upTo)) end
end

-- Takes a number from what a device owes. False: it was not there.
local function payNumber(channel, device, row, number)
  local counts = attentionOf(channel)
  if row.silent ~= NOT_SILENT and number > math.max(row.silent, counts.dropped) then
    local silent = math.max(row.silent, counts.dropped)
    keepSilence(device, silent, number - 1)
    row.overdue = row.overdue + number - 1 - silent
    row.silent = number == counts.numbers and NOT_SILENT or number
    return true
  end
  local last = redis.call('ZREVRANGEBYLEX', troubles, '(' .. device .. '//' .. padded(number), '[' .. device .. '//', 'LIMIT', 0, 1)[1]
  local after, upTo = (last or ''):match('//(%d+)/(%d+)$')
  if not last or tonumber(upTo) < number then return false end
  redis.call('ZREM', troubles, last)
  keepSilence(device, tonumber(after), number - 1)
  keepSilence(device, number, tonumber(upTo))
  row.overdue = row.overdue - 1
  return true
end

local function troubleName(device, seq, kind) return device .. '/' .. padded(seq) .. '/' .. kind end

-- A device's status on an event went from the rank 'before' to 'rank'; whether the event was overdue, and now has a final receipt. If that changes no
-- trouble, nothing is read or written.
local function trouble(channel, event, device, before, rank, isPaid)
  if before ~= MISSING and rank ~= FAILED and rank ~= MISSING and not isPaid then return end
  local seq = tonumber(event)
  -- What a leaving device is missing on is removed with it.
  if isLeaving(channel, seq) and channel.leaving.device == device then return end
  local stored = troubledDevice(device)
  local row, isGone, isNew = copyOf(stored), false, rank == FAILED or rank == MISSING
  if before == MISSING and redis.call('ZREM', troubles, troubleName(device, seq, 'm')) == 1 then
    countTrouble(channel, event, 'missing', -1)
    row.missing, isGone = row.missing - 1, true
  end
  if isPaid then
    countTrouble(channel, event, 'overdue', -1)
    local number = redis.call('ZSCORE', numberedEvents, event)
    if number then isGone = payNumber(channel, device, row, tonumber(number))
    elseif redis.call('ZREM', troubles, troubleName(device, seq, 'o')) == 1 then row.overdue, isGone = row.overdue - 1, true end
  end
  if isNew then
    local kind = rank == FAILED and 'failed' or 'missing'
    redis.call('ZADD', troubles, 0, troubleName(device, seq, kind:sub(1, 1)))
    countTrouble(channel, event, kind, 1)
    row[kind] = row[kind] + 1
    older(row, seq)
  end
  if isGone then findOldest(channel, device, row) end
  if isGone or isNew then putTrouble(channel, device, stored, row) end
end

-- The last final receipt of a leaving device is not to come: an event that is overdue is so for one device less.
local function releaseTrouble(channel, event, isUndated)
  if isUndated and tonumber(event) <= channel.aged then countTrouble(channel, event, 'overdue', -1) end
end

-- An event is being withdrawn. True: it was overdue, so the rows of its devices are to be corrected.
local function voidTrouble(channel, event)
  local counts, overdue = attentionOf(channel), troubleOf(channel, event).overdue
  if overdue == 0 then return false end
  if channel.aged == tonumber(event) then counts.scan = '' end
  countTrouble(channel, event, 'overdue', -overdue)
  redis.call('ZADD', troubles, 0, '/' .. padded(event) .. '/' .. (redis.call('ZSCORE', numberedEvents, event) or '0'))
  return true
end

-- The first event of those that 'voidTrouble' has left to do; nil: there is none.
local function firstVoided() return redis.call('ZRANGEBYLEX', troubles, '[/', '(0', 'LIMIT', 0, 1)[1] end

-- When something is to be done about overdue events; '': never.
local function nextAge(channel)
  if firstVoided() then return '0' end
  local aged = math.max(channel.aged, channel.floor)
  return aged < channel.head and pushedAt(aged + 1) or ''
end

-- A device's enrolment ended.
local function leaveTrouble(channel, device)
  local stored = troubledDevice(device)
  if not stored then return end
  putTrouble(channel, device, stored, nil)
  repeat
    local found = redis.call('ZRANGEBYLEX', troubles, '[' .. device .. '//', '(' .. device .. '/0', 'LIMIT', 0, CHUNK)
    if #found > 0 then redis.call('ZREM', troubles, unpack(found)) end
  until #found < CHUNK
end

-- It is released from all events up to here, also from those that it failed. Those that are no longer kept do not count any more.
local function releaseTroubles(channel, device, upTo)
  repeat
    local found = redis.call('ZRANGEBYLEX', troubles, '[' .. device .. '/0', '(' .. device .. '/' .. padded(upTo + 1), 'LIMIT', 0, CHUNK)
    if #found > 0 then redis.call('ZREM', troubles, unpack(found)) end
    for _, member in ipairs(found) do
      local seq, kind = member:match('/(%d+)/(%a)$')
      if tonumber(seq) > channel.floor and kind ~= 'o' then
        countTrouble(channel, text(tonumber(seq)), kind == 'f' and 'failed' or 'missing', -1)
      end
    end
  until #found < CHUNK
end

-- Takes what retention dropped from a device's row. Returns about how much was read and written.
local function dropTroubles(channel, device)
  local stored, counts = troubledDevice(device), attentionOf(channel)
  if not stored then redis.call('ZREM', oldestTroubles, device) return 1 end
  local row, work = copyOf(stored), ${VISIT_WORK}
  repeat
    local found = redis.call('ZRANGEBYLEX', troubles, '[' .. device .. '/0', '(' .. device .. '/' .. padded(channel.floor + 1), 'LIMIT', 0, CHUNK)
    if #found > 0 then redis.call('ZREM', troubles, unpack(found)) end
    for _, member in ipairs(found) do
      local kind = member:sub(-1)
      local name = kind == 'f' and 'failed' or kind == 'm' and 'missing' or 'overdue'
      row[name] = row[name] - 1
    end
    work = work + #found
  until #found < CHUNK
  repeat
    local found = redis.call('ZRANGEBYLEX', troubles, '[' .. device .. '//', '(' .. device .. '//' .. padded(counts.dropped), 'LIMIT', 0, CHUNK)
    if #found > 0 then redis.call('ZREM', troubles, unpack(found)) end
    for _, member in ipairs(found) do
      local after, upTo = member:match('//(%d+)/(%d+)$')
      after, upTo = tonumber(after), tonumber(upTo)
      row.overdue = row.overdue - (math.min(upTo, counts.dropped) - after)
      keepSilence(device, counts.dropped, upTo)
    end
    work = work + #found
  until #found < CHUNK
  if row.silent >= 0 and row.silent < counts.dropped then row.silent = WHOLE end
  findOldest(channel, device, row)
  putTrouble(channel, device, stored, row)
  return work
end

-- An event is dropped: its counts leave those of the channel.
local function dropTrouble(channel, event, stored)
  local counts = channel.attention
  if not stored and not (counts and counts.events[event]) then return end
  local about = troubleOf(channel, event)
  counts = channel.attention
  for _, kind in ipairs({ 'failed', 'missing', 'overdue' }) do counts[kind] = counts[kind] - about[kind] end
  counts.events[event], counts.moved = nil, true
  redis.call('ZREM', troubledEvents, padded(event))
end

-- The numbers up to the floor are dropped.
local function dropNumbers(channel)
  repeat
    local found, past = redis.call('ZRANGE', numberedEvents, 0, CHUNK - 1, 'WITHSCORES'), 0
    for at = 1, #found, 2 do
      if tonumber(found[at]) > channel.floor then break end
      past = past + 1
      attentionOf(channel).dropped = tonumber(found[at + 1])
      channel.attention.moved = true
    end
    if past > 0 then redis.call('ZREMRANGEBYRANK', numberedEvents, 0, past - 1) end
  until past < CHUNK
end
`;

const [CONSTANTS = "", ...FUNCTIONS] = ATTENTION_LIBRARY.trim().split("\n\n");

/**
 * The same, defined when a script first needs it: most receipts change no trouble, and to define a function takes Redis as long as a small command.
 */
export const ATTENTION_ON_DEMAND = `${CONSTANTS}

local attentionLibrary

local function defineAttention()
  if attentionLibrary then return attentionLibrary end
${FUNCTIONS.join("\n").replaceAll(/^/gm, "  ")}
  attentionLibrary = { trouble = trouble, releaseTrouble = releaseTrouble, releaseTroubles = releaseTroubles, voidTrouble = voidTrouble,
    saveAttention = saveAttention }
  return attentionLibrary
end

local function trouble(channel, event, device, before, rank, isPaid)
  if before ~= MISSING and rank ~= FAILED and rank ~= MISSING and not isPaid then return end
  defineAttention().trouble(channel, event, device, before, rank, isPaid)
end

local function releaseTrouble(channel, event, isUndated)
  if isUndated and tonumber(event) <= channel.aged then defineAttention().releaseTrouble(channel, event, isUndated) end
end

local function releaseTroubles(channel, device, upTo) defineAttention().releaseTroubles(channel, device, upTo) end

local function voidTrouble(channel, event)
  return redis.call('HEXISTS', tallies, event .. ':x') == 1 and defineAttention().voidTrouble(channel, event)
end

local function saveAttention(channel)
  if not channel or not channel.attention then return '' end
  return defineAttention().saveAttention(channel)
end
`;

/** Functions of the script that lets events become overdue. */
const SCAN = `
    local function owedOf(event)
      local t, owed = tallyOf(event)
      return owed - t[4] - t[8], t[5] + t[6]
    end

    -- A device that answered the event is not silent since then; one that did not is silent from the event on.
    local function revise(device, isAnswered, event, number)
      local stored = troubledDevice(device)
      local row = copyOf(stored)
      if isAnswered then
        if not stored or row.silent == NOT_SILENT or not payNumber(channel, device, row, number) then return end
        findOldest(channel, device, row)
      else
        if row.silent ~= NOT_SILENT then return end
        row.silent = number - 1
        older(row, event)
      end
      putTrouble(channel, device, stored, row)
    end

    -- Takes a withdrawn event from what its next devices owe. Returns how many were looked at.
    local function pay(member)
      local event, number = member:match('^/(%d+)/(%d+)$')
      event, number = tonumber(event), tonumber(number)
      local looked, last = 0, nil
      if event > channel.floor then
        looked, last = audience(event, redis.call('HGET', troubledDevices, '//') or '', function(device)
          local stored = troubledDevice(device)
          if not stored or (isLeaving(channel, event) and channel.leaving.device == device) then return end
          local row, isPaid = copyOf(stored), false
          if number > 0 then isPaid = payNumber(channel, device, row, number)
          elseif redis.call('ZREM', troubles, troubleName(device, event, 'o')) == 1 then row.overdue, isPaid = row.overdue - 1, true end
          if not isPaid then return end
          findOldest(channel, device, row)
          putTrouble(channel, device, stored, row)
        end)
      end
      if looked == CHUNK then redis.call('HSET', troubledDevices, '//', last)
      else
        redis.call('HDEL', troubledDevices, '//')
        redis.call('ZREM', troubles, member)
      end
      return looked + 1
    end

    -- Looks at the next devices of the event that became overdue last. Returns how many.
    local function scan(counts)
      local event, phase, after = channel.aged, counts.scan:sub(1, 1), counts.scan:sub(2)
      local looked, last = 0, after
      counts.scan, counts.scanned = '', true
      if phase == 'f' then
        -- Of an earlier version: what is failed and missing is counted once.
        local reply = redis.call('HSCAN', latest, after, 'COUNT', CHUNK)
        for at = 1, #reply[2], 2 do
          local seq, device = reply[2][at]:match('^(%d+):(.+)$')
          local rank = standingOf(reply[2][at + 1]).code
          looked = looked + 1
          if (rank == FAILED or rank == MISSING) and tonumber(seq) > channel.floor then
            local about = filtered(tonumber(seq), tonumber(seq))[tonumber(seq)]
            local enrolment = enrolmentOf(device)
            local isIts = about and about.named or (enrolment and enrolment.joined < tonumber(seq))
            local name = troubleName(device, tonumber(seq), rank == FAILED and 'f' or 'm')
            if isIts and not redis.call('ZSCORE', troubles, name) then trouble(channel, seq, device, 0, rank, false) end
          end
        end
        if reply[1] ~= '0' then counts.scan = 'f' .. reply[1] end
        return looked + 1
      end
      if event <= channel.floor then return 1 end
      if phase == 'n' then
        looked, last = audience(event, after, function(device, s)
          if isFinal(s.code) or (isLeaving(channel, event) and channel.leaving.device == device) then return end
          local stored = troubledDevice(device)
          local row = copyOf(stored)
          redis.call('ZADD', troubles, 0, troubleName(device, event, 'o'))
          row.overdue = row.overdue + 1
          older(row, event)
          putTrouble(channel, device, stored, row)
        end)
        if looked == CHUNK then counts.scan = 'n' .. last end
        return looked + 1
      end
      local owed, answered = owedOf(text(event))
      local number = tonumber(redis.call('ZSCORE', numberedEvents, text(event)))
      if phase == 'a' and counts.silent > 0 and answered > 0 then
        if counts.silent > CHUNK then counts.scan = 'p' return 1 end
        -- Few are silent: each of them is looked at.
        local fields, devices = {}, {}
        for _, member in ipairs(redis.call('ZRANGEBYSCORE', worstDevices, text(PART), '+inf', 'LIMIT', 0, CHUNK)) do
          devices[#devices + 1] = member:sub(17)
          fields[#fields + 1] = text(event) .. ':' .. member:sub(17)
        end
        local statuses = redis.call('HMGET', latest, unpack(fields))
        for n, device in ipairs(devices) do
          if isFinal(standingOf(statuses[n]).code) then revise(device, true, event, number) end
        end
        looked = #devices
      end
      -- Each silent device owes it. If these are all, nobody else needs to be looked for.
      if phase ~= 'p' and owed <= counts.silent then return looked + 1 end
      local more
      more, last = audience(event, phase == 'a' and '' or after, function(device, s)
        if not isFinal(s.code) or counts.silent > 0 then revise(device, isFinal(s.code), event, number) end
      end)
      if more == CHUNK then counts.scan = (phase == 'p' and 'p' or 's') .. last end
      return looked + more + 1
    end
`;

/** now, limit of the slice → when the next event becomes overdue ('': none is to), what `saveAttention` returns */
export const AGE = `
    local channel, now, left, next = look(), tonumber(ARGV[1]), tonumber(ARGV[2]), ''
    if not channel then return { '', '' } end
${SCAN.replaceAll("\n\n", "\n")}
    local counts, voided = attentionOf(channel), true
    if channel.isOld then counts.scan = 'f0' end
    while true do
      if left <= 0 then next = ARGV[1] break end
      voided = voided and firstVoided()
      if voided then left = left - pay(voided)
      elseif counts.scan ~= '' then left = left - scan(counts)
      else
        local seq = math.max(channel.aged, channel.floor) + 1
        local event = text(seq)
        if seq > channel.head then channel.aged = channel.head break end
        local due = pushedAt(seq) + ${OVERDUE_MS}
        if due > now then next = text(due) break end
        channel.aged, left = seq, left - 1
        local owed = owedOf(event)
        -- An event whose deadline is past is owed by nobody who is not missing.
        if owed > 0 and not redis.call('ZSCORE', deadlines, event) then
          local about = filtered(seq, seq)[seq]
          if about and about.named then counts.scan = 'n'
          else
            counts.numbers, counts.scan = counts.numbers + 1, 'a'
            redis.call('ZADD', numberedEvents, text(counts.numbers), event)
          end
          countTrouble(channel, event, 'overdue', owed)
        end
      end
    end
    redis.call('HSET', counters, 'aged', text(channel.aged))
    return { next, saveAttention(channel) }`;

/** For the script of retention, behind the declaration of \`work\` and \`workMax\`: visits the devices that lost trouble. True: there are more. */
export const DROP = `
    local function dropAllTroubles()
      while work < workMax do
        local found = redis.call('ZRANGEBYSCORE', oldestTroubles, '-inf', text(channel.floor), 'LIMIT', 0, ${VISIT_DEVICES})
        if #found == 0 then return false end
        for _, device in ipairs(found) do
          if work >= workMax then return true end
          work = work + dropTroubles(channel, device)
        end
      end
      return true
    end`;

/**
 * how many devices and events, how many more of those that are silent for all that is kept → epoch, the channel in short, for each
 * device: name, failed, missing, overdue, since, last sign of life (-1: never, '': not enrolled); for each event: seq, when it was pushed, failed, missing,
 * overdue, the beginning of its entry, its tally, whether it was withdrawn
 */
export const TROUBLES = `
    local channel, limit, rows, found = look(), tonumber(ARGV[1]), {}, {}
    if not channel then return {} end
    local counts = attentionOf(channel)
    local first = counts.numbers > counts.dropped and redis.call('ZRANGEBYSCORE', numberedEvents, '(' .. text(counts.dropped), '+inf', 'LIMIT', 0, 1)[1]
    local wholeSince = first and pushedAt(tonumber(first)) or nil
    for part = 0, 2 do
      local most = part == 2 and limit + tonumber(ARGV[2]) or limit
      for _, member in ipairs(redis.call('ZRANGEBYSCORE', worstDevices, text(part * PART), '(' .. text((part + 1) * PART), 'LIMIT', 0, most)) do
        local device = member:sub(17)
        local row = troubledDevice(device)
        local owed, since = row.overdue, row.since
        if row.silent ~= NOT_SILENT then owed = owed + counts.numbers - math.max(row.silent, counts.dropped) end
        if row.silent == WHOLE and wholeSince then since = since > 0 and math.min(since, wholeSince) or wholeSince end
        if row.failed + row.missing + owed > 0 then
          local enrolment = enrolmentOf(device)
          for _, value in ipairs({ device, row.failed, row.missing, owed, since, enrolment and enrolment.seenAt or '' }) do rows[#rows + 1] = value end
        end
      end
    end
    for _, member in ipairs(redis.call('ZRANGE', troubledEvents, 0, limit - 1)) do
      local seq = tonumber(member)
      local event, about, entry = text(seq), troubleOf(channel, text(seq)), redis.call('XRANGE', events, text(seq) .. '-0', text(seq) .. '-0')[1]
      if entry then
        local t = tallyOf(event)
        for _, value in ipairs({ seq, pushedAt(seq), about.failed, about.missing, about.overdue, entry[2][2]:match('^[^ ]* [^ ]* [^ ]* [^ ]* [^ ]* ') }) do
          found[#found + 1] = value
        end
        for n = 1, 8 do found[#found + 1] = t[n] end
        found[#found + 1] = redis.call('HEXISTS', tallies, event .. ':w')
      end
    end
    return { channel.epoch, summaryOf(channel), rows, found }`;
