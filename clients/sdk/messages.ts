/**
 * Checks of what the service sends: events, receipts, control messages and the answers to receipts. Each field is checked before it is used.
 */
import { notFromPere, objectOf } from "./errors.ts";
import type { Tally } from "./model.ts";
import { isCount, isObject, isText, partsOf } from "./values.ts";

/** The two logs that can be followed: events, and the receipts for them. */
export type Log = "feed" | "feedback";

/** What an entry of each log must have: non-empty strings, and a JSON value whose text is kept beside it. */
const MEMBERS = {
  feed: { texts: ["id", "channel", "at"], value: "data" },
  feedback: { texts: ["id", "channel", "at", "event", "device", "status"], value: "detail" },
} as const;

/** Members that entries need not have, with their checks. */
const OPTIONAL: Record<string, (value: unknown) => boolean> = {
  key: isText,
  scheduled: isText,
  round: (value) => isCount(value) && value >= 1,
  attempt: isCount,
};

/**
 * Checks an event or a receipt. @param text the JSON that `value` was parsed from @returns it with the text of its `data` or `detail`
 * @throws BlockedError when PERE sends no such entry
 */
export function entryOf(log: Log, text: string, value: unknown, channels: readonly string[]): Record<string, unknown> {
  const { texts, value: member } = MEMBERS[log];
  if (!isObject(value) || !texts.every((name) => isText(value[name]))) throw notFromPere();
  if (!channels.includes(value.channel as string) || !(member in value)) throw notFromPere();
  for (const [name, isValid] of Object.entries(OPTIONAL))
    if (value[name] !== undefined && !isValid(value[name])) throw notFromPere();
  return { ...value, text: partsOf(text).get(member) ?? "null" };
}

/** The members of a tally. Services of earlier versions have neither `deferred` nor `withdrawn`. */
const COUNTS = ["pending", "received", "working", "done", "failed", "missing"] as const;

/** Checks a tally. @returns all of its counts @throws BlockedError when PERE sends no such tally */
export function tallyOf(value: unknown): Tally {
  if (!isObject(value) || !COUNTS.every((name) => isCount(value[name]))) throw notFromPere();
  const { deferred = 0, withdrawn = 0 } = value;
  if (!isCount(deferred) || !isCount(withdrawn)) throw notFromPere();
  return { ...value, deferred, withdrawn } as Tally;
}

/** The control messages that are entries of the logs: they have a channel, and all of their texts. */
const NOTICES: Record<Log, Record<string, readonly string[]>> = {
  feed: { withdrawn: ["id", "channel", "at", "withdrawn", "reason"] },
  feedback: {
    complete: ["event", "channel", "at"],
    settled: ["id", "event", "channel", "at"],
    withdrawn: ["id", "event", "channel", "at", "reason"],
  },
};

/**
 * Checks a control message: `ready`, `gap`, and those that are entries of a log; others have nothing to check.
 * @returns it, with all counts of its tally @throws BlockedError when PERE sends no such message
 */
export function controlOf(
  log: Log,
  name: string,
  body: Record<string, unknown>,
  channels: readonly string[],
): Record<string, unknown> {
  const texts = NOTICES[log][name];
  if (texts) {
    if (!texts.every((member) => isText(body[member])) || !channels.includes(body.channel as string))
      throw notFromPere();
    if (![body.by, body.note].every((member) => member === undefined || isText(member))) throw notFromPere();
    return log === "feed" ? body : { ...body, receipts: tallyOf(body.receipts) };
  }
  const { channels: positions } = body;
  const isValid =
    name === "gap"
      ? [body.channel, body.after, body.from].every(isText)
      : name !== "ready" ||
        (isObject(positions) && channels.every((channel) => typeof positions[channel] === "string"));
  if (!isValid) throw notFromPere();
  return body;
}

/** Control messages in the answer to a long-poll, in the order in which they are to be handled after its entries. */
const POLLED = ["withdrawn", "complete", "settled"] as const;

/** The answer to a long-poll. */
export interface Poll {
  readonly entries: readonly Record<string, unknown>[];
  readonly gaps: readonly Record<string, unknown>[];
  readonly notices: readonly { readonly name: string; readonly body: Record<string, unknown> }[];
  /** The position from which the next poll continues. */
  readonly last: string;
}

/** Parses the answer to a long-poll. All of it is checked before any of it is used. @throws BlockedError when it is not from PERE */
export function pollOf(log: Log, text: string, channels: readonly string[], parse: (text: string) => unknown): Poll {
  const answer = objectOf(text, parse);
  const { events, last } = answer;
  if (!Array.isArray(events) || typeof last !== "string" || !/^[!-~]*$/.test(last)) throw notFromPere();
  const listed = (name: string): Record<string, unknown>[] => {
    const { [name]: list = [] } = answer;
    if (!Array.isArray(list) || !list.every(isObject)) throw notFromPere();
    return list;
  };
  const gaps = listed("gaps").map((gap) => controlOf(log, "gap", gap, channels));
  const notices = POLLED.flatMap((name) =>
    listed(name).map((body) => ({ name, body: controlOf(log, name, body, channels) })),
  );
  const texts = partsOf(partsOf(text).get("events") ?? "[]");
  const entries = events.map((value, index) => entryOf(log, texts.get(String(index)) ?? "", value, channels));
  return { entries, gaps, notices, last };
}

/** Whether an id, `<epoch>-<seq>`, comes after another one of its channel. An id of another epoch always does. */
export function isAhead(id: string, than = ""): boolean {
  const [[epoch, seq], [otherEpoch, otherSeq]] = [id.split("-"), than.split("-")];
  return epoch !== otherEpoch || Number(seq) > Number(otherSeq);
}

/** The answer to a request with receipts. `late`: receipts that were recorded, or had been, although they came late. */
export interface ReceiptsAnswer {
  readonly rejected: readonly { index: number; reason: string }[];
  readonly late: readonly { index: number; reason: string }[];
}

/**
 * Checks the answer to a request with receipts: it must account for each of them.
 * @param events the events of the receipts, in order @throws BlockedError when it is not the answer to this request
 */
export function answerOf(value: unknown, events: readonly string[]): ReceiptsAnswer {
  if (!isObject(value)) throw notFromPere();
  const { recorded, duplicate, rejected, late = [] } = value;
  const isList = (list: unknown): list is ReceiptsAnswer["rejected"] =>
    Array.isArray(list) &&
    list.every((one) => isObject(one) && isCount(one.index) && one.event === events[one.index] && isText(one.reason));
  if (!isList(rejected) || !isList(late) || !isCount(recorded) || !isCount(duplicate)) throw notFromPere();
  if (recorded + duplicate + rejected.length !== events.length) throw notFromPere();
  return { rejected, late };
}
