/**
 * What one device was sent and what it said: a row per kept event that is addressed to it, newest first. `scripts.ts` describes the data.
 */
import { type HistoryRow, STATES } from "../model.ts";
import { eventHeadOf, receiptOf, withdrawalOf } from "./entries.ts";

/** Rows per script, and about how many bytes of events it may read for them: it needs the beginning of each, and Redis copies all of it. */
export const HISTORY_ROWS = 250;
const HISTORY_BYTES = 1024 * 1024;

/**
 * epoch, device, event, number of rows, now → the oldest event that was looked at (0: there are none before that one), then for each event before that one
 * that is addressed to the device, newest first: seq, the beginning of its entry, code, round, failures, until when it is held or '', how it was withdrawn or '',
 * the receipt's entry or ''; null: another epoch
 */
export const HISTORY = `
    local channel = lookIn(ARGV[1])
    if not channel then return nil end
    local device, before, left, now = ARGV[2], math.min(tonumber(ARGV[3]), channel.head + 1), tonumber(ARGV[4]), tonumber(ARGV[5])
    local first = math.max(channel.floor + 1, before - CHUNK)
    if first >= before then return { 0 } end
    local found, fields, about, bytes = { first }, {}, filtered(first, before - 1), 0
    for seq = before - 1, first, -1 do fields[#fields + 1] = text(seq) .. ':' .. device end
    local statuses, enrolment = redis.call('HMGET', latest, unpack(fields)), enrolmentOf(device)
    for n, word in ipairs(statuses) do
      local seq = before - n
      local isWithdrawn, stored = about[seq] and about[seq].withdrawn, standingOf(word)
      local isDone = isFinal(stored.code)
      local isLeaver = isLeaving(channel, seq) and channel.leaving.device == device
      local isIts
      if about[seq] and about[seq].control then isIts = false
      elseif about[seq] and about[seq].named then isIts = redis.call('ZSCORE', targets, named(seq, device))
      elseif isLeaver then isIts = channel.leaving.joined < seq
      else isIts = (enrolment and enrolment.joined < seq) or (isDone and redis.call('ZSCORE', retiredAnswered, named(seq, device))) end
      -- The leaving device stays where it sent a final receipt.
      if isIts and (not isLeaver or isDone) then
        local pushed, receipt = redis.call('XRANGE', events, text(seq) .. '-0', text(seq) .. '-0'), nil
        local withdrawal = isWithdrawn and withdrawalOf(seq)
        local s = standingAt(stored, withdrawal, now)
        if word then
          local position = s.receipt .. '-0'
          receipt = redis.call('XRANGE', receipts, position, position)[1]
        end
        for _, value in ipairs({ seq, pushed[1][2][2]:match('^[^ ]* [^ ]* [^ ]* [^ ]* [^ ]* '), s.code, s.round, s.attempt, heldUntil(s), withdrawal or '', receipt and receipt[2][2] or '' }) do
          found[#found + 1] = value
        end
        left, bytes = left - 1, bytes + #pushed[1][2][2]
        if left == 0 or bytes > ${HISTORY_BYTES} then
          found[1] = seq
          break
        end
      end
    end
    return found`;

/** Values per row of the script's reply. */
export const HISTORY_VALUES = 8;

/** A row of the script's reply. */
export function historyRowOf([seqText, head, code, round, attempt, due, mark, entry]: readonly unknown[]): HistoryRow {
  const seq = Number(seqText);
  const { type, at: pushedAt, deadline } = eventHeadOf(seq, head as string);
  const status = STATES[Number(code)]!;
  const isWithdrawn = status === "withdrawn";
  const said = entry === "" || isWithdrawn ? null : receiptOf(0, entry as string);
  return {
    seq,
    type,
    pushedAt,
    deadline,
    status,
    detail: said?.detail ?? null,
    at: isWithdrawn ? withdrawalOf(mark as string).at : (said?.at ?? null),
    deviceAt: said?.deviceAt ?? null,
    late: said?.late ?? false,
    round: Number(round),
    attempt: Number(attempt),
    ...(due === "" ? {} : { due: Number(due) }),
  };
}
