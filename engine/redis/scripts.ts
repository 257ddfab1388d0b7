/**
 * The data that PERE keeps in Redis, and the scripts that change it.
 *
 * A channel's keys share one hash tag, so they are in one slot and one script may use all of them. Each change is one script: it appends, counts and
 * publishes, or does nothing. Redis runs scripts one at a time, so no reader sees a half-done change. Every script of a channel gets the same keys in
 * the same order (`KEYS`). Names from outside are passed as arguments, never as script text.
 *
 *     counters  hash     epoch, head, floor, receiptsHead, receiptsFloor, audience; without an epoch the channel does not exist; `leaving`, `lost`,
 *                        `noted` and `noting`, see below;
 *                        unused: last sign of life of a device, in a channel that only feeds have created; reserved: the epoch of a channel that does
 *                        not exist yet; life: the first epoch, if the channel continues under another
 *     events    stream   `<seq>-0`: v = the entry
 *     receipts  stream   `<seq>-0`: v = the entry, k = its field in `latest`
 *     tallies   hash     `<seq>:n` addressed, `<seq>:at` when, `<seq>:<rank>` how many devices have this status
 *     latest    hash     `<seq>:<device>` = `<rank> <receipt>`
 *     devices   hash     device = `joined enrolledAt settled lost told seenAt` (seenAt -1: never)
 *     names     zset     the enrolled devices, all with score 0, for pages by name
 *     special   zset     the events with an expiry or with names: `<seq>:<expires or 0>:<1 when named>`, scored by seq
 *     targets   zset     `<seq, 15 digits>/<device>`, all with score 0: the devices that an event names, or that its `where` fitted
 *     gone      zset     the same form: devices retired after a final receipt for an event to all, which stay in its audience
 *     deadlines zset     the events whose deadline is ahead or being processed, scored by it; `<seq>:after` in tallies: the last processed device
 *     reminded  zset     the events that are sent again: `<seq>:<at>:<every>:<until or 0>`, scored by seq
 *     tags      hash     device = its tags, as `name:value,name:value`, by name
 *     tagged    zset     `<name>:<value>/<device>`, all with score 0
 *     schedules hash     scheduled pushes: `<id>` = what does not change, as JSON; `<id>:next` when it is due, absent: done; `<id>:last` the last event;
 *                        `<id>:error` why nothing was pushed last; `count`: how many are to come
 *     schedule-ids   zset   their ids, all with score 0, for pages by id
 *     schedule-times zset   their ids, scored by when they are due, or when they are to be deleted
 *
 * In the code, `special` is called filteredEvents and `gone` retiredAnswered.
 *
 * Each idempotency key has its own key in the same slot; so does each hook, a hash, and its deliveries, another hash. Four keys outside the
 * channels, `due`, `hooked`, `kept` and `scheduled`, list the channels with a deadline ahead, with hooks, with something for retention to do and with
 * scheduled pushes. Outdated members are ignored.
 * Retention trims all channels when another instance takes over, or when its own has lost the connection, which restores what `due` and `kept` have lost. There is no index of receipts by device: what a device owes is found by looking up the events after `settled`, up to which it
 * owes nothing, in `latest`; `settled` follows the device every few seconds.
 *
 * A device is retired in two steps. The first ends its enrolment and sets `leaving` in the counters to `joined upTo released at device`. From then on
 * every script excludes it from the audience of events after `released`, up to `upTo`, that it sent no final receipt for. The second step removes it
 * from tallies and names, a few events per script, whichever comes next: the same call, another retirement, a deadline, or retention. So at most one
 * device per channel is leaving at a time, and nothing is lost if an instance dies.
 *
 * Retention drops events in runs, and writes nothing for devices that answered nothing. The newest event that a device lost unanswered is the newest of
 * three: what its entry in `devices` says; of the events after `noted`, up to `floor`, the newest one that it owed; and `lost` in the counters, if it
 * joined before that event and owed something up to it. The first script of a run raises `floor` and sets `noting` to the newest event to all devices
 * that some device owed (0: none) and a position: `d<device>` or `t<member of targets>`. The next ones write the entries of devices that answered that event themselves, or that an event of the
 * run names. Then `noted` is `floor` again, and what shows who answered is deleted. Without `noted`, all is noted.
 *
 * If a channel has no counters, its other keys are left over from a lost epoch: they are deleted, and the channel gets a new epoch. So a Redis that was
 * flushed, or that evicted keys, is never mistaken for the old one.
 */
import { createHash } from "node:crypto";
import { AGE, ATTENTION_LIBRARY, ATTENTION_ON_DEMAND, DROP, TROUBLES } from "./attention-scripts.ts";
import { HISTORY } from "./device-history.ts";
import { EXTENTS } from "./extents.ts";
import { OWING } from "./owing.ts";
import { REMOVE } from "./removal.ts";
import { OVERDUE_MS } from "../attention.ts";
import { SCHEDULE_KEPT_MS } from "../store.ts";
import { TAGS_MAX, WHERE_DEVICES_MAX } from "../tags.ts";

/** Separates the parts of a message. Entries are JSON texts and names, so they never contain it. */
export const SEPARATOR = "\x1e";
/** Second field of a message without entries: a device was retired; the third field is its name. */
export const RETIRED = "retired";

/**
 * Second field of a message without entries: a device is open at several addresses; the third field is its name, the fourth the addresses, separated
 * by commas.
 */
export const SHARED = "shared";

/** A script, and the hash that Redis knows it by. */
export interface Script {
  readonly text: string;
  readonly sha: string;
}

/** Codes of states; the list is in `engine/model.ts`. `PARTS`: how many keys a channel has; additional ones follow. */
const CODES = "local MISSING, DONE, FAILED, DEFERRED, WITHDRAWN, PARTS = 3, 4, 5, 6, 7, 18";

