/**
 * The format of log entries in Redis: some fields, each followed by a space, and a last field that may contain spaces. An absent field is empty. An
 * event's data is the publisher's own text and is stored and read without parsing.
 */
import { type Event, type EventDraft, rank, type Receipt, type ReceiptDraft, STATES } from "../model.ts";

/** Splits off the fields before the last one. */
function split(text: string, words: number): string[] {
  const parts: string[] = [];
  let from = 0;
  for (let n = 0; n < words; n++) {
    const to = text.indexOf(" ", from);
    parts.push(text.slice(from, to));
    from = to + 1;
  }
  parts.push(text.slice(from));
  return parts;
}

type Seven = [string, string, string, string, string, string, string];
const numberOrNull = (text: string): number | null => (text === "" ? null : Number(text));

/** When an event expires, its deadline, and its reminder interval. */
type Times = Pick<Event, "expires" | "deadline" | "remind">;

/** `at expires deadline remind type to data`; behind `at`, after a semicolon, the id of the schedule, if it has one. */
export const eventEntryText = (
  { type, to, data }: EventDraft,
  at: number,
  { expires, deadline, remind }: Times,
  scheduled?: string,
): string =>
  `${at}${scheduled === undefined ? "" : `;${scheduled}`} ${expires ?? ""} ${deadline ?? ""} ${remind ?? ""} ${type ?? ""} ${to?.join(",") ?? ""} ${data}`;

export function eventOf(seq: number, text: string): Event {
  const [at, expires, deadline, remind, type, to, data] = split(text, 6) as Seven;
  const [time, scheduled] = at.split(";", 2) as [string, string?];
  return {
    seq,
    at: Number(time),
    type: type === "" ? null : type,
    data,
    to: to === "" ? null : to.split(","),
    expires: numberOrNull(expires),
    deadline: numberOrNull(deadline),
    remind: numberOrNull(remind),
    ...(scheduled === undefined ? {} : { scheduled }),
  };
}

/** An event from the beginning of its entry, without `to` and data. */
export const eventHeadOf = (seq: number, text: string): Omit<Event, "to" | "data"> => eventOf(seq, `${text} `);

/**
 * `event device rank at deviceAt`; the script adds ` late outcome detail`. An entry of rank 0 says that its event is complete, with the outcome as
 * `done/failed`. Receipts stored by versions without such entries carry their event's outcome themselves.
 */
export const receiptHead = ({ event, device, status, deviceAt }: ReceiptDraft, at: number): string =>
  `${event.seq} ${device} ${rank(status)} ${at} ${deviceAt ?? ""}`;

export function receiptOf(seq: number, text: string): Receipt {
  const [event, device, status, at, deviceAt, late, rest] = split(text, 6) as Seven;
  const [outcome, detail] = split(rest, 1) as [string, string];
  const [done, failed] = outcome.split("/").map(Number) as [number, number];
  return {
    seq,
    event: Number(event),
    device,
    status: STATES[Number(status)]!,
    detail: detail === "" ? null : detail,
    at: Number(at),
    deviceAt: numberOrNull(deviceAt),
    late: late === "1",
    completes: outcome === "" ? null : { done, failed },
  };
}
