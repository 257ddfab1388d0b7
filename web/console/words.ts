/**
 * Texts and formats: the states with their signs, times, numbers, shell words and JSON.
 */
import type { Tally } from "./api.ts";

/** What pages say of a state. `kind`: trouble stands out, done is dimmed, open is still owed, over is neither. */
interface StateWords {
  readonly kind: "trouble" | "open" | "done" | "over";
  /** The sign, as a path in a box of 16, so that states differ by more than their colour. */
  readonly mark: string;
  readonly meaning: string;
}

/**
 * The states of a device on an event, in the order of bars and legends: trouble first. A new one is a line here, and a colour in `look.css`; until then
 * pages show it by its name.
 */
const WORDS = {
  failed: { kind: "trouble", mark: "M5 5l6 6M11 5l-6 6", meaning: "the work failed" },
  missing: { kind: "trouble", mark: "M8 3.5v5.5M8 12.2v.3", meaning: "the deadline passed without a final receipt" },
  deferred: { kind: "open", mark: "M8 4.2V8l2.6 1.6", meaning: "not now: the device gets it again later" },
  working: { kind: "open", mark: "M4 8h.01M8 8h.01M12 8h.01", meaning: "the device is working on it" },
  received: { kind: "open", mark: "M8 3.5v8.5M4.8 9 8 12l3.2-3", meaning: "the device has the event" },
  pending: { kind: "open", mark: "", meaning: "no receipt yet" },
  done: { kind: "done", mark: "M4 8.5 7 11.5 12.5 5", meaning: "the device has done the work" },
  withdrawn: { kind: "over", mark: "M4 8h8", meaning: "taken back: the device need not do it" },
} as const satisfies Record<string, StateWords>;

export type State = keyof typeof WORDS;
export const STATES = Object.keys(WORDS) as readonly State[];

/** Not a state of the service: a final receipt is owed for more than an hour, without a deadline. */
const OVERDUE: StateWords = {
  kind: "trouble",
  mark: "M8 4.2V8l2.6 1.6M8 2.6a5.4 5.4 0 1 0 .01 0",
  meaning: "no final receipt for more than an hour, and no deadline",
};

/** For a state that this page does not know: a question mark. */
const UNKNOWN: StateWords = {
  kind: "open",
  mark: "M5.7 6a2.3 2.3 0 1 1 3.5 2c-.8.5-1.2.9-1.2 1.8M8 12.3v.2",
  meaning: "a state that this page does not know",
};

/** What is said of a state, also of one that this page does not know. */
export const wordsOf = (state: string): StateWords =>
  (WORDS as Record<string, StateWords>)[state] ?? (state === "overdue" ? OVERDUE : UNKNOWN);
export const markOf = (state: string): string => wordsOf(state).mark;
/** "done: the device has done the work" */
export const meaningOf = (state: string): string => `${state}: ${wordsOf(state).meaning}`;

/** What a device said later than it should, or will say later. */
interface Again {
  readonly status: string;
  readonly round?: number;
  readonly attempt?: number;
  /** When a deferred event is sent again; absent: it was. */
  readonly due?: string | undefined;
}

/** "again 16:20:00, in 9 min, round 2, failed twice so far"; "" where there is nothing to say. */
export function againText({ status, round = 1, attempt = 0, due }: Again, now: number): string {
  const parts: string[] = [];
  if (status === "deferred") {
    const seconds = due === undefined ? 0 : (Date.parse(due) - now) / 1000;
    parts.push(seconds > 0 ? `again ${timeText(due!)}, in ${span(Math.ceil(seconds))}` : "sent again, no answer yet");
  }
  if (round > 1) parts.push(`round ${round}`);
  if (attempt > 1 || (attempt === 1 && status !== "failed"))
    parts.push(`failed ${["once", "twice"][attempt - 1] ?? `${attempt} times`}${status === "failed" ? "" : " so far"}`);
  return parts.join(", ");
}

/** Why an event was withdrawn, at the beginning of a sentence. */
const ENDINGS: Readonly<Record<string, string>> = {
  withdrawn: "Withdrawn",
  superseded: "Replaced by a newer event",
  met: "Over: enough devices did it",
  unmet: "Over: too few devices can still do it",
};
export const endingText = (reason: string): string => ENDINGS[reason] ?? `Withdrawn (${reason})`;

/** The states that a tally names, in the order of `STATES`; those that this page does not know are last. */
export const statesOf = (tally: Tally): State[] => {
  const named = Object.keys(tally) as State[];
  return [...STATES.filter((state) => named.includes(state)), ...named.filter((state) => !STATES.includes(state))];
};
/** The states that devices are in. */
export const statesIn = (tally: Tally): State[] => statesOf(tally).filter((state) => tally[state] > 0);

