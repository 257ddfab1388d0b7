/**
 * PERE's API as the console uses it: the types of answers, requests, and the event stream `GET /watch`. It knows no page.
 *
 * A pasted token stays with the tab, in `sessionStorage`, also through a reload: it is sent in a header, never in a URL, and is gone with the tab. If
 * the printed link has set a cookie, the browser sends that by itself.
 */
import type { Early } from "./early.ts";
import { createParser } from "eventsource-parser";
import type { State } from "./words.ts";

export type { State };
/** A tally may have states that this page does not know, and lack some that it knows. */
export type Tally = Readonly<Record<State, number>>;

export interface ChannelState {
  readonly channel: string;
  readonly events: number;
  readonly devices: number;
  readonly connected: number;
  readonly last: string | null;
  readonly open: number | null;
  readonly missing: number | null;
}
export interface Counts {
  readonly pushes: number;
  readonly deliveries: number;
  readonly receipts: Readonly<Record<"received" | "working" | "deferred" | "done" | "failed", number>>;
  readonly latency: { readonly p50: number; readonly p99: number } | null;
}
export interface Overview {
  readonly channels: readonly ChannelState[];
  readonly more: boolean;
  /** Of all channels; null: not counted yet. `at`: when they were counted, null: now. */
  readonly totals: {
    readonly channels: number;
    readonly devices: number;
    readonly connected: number;
    readonly at: string | null;
  } | null;
  readonly counts: Counts;
}
export interface EventHead {
  readonly id: string;
  readonly seq: number;
  readonly at: string;
  readonly type: string | null;
  readonly deadline: string | null;
  readonly key: string | null;
  /** Why it was withdrawn; null: it was not. */
  readonly withdrawn: string | null;
  readonly addressed: number;
  readonly receipts: Tally;
  readonly complete: boolean;
}
export interface Changes {
  readonly channel: string;
  readonly reset: boolean;
  readonly more: boolean;
  readonly events: readonly EventHead[];
  /** Ids of events that were withdrawn. */
  readonly withdrawn: readonly string[];
  readonly tallies: readonly { readonly id: string; readonly receipts: Tally }[];
  readonly receipts: readonly {
    readonly event: string;
    readonly device: string;
    readonly status: State;
    readonly at: string;
    readonly late: boolean;
    readonly round: number;
  }[];
}
export interface Row {
  readonly device: string;
  readonly status: State;
  readonly detail: unknown;
  readonly at: string | null;
  readonly deviceAt: string | null;
  readonly late: boolean;
  /** How often the event was sent to the device, from 1. */
  readonly round: number;
  /** The device's failures so far. */
  readonly attempt: number;
  /** When it is sent again, if it is deferred until then. */
  readonly due?: string;
}
export interface Device {
  readonly device: string;
  readonly enrolledAt: string;
  readonly connected: boolean;
  /** Of its open feeds. */
  readonly addresses?: readonly string[];
  readonly seenAt: string | null;
  readonly pending: number;
  readonly tags: Readonly<Record<string, string>>;
}

/** A refused request, with the message of the problem document if it is PERE's. */
export class Refused extends Error {
  readonly status: number;
  /** Whether PERE refused it, and not a proxy in front of it. */
  readonly isOurs: boolean;
  /** The invalid fields, each with a message for people. */
  readonly faults: readonly Fault[];
  constructor(status: number, message: string, isOurs: boolean, faults: readonly Fault[] = []) {
    super(message);
    this.status = status;
    this.isOurs = isOurs;
    this.faults = faults;
  }
}

/** A field that was refused: a query option, a header or a member of the body. */
export interface Fault {
  readonly path: string;
  readonly message: string;
}

const isFault = (fault: unknown): fault is Fault =>
  typeof (fault as Fault | null)?.path === "string" && typeof (fault as Fault).message === "string";

/** What went wrong with a request, as a sentence. */
export function troubleText(error: unknown): string {
  if (error instanceof TypeError) return "The service can't be reached.";
  const text = error instanceof Error ? error.message : String(error);
  const sentence = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
}

/** Where the tab keeps the pasted token. */
const TOKEN_KEY = "pere.token";

