/**
 * A push before it is sent: what was typed, the request and the `curl` command for it, and what this tab pushed lately.
 */
import { signal } from "@preact/signals";
import { addressOf, Refused, request } from "./api.ts";
import { readEvent, readRows } from "./event-data.ts";
import { queryOf } from "./floor.ts";
import { NOW, timingOf, type When } from "./push-when.ts";
import { NOT_DONE, type States } from "./verdict.ts";
import { shellWord } from "./words.ts";

/** Names that one push can address; the service's limit. */
export const TO_MAX = 1_000;
/** Pushes that a tab remembers. */
const RECENT_MAX = 10;
const RECENT = "pere.pushed";

/** What was typed. Options are texts; empty ones are not sent. */
export interface Draft {
  /** The event's data as JSON. */
  readonly text: string;
  /** null: all enrolled devices. */
  readonly to: readonly string[] | null;
  /** Terms on tags; not together with names. */
  readonly where: string;
  /** Seconds; "": none. */
  readonly deadline: string;
  readonly type: string;
  readonly remind: string;
  readonly ttl: string;
  /** Seconds to wait for receipts; "": not at all. */
  readonly wait: string;
  /** What the event is about: it replaces the older ones with the same key. */
  readonly key: string;
  /** How often a device may try; "": once. */
  readonly attempts: string;
  readonly when: When;
}

export const NEW_DRAFT: Draft = {
  text: '{"order": "A-1001", "table": 7}',
  to: null,
  where: "",
  deadline: "300",
  type: "",
  remind: "",
  ttl: "",
  wait: "",
  key: "",
  attempts: "",
  when: NOW,
};

/** The answer to a push for later. `next`: when it is due first, ISO time. */
export interface Scheduled {
  readonly id: string;
  readonly next: string;
}

/** The answer to a push. */
export interface Pushed {
  readonly id: string;
  readonly audience: { readonly addressed: number; readonly connected: number };
  readonly receipts?: States;
  readonly warnings?: readonly string[];
}

/** Why a text is not JSON, with the place if it is known; "": it is JSON. */
export function jsonFault(text: string): string {
  if (text.trim() === "") return "Type one JSON value: an object, an array, a string in quotes or a number.";
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}

/** The path, query and headers of a push. @throws if an option can't be encoded: without it, it would be another push */
function requestOf(channel: string, draft: Draft) {
  const { type, to, where, deadline, remind, ttl, wait, key, attempts, when } = draft;
  const options: [string, string][] = [
    ["type", type],
    ["to", to === null ? "" : to.join(",")],
    ["where", where],
    ["deadline", deadline],
    ["remind", remind],
    ["ttl", ttl],
    ["key", key],
    ["attempts", attempts],
    ...timingOf(when),
  ];
  // An empty list of names would address everybody.
  if (to?.length === 0) throw new Error("no device is named");
  const headers: Record<string, string> = { "Content-Type": "application/json" };
  if (wait !== "") headers.Prefer = `wait=${wait}`;
  return { path: `/push/${channel}${queryOf(options.filter(([, value]) => value !== ""))}`, headers };
}

/** The command for a POSIX shell. @param needsToken adds the variable that holds the token */
export function curlText(channel: string, draft: Draft, needsToken: boolean): string {
  try {
    const { path, headers } = requestOf(channel, draft);
    const named = Object.entries(headers).map(([name, value]) => shellWord(`${name}: ${value}`));
    if (needsToken) named.unshift('"Authorization: Bearer $PERE_TOKEN"');
    const lines = [
      `curl -X POST ${shellWord(addressOf(path))}`,
      ...named.map((header) => `  -H ${header}`),
      `  --data-raw ${shellWord(draft.text)}`,
    ];
    return lines.join(" \\\n");
  } catch (error) {
    return `The command can't be shown: ${(error as Error).message}.`;
  }
}

/**
 * The key with which the last push was sent whose outcome is unknown. The same push is sent with the same key again, so that it is stored once.
 */
let unknown: { readonly key: string; readonly content: string } | null = null;

export const newKey = (): string =>
  [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("-");

/** Sends a push. @returns the answer; null: there was none, and it may or may not have been stored @throws Refused; Error: nothing was sent */
export async function send(channel: string, draft: Draft): Promise<Pushed | Scheduled | null> {
  const { path, headers } = requestOf(channel, draft);
  const content = `${path}\n${draft.text}`;
  const key = unknown?.content === content ? unknown.key : newKey();
  unknown = { key, content };
  try {
    const answer = (await (
      await request(path, { method: "POST", headers: { ...headers, "Idempotency-Key": key }, body: draft.text })
    ).json()) as Partial<Pushed & Scheduled> | null;
    const isPushed = typeof answer?.audience?.addressed === "number";
    if (typeof answer?.id === "string" && (isPushed || typeof answer.next === "string")) {
      unknown = null;
      remember({ channel, id: answer.id, at: new Date().toISOString(), draft });
      return answer as Pushed | Scheduled;
    }
  } catch (error) {
    // A proxy's refusal says nothing about what PERE did.
    if (error instanceof Refused && error.isOurs && error.status < 500) {
      unknown = null;
      throw error;
    }
    if (error instanceof Refused) throw error;
  }
  return null;
}

/** An event to push again to the devices that did not do it. */
export interface Again {
  readonly draft: Draft;
  /** All devices that did not do it; the draft names at most `TO_MAX` of them. */
  readonly notDone: number;
}

/** @throws Refused; TypeError: there was no answer */
export async function againOf(channel: string, id: string, signal: AbortSignal): Promise<Again> {
  const event = await readEvent(channel, id, signal);
  const { receipts } = await readRows(channel, id, NOT_DONE, "", TO_MAX, signal);
  const seconds =
    event.deadline === undefined ? "" : String((Date.parse(event.deadline) - Date.parse(event.at)) / 1000);
  const notDone = NOT_DONE.reduce((total, state) => total + (event.receipts[state] ?? 0), 0);
  const to = receipts.map(({ device }) => device);
  const attempts = event.attempts === undefined ? "" : String(event.attempts);
  const same = { text: event.text, type: event.type ?? "", attempts, deadline: seconds };
  return { draft: { ...NEW_DRAFT, ...same, to }, notDone };
}

// ---------------------------------------------------------------------------------------------------------------------- pushed lately

export interface Recent {
  readonly channel: string;
  readonly id: string;
  readonly at: string;
  readonly draft: Draft;
}

/** Newest first. They stay with the tab, also through a reload, where the browser allows it. */
export const recents = signal<readonly Recent[]>(readRecents());

function readRecents(): readonly Recent[] {
  try {
    const kept = JSON.parse(sessionStorage.getItem(RECENT) ?? "[]") as Recent[];
    return kept
      .filter(({ channel, id, at, draft }) => channel && id && at && typeof draft.text === "string")
      .map((one) => ({ ...one, draft: { ...NEW_DRAFT, ...one.draft } }));
  } catch {
    return [];
  }
}

function remember(recent: Recent): void {
  recents.value = [recent, ...recents.peek()].slice(0, RECENT_MAX);
  try {
    sessionStorage.setItem(RECENT, JSON.stringify(recents.peek()));
  } catch {
    // Storage is full or not allowed; the list then ends with the page.
  }
}

/** Names in a text: separated by commas, spaces or lines. */
export const namesOf = (text: string): string[] => text.split(/[\s,;]+/).filter((name) => name !== "");

const DEVICE = /^[A-Za-z0-9._:~-]{1,128}$/;
export const isDevice = (name: string): boolean => DEVICE.test(name);