/** The library for scripts: paragraphs, each with at most one function. */
const COMMON = `
${CODES}
local counters, events, receipts, tallies, latest = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local devices, names, filteredEvents, targets, retiredAnswered = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local deadlines, reminded, rounds, deferrals = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local keyed, byKey, tags, tagged = KEYS[15], KEYS[16], KEYS[17], KEYS[18]
local CHUNK = 500
-- A message's name is its log's key, plus the database unless that is the first.
local TOPIC_SUFFIX = ''
-- Approximate number of events that one script searches for a device: a few milliseconds.
local MOST = 4000

-- Numbers stay below 10^15, so they are exact and written in full.
local function text(number) return string.format('%.0f', number) end

local function named(seq, device) return string.format('%015.0f/', seq) .. device end

-- The channel's counters; nil when there is no such channel.
local function look()
  local c = redis.call('HMGET', counters, 'epoch', 'head', 'floor', 'receiptsHead', 'receiptsFloor', 'audience', 'leaving', 'unused',
    'lost', 'noted', 'controls', 'aged')
  if not c[1] then return nil end
  local leaving = nil
  if c[7] then
    local joined, upTo, released, at, device = c[7]:match('^(%d+) (%d+) (%d+) (%d+) (.+)$')
    leaving = { joined = tonumber(joined), upTo = tonumber(upTo), released = tonumber(released), at = at, device = device }
  end
  return { epoch = c[1], head = tonumber(c[2]), floor = tonumber(c[3]), receiptsHead = tonumber(c[4]),
    receiptsFloor = tonumber(c[5]), audience = tonumber(c[6]), leaving = leaving, unused = tonumber(c[8] or nil), lostByAll = tonumber(c[9] or 0),
    noted = tonumber(c[10] or c[3]), controls = tonumber(c[11] or 0), aged = tonumber(c[12] or c[3]), isOld = not c[12] }
end

-- The same, if the channel has this epoch.
local function lookIn(epoch)
  local channel = look()
  return channel and channel.epoch == epoch and channel or nil
end

-- The same, created if needed: with its reserved epoch, or with this one. It is in use from now on; only a device's feed leaves
-- it unused, as of 'touched'. The second result: whether it was created, or is newly in use.
local function make(epoch, touched)
  local found = look()
  if found and (touched or not found.unused) then return found, 0 end
  if found then redis.call('HDEL', counters, 'unused') return found, 1 end
  epoch = redis.call('HGET', counters, 'reserved') or epoch
  for part = 1, PARTS do redis.call('UNLINK', KEYS[part]) end
  redis.call('HSET', counters, 'epoch', epoch, 'head', 0, 'floor', 0, 'receiptsHead', 0, 'receiptsFloor', 0, 'audience', 0, 'aged', 0)
  if touched then redis.call('HSET', counters, 'unused', touched) end
  return look(), 1
end

-- The log continues under another epoch. The first one stays in 'life': idempotency keys are restored with their events and stay valid for them.
local function renew(lost, epoch)
  redis.call('HSETNX', counters, 'life', lost)
  redis.call('HSET', counters, 'epoch', epoch)
end

-- Called before numbers are assigned. If the logs are shorter than the caller knows ('epoch head receiptsHead', then a new epoch; or
-- nothing), they were restored to an older state. They get a new epoch, so that new entries are not mistaken for lost ones.
local function guard(channel, known)
  local epoch, head, receiptsHead, fresh = (known or ''):match('^(%w+) (%d+) (%d+) (%w+)$')
  if not epoch or not channel or channel.epoch ~= epoch then return end
  if channel.head >= tonumber(head) and channel.receiptsHead >= tonumber(receiptsHead) then return end
  channel.epoch = fresh
  renew(epoch, fresh)
end

-- The epoch reserved for a channel that does not exist yet. Its followers know it and ask repeatedly; kept for at least half an hour.
local function reserve(epoch)
  redis.call('HSETNX', counters, 'reserved', epoch)
  if redis.call('TTL', counters) < 1800 then redis.call('EXPIRE', counters, 3600) end
  return redis.call('HGET', counters, 'reserved')
end

local function enrolmentOf(device)
  local stored = redis.call('HGET', devices, device)
  if not stored then return nil end
  local n = {}
  for number in stored:gmatch('%S+') do n[#n + 1] = tonumber(number) end
  return { joined = n[1], enrolledAt = n[2], settled = n[3], lostSeq = n[4], lostNotifiedSeq = n[5], seenAt = n[6] }
end

local function packed(s)
  return table.concat({ text(s.joined), text(s.enrolledAt), text(s.settled), text(s.lostSeq), text(s.lostNotifiedSeq), text(s.seenAt) }, ' ')
end

local function keepEnrolment(device, s)
  redis.call('HSET', devices, device, packed(s))
end

-- What a device opens its feed with saves work later. If Redis has no memory left, it stays as it was, and the feed opens all the same.
local function tryKeepEnrolment(device, s)
  local reply = redis.pcall('HSET', devices, device, packed(s))
  if type(reply) == 'table' and reply.err and not reply.err:find('OOM') then error(reply.err) end
end

-- False: it was enrolled already.
local function enrol(channel, device, now)
  if redis.call('HEXISTS', devices, device) == 1 then return false end
  keepEnrolment(device, { joined = channel.head, enrolledAt = now, settled = channel.floor, lostSeq = 0, lostNotifiedSeq = 0, seenAt = -1 })
  redis.call('ZADD', names, 0, device)
  channel.audience = redis.call('HINCRBY', counters, 'audience', 1)
  return true
end

-- Replaces all tags of an enrolled device.
local function retag(device, given)
  local before = redis.call('HGET', tags, device) or ''
  if before == given then return end
  for tag in before:gmatch('[^,]+') do redis.call('ZREM', tagged, tag .. '/' .. device) end
  for tag in given:gmatch('[^,]+') do redis.call('ZADD', tagged, 0, tag .. '/' .. device) end
  if given == '' then redis.call('HDEL', tags, device) else redis.call('HSET', tags, device, given) end
end

-- What a device opens its feed with. If Redis has no memory left, its tags stay as they were, and the feed opens all the same.
local function tryRetag(device, given)
  local before = redis.call('HGET', tags, device) or ''
  if before == given then return end
  -- Whether there is memory was decided when the script began, so the first write shows it.
  local reply = redis.pcall('HSET', tags, device, before)
  if type(reply) == 'table' and reply.err then
    if not reply.err:find('OOM') then error(reply.err) end
    return
  end
  retag(device, given)
end

-- The devices that have a tag, with one of these values; without values: with any.
local function having(name, values)
  local found, seen = {}, {}
  if #values == 0 then
    -- ';' comes right after ':'.
    for n, member in ipairs(redis.call('ZRANGEBYLEX', tagged, '[' .. name .. ':', '(' .. name .. ';')) do found[n] = member:match('/(.*)$') end
  end
  for _, value in ipairs(values) do
    local tag = name .. ':' .. value
    -- '0' comes right after '/'.
    for _, member in ipairs(seen[value] and {} or redis.call('ZRANGEBYLEX', tagged, '[' .. tag .. '/', '(' .. tag .. '0')) do found[#found + 1] = member:sub(#tag + 2) end
    seen[value] = true
  end
  return found
end

-- The enrolled devices that a 'where' fits. Its form was checked before.
local function fitting(where)
  local found, others = nil, {}
  for part in where:gmatch('[^,]+') do
    local sign, name, list = part:match('^(!?)([^:]+):?(.*)$')
    local values = {}
    for value in list:gmatch('[^|]+') do values[#values + 1] = value end
    if not found and sign == '' then found = having(name, values) else others[#others + 1] = { isNot = sign == '!', name = name, values = values } end
  end
  found = found or redis.call('ZRANGE', names, 0, -1)
  for _, term in ipairs(others) do
    local has, kept = {}, {}
    for _, device in ipairs(having(term.name, term.values)) do has[device] = true end
    for _, device in ipairs(found) do
      if (has[device] or false) ~= term.isNot then kept[#kept + 1] = device end
    end
    found = kept
  end
  return found
end

-- Among the entries from first to last, at most CHUNK of them: those with an expiry or with names, withdrawn ones and control entries: seq = { expires
-- or 0, named, withdrawn, control }; their seqs.
local function filtered(first, last)
  local found, order = {}, {}
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', filteredEvents, text(first), text(last), 'LIMIT', 0, CHUNK)) do
    local seq, expires, kind = member:match('^(%d+):(%d+):(%d)$')
    order[#order + 1] = tonumber(seq)
    found[order[#order]] = { expires = tonumber(expires), named = kind == '1' or kind == '3', withdrawn = kind == '2' or kind == '3', control = kind == '4' }
  end
  return found, order
end

-- Whether the leaving device is still to be removed from an event.
local function isLeaving(channel, event)
  return channel.leaving and event > channel.leaving.released and event <= channel.leaving.upTo
end

local function isFinal(code) return code == DONE or code == FAILED end

-- Where a device stands on an event: its code, its receipt, the round of its last word, its failures, when its next round begins.
local function standingOf(word)
  if not word then return { code = 0, round = 1, attempt = 0 } end
  local code, receipt, round, attempt, due = word:match('^(%d+) (%d+) ?(%d*) ?(%d*) ?(%d*)$')
  code = tonumber(code)
  return { code = code, receipt = receipt, round = tonumber(round) or 1, attempt = tonumber(attempt) or (code == FAILED and 1 or 0), due = tonumber(due) }
end

-- The same as stored, and what of it the receipt's entry says: most are in the first round, with at most one failure.
local function wordOf(s)
  local usual = s.code .. ' ' .. s.receipt
  if s.round == 1 and s.attempt == (s.code == FAILED and 1 or 0) and not s.due then return usual, '' end
  return table.concat({ usual, text(s.round), text(s.attempt), s.due and text(s.due) or '' }, ' '), 'r' .. text(s.round) .. '.' .. text(s.attempt)
end

-- How an event was withdrawn: control entry, when, reason, superseded by, note; nil: it was not.
local function withdrawalOf(seq)
  return redis.call('HGET', tallies, text(seq) .. ':w') or nil
end

-- Where a device stands at a time; a withdrawal ends what is neither final nor missing.
local function standingAt(s, withdrawal, now)
  if withdrawal and not isFinal(s.code) and s.code ~= MISSING then
    local at = tonumber(withdrawal:match('^%d+ (%d+)'))
    return { code = WITHDRAWN, receipt = s.receipt, round = s.round + (s.code == DEFERRED and s.due <= at and 1 or 0), attempt = s.attempt }
  end
  if s.code == DEFERRED and s.due <= now then return { code = DEFERRED, receipt = s.receipt, round = s.round + 1, attempt = s.attempt, begun = true } end
  return s
end

-- While a device is deferred: when its next round begins, else ''. Takes what standingAt found.
local function heldUntil(s)
  return s.code == DEFERRED and not s.begun and text(s.due) or ''
end

-- Final words are owed to an event.
local function isOwed(about, now)
  return not about or not (about.withdrawn or about.control or (about.expires > 0 and about.expires <= now))
end

-- A device owes an event a final word.
local function owes(word, about, now) return not isFinal(tonumber(word and word:match('^%d+') or 0)) and isOwed(about, now) end

-- Calls visit(seq, word, about) for each kept event after 'after', up to 'upTo', that is addressed to a device that joined after 'joined',
-- oldest first, until it returns true or about 'most' were searched. Returns how far it came, whether visit stopped it, how many it searched.
local function walk(channel, device, joined, after, upTo, most, visit)
  local at, looked = math.max(after, channel.floor), 0
  while at < upTo and looked < most do
    local last, candidates, fields, found, order = math.min(at + CHUNK, upTo), {}, {}, nil, nil
    if at < joined then
      -- Before it joined: only events that name it.
      last = math.min(joined, upTo)
      found, order = filtered(at + 1, last)
      if #order == CHUNK then last = order[CHUNK] end
    else
      found, order = filtered(at + 1, last), {}
      for seq = at + 1, last do order[#order + 1] = seq end
    end
    for _, seq in ipairs(order) do
      local about = found[seq]
      local isNamed = about ~= nil and about.named
      if (isNamed and redis.call('ZSCORE', targets, named(seq, device))) or (not isNamed and seq > joined and not (about and about.control)) then
        candidates[#candidates + 1] = seq
        fields[#fields + 1] = text(seq) .. ':' .. device
      end
    end
    looked = looked + 1 + #order
    local statuses = #fields > 0 and redis.call('HMGET', latest, unpack(fields)) or {}
    for n, seq in ipairs(candidates) do
      if visit(seq, statuses[n], found[seq]) then return seq, true, looked end
    end
    at = last
  end
  return at, false, looked
end

-- The device owes nothing up to here, as stored: it is settled, or from before it left and returned.
local function owesAfter(channel, device, settled)
  if channel.leaving and channel.leaving.device == device then return math.max(settled, channel.leaving.upTo) end
  return settled
end

-- Adds to an enrolment what retention dropped while the device owed it a receipt. Returns how many events were searched.
local function noteLost(channel, device, enrolment, now)
  if enrolment.settled >= channel.floor then return 0 end
  local looked = 0
  if channel.lostByAll > math.max(enrolment.joined, enrolment.settled) then enrolment.lostSeq = math.max(enrolment.lostSeq, channel.lostByAll) end
  if channel.noted < channel.floor then
    local _, _, searched = walk({ floor = channel.noted }, device, enrolment.joined, enrolment.settled, channel.floor, math.huge, function(seq, word, about)
      if owes(word, about, now) then enrolment.lostSeq = math.max(enrolment.lostSeq, seq) end
    end)
    looked = searched
  end
  enrolment.settled = channel.floor
  return looked
end

-- How far the device owes nothing: up to the first event without its final receipt, or until about 'most' were searched.
-- Then whether there is more to search, and how many were searched.
local function settle(channel, device, enrolment, now, most)
  noteLost(channel, device, enrolment, now)
  local after = owesAfter(channel, device, enrolment.settled)
  local at, isOwed, looked = walk(channel, device, enrolment.joined, after, channel.head, most, function(_, word, about)
    return owes(word, about, now)
  end)
  if isOwed then return at - 1, 0, looked end
  return at, at < channel.head and 1 or 0, looked
end

-- A message carries its entries if they are small: Redis disconnects slow subscribers by the megabyte. Otherwise it says
-- only how far the log has come. 'answer': where those that have processed it say so; '': nowhere. Returns how many received it.
local function publish(log, epoch, first, entries, answer)
  local bytes = 0
  for _, entry in ipairs(entries) do bytes = bytes + #entry end
  local about = epoch .. ' ' .. text(first) .. ' ' .. text(first + #entries - 1)
  if answer and answer ~= '' then about = about .. ' ' .. answer end
  if bytes > 262144 then return redis.call('PUBLISH', log .. TOPIC_SUFFIX, about) end
  return redis.call('PUBLISH', log .. TOPIC_SUFFIX, about .. '${SEPARATOR}' .. table.concat(entries, '${SEPARATOR}'))
end

-- Adds an entry to the receipts log. 'entries' collects those of this script for 'publishReceipts'.
local function note(channel, entries, field, entry)
  entries[#entries + 1] = entry
  redis.call('XADD', receipts, text(channel.receiptsHead + #entries) .. '-0', 'v', entry, 'k', field)
end

-- An event's tally: addressed, and how many devices have each status, from 1 on; whether all that were not withdrawn have a final word.
local function tallyOf(event)
  local t = redis.call('HMGET', tallies, event .. ':n', event .. ':1', event .. ':2', event .. ':3', event .. ':4', event .. ':5', event .. ':6', event .. ':7')
  for n = 1, 8 do t[n] = tonumber(t[n] or 0) end
  return t, t[1] - t[5] - t[6]
end

-- Adds a note on an event as a whole, with its tally. Kinds: c complete, s settled, w withdrawn. 'isOver': it was withdrawn.
local function noteEvent(channel, entries, kind, event, device, tally, isOver, now, detail)
  local counts = {}
  for n = 1, 8 do counts[n] = text(tally[n]) end
  counts[9] = isOver and '1' or '0'
  note(channel, entries, event .. ':' .. device, event .. ' ' .. device .. ' 0 ' .. now .. '  0 ' .. kind .. table.concat(counts, ',') .. ' ' .. detail)
end

-- The deadline of an event has nothing more to do. The first time, adds the note that it is settled.
local function settleEvent(channel, entries, event, device, tally, isOver, now)
  if redis.call('ZREM', deadlines, event) == 0 then return end
  redis.call('HDEL', tallies, event .. ':after')
  noteEvent(channel, entries, 's', event, device, tally, isOver, now, '')
end

-- If an event that was not withdrawn is complete, adds the notes that say so, with the device whose receipt or retirement completed it.
local function complete(channel, entries, event, device, now)
  local tally, owed = tallyOf(event)
  if owed > 0 then return end
  noteEvent(channel, entries, 'c', event, device, tally, false, now, '')
  settleEvent(channel, entries, event, device, tally, false, now)
end

-- ATTENTION

-- Removes what says when a device's next round begins.
local function forgetRound(event, device)
  redis.call('ZREM', rounds, named(event, device))
  redis.call('ZREM', deferrals, device .. '/' .. string.format('%015.0f', event))
end

-- Appends a receipt and updates the device's state, from 'before' to 's', and the tally. 'isPaid': the event was overdue for the device, and is so no
-- more.
local function keep(channel, entries, event, device, before, s, now, deviceAt, late, detail, isPaid)
  local field = event .. ':' .. device
  s.receipt = text(channel.receiptsHead + #entries + 1)
  local word, unusual = wordOf(s)
  redis.call('HSET', latest, field, word)
  redis.call('HINCRBY', tallies, event .. ':' .. s.code, 1)
  if before.code > 0 then redis.call('HINCRBY', tallies, event .. ':' .. before.code, -1) end
  if before.code == DEFERRED and s.code ~= DEFERRED then forgetRound(tonumber(event), device) end
  if s.due then
    redis.call('ZADD', rounds, text(s.due), named(tonumber(event), device))
    redis.call('ZADD', deferrals, 0, device .. '/' .. string.format('%015.0f', event))
  end
  note(channel, entries, field, event .. ' ' .. device .. ' ' .. s.code .. ' ' .. now .. ' ' .. deviceAt .. ' ' .. late .. ' ' .. unusual .. ' ' .. detail)
  trouble(channel, event, device, before.code, s.code, isPaid)
end

-- Records a device as missing, in the round that had begun by the deadline.
local function absent(channel, entries, event, device, before, deadline, now, detail)
  local by = math.min(tonumber(now), tonumber(deadline))
  local round = before.round + (before.code == DEFERRED and before.due <= by and 1 or 0)
  local s = { code = MISSING, round = round, attempt = before.attempt }
  keep(channel, entries, event, device, before, s, now, '', '0', detail)
  return s
end

-- Where a device stands, with the deadline applied: past it, a device that owes a final receipt is recorded as missing now. An event
-- whose deadline was processed, or that was withdrawn, is no longer in 'deadlines', and none of its devices can become missing. Second: the event was
-- not withdrawn and never had a deadline.
local function judge(channel, entries, event, device, before, now)
  if before.code == MISSING or isFinal(before.code) then return before end
  local deadline = redis.call('ZSCORE', deadlines, event)
  if not deadline or tonumber(deadline) > tonumber(now) then return before, not deadline end
  return absent(channel, entries, event, device, before, deadline, now, '')
end

-- Publishes the entries that a script added.
local function publishReceipts(channel, entries)
  if #entries == 0 then return end
  redis.call('HSET', counters, 'receiptsHead', text(channel.receiptsHead + #entries))
  publish(receipts, channel.epoch, channel.receiptsHead + 1, entries)
end

-- Removes the leaving device from the next events without its final receipt; if a deadline had passed before it left, it is recorded as missing first. True:
-- there are more.
local function release(channel, entries, now)
  local leaving = channel.leaving
  if not leaving then return false end
  local device = leaving.device
  leaving.released = walk(channel, device, leaving.joined, leaving.released, leaving.upTo, MOST / 8, function(seq, word, about)
    local event, isNamed, s = text(seq), about and about.named, standingOf(word)
    if isFinal(s.code) then
      if not isNamed then redis.call('ZADD', retiredAnswered, 0, named(seq, device)) end
      return
    end
    if about and about.withdrawn then s = standingAt(s, withdrawalOf(seq), 0)
    else
      local isUndated
      s, isUndated = judge(channel, entries, event, device, s, leaving.at)
      releaseTrouble(channel, event, isUndated)
    end
    redis.call('HINCRBY', tallies, event .. ':n', -1)
    if s.code > 0 then redis.call('HINCRBY', tallies, event .. ':' .. s.code, -1) end
    if word or s.code == MISSING then redis.call('HDEL', latest, event .. ':' .. device) end
    forgetRound(seq, device)
    if isNamed then redis.call('ZREM', targets, named(seq, device)) end
    if not (about and about.withdrawn) then complete(channel, entries, event, device, now) end
  end)
  releaseTroubles(channel, device, leaving.released)
  if leaving.released >= leaving.upTo then
    redis.call('HDEL', counters, 'leaving')
    channel.leaving = nil
    return false
  end
  redis.call('HSET', counters, 'leaving', table.concat({ text(leaving.joined), text(leaving.upTo), text(leaving.released), leaving.at, device }, ' '))
  return true
end

-- The next devices of an event's audience, by name, after 'after': at most CHUNK are searched. Also how many were, and the last one.
local function audience(event, after, visit)
  local about = filtered(event, event)[event]
  local isNamed = about ~= nil and about.named
  local found
  if isNamed then
    -- '0' comes right after '/'.
    found = redis.call('ZRANGEBYLEX', targets, '(' .. named(event, after), '(' .. string.format('%015.0f0', event), 'LIMIT', 0, CHUNK)
    for n, member in ipairs(found) do found[n] = member:sub(17) end
  else
    found = redis.call('ZRANGEBYLEX', names, '(' .. after, '+', 'LIMIT', 0, CHUNK)
  end
  if #found == 0 then return 0, after end
  local fields = {}
  for n, device in ipairs(found) do fields[n] = text(event) .. ':' .. device end
  local statuses, enrolments = redis.call('HMGET', latest, unpack(fields)), redis.call('HMGET', devices, unpack(found))
  for n, device in ipairs(found) do
    local isAddressed = isNamed or (enrolments[n] and tonumber(enrolments[n]:match('^%d+')) < event)
    if isAddressed then visit(device, standingOf(statuses[n])) end
  end
  return #found, found[#found]
end

-- Records as missing some devices that owe an event a final receipt; after the last ones, it is settled. Returns how many were searched.
local function miss(channel, entries, event, now, detail)
  local s, looked, last = text(event), 0, nil
  local tally, owed = tallyOf(s)
  if event > channel.floor and owed > tally[4] then
    local deadline = redis.call('ZSCORE', deadlines, s) or text(now)
    looked, last = audience(event, redis.call('HGET', tallies, s .. ':after') or '', function(device, before)
      if before.code ~= MISSING and not isFinal(before.code) then absent(channel, entries, s, device, before, deadline, text(now), detail) end
    end)
  end
  if looked == CHUNK then redis.call('HSET', tallies, s .. ':after', last)
  elseif event > channel.floor and owed > 0 then settleEvent(channel, entries, s, '', tallyOf(s), false, text(now))
  else
    redis.call('ZREM', deadlines, s)
    redis.call('HDEL', tallies, s .. ':after')
  end
  return looked
end

-- Does what must be done before an event is withdrawn, up to a limit. Returns 0: it can be withdrawn; 1: it is complete or was withdrawn; 2: it is a
-- control entry; 3: there is no such event; 4: there is more to do.
local function prepare(channel, entries, event, now)
  if event <= channel.floor or event > channel.head then return 3 end
  local about = filtered(event, event)[event]
  if about and about.control then return 2 end
  if about and about.withdrawn then return 1 end
  if isLeaving(channel, event) and release(channel, entries, text(now)) and isLeaving(channel, event) then return 4 end
  local deadline = redis.call('ZSCORE', deadlines, text(event))
  if deadline and tonumber(deadline) <= now and miss(channel, entries, event, now, '') == CHUNK then return 4 end
  local _, owed = tallyOf(text(event))
  return owed > 0 and 0 or 1
end

-- Withdraws an event, however many devices it has. Returns its control entry, and whether it was overdue.
local function withdraw(channel, entries, event, reason, by, remark, now)
  local s = text(event)
  local t, isVoided = tallyOf(s), voidTrouble(channel, text(event))
  local isQuiet = channel.aged == channel.head and not channel.isOld
  channel.head, channel.controls = channel.head + 1, channel.controls + 1
  local control, at = text(channel.head), text(now)
  local isAnswered = t[2] + t[3] + t[5] + t[6] + t[7] > 0
  local expires, to = redis.call('XRANGE', events, s .. '-0', s .. '-0')[1][2][2]:match('^%S+ (%S*) %S* %S* %S* (%S*) ')
  local isNamed = filtered(event, event)[event]
  isNamed = isNamed ~= nil and isNamed.named
  local entry = at .. ';w=' .. s .. ';r=' .. reason .. ';b=' .. by .. ';n=' .. (isAnswered and '1' or '0') .. (isNamed and to == '' and ';q' or '') .. ' ' .. expires .. '    ' .. to .. ' ' .. remark
  redis.call('XADD', events, control .. '-0', 'v', entry)
  t[8] = t[1] - t[4] - t[5] - t[6]
  t[2], t[3], t[7] = 0, 0, 0
  local withdrawal = table.concat({ control, at, reason, by, remark }, ' ')
  redis.call('HSET', tallies, control .. ':at', at, s .. ':w', withdrawal, s .. ':7', t[8])
  redis.call('HDEL', tallies, s .. ':1', s .. ':2', s .. ':6')
  local lifetime = expires == '' and '0' or expires
  redis.call('ZREM', filteredEvents, s .. ':' .. lifetime .. ':' .. (isNamed and '1' or '0'))
  redis.call('ZADD', filteredEvents, s, s .. ':' .. lifetime .. ':' .. (isNamed and '3' or '2'))
  redis.call('ZADD', filteredEvents, control, control .. ':' .. lifetime .. ':4')
  redis.call('ZREMRANGEBYSCORE', reminded, s, s)
  if isQuiet then channel.aged = channel.head end
  redis.call('HSET', counters, 'head', control, 'controls', text(channel.controls), isQuiet and 'aged' or 'head', control)
  noteEvent(channel, entries, 'w', s, '', t, true, at, withdrawal)
  noteEvent(channel, entries, 'c', s, '', t, true, at, '')
  settleEvent(channel, entries, s, '', t, true, at)
  return entry, isVoided
end

-- The push that an idempotency key is remembered for; nil: none; false: it came with another request. Its name of now and that of earlier versions are
-- the additional keys. The second result is the epoch that keys are stored with.
local function knownPush(channel, digest, keyNow)
  local known
  local life = redis.call('HGET', counters, 'life') or channel.epoch
  for nth = 1, 2 do
    local kept = redis.call('GET', KEYS[PARTS + nth])
    kept = kept and cjson.decode(kept)
    -- Keys stored by earlier versions have a digest of the body alone; they are used only if this version stored none.
    if kept and kept.epoch == life and kept.first <= channel.head and kept.expires > keyNow and not known and (nth == 1 or not kept.digest:find('?', 1, true)) then
      known = kept
    end
  end
  if known and known.digest ~= digest and known.digest ~= digest:match('^[^?]*') then known = false end
  return known, life
end

-- The keys of scheduled pushes come first among the additional ones. Uses a due time, and notes the event or the error; false: it was used, or
-- there is no such schedule.
local function useDueTime(id, due, following, last, failure, now)
  local schedules, times = KEYS[PARTS + 1], KEYS[PARTS + 3]
  if redis.call('HGET', schedules, id .. ':next') ~= due then return false end
  if following ~= '' then
    redis.call('HSET', schedules, id .. ':next', following)
    redis.call('ZADD', times, following, id)
  else
    redis.call('HDEL', schedules, id .. ':next')
    redis.call('HINCRBY', schedules, 'count', -1)
    redis.call('ZADD', times, text(tonumber(now) + ${SCHEDULE_KEPT_MS}), id)
  end
  if last ~= '' then redis.call('HSET', schedules, id .. ':last', last) end
  if failure ~= '' then redis.call('HSET', schedules, id .. ':error', failure) else redis.call('HDEL', schedules, id .. ':error') end
  return true
end

-- The state of a scheduled push: its id and its fields; nil: there is none.
local function scheduleOf(id)
  local found = redis.call('HMGET', KEYS[PARTS + 1], id, id .. ':next', id .. ':last', id .. ':error')
  return found[1] and { id, unpack(found) } or nil
end

-- The channel's next deadline; '': none is ahead.
local function nextDeadline() return redis.call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')[2] or '' end
`;