/** The tab's storage; null: the browser has none, or refuses it. */
function storage(): Storage | null {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

let pasted: string | null = storage()?.getItem(TOKEN_KEY) ?? null;

/** Whether there is a pasted token. */
export const hasToken = (): boolean => pasted !== null;

/** Sends this token from now on, and keeps it with the tab; null: none. @returns whether a reload keeps it */
export function useToken(token: string | null): boolean {
  pasted = token;
  try {
    if (token === null) storage()?.removeItem(TOKEN_KEY);
    else storage()?.setItem(TOKEN_KEY, token);
  } catch {
    // Full, or not allowed: then it is in memory only.
  }
  return storage()?.getItem(TOKEN_KEY) === token;
}

const headersOf = (more: Record<string, string>): Record<string, string> => ({
  ...more,
  ...(pasted === null ? {} : { Authorization: `Bearer ${pasted}` }),
});

/** The error for an unsuccessful answer: the problem document's message, else the status. */
async function refusal(response: Response): Promise<Refused> {
  const problem = (await response.json().catch(() => null)) as {
    type?: unknown;
    detail?: unknown;
    errors?: unknown;
  } | null;
  const isOurs = typeof problem?.type === "string" && problem.type.startsWith("urn:pere:");
  const detail = typeof problem?.detail === "string" && isOurs ? problem.detail : `the answer was ${response.status}`;
  const faults = isOurs && Array.isArray(problem?.errors) ? problem.errors.filter(isFault) : [];
  return new Refused(response.status, detail, isOurs, faults);
}

/** The URL of a path of the service, which a proxy may serve under a path prefix. */
export const addressOf = (path: string): string => new URL(`.${path}`, location.href).href;

/** The answer that `early.ts` has asked for, if it is for the same path; it is taken once. */
function earlyAnswer(path: string, signal: AbortSignal | null | undefined): Promise<Response> | null {
  if (!path.startsWith("/watch")) return null;
  const place = globalThis as { pereEarly?: Early | null };
  const early = place.pereEarly ?? null;
  place.pereEarly = null; // If that script comes later than this one, it asks for nothing.
  if (early === null) return null;
  if (early.path !== path || hasToken()) {
    early.end.abort();
    return null;
  }
  signal?.addEventListener("abort", () => early.end.abort());
  return early.answer;
}

/** Sends a request. @throws Refused; TypeError: there was no answer */
export async function request(path: string, init: RequestInit & { headers?: Record<string, string> } = {}) {
  const asked = () => fetch(addressOf(path), { cache: "no-store", ...init, headers: headersOf(init.headers ?? {}) });
  const response = await (earlyAnswer(path, init.signal) ?? asked());
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Checks that an answer has these lists. @throws Error: it does not come from PERE */
export function withLists<Answer>(answer: unknown, names: readonly string[]): Answer {
  const members = (typeof answer === "object" && answer !== null ? answer : {}) as Record<string, unknown>;
  if (names.every((name) => Array.isArray(members[name]))) return answer as Answer;
  throw new Error("the answer does not come from PERE");
}

/** Reads JSON. @param list a list that the answer must have @throws Refused; Error: it does not come from PERE; TypeError: there was no answer */
export const read = async <Answer>(path: string, list: string, signal?: AbortSignal): Promise<Answer> =>
  withLists<Answer>(await (await request(path, signal ? { signal } : {})).json(), [list]);

/** Receives what happens on the stream. */
export interface Ear {
  /** There was a sign of life. The service sends one at least every 2 s. */
  heard(): void;
  overview(body: Overview): void;
  changes(body: Changes): void;
  /** Something else needs attention. */
  trouble(body: object): void;
  /** The store is away; the next overview means that it is back. */
  away(why: string): void;
  /** The stream was lost, and is opened again after this many milliseconds. */
  lost(why: string, againMs: number): void;
  /** Refused for good: a retry would not help. */
  refused(why: Refused): void;
}

/** A stream that is silent for this long is dead, and is opened again. Services of before sent a comment only every 15 s. */
const DEAD_MS = 20_000;
/** The default delay before a reconnect, and the bounds of what the service may ask for. */
const RETRY_MS = 2_000;
const RETRY_MS_MIN = 500;
const RETRY_MS_MAX = 600_000;

/** Watches the overview, and one channel if given, until `signal`. Reconnects by itself. */
export async function watch(channel: string | null, ear: Ear, signal: AbortSignal): Promise<void> {
  let retryMs = RETRY_MS;
  const parser = createParser({
    onRetry: (ms) => void (ms <= RETRY_MS_MAX && (retryMs = Math.max(ms, RETRY_MS_MIN))),
    onEvent({ event, data }) {
      const body = JSON.parse(data) as unknown;
      if (event === "pere.overview") ear.overview(withLists(body, ["channels"]));
      else if (event === "pere.changes") ear.changes(withLists(body, ["events", "tallies", "receipts"]));
      else if (event === "pere.trouble") ear.trouble(body as object);
      else if (event === "pere.away") ear.away((body as { detail: string }).detail);
    },
  });
  while (!signal.aborted) {
    let why = "the service can't be reached";
    try {
      await listen(
        `/watch${channel === null ? "" : `?channel=${channel}`}`,
        (text) => (ear.heard(), parser.feed(text)),
        signal,
      );
      why = "the service closed the stream";
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.isOurs && error.status < 500 && error.status !== 429)
        return ear.refused(error);
      if (error instanceof Refused) why = error.message;
    }
    parser.reset();
    ear.lost(why, retryMs);
    await sleep(retryMs, signal);
  }
}

/** Reads a stream until it ends or is dead. */
async function listen(path: string, take: (text: string) => void, signal: AbortSignal): Promise<void> {
  const ended = new AbortController();
  const end = (): void => ended.abort();
  let timer = setTimeout(end, DEAD_MS);
  signal.addEventListener("abort", end);
  try {
    const response = await request(path, { signal: ended.signal });
    if (!/^text\/event-stream/.test(response.headers.get("content-type") ?? ""))
      throw new Error("the answer does not come from PERE");
    const reader = response.body!.getReader();
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(end, DEAD_MS);
      take(decoder.decode(value, { stream: true }));
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
    ended.abort();
  }
}

/** Waits, at most until the signal. */
const sleep = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()));
  });
