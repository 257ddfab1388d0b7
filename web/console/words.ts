/**
 * Texts and formats: the six states with their signs, times, numbers, shell words and JSON.
 */
import type { State, Tally } from "./api.ts";

/** In the order of bars and legends: final states first. */
export const STATES = [
  "done",
  "failed",
  "missing",
  "working",
  "received",
  "pending",
] as const satisfies readonly State[];

/** The sign of each state, as a path in a box of 16, so that states differ by more than their colour. */
export const MARKS: Record<State, string> = {
  done: "M4 8.5 7 11.5 12.5 5",
  failed: "M5 5l6 6M11 5l-6 6",
  missing: "M8 3.5v5.5M8 12.2v.3",
  working: "M4 8h.01M8 8h.01M12 8h.01",
  received: "M8 3.5v8.5M4.8 9 8 12l3.2-3",
  pending: "",
};

export const MEANING: Record<State, string> = {
  done: "done: the device has done the work",
  failed: "failed: the work failed",
  missing: "missing: the deadline passed without a final receipt",
  working: "working: the device is working on it",
  received: "received: the device has the event",
  pending: "pending: no receipt yet",
};

/** How many final receipts are still owed, without missing ones. */
export const openOf = ({ pending, received, working }: Tally): number => pending + received + working;

/** "12 of 14 done, 1 failed, 1 pending" */
export function tallyText(tally: Tally, addressed: number): string {
  if (addressed === 0) return "addressed to no device";
  const rest = STATES.slice(1).filter((state) => tally[state] > 0);
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