const whole = (text: string): Script => ({ text, sha: createHash("sha1").update(text).digest("hex") });
const paragraphsOf = (attention: string): readonly string[] =>
  COMMON.replace("-- ATTENTION", () => attention.trim())
    .split("\n\n")
    .map((paragraph) => paragraph.replaceAll(/^ *--.*\n?/gm, ""))
    .reverse();
const PARAGRAPHS = paragraphsOf(ATTENTION_LIBRARY);
/** The same for scripts that seldom need the library of attention: they define it when they do. */
const HASTY_PARAGRAPHS = paragraphsOf(ATTENTION_ON_DEMAND);

/** Builds a script with only the library functions it uses: Redis runs all of the text each time. */
function script(text: string, paragraphs = PARAGRAPHS): Script {
  let found = text;
  for (const paragraph of paragraphs) {
    const name = /^local function (\w+)/m.exec(paragraph)?.[1];
    if (!name || found.includes(`${name}(`)) found = `${paragraph}\n${found}`;
  }
  return whole(found);
}
/** Of a hook. */
export const HOOK_FIELDS = [
  "url",
  "secret",
  "kinds",
  "createdAt",
  "epoch",
  "seq",
  "disabled",
  "revision",
  "former",
  "delivered",
] as const;

const EXTENT =
  "channel.epoch, channel.head, channel.floor, channel.receiptsHead, channel.receiptsFloor, channel.controls";

