/**
 * The format of log entries in Redis: some fields, each followed by a space, and a last field that may contain spaces. An absent field is empty. An
 * event's data is the publisher's own text and is stored and read without parsing.
 */
import {
  END_REASONS,
  type Event,
  type EventDraft,
  type EventNote,
  freshTally,
  type LogEntry,
  type Receipt,
  STATES,
  type Tally,
  type Withdrawal,
} from "../model.ts";

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

/**
 * `at expires deadline remind type to data`. Behind `at`, each after a semicolon, is what few events have: the id of the schedule, `k=` the key, `a=`
 * the attempts, `g=` the event that it repeats, `q=` its where.
 */
export const eventEntryText = (
  { type, to, data, key, attempts, again, where }: EventDraft,
  at: number,
  { expires, deadline, remind }: Times,
  scheduled?: string,
): string =>
  `${at}${scheduled === undefined ? "" : `;${scheduled}`}${key === null ? "" : `;k=${key}`}${attempts === null ? "" : `;a=${attempts}`}` +
  `${again === undefined ? "" : `;g=${again}`}${where === null ? "" : `;q=${where}`} ` +
  `${expires ?? ""} ${deadline ?? ""} ${remind ?? ""} ${type ?? ""} ${to?.join(",") ?? ""} ${data}`;

/** An event; whether it was withdrawn is not part of its entry. */
export function eventOf(seq: number, text: string): Event {
  const [time, expires, deadline, remind, type, to, data] = split(text, 6) as Seven;
  const [at, ...options] = time.split(";") as [string, ...string[]];
  const optionOf = (name: string): string | null =>
    options.find((option) => option.startsWith(name))?.slice(name.length) ?? null;
  const scheduled = options.length === 0 ? null : optionOf("s-");
  const again = options.length === 0 ? null : optionOf("g=");
  return {
    seq,
    at: Number(at),
    type: type === "" ? null : type,
    data,
    to: to === "" ? null : to.split(","),
    expires: numberOrNull(expires),
    deadline: numberOrNull(deadline),
    remind: numberOrNull(remind),
    key: options.length === 0 ? null : optionOf("k="),
    attempts: options.length === 0 ? null : numberOrNull(optionOf("a=") ?? ""),
    where: options.length === 0 ? null : optionOf("q="),
    withdrawn: null,
    ...(scheduled === null ? {} : { scheduled: `s-${scheduled}` }),
    ...(again === null ? {} : { again: Number(again) }),
  };
}

/** How an event was withdrawn: `seq at reason by note`. */
export function withdrawalOf(text: string): Withdrawal {
  const [seq, at, reason, by, note] = split(text, 4) as [string, string, string, string, string];
  return {
    seq: Number(seq),
    at: Number(at),
    reason: END_REASONS[Number(reason) - 1]!,
    by: numberOrNull(by),
    note: note === "" ? null : note,
  };
}

/**
 * An entry of the events log. A control entry has `at;w=<event>;r=<reason>;b=<by>;n=<whether a device had given a word>`, and `;q` if its event has a where, the times and names of its
 * event, and the note in place of the data.
 */
export function logEntryOf(seq: number, text: string): LogEntry {
  const control = /^(\d+);w=(\d+);r=(\d);b=(\d*);n=(\d)(;q)? (\d*) {4}(\S*) /.exec(text);
  if (!control) return eventOf(seq, text);
  const [head, at, event, reason, by, answered, where, expires, to] = control as unknown as readonly string[];
  return {
    ...withdrawalOf(`${seq} ${at} ${reason} ${by} ${text.slice(head!.length)}`),
    withdraws: Number(event),
    to: to === "" ? null : to!.split(","),
    expires: numberOrNull(expires!),
    hasWhere: where !== undefined,
    isAnswered: answered === "1",
  };
}

/** An event from the beginning of its entry, without `to` and data. */
export const eventHeadOf = (seq: number, text: string): Omit<Event, "to" | "data"> => eventOf(seq, `${text} `);

/** The counts of a tally as the scripts give them. */
type Counts = [number, number, number, number, number, number, number, number, number];

export function tallyOf(counts: readonly number[]): Tally {
  const [addressed, received, working, missing, done, failed, deferred, withdrawn, isOver] = counts as Counts;
  return { addressed, received, working, deferred, missing, done, failed, withdrawn, isOver: isOver === 1 };
}

const KINDS = { c: "complete", s: "settled", w: "withdrawn" } as const;

/** @param outcome in entries of earlier versions `done/failed`; else a letter for the kind, and the tally */
function noteOf(outcome: string, detail: string): EventNote {
  const old = /^(\d+)\/(\d+)$/.exec(outcome);
  if (old) {
    const [done, failed] = [Number(old[1]), Number(old[2])];
    return { kind: "complete", tally: { ...freshTally(done + failed), done, failed } };
  }
  const kind = KINDS[outcome[0] as keyof typeof KINDS];
  const tally = tallyOf(outcome.slice(1).split(",").map(Number));
  return kind === "withdrawn" ? { kind, tally, withdrawal: withdrawalOf(detail) } : { kind, tally };
}

/**
 * `event device code at deviceAt late outcome detail`. `late` says why, 0: it is not. An entry of code 0 is a note on its event: `outcome` is its kind
 * and the tally. Of a receipt it is `r<round>.<failures>`, unless these are the usual ones. Receipts stored by the first versions carry there what the
 * note `complete` says now.
 */
export function receiptOf(seq: number, text: string): Receipt {
  const [event, device, code, at, deviceAt, late, rest] = split(text, 6) as Seven;
  const [outcome, detail] = split(rest, 1) as [string, string];
  const status = STATES[Number(code)]!;
  const rounds = /^r(\d+)\.(\d+)$/.exec(outcome);
  const isNote = outcome !== "" && !rounds;
  return {
    seq,
    event: Number(event),
    device,
    status,
    detail: detail === "" || status === "pending" ? null : detail,
    at: Number(at),
    deviceAt: numberOrNull(deviceAt),
    late: late !== "0",
    round: rounds ? Number(rounds[1]) : 1,
    attempt: rounds ? Number(rounds[2]) : status === "failed" ? 1 : 0,
    note: isNote ? noteOf(outcome, detail) : null,
  };
}
