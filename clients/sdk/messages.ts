/**
 * Checks of what the service sends: events, receipts, control messages and the answers to receipts. Each field is checked before it is used.
 */
import { notFromPere, objectOf } from "./errors.ts";
import { isCount, isObject, isText, partsOf } from "./values.ts";

/** The two logs that can be followed: events, and the receipts for them. */
export type Log = "feed" | "feedback";

/** What an entry of each log must have: non-empty strings, and a JSON value whose text is kept beside it. */
const MEMBERS = {
  feed: { texts: ["id", "channel", "at"], value: "data" },
  feedback: { texts: ["id", "channel", "at", "event", "device", "status"], value: "detail" },
} as const;

/**
 * Checks an event or a receipt. @param text the JSON that `value` was parsed from @returns it with the text of its `data` or `detail`
 * @throws BlockedError when PERE sends no such entry
 */
export function entryOf(log: Log, text: string, value: unknown, channels: readonly string[]): Record<string, unknown> {
  const { texts, value: member } = MEMBERS[log];
  if (!isObject(value) || !texts.every((name) => isText(value[name]))) throw notFromPere();
  if (!channels.includes(value.channel as string) || !(member in value)) throw notFromPere();
  return { ...value, text: partsOf(text).get(member) ?? "null" };
}

/** Checks a control message: `ready`, `gap`, `complete`; others have nothing to check. @throws BlockedError when PERE sends no such message */
export function checkControl(name: string, body: Record<string, unknown>, channels: readonly string[]): void {
  const { channels: positions } = body;
  const isValid =
    name === "gap"
      ? [body.channel, body.after, body.from].every(isText)
      : name === "complete"
        ? [body.event, body.channel, body.at].every(isText)
        : name !== "ready" ||
          (isObject(positions) && channels.every((channel) => typeof positions[channel] === "string"));
  if (!isValid) throw notFromPere();
}

/** The answer to a long-poll. */
export interface Poll {
  readonly entries: readonly Record<string, unknown>[];
  readonly gaps: readonly Record<string, unknown>[];
  readonly complete: readonly Record<string, unknown>[];
  /** The position from which the next poll continues. */
  readonly last: string;
}

/** Parses the answer to a long-poll. All of it is checked before any of it is used. @throws BlockedError when it is not from PERE */
export function pollOf(log: Log, text: string, channels: readonly string[], parse: (text: string) => unknown): Poll {
  const { events, last, gaps = [], complete = [] } = objectOf(text, parse);
  if (!Array.isArray(events) || !Array.isArray(gaps) || !Array.isArray(complete)) throw notFromPere();
  if (typeof last !== "string" || !/^[!-~]*$/.test(last)) throw notFromPere();
  if (!gaps.every(isObject) || !complete.every(isObject)) throw notFromPere();
  const texts = partsOf(partsOf(text).get("events") ?? "[]");
  const entries = events.map((value, index) => entryOf(log, texts.get(String(index)) ?? "", value, channels));
  return { entries, gaps, complete, last };
}

/** Whether an id, `<epoch>-<seq>`, comes after another one of its channel. An id of another epoch always does. */
export function isAhead(id: string, than = ""): boolean {
  const [[epoch, seq], [otherEpoch, otherSeq]] = [id.split("-"), than.split("-")];
  return epoch !== otherEpoch || Number(seq) > Number(otherSeq);
}

/** The answer to a request with receipts. */
export interface ReceiptsAnswer {
  readonly rejected: readonly { index: number; reason: string }[];
}

/**
 * Checks the answer to a request with receipts: it must account for each of them.
 * @param events the events of the receipts, in order @throws BlockedError when it is not the answer to this request
 */
export function answerOf(value: unknown, events: readonly string[]): ReceiptsAnswer {
  if (!isObject(value) || !Array.isArray(value.rejected)) throw notFromPere();
  const { recorded, duplicate, rejected } = value;
  const isValid = rejected.every(
    (one) => isObject(one) && isCount(one.index) && one.event === events[one.index] && isText(one.reason),
  );
  if (!isValid || !isCount(recorded) || !isCount(duplicate)) throw notFromPere();
  if (recorded + duplicate + rejected.length !== events.length) throw notFromPere();
  return { rejected: rejected as ReceiptsAnswer["rejected"] };
}
