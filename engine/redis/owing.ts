/**
 * Counts how many final receipts devices owe, many devices and a part of the log per script. `scripts.ts` describes the data.
 *
 * What an event's tally says is read once for all of them: if nobody sent a final receipt, everyone to whom it is addressed owes one; if nobody owes one,
 * there is nothing to count. Only for other events, and for those that name devices, each device is looked up. So a script ends when it has come
 * to a number of lookups, and the next one goes on from there; its length depends neither on the length of the log nor on who answered.
 */
import type { EnrolledDevice } from "../model.ts";

/** Devices per script. */
export const OWING_DEVICES = 125;
/** Lookups per script, at most: about two milliseconds of Redis' time. */
const OWING_LOOKUPS = 1_500;
/** Tallies per command: those of events behind the last lookup are read in vain. */
const OWING_TALLIES = 50;

/**
 * now, the event after which to search ('': the first one that a device may owe), devices → epoch, the event up to which was searched, the newest one, and for each
 * enrolled device: device, enrolledAt, seenAt, how much it owes in that part; null: there is no such channel
 */
export const OWING = `
    local channel, now = look(), tonumber(ARGV[1])
    if not channel then return nil end
    local enrolled, before = {}, channel.head
    for n, stored in ipairs(#ARGV > 2 and redis.call('HMGET', devices, unpack(ARGV, 3)) or {}) do
      if stored then
        local joined, enrolledAt, settled, seenAt = stored:match('^(%d+) (%d+) (%d+) %d+ %d+ (-?%d+)$')
        local device, after = ARGV[n + 2], math.max(tonumber(settled), channel.floor)
        if channel.leaving then after = math.max(owesAfter(channel, device, after), channel.floor) end
        before = math.min(before, after)
        enrolled[#enrolled + 1] = { device = device, joined = tonumber(joined), enrolledAt = enrolledAt, seenAt = seenAt, after = after, owed = 0 }
      end
    end
    if ARGV[2] ~= '' then before = math.max(tonumber(ARGV[2]), channel.floor) end
    local last = math.min(before + CHUNK, channel.head)
    local about = filtered(before + 1, last)

    -- How many events up to each are owed by everyone who joined before them; and those to be looked up.
    local silent, lookups, first, tallied = { [before] = 0 }, {}, nil, nil
    for seq = before + 1, last do
      if not first or seq >= first + ${OWING_TALLIES} then
        local fields = {}
        first = seq
        for one = seq, math.min(seq + ${OWING_TALLIES - 1}, last) do
          local s = text(one)
          fields[#fields + 1], fields[#fields + 2], fields[#fields + 3] = s .. ':n', s .. ':4', s .. ':5'
        end
        tallied = redis.call('HMGET', tallies, unpack(fields))
      end
      local at, own = 3 * (seq - first), about[seq]
      local addressed, finals = tonumber(tallied[at + 1] or nil), tonumber(tallied[at + 2] or 0) + tonumber(tallied[at + 3] or 0)
      local isOver = not isOwed(own, now) or (addressed and addressed <= finals)
      local isSilent = not isOver and addressed and finals == 0 and not (own and own.named)
      if not isOver and not isSilent then
        if (#lookups + 1) * #enrolled > ${OWING_LOOKUPS} then
          last = seq - 1
          break
        end
        lookups[#lookups + 1] = seq
      end
      silent[seq] = silent[seq - 1] + (isSilent and 1 or 0)
    end

    for _, enrolment in ipairs(enrolled) do
      local from = math.min(math.max(enrolment.after, enrolment.joined, before), last)
      enrolment.owed = silent[last] - silent[from]
    end
    for _, seq in ipairs(lookups) do
      local isNamed, prefix, asked, words = about[seq] ~= nil and about[seq].named, text(seq) .. ':', {}, {}
      for _, enrolment in ipairs(enrolled) do
        local device, isIts = enrolment.device, seq > enrolment.joined
        if isNamed then isIts = redis.call('ZSCORE', targets, named(seq, device)) end
        if isIts and seq > enrolment.after then asked[#asked + 1], words[#words + 1] = enrolment, prefix .. device end
      end
      for n, word in ipairs(#words > 0 and redis.call('HMGET', latest, unpack(words)) or {}) do
        if not isFinal(standingOf(word).code) then asked[n].owed = asked[n].owed + 1 end
      end
    end

    local found = { channel.epoch, last, channel.head }
    for _, enrolment in ipairs(enrolled) do
      for _, value in ipairs({ enrolment.device, enrolment.enrolledAt, enrolment.seenAt, enrolment.owed }) do found[#found + 1] = value end
    end
    return found`;

/**
 * @param run runs the script with these arguments
 * @param devices at most `OWING_DEVICES`
 * @returns those that are enrolled, in the same order
 */
export async function readOwing(
  run: (values: readonly (string | number)[]) => Promise<readonly unknown[] | null>,
  devices: readonly string[],
  now: number,
): Promise<EnrolledDevice[]> {
  let found: EnrolledDevice[] = [];
  let epoch: unknown;
  for (let from: string | number = ""; ;) {
    const reply = await run([now, from, ...devices]);
    if (reply === null) return [];
    // If the channel has a new epoch, the count begins again.
    const owed = reply[0] === epoch ? new Map(found.map(({ device, pending }) => [device, pending])) : null;
    const isOther = epoch !== undefined && owed === null;
    epoch = reply[0];
    found = [];
    for (let at = 3; at < reply.length; at += 4) {
      const [device, enrolledAt, seenAt, pending] = reply.slice(at, at + 4) as [string, string, string, number];
      found.push({
        device,
        enrolledAt: Number(enrolledAt),
        seenAt: seenAt === "-1" ? null : Number(seenAt),
        pending: pending + (owed?.get(device) ?? 0),
      });
    }
    if (isOther) [from, epoch] = ["", undefined];
    else if (Number(reply[1]) >= Number(reply[2])) return found;
    else from = Number(reply[1]);
  }
}