export const SCRIPTS = {
  /** the lost epoch, a new one → nothing */
  renew: script(`
    if redis.call('HGET', counters, 'epoch') == ARGV[1] then renew(ARGV[1], ARGV[2]) end
    return 1`),

  /** epoch → 0, extent. If the channel does not exist, the extent it would begin with. */
  open: script(`
    local channel = look()
    if not channel then return { 0, reserve(ARGV[1]), 0, 0, 0, 0, 0 } end
    return { 0, ${EXTENT} }`),

  /**
   * now; the hooks and the ids of scheduled pushes as additional keys → whether the channel is unused from now on: no events, no devices, no hooks, no
   * scheduled pushes
   */
  idle: script(`
    local channel = look()
    if not channel or channel.unused or channel.head > 0 or channel.audience > 0 or redis.call('SCARD', KEYS[PARTS + 1]) > 0 or redis.call('ZCARD', KEYS[PARTS + 2]) > 0 then return 0 end
    redis.call('HSET', counters, 'unused', ARGV[1])
    return 1`),

  /** latest sign of life to delete it for → 1: it was unused and is deleted; 0: it is in use or does not exist; otherwise its later sign of life */
  discard: script(`
    local channel = look()
    if not channel or not channel.unused or channel.head > 0 then return 0 end
    if channel.unused > tonumber(ARGV[1]) then return text(channel.unused) end
    for part = 1, PARTS do redis.call('UNLINK', KEYS[part]) end
    reserve(channel.epoch)
    return 1`),

  /**
   * epoch, now, digest ('': no key), key kept until, key lifetime in ms, type, count, then for each event: expires or 0, deadline or 0, time between
   * reminders or 0, reminded until or 0, entry, attempts or '', its key or '', its where or '', number of names, names; where those that hear of a withdrawal answer; of a
   * scheduled push its id, due time and next one, else three times ''; known state; the keys of attention last, if the first event has a key → made,
   * epoch, first, count, at, addressed, type, replayed, whether no event was kept before, head, how many received the message, when something is to be
   * done about overdue events ('': that is known), what `saveAttention` returns; or nothing: the key came with another digest, or the due time is used; or
   * made, 'fits', how many devices a where fits, which one: too many; or made, what `saveAttention` returns: call again, the event that it supersedes must be prepared first
   */
  append: script(
    `
    local channel, made = make(ARGV[1])
    guard(channel, ARGV[#ARGV])
    local now, digest, keyNow = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[#ARGV - 1])
    local life = channel.epoch
    if digest ~= '' then
      local known
      known, life = knownPush(channel, digest, keyNow)
      if known == false then return {} end
      if known then
        return { made, channel.epoch, known.first, known.count, known.at, known.addressed, known.type, 1, 0, channel.head, 0, '', '' }
      end
    end
    local count, at = tonumber(ARGV[7]), 8
    local fitted, fittedNames = {}, 0
    for n = 1, count do
      local where = ARGV[at + 7]
      if where ~= '' then
        fitted[where] = fitted[where] or fitting(where)
        fittedNames = fittedNames + #fitted[where]
        if fittedNames > ${WHERE_DEVICES_MAX} then return { made, 'fits', #fitted[where], where } end
      end
      at = at + 9 + tonumber(ARGV[at + 8])
    end
    at = 8
    local receiptEntries, superseded = {}, nil
    if ARGV[14] ~= '' then
      -- All but the newest event of this key are complete or withdrawn.
      local newest = redis.call('ZREVRANGEBYLEX', byKey, '(' .. ARGV[14] .. '0', '[' .. ARGV[14] .. '/', 'LIMIT', 0, 1)[1]
      superseded = newest and tonumber(newest:match('%d+$')) or nil
      local ready = superseded and prepare(channel, receiptEntries, superseded, now) or 3
      if ready == 4 then
        publishReceipts(channel, receiptEntries)
        return { made, saveAttention(channel) }
      end
      if ready ~= 0 then superseded = nil end
    end
    local first, entries, addressedFirst, isUndated = channel.head + 1, {}, 0, false
    local schedule = ARGV[#ARGV - 4]
    if schedule ~= '' and not useDueTime(schedule, ARGV[#ARGV - 3], ARGV[#ARGV - 2], channel.epoch .. '-' .. text(channel.head + count), '', ARGV[2]) then
      publishReceipts(channel, receiptEntries)
      saveAttention(channel)
      return {}
    end
    for n = 1, count do
      local seq, expires, deadline, remind = channel.head + n, ARGV[at], ARGV[at + 1], ARGV[at + 2]
      local entry, attempts, key, to, fits = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], tonumber(ARGV[at + 8]), fitted[ARGV[at + 7]]
      local addressed = fits and #fits or to > 0 and to or channel.audience
      if n == 1 then addressedFirst = addressed end
      entries[n] = entry
      redis.call('XADD', events, text(seq) .. '-0', 'v', entry)
      redis.call('HSET', tallies, text(seq) .. ':n', addressed, text(seq) .. ':at', ARGV[2])
      if attempts ~= '' then redis.call('HSET', tallies, text(seq) .. ':a', attempts) end
      if key ~= '' then
        redis.call('ZADD', keyed, text(seq), text(seq) .. ':' .. key)
        redis.call('ZADD', byKey, 0, key .. '/' .. string.format('%015.0f', seq))
      end
      if to > 0 or fits or expires ~= '0' then
        redis.call('ZADD', filteredEvents, text(seq), text(seq) .. ':' .. expires .. ':' .. ((to > 0 or fits) and '1' or '0'))
      end
      local members = {}
      for name = 1, fits and #fits or to do
        members[#members + 1], members[#members + 2] = 0, named(seq, fits and fits[name] or ARGV[at + 8 + name])
        if #members == 2 * CHUNK then
          redis.call('ZADD', targets, unpack(members))
          members = {}
        end
      end
      if #members > 0 then redis.call('ZADD', targets, unpack(members)) end
      if deadline ~= '0' then redis.call('ZADD', deadlines, deadline, text(seq)) elseif addressed > 0 then isUndated = true end
      if remind ~= '0' then
        redis.call('ZADD', reminded, text(seq), text(seq) .. ':' .. ARGV[2] .. ':' .. remind .. ':' .. ARGV[at + 3])
      end
      at = at + 9 + to
    end
    local wasEmpty, ages = channel.floor == channel.head, ''
    -- If nothing is to become overdue, what has a deadline, or is for nobody, need not be looked at.
    local isQuiet = channel.aged == channel.head and not channel.isOld
    channel.head = channel.head + count
    if isQuiet and not isUndated then channel.aged = channel.head elseif isQuiet then ages = text(now + ${OVERDUE_MS}) end
    redis.call('HSET', counters, 'head', text(channel.head), isQuiet and not isUndated and 'aged' or 'head', text(channel.head))
    if superseded then
      local entry, isVoided = withdraw(channel, receiptEntries, superseded, '2', text(first), '', now)
      entries[#entries + 1] = entry
      if isVoided then ages = '0' end
    end
    if digest ~= '' then
      redis.call('SET', KEYS[PARTS + 1], cjson.encode({ epoch = life, digest = digest, first = first, count = count, at = now,
        addressed = addressedFirst, type = ARGV[6], expires = tonumber(ARGV[4]) }), 'PX', ARGV[5])
    end
    local receivers = publish(events, channel.epoch, first, entries, superseded and ARGV[#ARGV - 5] or '')
    publishReceipts(channel, receiptEntries)
    return { made, channel.epoch, first, count, now, addressedFirst, ARGV[6], 0, wasEmpty and 1 or 0, channel.head, receivers, ages,
      saveAttention(channel) }`,
    HASTY_PARAGRAPHS,
  ),

  /** digest, now; the key's names → epoch, first, count, when, addressed, type of the push that it is known for; none: there is none; -1: another digest */
  replayed: script(`
    local channel = look()
    local known = nil
    if channel then known = knownPush(channel, ARGV[1], tonumber(ARGV[2])) end
    if known == false then return { -1 } end
    if not known then return {} end
    return { channel.epoch, known.first, known.count, known.at, known.addressed, known.type }`),

  /**
   * epoch, event, note, now, where those that hear of it answer, known state → as `prepare`, head, how many received the message, whether something is to be
   * done about overdue events now, what `saveAttention` returns
   */
  withdraw: script(`
    local channel, entries = lookIn(ARGV[1]), {}
    guard(channel, ARGV[6])
    if not channel or channel.epoch ~= ARGV[1] then return { 3, 0, 0, 0, '' } end
    local event, now = tonumber(ARGV[2]), tonumber(ARGV[4])
    local ready, receivers, entry, isVoided = prepare(channel, entries, event, now), 0, nil, false
    if ready == 0 then
      entry, isVoided = withdraw(channel, entries, event, '1', '', ARGV[3], now)
      receivers = publish(events, channel.epoch, channel.head, { entry }, ARGV[5])
    end
    publishReceipts(channel, entries)
    return { ready, channel.head, receivers, isVoided and 1 or 0, saveAttention(channel) }`),

  /**
   * for each receipt: when it came, epoch, event, device, code, the device's time, detail, and '' or `<after in ms or ''>,<round or ''>,<may be tried
   * again>,<random>`; known state → four numbers for each: recorded, duplicate, unknown, unaddressed, early as 0 to 4; the code that was recorded or -1; why
   * the final word is late, or 0; when the next round begins, or 0; if it changed who is in trouble, what `saveAttention` returns
   */
  record: script(
    `
    local channel = look()
    guard(channel, ARGV[#ARGV])
    local verdicts, entries = {}, {}
    for first = 1, #ARGV - 1, 8 do
      local now, at = tonumber(ARGV[first]), first + 1
      local epoch, event, device, code = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
      local verdict, recorded, late, due = 2, -1, '0', nil
      local about = channel and epoch == channel.epoch and event > channel.floor and event <= channel.head and (filtered(event, event)[event] or {})
      if about and not about.control then
        local eventText, field = ARGV[at + 1], ARGV[at + 1] .. ':' .. device
        local stored = standingOf(redis.call('HGET', latest, field))
        local enrolment = enrolmentOf(device)
        local isAddressed
        if about.named then
          isAddressed = redis.call('ZSCORE', targets, named(event, device)) and not (isLeaving(channel, event) and channel.leaving.device == device)
        else isAddressed = enrolment and enrolment.joined < event end
        local after, round, retry, random = ARGV[at + 6]:match('^(%d*),(%d*),(%d),(.*)$')
        if not isFinal(stored.code) and not isAddressed then verdict = 3
        else
          local before, isUndated = stored, false
          if not isFinal(stored.code) then
            if about.withdrawn then before = standingAt(stored, withdrawalOf(event), now)
            else
              stored, isUndated = judge(channel, entries, eventText, device, stored, ARGV[first])
              before = standingAt(stored, nil, now)
            end
          end
          local isEnded = before.code == MISSING or before.code == WITHDRAWN
          local answered = tonumber(round or '')
          local attempt = before.attempt + (code == FAILED and 1 or 0)
          if code == FAILED and retry == '1' and not isEnded then
            local attempts = tonumber(redis.call('HGET', tallies, eventText .. ':a') or 0)
            if attempt < attempts then
              code = DEFERRED
              if after == '' then after = text(math.min(3600000, math.floor(30000 * 2 ^ (attempt - 1) * (0.8 + 0.4 * tonumber(random)) + 0.5))) end
            end
          end
          if answered and answered ~= before.round then verdict = answered > before.round and 4 or 1
          elseif isFinal(before.code) then verdict = 1
          elseif isFinal(code) then verdict = 0
          elseif isEnded or (before.code == DEFERRED and not before.begun) then verdict = 1
          elseif code <= 2 and code <= before.code and before.code <= 2 then verdict = 1
          else verdict = 0 end
          if isFinal(stored.code) and (about.withdrawn or redis.call('XRANGE', events, eventText .. '-0', eventText .. '-0')[1][2][2]:match('^%S+ %S* (%S*)') ~= '') then
            local said = redis.call('XRANGE', receipts, stored.receipt .. '-0', stored.receipt .. '-0')[1]
            late = said and said[2][2]:match('^%d+ %S* %d+ %d+ %S* (%d)') or '0'
          end
          if verdict == 0 then
            recorded = code
            if code == DEFERRED then due = now + tonumber(after and after ~= '' and after or 60000) end
            if before.code == MISSING then late = '1'
            elseif before.code == WITHDRAWN then late = text(tonumber(withdrawalOf(event):match('^%d+ %d+ (%d)')) + 1) end
            local s = { code = code, round = before.round, attempt = attempt, due = due }
            -- The round that has begun is left as it was counted.
            keep(channel, entries, eventText, device, before, s, ARGV[first], ARGV[at + 4], late, ARGV[at + 5],
              isFinal(code) and isUndated and event <= channel.aged)
            if before.code == WITHDRAWN and stored.code == DEFERRED then forgetRound(event, device) end
            if isFinal(code) and not about.withdrawn then complete(channel, entries, eventText, device, ARGV[first]) end
            if enrolment and enrolment.lostSeq > 0 and enrolment.lostNotifiedSeq == enrolment.lostSeq then
              enrolment.lostSeq, enrolment.lostNotifiedSeq = 0, 0
              keepEnrolment(device, enrolment)
            end
          elseif stored.code == DEFERRED then due = stored.due end
        end
      end
      verdicts[#verdicts + 1], verdicts[#verdicts + 2], verdicts[#verdicts + 3], verdicts[#verdicts + 4] = verdict, recorded, tonumber(late), due and text(due) or 0
    end
    if channel then publishReceipts(channel, entries) end
    local moved = saveAttention(channel)
    if moved ~= '' then verdicts[#verdicts + 1] = moved end
    return verdicts`,
    HASTY_PARAGRAPHS,
  ),

  /** epoch, device, now → made, whether it was new */
  enrol: script(`
    local channel, made = make(ARGV[1])
    return { made, enrol(channel, ARGV[2], tonumber(ARGV[3])) and 1 or 0 }`),

  /**
   * epoch, device, now, whether it is enrolled if needed, whether it loses all other tags, then the name and the value of each ('': it is removed) → made,
   * 0: there would be too many, and how many; 1: done; 2: it was new; and its tags; 3: it is not enrolled
   */
  tag: script(`
    local made, isNew = 0, false
    if ARGV[4] == '0' and not (look() and enrolmentOf(ARGV[2])) then return { 0, 3 } end
    local held, given = {}, {}
    for name, value in (ARGV[5] == '1' and '' or redis.call('HGET', tags, ARGV[2]) or ''):gmatch('([^,:]+):([^,]+)') do held[name] = value end
    for n = 6, #ARGV, 2 do held[ARGV[n]] = ARGV[n + 1] ~= '' and ARGV[n + 1] or nil end
    for name, value in pairs(held) do given[#given + 1] = name .. ':' .. value end
    if #given > ${TAGS_MAX} then return { 0, 0, #given } end
    table.sort(given)
    given = table.concat(given, ',')
    if ARGV[4] == '1' then
      local channel
      channel, made = make(ARGV[1])
      isNew = enrol(channel, ARGV[2], tonumber(ARGV[3]))
    end
    retag(ARGV[2], given)
    return { made, isNew and 2 or 1, given }`),

  /** epoch, device, now, '' or `=` and the tags that it gets → made, extent, whether it was new, joined, settled, lost, whether `settle` has more to do, whether the channel is unused, whether it has deferred an event */
  join: script(`
    local channel, made = make(ARGV[1], ARGV[3])
    if channel.unused then redis.call('HSET', counters, 'unused', ARGV[3]) end
    local device, now = ARGV[2], tonumber(ARGV[3])
    local new = enrol(channel, device, now) and 1 or 0
    local enrolment = enrolmentOf(device)
    local more
    enrolment.settled, more = settle(channel, device, enrolment, now, MOST)
    enrolment.lostNotifiedSeq = enrolment.lostSeq
    tryKeepEnrolment(device, enrolment)
    local given = ARGV[4]:match('^=(.*)$')
    if given then tryRetag(device, given) end
    return { made, ${EXTENT}, new, enrolment.joined, enrolment.settled, enrolment.lostSeq, more, channel.unused and 1 or 0,
      #redis.call('ZRANGEBYLEX', deferrals, '[' .. device .. '/', '(' .. device .. '0', 'LIMIT', 0, 1) }`),

  /** device, now → epoch, settled, whether there is more to do; nothing: it is not enrolled */
  settle: script(`
    local channel = look()
    local enrolment = channel and enrolmentOf(ARGV[1])
    if not enrolment then return {} end
    local more
    enrolment.settled, more = settle(channel, ARGV[1], enrolment, tonumber(ARGV[2]), MOST)
    tryKeepEnrolment(ARGV[1], enrolment)
    return { channel.epoch, enrolment.settled, more }`),

  /**
   * device, now, known state → 0: it was not enrolled; 1: it is retired; 2: it is, and `release` has more to do; -1: another device's release was
   * continued, call again
   */
  retire: script(`
    local channel, device, entries = look(), ARGV[1], {}
    guard(channel, ARGV[3])
    if channel and channel.leaving then
      release(channel, entries, ARGV[2])
      publishReceipts(channel, entries)
      return { -1, saveAttention(channel) }
    end
    local enrolment = channel and enrolmentOf(device)
    if not enrolment then return { 0, '' } end
    leaveTrouble(channel, device)
    redis.call('HDEL', devices, device)
    redis.call('ZREM', names, device)
    retag(device, '')
    redis.call('HINCRBY', counters, 'audience', -1)
    channel.leaving = { joined = enrolment.joined, upTo = channel.head, released = channel.floor, at = ARGV[2], device = device }
    local more = release(channel, entries, ARGV[2])
    publishReceipts(channel, entries)
    redis.call('PUBLISH', events .. TOPIC_SUFFIX, channel.epoch .. ' ${RETIRED} ' .. device)
    return { more and 2 or 1, saveAttention(channel) }`),

  /** now, known state → whether there is more to do */
  release: script(`
    local channel, entries = look(), {}
    guard(channel, ARGV[2])
    if not channel then return { 0, '' } end
    local more = release(channel, entries, ARGV[1])
    publishReceipts(channel, entries)
    return { more and 1 or 0, saveAttention(channel) }`),

  /** device, at, device, at, … → whether the channel is unused. The search for what they settled shares one limit. */
  seen: script(`
    local channel, left = look(), MOST
    if not channel then return 0 end
    for n = 1, #ARGV, 2 do
      local enrolment = enrolmentOf(ARGV[n])
      if enrolment then
        enrolment.seenAt = tonumber(ARGV[n + 1])
        if left > 0 then
          local settled, _, looked = settle(channel, ARGV[n], enrolment, enrolment.seenAt, left)
          enrolment.settled, left = settled, left - looked
        end
        keepEnrolment(ARGV[n], enrolment)
        if channel.unused then redis.call('HSET', counters, 'unused', ARGV[n + 1]) end
      end
    end
    return channel.unused and 1 or 0`),

  owing: script(OWING),

  /**
   * epoch, device, after, up to, now → for each kept event in between on which it has a state: seq, code, round, when the next one begins or 0. An event
   * that names others, or from which the device was released, is shown as done; null: another epoch
   */
  states: script(`
    local channel, found = lookIn(ARGV[1]), {}
    if not channel then return nil end
    local device, now = ARGV[2], tonumber(ARGV[5])
    local seq, upTo = math.max(tonumber(ARGV[3]), channel.floor) + 1, math.min(tonumber(ARGV[4]), channel.head)
    while seq <= upTo do
      local last, fields = math.min(seq + CHUNK - 1, upTo), {}
      local about = filtered(seq, last)
      for at = seq, last do fields[#fields + 1] = text(at) .. ':' .. device end
      for n, word in ipairs(redis.call('HMGET', latest, unpack(fields))) do
        local at = seq + n - 1
        local isIts = not (about[at] and about[at].named)
          or (redis.call('ZSCORE', targets, named(at, device)) and not (isLeaving(channel, at) and channel.leaving.device == device))
        if word or not isIts then
          local s = isIts and standingAt(standingOf(word), about[at] and about[at].withdrawn and withdrawalOf(at), now) or { code = DONE, round = 1 }
          for _, value in ipairs({ at, s.code, s.round, s.due and text(s.due) or 0 }) do found[#found + 1] = value end
        end
      end
      seq = last + 1
    end
    return found`),

  /** epoch, device, after, up to, limit, now → for each begun round: event, round; null: another epoch */
  begunRounds: script(`
    local channel, found = lookIn(ARGV[1]), {}
    if not channel then return nil end
    local device, limit, now = ARGV[2], tonumber(ARGV[5]), tonumber(ARGV[6])
    local after = math.max(tonumber(ARGV[3]), channel.floor)
    while #found < 2 * limit do
      local members = redis.call('ZRANGEBYLEX', deferrals, '(' .. device .. '/' .. string.format('%015.0f', after),
        '[' .. device .. '/' .. string.format('%015.0f', ARGV[4]), 'LIMIT', 0, CHUNK)
      for _, member in ipairs(members) do
        after = tonumber(member:match('%d+$'))
        local s = standingAt(standingOf(redis.call('HGET', latest, text(after) .. ':' .. device)), nil, now)
        local about = filtered(after, after)[after] or { expires = 0 }
        local deadline = redis.call('ZSCORE', deadlines, text(after))
        if s.begun and not about.withdrawn and (about.expires == 0 or about.expires > now) and (not deadline or tonumber(deadline) > now)
          and not (isLeaving(channel, after) and channel.leaving.device == device) and #found < 2 * limit then
          found[#found + 1], found[#found + 2] = after, s.round
        end
      end
      if #members < CHUNK then break end
    end
    return found`),

  /**
   * from which time, the member of 'rounds' of that time after which to begin ('': with the first), until when, how many → epoch, whether there is more,
   * when the next one begins (0: none is ahead), then for each round: when it began, its member, round; 0: it counts for nothing
   */
  roundsDue: script(`
    local channel = look()
    if not channel then return {} end
    local from, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[4])
    local rank = redis.call('ZCOUNT', rounds, '-inf', '(' .. from)
    if after ~= '' then
      -- The first member of that time that sorts behind it.
      local high = redis.call('ZCOUNT', rounds, '-inf', from)
      while rank < high do
        local middle = math.floor((rank + high) / 2)
        if redis.call('ZRANGE', rounds, middle, middle)[1] <= after then rank = middle + 1 else high = middle end
      end
    end
    local members, found = redis.call('ZRANGE', rounds, rank, rank + limit - 1, 'WITHSCORES'), { channel.epoch, 0, 0 }
    for n = 1, #members, 2 do
      local member, due = members[n], members[n + 1]
      if tonumber(due) > tonumber(ARGV[3]) then
        found[3] = due
        return found
      end
      local event, device = tonumber(member:match('^%d+')), member:sub(17)
      local about = filtered(event, event)[event]
      local isDead = event <= channel.floor or (about and about.withdrawn)
      local s = isDead and { round = -1 } or standingOf(redis.call('HGET', latest, text(event) .. ':' .. device))
      for _, value in ipairs({ due, member, s.round + 1 }) do found[#found + 1] = value end
    end
    if #members == 2 * limit then found[2] = 1 end
    return found`),

  /**
   * epoch, device ('': none), the event after which those to all are addressed to it, after, head, limit, now → up to where all are among them, seq,
   * entry, seq, entry, …; null: another epoch
   */
  latestOfKeys: script(`
    local channel = lookIn(ARGV[1])
    if not channel then return nil end
    local device, joined, head, limit, now = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
    local left = device ~= '' and channel.leaving and channel.leaving.device == device and channel.leaving.upTo or 0
    local function fits(seq)
      local about = filtered(seq, seq)[seq]
      if about and (about.withdrawn or (about.expires > 0 and about.expires <= now)) then return false end
      if about and about.named then return device ~= '' and seq > left and redis.call('ZSCORE', targets, named(seq, device)) end
      return seq > joined
    end
    local function isNewest(seq, key)
      local upTo = '[' .. key .. '/' .. string.format('%015.0f', head)
      local after = '(' .. key .. '/' .. string.format('%015.0f', seq)
      local at = 0
      while true do
        local newer = redis.call('ZREVRANGEBYLEX', byKey, upTo, after, 'LIMIT', at, 50)
        for _, member in ipairs(newer) do
          if fits(tonumber(member:match('%d+$'))) then return false end
        end
        if #newer < 50 then return true end
        at = at + 50
      end
    end
    local after, bytes = math.max(tonumber(ARGV[4]), channel.floor), 0
    local found = { head }
    local members = redis.call('ZRANGEBYSCORE', keyed, '(' .. text(after), text(head), 'LIMIT', 0, CHUNK)
    for _, member in ipairs(members) do
      local seqText, key = member:match('^(%d+):(.*)$')
      local seq = tonumber(seqText)
      if fits(seq) and isNewest(seq, key) then
        local entry = redis.call('XRANGE', events, seqText .. '-0', seqText .. '-0')[1][2][2]
        found[#found + 1], found[#found + 2] = seq, entry
        bytes = bytes + #entry
        if #found > 2 * limit or bytes > 262144 then
          found[1] = seq
          return found
        end
      end
      if #members == CHUNK then found[1] = seq end
    end
    return found`),

  /** epoch, log, after, limit → the entries, as XRANGE returns them; null: another epoch */
  read: script(`
    if not lookIn(ARGV[1]) then return nil end
    return redis.call('XRANGE', ARGV[2] == 'events' and events or receipts, ARGV[3], '+', 'COUNT', ARGV[4])`),

  /** epoch, from, up to → for each withdrawn event: seq, how it was withdrawn; null: another epoch */
  marks: script(`
    local channel, found = lookIn(ARGV[1]), {}
    if not channel then return nil end
    if channel.controls == 0 then return found end
    local from, upTo = tonumber(ARGV[2]), tonumber(ARGV[3])
    while from <= upTo do
      local about, order = filtered(from, upTo)
      for _, seq in ipairs(order) do
        if about[seq].withdrawn then found[#found + 1], found[#found + 2] = seq, withdrawalOf(seq) end
      end
      if #order < CHUNK then break end
      from = order[CHUNK] + 1
    end
    return found`),

  /** after which score, limit → epoch, the members of `reminded` from there; nothing: there is no such channel */
  reminders: script(`
    local channel = look()
    if not channel then return {} end
    return { channel.epoch, redis.call('ZRANGEBYSCORE', reminded, ARGV[1], '+inf', 'LIMIT', 0, ARGV[2]) }`),

  /** epoch, event, '1': only those that sent no receipt for it, and none if it was withdrawn; devices → those that it is addressed to; null: another epoch */
  addressed: script(`
    local channel, event, isSilent, found = lookIn(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', {}
    if not channel then return nil end
    if event <= channel.floor or event > channel.head then return found end
    local about = filtered(event, event)[event]
    if about and ((isSilent and about.withdrawn) or about.control) then return found end
    local isNamed = about ~= nil and about.named
    local leaver = isLeaving(channel, event) and channel.leaving.device or nil
    for n = 4, #ARGV do
      local device = ARGV[n]
      local isIts = device ~= leaver
      if isNamed then isIts = isIts and redis.call('ZSCORE', targets, named(event, device))
      else
        local enrolment = enrolmentOf(device)
        isIts = enrolment and enrolment.joined < event
      end
      if isIts and not (isSilent and redis.call('HEXISTS', latest, ARGV[2] .. ':' .. device) == 1) then found[#found + 1] = device end
    end
    return found`),

  /**
   * epoch, from, up to → for each kept event: seq, addressed, received, working, missing, done, failed, deferred, withdrawn, whether it was withdrawn; null:
   * another epoch
   */
  tallies: script(`
    local channel, found = lookIn(ARGV[1]), {}
    if not channel then return nil end
    local first, upTo, without = math.max(tonumber(ARGV[2]), channel.floor + 1), math.min(tonumber(ARGV[3]), channel.head), {}
    local leaving, special = channel.leaving, {}
    for from = first, upTo, CHUNK do
      for seq, about in pairs((filtered(from, math.min(from + CHUNK - 1, upTo)))) do special[seq] = about end
    end
    if leaving then
      -- A retired device is excluded even while its release is in progress.
      walk(channel, leaving.device, leaving.joined, math.max(leaving.released, first - 1), math.min(leaving.upTo, upTo), math.huge, function(seq, word, about)
        local s = standingOf(word)
        if not isFinal(s.code) then without[seq] = about and about.withdrawn and s.code ~= MISSING and WITHDRAWN or s.code end
      end)
    end
    for seq = first, upTo do
      local about = special[seq]
      if not (about and about.control) then
        local t = tallyOf(text(seq))
        if without[seq] then
          t[1] = t[1] - 1
          if without[seq] > 0 then t[without[seq] + 1] = t[without[seq] + 1] - 1 end
        end
        found[#found + 1] = seq
        for n = 1, 8 do found[#found + 1] = t[n] end
        found[#found + 1] = about and about.withdrawn and 1 or 0
      end
    end
    return found`),

  /**
   * epoch, event, codes with a space before, between and behind them ('': all), after, number of names to search, now → how the event was withdrawn or '', then three lists by name: addressed devices,
   * devices retired since, the leaving device. Each begins with the name after which there may be more ('': none), then for each: device, code, round,
   * attempt, until when it is held or '', its receipt's entry or ''; null: another epoch
   */
  rows: script(`
    local channel, event = lookIn(ARGV[1]), tonumber(ARGV[2])
    if not channel then return nil end
    if event <= channel.floor or event > channel.head then return { '', { '' }, { '' } } end
    local wanted, after, limit, now = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
    local about = filtered(event, event)[event]
    if about and about.control then return { '', { '' }, { '' } } end
    local withdrawal = about and about.withdrawn and withdrawalOf(event)
    local function list(found, nameOf, isHere)
      local rows = { #found == limit and nameOf(found[#found]) or '' }
      for _, member in ipairs(found) do
        local device = nameOf(member)
        if isHere(device) then
          local word = redis.call('HGET', latest, text(event) .. ':' .. device)
          local s = standingAt(standingOf(word), withdrawal, now)
          if wanted == '' or wanted:find(' ' .. s.code .. ' ', 1, true) then
            local entry = ''
            if word then
              local seq = s.receipt .. '-0'
              local kept = redis.call('XRANGE', receipts, seq, seq)
              entry = kept[1] and kept[1][2][2] or ''
            end
            for _, value in ipairs({ device, s.code, s.round, s.attempt, heldUntil(s), entry }) do rows[#rows + 1] = value end
          end
        end
      end
      return rows
    end
    local function everybody() return true end
    local leaver = isLeaving(channel, event) and channel.leaving.device or nil
    -- The leaving device stays where it sent a final receipt.
    local function stays(device)
      return device ~= leaver or isFinal(standingOf(redis.call('HGET', latest, text(event) .. ':' .. device)).code)
    end
    local function itself(name) return name end
    local function behind(member) return member:sub(17) end
    local function byEvent(key)
      -- '0' comes right after '/'.
      return redis.call('ZRANGEBYLEX', key, '(' .. named(event, after), '(' .. string.format('%015.0f0', event), 'LIMIT', 0, limit)
    end
    if about and about.named then return { withdrawal or '', list(byEvent(targets), behind, stays) } end
    local enrolled = redis.call('ZRANGEBYLEX', names, '(' .. after, '+', 'LIMIT', 0, limit)
    local function wasThere(device) return enrolmentOf(device).joined < event end
    local leaving = leaver and leaver > after and channel.leaving.joined < event and { leaver } or {}
    local last = list(leaving, itself, stays)
    last[1] = ''
    return { withdrawal or '', list(enrolled, itself, wasThere), list(byEvent(retiredAnswered), behind, everybody), last }`),

  history: script(HISTORY),

  extents: whole(EXTENTS),

  remove: script(REMOVE),

  /** now, number of devices to search, known state → the next deadline ('': none is ahead) */
  miss: script(`
    local channel, now, left, entries = look(), tonumber(ARGV[1]), tonumber(ARGV[2]), {}
    guard(channel, ARGV[3])
    if not channel then return { '', '' } end
    -- A device that was retired before the deadline owes nothing.
    if release(channel, entries, ARGV[1]) then left = 0 end
    while left > 0 do
      local due = redis.call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')
      if not due[1] or tonumber(due[2]) > now then break end
      left = left - 1 - miss(channel, entries, tonumber(due[1]), now, '')
    end
    publishReceipts(channel, entries)
    return { nextDeadline(), saveAttention(channel) }`),

  age: script(AGE),

  troubles: script(TROUBLES),

  /**
   * number of events to keep, oldest time to keep, now, limit of the slice, known state; the times of scheduled pushes → whether there is more to do,
   * and if not: the next deadline ('': none is ahead), when the oldest kept event was pushed ('': there is none), when a scheduled push is due ('': there
   * is none)
   */
  trim: script(`
    local channel = look()
    guard(channel, ARGV[5])
    if not channel then return { 0, '', '', '', '', '' } end
    local count, before, now, workMax = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
    local work, entries = 0, {}
    if channel.leaving then
      release(channel, entries, ARGV[3])
      publishReceipts(channel, entries)
      return { 1, saveAttention(channel) }
    end

    -- Notes what the devices have lost of which the rows to be deleted show more than 'lost' says: first those that answered the newest event to
    -- all, by name, then those that events of the run name. True: there are more.
    local function noteLosses()
      local floor = channel.floor
      if channel.noted == floor then return false end
      local top, from = (redis.call('HGET', counters, 'noting') or '0 t'):match('^(%d+) (.*)$')
      local function visit(device)
        work = work + 1
        local enrolment = enrolmentOf(device)
        if not enrolment or enrolment.settled >= floor then return end
        work = work + 1 + noteLost(channel, device, enrolment, now)
        keepEnrolment(device, enrolment)
      end
      while work < workMax do
        work = work + 1
        if from:sub(1, 1) == 'd' then
          local found, fields = redis.call('ZRANGEBYLEX', names, from == 'd' and '-' or '(' .. from:sub(2), '+', 'LIMIT', 0, CHUNK), {}
          for n, device in ipairs(found) do fields[n] = top .. ':' .. device end
          local statuses = #found > 0 and redis.call('HMGET', latest, unpack(fields)) or {}
          for n, device in ipairs(found) do
            if work >= workMax then break end
            if isFinal(standingOf(statuses[n]).code) then visit(device) else work = work + 1 end
            from = 'd' .. device
          end
          if #found == 0 then from = 't' end
        else
          local after = from == 't' and '[' .. named(channel.noted + 1, '') or '(' .. from:sub(2)
          local found = redis.call('ZRANGEBYLEX', targets, after, '(' .. named(floor + 1, ''), 'LIMIT', 0, CHUNK)
          if #found == 0 then
            channel.noted, channel.lostByAll = floor, math.max(channel.lostByAll, tonumber(top))
            redis.call('HSET', counters, 'lost', text(channel.lostByAll))
            redis.call('HDEL', counters, 'noted', 'noting')
            return false
          end
          for _, member in ipairs(found) do
            if work >= workMax then break end
            visit(member:sub(17))
            from = 't' .. member
          end
        end
      end
      redis.call('HSET', counters, 'noting', top .. ' ' .. from)
      return true
    end

${DROP}

    -- Deletes what is left of events that are no longer kept: their names, of which one may have very many, and the oldest receipts. True: there is more.
    local function sweep()
      local floor = channel.floor
      redis.call('ZREMRANGEBYSCORE', filteredEvents, '-inf', text(floor))
      for _, key in ipairs({ targets, retiredAnswered }) do
        local members = redis.call('ZRANGEBYLEX', key, '-', '(' .. named(floor + 1, ''), 'LIMIT', 0, 2 * CHUNK)
        for at = 1, #members, CHUNK do redis.call('ZREM', key, unpack(members, at, math.min(at + CHUNK - 1, #members))) end
        work = work + #members
        if #members == 2 * CHUNK then return true end
      end
      local last, fields = nil, {}
      local oldest = redis.call('XRANGE', receipts, '-', '+', 'COUNT', CHUNK)
      for _, entry in ipairs(oldest) do
        local field = entry[2][4]
        if tonumber(field:match('^%d+')) > floor then break end
        fields[#fields + 1], last = field, tonumber(entry[1]:match('^%d+'))
      end
      if not last then return false end
      work = work + #fields
      redis.call('HDEL', latest, unpack(fields))
      if redis.call('ZCARD', deferrals) > 0 then
        for _, field in ipairs(fields) do
          local seq, device = field:match('^(%d+):(.*)$')
          forgetRound(tonumber(seq), device)
        end
      end
      redis.call('XTRIM', receipts, 'MINID', '=', text(last + 1) .. '-0')
      redis.call('HSET', counters, 'receiptsFloor', text(last))
      return #fields == CHUNK
    end

    -- What an earlier script began comes first, so that it ends however many events expire meanwhile.
    if noteLosses() or dropAllTroubles() or sweep() then return { 1, saveAttention(channel) } end

    -- The next run: all events that are no longer kept, up to a limit.
    local first, top, past = channel.floor, 0, filtered(channel.floor + 1, channel.floor + CHUNK)
    while channel.floor < math.min(channel.head, first + CHUNK) and work < workMax do
      local seq = channel.floor + 1
      local s, about = text(seq), past[seq]
      local t = redis.call('HMGET', tallies, s .. ':at', s .. ':n', s .. ':4', s .. ':5', s .. ':x')
      -- How many events there are from here on.
      if channel.head - channel.floor - channel.controls <= count and tonumber(t[1] or 0) >= before then break end
      local deadline = redis.call('ZSCORE', deadlines, s)
      work = work + 1
      if deadline then
        -- If it is dropped before its deadline, devices that owe it a receipt are missing for that reason. Then check it again.
        work = work + miss(channel, entries, seq, now, tonumber(deadline) > now and '{"reason":"expired"}' or '')
      else
        local owed = tonumber(t[2] or 0) - tonumber(t[3] or 0) - tonumber(t[4] or 0)
        if owed > 0 and not (about and (about.named or about.withdrawn or (about.expires > 0 and about.expires <= now))) then top = seq end
        if about and about.control then channel.controls = channel.controls - 1 end
        channel.floor = seq
        dropTrouble(channel, s, t[5])
      end
    end
    publishReceipts(channel, entries)
    local floor, isMore = channel.floor, work >= workMax or channel.floor == first + CHUNK
    if floor > first then
      -- Devices that owed the newest event to all lost nothing newer, except events that name them.
      local answered = top > 0 and redis.call('HMGET', tallies, text(top) .. ':4', text(top) .. ':5') or {}
      local from = tonumber(answered[1] or 0) + tonumber(answered[2] or 0) > 0 and 'd' or 't'
      redis.call('HSET', counters, 'floor', text(floor), 'controls', text(channel.controls), 'noted', text(first), 'noting', text(top) .. ' ' .. from)
      channel.noted = first
      local fields = {}
      for seq = first + 1, floor do
        -- Earlier versions had ':marked'.
        for _, field in ipairs({ ':at', ':n', ':1', ':2', ':3', ':4', ':5', ':6', ':7', ':a', ':w', ':x', ':marked' }) do fields[#fields + 1] = text(seq) .. field end
      end
      for at = 1, #fields, CHUNK do redis.call('HDEL', tallies, unpack(fields, at, math.min(at + CHUNK - 1, #fields))) end
      redis.call('XTRIM', events, 'MINID', '=', text(floor + 1) .. '-0')
      redis.call('ZREMRANGEBYSCORE', reminded, '-inf', text(floor))
      for _, member in ipairs(redis.call('ZRANGEBYSCORE', keyed, '-inf', text(floor))) do
        local seq, key = member:match('^(%d+):(.*)$')
        redis.call('ZREM', byKey, key .. '/' .. string.format('%015.0f', seq))
      end
      redis.call('ZREMRANGEBYSCORE', keyed, '-inf', text(floor))
      dropNumbers(channel)
      if noteLosses() or dropAllTroubles() or sweep() then isMore = true end
    end
    if isMore then return { 1, saveAttention(channel) } end
    return { 0, nextDeadline(), redis.call('HGET', tallies, text(channel.floor + 1) .. ':at') or '',
      redis.call('ZRANGE', KEYS[PARTS + 1], 0, 0, 'WITHSCORES')[2] or '', nextAge(channel), saveAttention(channel) }`),

  /**
   * epoch, hook, url, secret (''), kinds, a fresh secret, now, maximum number of hooks, of former secrets → made, whether it was new (-1: too many
   * hooks), its fields
   */
  putHook: script(`
    local channel, made = make(ARGV[1])
    local hooks, hook = KEYS[PARTS + 1], KEYS[PARTS + 2]
    local isNew = redis.call('SISMEMBER', hooks, ARGV[2]) == 0
    if isNew then
      if redis.call('SCARD', hooks) >= tonumber(ARGV[8]) then return { made, -1 } end
      redis.call('SADD', hooks, ARGV[2])
      redis.call('HSET', hook, 'secret', ARGV[6], 'createdAt', ARGV[7], 'epoch', channel.epoch, 'seq', text(channel.receiptsHead), 'fence', 0)
    end
    redis.call('HSET', hook, 'url', ARGV[3], 'kinds', ARGV[5])
    local before = redis.call('HGET', hook, 'secret')
    if ARGV[4] ~= '' and not isNew and ARGV[4] ~= before then
      local former = { before .. ':' .. ARGV[7] }
      for one in (redis.call('HGET', hook, 'former') or ''):gmatch('%S+') do
        if #former < tonumber(ARGV[9]) then former[#former + 1] = one end
      end
      redis.call('HSET', hook, 'former', table.concat(former, ' '))
    end
    if ARGV[4] ~= '' then redis.call('HSET', hook, 'secret', ARGV[4]) end
    redis.call('HDEL', hook, 'disabled')
    redis.call('HINCRBY', hook, 'revision', 1)
    return { made, isNew and 1 or 0, redis.call('HMGET', hook, ${HOOK_FIELDS.map((field) => `'${field}'`).join(", ")}) }`),

  /** The hooks of a channel, a hook, its deliveries. Its name → whether it existed */
  dropHook: whole(`
    redis.call('DEL', KEYS[2], KEYS[3])
    return redis.call('SREM', KEYS[1], ARGV[1])`),

  /**
   * A hook, its deliveries. Its creation time ('': any), fence ('': not the runner), epoch and seq of the cursor ('': unchanged), why it is disabled
   * ('-': it is not, '': unchanged), its last successful call ('': unchanged), number of deliveries to keep, then the id and the text of each, then the ids of finished ones → whether it was
   * kept
   */
  progress: whole(`
    local hook, deliveries = KEYS[1], KEYS[2]
    local fence, createdAt = unpack(redis.call('HMGET', hook, 'fence', 'createdAt'))
    if not fence or (ARGV[1] ~= '' and ARGV[1] ~= createdAt) or (ARGV[2] ~= '' and tonumber(ARGV[2]) < tonumber(fence)) then return 0 end
    if ARGV[2] == '' then redis.call('HINCRBY', hook, 'revision', 1) else redis.call('HSET', hook, 'fence', ARGV[2]) end
    if ARGV[3] ~= '' then redis.call('HSET', hook, 'epoch', ARGV[3], 'seq', ARGV[4]) end
    if ARGV[5] == '-' then redis.call('HDEL', hook, 'disabled') elseif ARGV[5] ~= '' then redis.call('HSET', hook, 'disabled', ARGV[5]) end
    if ARGV[6] ~= '' then redis.call('HSET', hook, 'delivered', ARGV[6]) end
    local after = 8 + 2 * ARGV[7]
    for at = 8, after - 1, 2 do redis.call('HSET', deliveries, ARGV[at], ARGV[at + 1]) end
    for at = after, #ARGV do redis.call('HDEL', deliveries, ARGV[at]) end
    return 1`),

  /**
   * epoch, id, what does not change, when it is due, now, digest ('': no key), key kept until, key lifetime in ms, current time for keys, maximum number,
   * known state; the keys of scheduled pushes, the key → made, whether it was stored before, its state; or made, -1: another digest, -2: it was
   * cancelled, -3: there are too many
   */
  schedule: script(`
    local channel, made = make(ARGV[1])
    guard(channel, ARGV[11])
    local id, digest = ARGV[2], ARGV[6]
    local life = redis.call('HGET', counters, 'life') or channel.epoch
    local kept = digest ~= '' and redis.call('GET', KEYS[PARTS + 4])
    kept = kept and cjson.decode(kept)
    if kept and kept.epoch == life and kept.first <= channel.head and kept.expires > tonumber(ARGV[9]) then
      if kept.digest ~= digest then return { made, -1 } end
      local state = scheduleOf(kept.type)
      if not state then return { made, -2 } end
      return { made, 1, state }
    end
    if tonumber(redis.call('HGET', KEYS[PARTS + 1], 'count') or 0) >= tonumber(ARGV[10]) then return { made, -3 } end
    redis.call('HSET', KEYS[PARTS + 1], id, ARGV[3], id .. ':next', ARGV[4])
    redis.call('HINCRBY', KEYS[PARTS + 1], 'count', 1)
    redis.call('ZADD', KEYS[PARTS + 2], 0, id)
    redis.call('ZADD', KEYS[PARTS + 3], ARGV[4], id)
    if digest ~= '' then
      redis.call('SET', KEYS[PARTS + 4], cjson.encode({ epoch = life, digest = digest, first = 0, count = 0, at = tonumber(ARGV[5]), addressed = 0,
        type = id, expires = tonumber(ARGV[7]) }), 'PX', ARGV[8])
    end
    return { made, 0, scheduleOf(id) }`),

  /** '' and an id, or where to begin and how many; the keys of scheduled pushes → their states */
  schedules: script(`
    if ARGV[1] == '' then return { scheduleOf(ARGV[2]) } end
    local found = redis.call('ZRANGEBYLEX', KEYS[PARTS + 2], ARGV[1], '+', 'LIMIT', 0, ARGV[2])
    for n, id in ipairs(found) do found[n] = scheduleOf(id) end
    return found`),

  /** now, how many; the keys of scheduled pushes → when to look again ('': never), the states of those that are due. Deletes those that were done long ago */
  dueSchedules: script(`
    local found = {}
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[PARTS + 3], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])) do
      local state = scheduleOf(id)
      if state and state[3] then found[#found + 1] = state
      else
        redis.call('HDEL', KEYS[PARTS + 1], id, id .. ':last', id .. ':error')
        redis.call('ZREM', KEYS[PARTS + 2], id)
        redis.call('ZREM', KEYS[PARTS + 3], id)
      end
    end
    return { redis.call('ZRANGE', KEYS[PARTS + 3], 0, 0, 'WITHSCORES')[2] or '', found }`),

  /** id, due time, next one ('': none), error, now; the keys of scheduled pushes → whether it was used now */
  skipSchedule: script(`return useDueTime(ARGV[1], ARGV[2], ARGV[3], '', ARGV[4], ARGV[5]) and 1 or 0`),

  /** id; the keys of scheduled pushes → whether there was one */
  unschedule: script(`
    local id = ARGV[1]
    if redis.call('HEXISTS', KEYS[PARTS + 1], id .. ':next') == 1 then redis.call('HINCRBY', KEYS[PARTS + 1], 'count', -1) end
    redis.call('ZREM', KEYS[PARTS + 2], id)
    redis.call('ZREM', KEYS[PARTS + 3], id)
    return redis.call('HDEL', KEYS[PARTS + 1], id, id .. ':next', id .. ':last', id .. ':error') > 0 and 1 or 0`),

  /**
   * The list of due channels. Now, the caller's time limit, number of channels → when something is due next (''): never), the due channels, each
   * replaced by a mark: its name after a `!`, which no channel's name contains
   */
  claim: whole(`
    local found, seen = {}, {}
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])) do
      local channel = member:gsub('^!', '')
      redis.call('ZREM', KEYS[1], member)
      redis.call('ZADD', KEYS[1], ARGV[2], '!' .. channel)
      if not seen[channel] then found[#found + 1] = channel end
      seen[channel] = true
    end
    return { redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] or '', unpack(found) }`),

  /** The list of due channels. A channel, the time of its mark, when it is due next (''): a mark of another time belongs to another instance */
  unclaim: whole(`
    if ARGV[3] ~= '' then redis.call('ZADD', KEYS[1], 'LT', ARGV[3], ARGV[1]) end
    local mark = '!' .. ARGV[1]
    local score = redis.call('ZSCORE', KEYS[1], mark)
    if score and tonumber(score) == tonumber(ARGV[2]) then redis.call('ZREM', KEYS[1], mark) end
    return 1`),

  /** The list of channels that retention has something to do in. Now, number of channels → those that are due, each with when it was to be trimmed */
  trimmable: whole(`return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', 0, ARGV[2])`),

  /** The list of channels that retention has something to do in. A channel, when it was to be trimmed: if that was not changed since, removes it */
  unlist: whole(`
    local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if score and tonumber(score) == tonumber(ARGV[2]) then redis.call('ZREM', KEYS[1], ARGV[1]) end
    return 1`),

  /**
   * The list of channels in trouble. A channel, the same in short (`revision devices failed missing overdue since`), the entry that they correct ('-': none, '': any
   * of an earlier revision)
   */
  noteTrouble: whole(`
    local listed = redis.call('HGET', KEYS[1], ARGV[1])
    if ARGV[3] ~= '' then
      if (listed or '-') ~= ARGV[3] then return 0 end
    elseif listed and tonumber(listed:match('^%d+')) >= tonumber(ARGV[2]:match('^%d+')) then return 0 end
    if ARGV[2]:find('^%d+ %d+ 0 0 0 ') then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
    return 1`),

  /** Instances by their last heartbeat. An instance, its lifetime in milliseconds, how long to remember it → whether it was unknown, the live ones */
  beat: whole(`
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local new = redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[3]))
    return { new, unpack(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now - ARGV[2]), '+inf')) }`),

  /** A lease. A holder, milliseconds → its number, one more with each change of holder; 0: another holds it */
  lease: whole(`
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local held = redis.call('HMGET', KEYS[1], 'holder', 'until')
    local isLive = held[1] and tonumber(held[2]) > now
    if isLive and held[1] ~= ARGV[1] then return 0 end
    redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', string.format('%.0f', now + ARGV[2]))
    if isLive then return tonumber(redis.call('HGET', KEYS[1], 'number')) end
    return redis.call('HINCRBY', KEYS[1], 'number', 1)`),
} as const;

/** The scripts for a database of a server, which is part of the message names. @param suffix suffix of a key in message names */
export const scriptsFor = (suffix: string): typeof SCRIPTS =>
  suffix === ""
    ? SCRIPTS
    : (Object.fromEntries(
        Object.entries(SCRIPTS).map(([name, { text }]) => [
          name,
          whole(text.replace("local TOPIC_SUFFIX = ''", `local TOPIC_SUFFIX = '${suffix}'`)),
        ]),
      ) as typeof SCRIPTS);