/** How many final receipts are still owed, without missing ones. */
export const openOf = (tally: Tally): number =>
  statesIn(tally).reduce((sum, state) => (wordsOf(state).kind === "open" ? sum + tally[state] : sum), 0);

/** "site:rome, beta:1" */
export const tagsText = (tags: Readonly<Record<string, string>>): string =>
  Object.entries(tags)
    .map(([name, value]) => `${name}:${value}`)
    .join(", ");

/** "12 of 14 done, 1 failed, 1 pending" */
export function tallyText(tally: Tally, addressed: number): string {
  if (addressed === 0) return "addressed to no device";
  const rest = statesIn(tally).filter((state) => state !== "done");
  return [`${tally.done} of ${addressed} done`, ...rest.map((state) => `${tally[state]} ${state}`)].join(", ");
}

const plain = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** Formats a number: 12,345; large ones as 1.2M. */
export const count = (value: number): string => (value < 100_000 ? plain : short).format(value);

/** "1 device", "2 devices" */
export const some = (value: number, word: string): string => `${count(value)} ${word}${value === 1 ? "" : "s"}`;

/** Formats seconds: 4 ms, 1.2 s, 3 min. */
export function span(seconds: number): string {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3_600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** "3 min ago". */
export function ago(time: string, now: number): string {
  const seconds = (now - Date.parse(time)) / 1000;
  return seconds < 5 ? "just now" : `${span(seconds)} ago`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** Formats a time: only the time if it is today, else with the date. */
export function timeText(time: string): string {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`;
}

/** Quotes a text as one word of a POSIX shell. */
export const shellWord = (text: string): string =>
  /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;

/** Parses JSON. A number that JavaScript would round keeps its digits when it is serialized again, if the browser supports it (Safari 18.4, Chrome 114, Firefox 135). */
export function exactJson(text: string): unknown {
  const { rawJSON } = JSON as { rawJSON?: (text: string) => unknown };
  if (!rawJSON) return JSON.parse(text);
  const keep = (_: string, value: unknown, context?: { source?: string }): unknown =>
    typeof value === "number" && context?.source && context.source !== `${value}` ? rawJSON(context.source) : value;
  return JSON.parse(text, keep);
}

/** Formats JSON for reading, on several lines or on one. Numbers, keys and strings stay unchanged. */
export function prettyJson(text: string, isOnOneLine = false): string {
  let depth = 0;
  let pretty = "";
  const line = (): string => (isOnOneLine ? "" : `\n${"  ".repeat(depth)}`);
  for (const [part] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{[]\s*[}\]]|[{}[\],:]|[^\s"{}[\],:]+/g)) {
    if (part === "{" || part === "[") {
      depth++;
      pretty += part + line();
    } else if (part === "}" || part === "]") {
      depth--;
      pretty += line() + part;
    } else if (part === ",") pretty += part + line();
    else if (part === ":") pretty += isOnOneLine ? part : ": ";
    else pretty += /^[{[]/.test(part) ? part.replace(/\s+/, "") : part;
  }
  return pretty;
}

/** Members of a detail that say why, in this order. */
const REASONS = ["reason", "error", "message", "title", "detail"];
const REASON_CHARACTERS = 160;

/** What a device said with its receipt. */
interface Said {
  /** A reason if there is one, else the whole as JSON. */
  readonly text: string;
  /** The other members beside the reason. */
  readonly rest: Readonly<Record<string, unknown>>;
}

/** Null: the device said nothing. */
export function saidOf(detail: unknown): Said | null {
  if (detail === null || detail === undefined) return null;
  if (typeof detail === "string") return { text: detail, rest: {} };
  if (typeof detail === "object" && !Array.isArray(detail)) {
    const members = detail as Record<string, unknown>;
    const name = REASONS.find((one) => typeof members[one] === "string" && members[one] !== "");
    if (name !== undefined) {
      const { [name]: reason, ...rest } = members;
      return { text: reason as string, rest };
    }
  }
  return { text: JSON.stringify(detail), rest: {} };
}

/** What a device said with its receipt, as a short text: a reason if there is one, else the JSON; null: nothing. */
export function reasonOf(detail: unknown): string | null {
  const text = saidOf(detail)?.text ?? null;
  return text !== null && text.length > REASON_CHARACTERS ? `${text.slice(0, REASON_CHARACTERS - 1)}…` : text;
}

/**
 * A text right before a name, in the order of names: to page to exactly this one. Names have the characters of `[A-Za-z0-9._:~-]`, of which `-` is
 * the first and `~` the last.
 */
export function justBefore(name: string): string {
  const rest = name.slice(0, -1);
  const last = name.slice(-1);
  return last === "-" ? rest : `${rest}${String.fromCharCode(last.charCodeAt(0) - 1)}~~~~`;
}
