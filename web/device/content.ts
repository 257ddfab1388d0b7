/**
 * What a card says of an event, for somebody who serves at tables and knows nothing of JSON: a heading, a message, or the data as names and values.
 *
 * Values are shown as the publisher wrote them: numbers keep their digits, and a member that occurs twice is shown twice. So the text is read here, and
 * not parsed into JavaScript's values.
 */
import type { PushedEvent } from "../../clients/sdk/index.ts";

/** A part of the data: a text, a list, or names with values. */
export type Part =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "list"; readonly items: readonly Part[] }
  | { readonly kind: "members"; readonly members: readonly (readonly [name: string, value: Part])[] };

export interface Content {
  readonly title: string;
  readonly message: string | null;
  /** What there is beside the title, if there is no message. */
  readonly rest: Part | null;
}

/** A text that is longer than this is a message and not a heading. */
const TITLE_CHARACTERS_MAX = 80;

const WORDS: Readonly<Record<string, string>> = { true: "yes", false: "no", null: "–" };

/** Reads a JSON text. @param text a valid one */
export function partOf(text: string): Part {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g) ?? [];
  let at = 0;
  const read = (): Part => {
    const token = tokens[at++] ?? "";
    if (token === "{") {
      const members: [string, Part][] = [];
      while (at < tokens.length && tokens[at] !== "}") {
        const name = JSON.parse(tokens[at]!) as string;
        at += 2; // The name and the colon.
        members.push([name, read()]);
        if (tokens[at] === ",") at++;
      }
      at++;
      return { kind: "members", members };
    }
    if (token === "[") {
      const items: Part[] = [];
      while (at < tokens.length && tokens[at] !== "]") {
        items.push(read());
        if (tokens[at] === ",") at++;
      }
      at++;
      return { kind: "list", items };
    }
    return { kind: "text", text: token.startsWith('"') ? (JSON.parse(token) as string) : (WORDS[token] ?? token) };
  };
  return read();
}

/** A name in code as words: `orderNumber` and `order_number` are "Order number". Anything else stays as it is. */
export function wordsOf(name: string): string {
  if (!/^[A-Za-z][\w.-]*$/.test(name)) return name;
  const words = name
    .replace(/([a-z0-9])([A-Z])/g, "$1 $2")
    .replace(/[._-]+/g, " ")
    .trim();
  return words.charAt(0).toUpperCase() + words.slice(1).replace(/ [A-Z](?=[a-z])/g, (start) => start.toLowerCase());
}

/** What to show of an event. */
export function contentOf({ text, type }: PushedEvent): Content {
  const part = partOf(text);
  const kind = type === undefined ? null : wordsOf(type);
  if (part.kind === "text") {
    const isShort = part.text.length <= TITLE_CHARACTERS_MAX && !part.text.includes("\n") && part.text.trim() !== "";
    if (kind === null && isShort) return { title: part.text, message: null, rest: null };
    return { title: kind ?? "Message", message: part.text, rest: null };
  }
  if (part.kind === "list") return { title: kind ?? "Message", message: null, rest: part };
  const textAt = (...names: readonly string[]): string | null => {
    for (const wanted of names)
      for (const [name, value] of part.members)
        if (name === wanted && value.kind === "text" && value.text.trim() !== "") return value.text;
    return null;
  };
  const title = textAt("title");
  const message = textAt("message", "body");
  const members = part.members.filter(([name]) => title === null || name !== "title");
  const rest = message === null && members.length > 0 ? ({ kind: "members", members } as const) : null;
  return { title: title ?? kind ?? "Message", message, rest };
}

/** The content in one line, for a notification. */
export function lineOf({ message, rest }: Content): string {
  const line = (part: Part): string =>
    part.kind === "text"
      ? part.text
      : part.kind === "list"
        ? part.items.map(line).join(", ")
        : part.members.map(([name, value]) => `${wordsOf(name)}: ${line(value)}`).join(", ");
  return message ?? (rest === null ? "" : line(rest));
}

/** A duration in whole units: 40 s, 3 min, 2 h, 5 days. */
export function roughly(seconds: number): string {
  if (seconds < 60) return `${Math.max(1, Math.floor(seconds))} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)} h`;
  return `${Math.floor(seconds / 86_400)} days`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** "14:02", or with the date if that is not today. */
export function clockText(time: number, now: number): string {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date(now).toDateString();
  return isToday ? clock.format(date) : `${day.format(date)}, ${clock.format(date)}`;
}
