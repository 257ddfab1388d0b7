/**
 * How entries of the two logs are written in Redis: a few words, a space after each, and then the text that may hold spaces. A field that is
 * absent is empty. The data of an event is the publisher's own text, so it is written and read without a look inside.
 */
import { type Event, type EventDraft, rank, type Receipt, type ReceiptDraft, STATES } from "../model.ts";

/** The words before the last field, and that field. */
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

/** When an event is over, and how often it is sent again. */
type Times = Pick<Event, "expires" | "deadline" | "remind">;

/** `at expires deadline remind type to data` */
export const eventEntryText = (
  { type, to, data }: EventDraft,
  at: number,
  { expires, deadline, remind }: Times,
): string => `${at} ${expires ?? ""} ${deadline ?? ""} ${remind ?? ""} ${type ?? ""} ${to?.join(",") ?? ""} ${data}`;

export function eventOf(seq: number, text: string): Event {
  const [at, expires, deadline, remind, type, to, data] = split(text, 6) as Seven;
  return {
    seq,
    at: Number(at),
    type: type === "" ? null : type,
    data,
    to: to === "" ? null : to.split(","),
    expires: numberOrNull(expires),
    deadline: numberOrNull(deadline),
    remind: numberOrNull(remind),
  };
}

/**
 * `event device rank at deviceAt`; the script adds ` late outcome detail`. An entry of rank 0 says that its event is complete, with the outcome as
 * `done/failed`; words that were stored before such entries were have their event's outcome with them.
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
