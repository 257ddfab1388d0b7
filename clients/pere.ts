/**
 * The SDK: what a program needs to be a device or a publisher of PERE, in one file with no dependency, for browsers, Bun, Node ≥ 20 and Deno.
 *
 *   listen({ url, channels, device, token, onEvent })    a device: works on each event, and gives its receipts
 *   publish(url, channel, data, options)                 pushes an event; repeated until it was answered, stored once
 *   receipts({ url, channel })                           what the devices say, as it comes
 *
 * A network may do anything to it: cut, stall, hold answers back, answer in the service's stead. Three habits carry all of it. A feed is followed from
 * the last position that it told, by whatever gets through: SSE, else a WebSocket, else long-polls. An event is known by its id, and
 * worked on once, however often it comes. A receipt stays in the outbox until the service has answered for it.
 *
 * A named device that starts asks for no position: the service then gives it what it still owes, and that is the truth. What is
 * remembered on its side is only which of those events it has finished, until the service has that too.
 *
 * It never takes an answer for the service's that is not one (a hotel's page, a proxy's error): each field is checked before it is believed. It never
 * runs `onEvent` for a finished id, never drops a receipt on its own account, says `failed` only where `onEvent` threw, and asks nobody but `url`.
 *
 * The oldest browsers that it runs in are Safari 15.4, Chrome 94 and Firefox 100. What they lack is not used, or is done without.
 */

// ------------------------------------------------------------------------------------------------------------ what is said

/** An event as a device gets it. `data` is what its publisher sent. */
export interface PushedEvent<Data = unknown> {
  readonly id: string;
  readonly channel: string;
  readonly seq: number;
  /** ISO 8601, as `deadline`. */
  readonly at: string;
  readonly type?: string;
  /** By when a final receipt is owed. */
  readonly deadline?: string;
  readonly data: Data;
  /** `data` as its publisher wrote it: with the numbers that JavaScript would round, and with keys that stand there twice. */
  readonly text: string;
}

/** What a device says of an event, forwards only; `done` and `failed` are final. */
export type Word = "received" | "working" | "done" | "failed";

/** A device's word on an event, as it goes out. */
export interface Receipt {
  readonly event: string;
  readonly channel: string;
  readonly status: Word;
  /** Any JSON of at most 4 KiB. */
  readonly detail?: unknown;
  /** The device's own clock, ISO 8601. */
  readonly at: string;
}

/** Events between `after` and `from` are no longer kept, or belong to a log that was lost. */
export interface Gap {
  readonly channel: string;
  readonly after: string;
  readonly from: string;
}

/** How often each word was said on an event; they add up to the devices that it was addressed to. */
export type Tally = Readonly<Record<"pending" | Word | "missing", number>>;

export type Transport = "sse" | "websocket" | "longpoll";

/** A JWT, or a function that gives one; it is asked again before its `exp`, and when the service refuses it. Blanks around it do no harm. */
export type Token = string | (() => string | Promise<string>);

/** The service said no, and will say it again. */
export class PereError extends Error {
  override readonly name = "PereError";
  /** The HTTP status. */
  readonly status: number;
  /** The problem document (RFC 9457), or what else came. */
  readonly problem: unknown;

  constructor(status: number, message: string, problem: unknown) {
    super(message);
    this.status = status;
    this.problem = problem;
  }
}

// ------------------------------------------------------------------------------------------------------------------ limits

/** Receipts in one request: the service's limit. */
const RECEIPTS_MAX = 1_000;
/** Lines in one batch: the service's limit. */
const LINES_MAX = 1_000;
/** Channels of one feed: the service's limit. */
const CHANNELS_MAX = 16;
/** A receipt's detail: the service's limit, in bytes of UTF-8; and how deep it may nest, well within the service's 64. */
const DETAIL_BYTES_MAX = 4_096;
const DETAIL_DEPTH_MAX = 32;
/** Finished events that are remembered after the service has their receipts. It gives those to nobody again, so the last ones are enough. */
const SETTLED_MAX = 2_000;
/** Events that may wait for `onEvent`; beyond that the feed is left unread until half of them are gone. */
const WAITING_MAX = 1_000;
/** Seconds for which a long-poll may wait: proxies cut after 30. */
const POLL_SECONDS = 25;
/** Characters of a line of an event stream. An event is at most 64 KiB, so a longer one is no event of ours. */
const LINE_CHARACTERS_MAX = 1024 * 1024;
/** The longest that a timer can be set for. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** A longer pause than this is not believed, whoever asks for it; and no connection is opened sooner than this after the last. */
const ASKED_MS_MAX = 3_600_000;
const RETRY_MS_MIN = 50;
/** Redirects that are followed in a row. */
const REDIRECTS_MAX = 5;
/** Characters of an error's text. */
const SENTENCE_CHARACTERS_MAX = 500;
/** A tab that waits for its turn is shown to be elsewhere after this, and asks the leading tab for a sign of life as often. */
const ELSEWHERE_MS = 250;
const QUESTION_MS = 2_000;

/** Times in milliseconds; the defaults are right for the internet, tests want them shorter. */
export interface Timing {
  /** Without a first byte, or a socket's first word, for so long: it does not come through this way. */
  readonly firstByteMs: number;
  /** A feed this quiet is dead: the service says something every 15 s. */
  readonly silentMs: number;
  /** After this, SSE is tried again by who had to do without; twice as long each time, up to sixteenfold. */
  readonly againMs: number;
  /** What one request may take, beside what it waits for. */
  readonly requestMs: number;
  /** The longest pause between two attempts, where the service asks for no longer one. */
  readonly pauseMsMax: number;
  /** For so long receipts are gathered before they go out together. */
  readonly gatherMs: number;
  /** At the end, receipts that are unsent and events that are open have so long. */
  readonly flushMs: number;
  /** A tab that has the connection, is asked and gives no sign of life for so long is replaced by another tab. */
  readonly leaderMs: number;
}

export const TIMING: Timing = {
  firstByteMs: 5_000,
  silentMs: 40_000,
  againMs: 60_000,
  requestMs: 15_000,
  pauseMsMax: 30_000,
  gatherMs: 25,
  flushMs: 5_000,
  leaderMs: 15_000,
};

/** The part of a WebSocket that is used here; the browser's, Bun's, Deno's, Node 22's and npm `ws`'s all have it. */
export interface SocketLike {
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

/** What any part of the SDK is given to reach the service, and to be held in tests. */
export interface ConnectionOptions {
  /** Where PERE is, such as `https://pere.example`; a path before its own is kept. A query, a name with a password, or no address is a TypeError. */
  readonly url: string;
  readonly token?: Token | undefined;
  /** Ends it. */
  readonly signal?: AbortSignal | undefined;
  readonly fetch?: ((url: string, init: RequestInit) => Promise<Response>) | undefined;
  /** Null: there is none. Without it the global one is taken, where there is one. */
  readonly WebSocket?: (new (url: string, protocols: string[]) => SocketLike) | null | undefined;
  /** From 0 up to 1. */
  readonly random?: (() => number) | undefined;
  /** Milliseconds since 1970: for what is shown and sent. */
  readonly now?: (() => number) | undefined;
  /** Milliseconds of a clock that is never set: for all that takes time. */
  readonly monotonic?: (() => number) | undefined;
  /** Runs something after so many milliseconds. Returns what calls that off. */
  readonly setTimer?: ((run: () => void, ms: number) => () => void) | undefined;
  readonly timing?: Partial<Timing> | undefined;
  /** Told why, each time that something went wrong and is tried again. */
  readonly onTrouble?: ((why: string) => void) | undefined;
  /** Reads what comes: one event, an array of them or a message of the service. Another one may keep numbers that JavaScript would round. */
  readonly parse?: ((text: string) => unknown) | undefined;
}

// ------------------------------------------------------------------------------------------------------------ small things

type SetTimer = NonNullable<ConnectionOptions["setTimer"]>;

const setTimer: SetTimer = (run, ms) => {
  const timer = setTimeout(run, ms);
  return () => clearTimeout(timer);
};

/** Sleeps, unless it is woken. */
class Sleep {
  readonly #setTimer: SetTimer;
  #wake: (() => void) | undefined;

  constructor(line: ServiceClient) {
    this.#setTimer = line.setTimer;
  }

  sleep(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        stop();
        signal.removeEventListener("abort", done);
        this.#wake = undefined;
        resolve();
      };
      const stop = this.#setTimer(done, ms);
      signal.addEventListener("abort", done);
      this.#wake = done;
    });
  }

  wake(): void {
    this.#wake?.();
  }
}

/** Full jitter (Brooker, "Exponential Backoff and Jitter", 2015): anything up to twice as long each time. */
const jitterMs = (random: () => number, failures: number, fromMs: number, mostMs: number): number =>
  random() * Math.min(mostMs, fromMs * 2 ** Math.min(failures, 16));

/** A promise and its ends. */
interface Promised<Value> {
  readonly promise: Promise<Value>;
  readonly resolve: (value: Value) => void;
  readonly reject: (error: unknown) => void;
}

function promised<Value = void>(): Promised<Value> {
  let ends: Omit<Promised<Value>, "promise">;
  const promise = new Promise<Value>((resolve, reject) => (ends = { resolve, reject }));
  return { promise, ...ends! };
}

/** What an error says; of one that was thrown as something else, what there is to say. Whatever was thrown, this throws nothing. */
function messageOf(error: unknown): string {
  try {
    const text = isObject(error) && typeof error.message === "string" ? error.message : String(error);
    return text.slice(0, SENTENCE_CHARACTERS_MAX);
  } catch {
    return "something was thrown that says nothing";
  }
}

/** The same with what caused it: Node's "fetch failed" keeps the code and the address there. */
function sentenceOf(error: unknown): string {
  const said = [messageOf(error)];
  for (let cause = isObject(error) ? error.cause : undefined; isObject(cause) && said.length < 4; cause = cause.cause) {
    const errors = Array.isArray(cause.errors) ? cause.errors.slice(0, 3).map(messageOf).join(", ") : "";
    const text = messageOf(cause) || errors;
    const code = typeof cause.code === "string" && !text.includes(cause.code) ? cause.code : "";
    said.push([text, code].filter((part) => part !== "").join(" "));
  }
  return said
    .filter((part) => part !== "")
    .join(": ")
    .slice(0, SENTENCE_CHARACTERS_MAX);
}

/** Calls what the application gave. What it throws there, now or later, is shown and stops nothing. */
function call(run: () => unknown): void {
  const tell = (error: unknown): void => console.error(error);
  try {
    void Promise.resolve(run()).catch(tell);
  } catch (error) {
    tell(error);
  }
}

/** 128 bits of chance, also on a page without TLS, where `crypto.randomUUID` is not there. */
const newKey = (): string =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

const addressOf = (
  base: string,
  path: string,
  channels: readonly string[],
  query: Record<string, string> = {},
): string => {
  const text = Object.entries(query)
    .map((pair) => pair.map(encodeURIComponent).join("="))
    .join("&");
  const address = `${base.replace(/\/+$/, "")}/${path}/${channels.map(encodeURIComponent).join(",")}`;
  return text === "" ? address : `${address}?${text}`;
};

/** What can't be followed or sent now, and may well be later. */
class Trouble extends Error {
  /** The service, or who answers for it, asks for this pause; null: it did not say. */
  readonly pauseMs: number | null;

  constructor(message: string, pauseMs: number | null = null) {
    super(message);
    this.pauseMs = pauseMs;
  }
}

/** A transport that does not come through: nothing is heard by it. */
class Blocked extends Trouble {}

/** A redirect, where something else is than PERE. */
const redirected = (status: number, to: string | null): Blocked =>
  new Blocked(
    `answered with a redirect${status > 0 ? ` (status ${status})` : ""}${to === null ? "" : ` to ${to}`}: ` +
      `if PERE is there, use that address`,
  );

/** `Retry-After` (RFC 9110, 10.2.3), seconds or a date. @returns null: there is none, or none that can be believed */
function retryAfterMs({ headers }: Response, now: number): number | null {
  const text = (headers.get("retry-after") ?? "").trim();
  const isDate = /^[A-Z][a-z]{2,8},? .*\d\d:\d\d:\d\d/.test(text);
  const ms = isDate ? Date.parse(text) - now : /^[0-9]{1,9}$/.test(text) ? Number(text) * 1000 : Number.NaN;
  return ms >= 0 && ms <= ASKED_MS_MAX ? ms : null;
}

/**
 * What an answer means that is not 2xx.
 * @returns PereError when the service itself said no for good; Blocked when somebody before it did; Trouble otherwise
 */
async function refusalOf(response: Response, now: number): Promise<PereError | Trouble> {
  const { status } = response;
  const text = await response.text().catch(() => "");
  const problem = jsonOf(text);
  const isOurs = isObject(problem) && isText(problem.type) && problem.type.startsWith("urn:pere:");
  const passes = status >= 500 || status === 408 || status === 425 || status === 429;
  const sentence = isOurs && isText(problem.detail) ? problem.detail : `answered with status ${status}`;
  if (!passes && status >= 400) return isOurs ? new PereError(status, sentence, problem) : new Blocked(sentence);
  return new Trouble(sentence, retryAfterMs(response, now));
}

const isText = (value: unknown): value is string => typeof value === "string" && value !== "";
const isCount = (value: unknown): value is number => Number.isInteger(value) && (value as number) >= 0;
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Undefined: it is not JSON. */
function jsonOf(text: string, parse: (text: string) => unknown = JSON.parse): unknown {
  try {
    return parse(text);
  } catch {
    return undefined;
  }
}

/** Parses an answer or a message. @throws Blocked: it is no JSON object, and so not the service's */
function objectOf(text: string, parse?: (text: string) => unknown): Record<string, unknown> {
  const value = jsonOf(text, parse);
  if (!isObject(value)) throw foreign();
  return value;
}

/** Something answers in the service's stead, or changes what it says. */
const foreign = (): Blocked => new Blocked("the answer is not the service's");

/** The members of a JSON object, or the elements of an array by their numbers, each as the text that stands there. */
function partsOf(json: string): Map<string, string> {
  const parts = new Map<string, string>();
  let [depth, start, name] = [0, 0, ""];
  const end = (at: number): void => {
    const text = json.slice(start, at).trim();
    if (text !== "") parts.set(name === "" ? String(parts.size) : name, text);
    [start, name] = [at + 1, ""];
  };
  for (let at = 0; at < json.length; at++) {
    const mark = json[at];
    if (mark === '"')
      do at = endOf(json, at + 1);
      while (isEscaped(json, at));
    else if (mark === "{" || mark === "[") depth++ === 0 && (start = at + 1);
    else if (mark === "}" || mark === "]") --depth === 0 && end(at);
    else if (mark === "," && depth === 1) end(at);
    else if (mark === ":" && depth === 1 && name === "") {
      name = String(jsonOf(json.slice(start, at)));
      start = at + 1;
    }
  }
  return parts;
}

/** Where the next quotation mark is. */
function endOf(json: string, from: number): number {
  const at = json.indexOf('"', from);
  return at === -1 ? json.length : at;
}

/** Whether an odd number of backslashes stands before this place. */
function isEscaped(json: string, at: number): boolean {
  let before = at;
  while (json[before - 1] === "\\") before--;
  return at < json.length && (at - before) % 2 === 1;
}

/** What each log brings must have these members, as texts; and this one, whose text is kept beside it. */
const MEMBERS = {
  feed: { texts: ["id", "channel", "at"], value: "data" },
  feedback: { texts: ["id", "channel", "at", "event", "device", "status"], value: "detail" },
} as const;

/** What was pushed, or a receipt. @throws Blocked: it can be none of the service's */
function entryOf(
  path: keyof typeof MEMBERS,
  text: string,
  value: unknown,
  channels: readonly string[],
): Record<string, unknown> {
  const { texts, value: member } = MEMBERS[path];
  if (!isObject(value) || !texts.every((name) => isText(value[name]))) throw foreign();
  if (!channels.includes(value.channel as string) || !(member in value)) throw foreign();
  return { ...value, text: partsOf(text).get(member) ?? "null" };
}

/**
 * What the service answers to receipts. Each of them is accounted for, or it is no answer to these.
 * @param events what they are about @throws Blocked: it is another one's answer
 */
function answerOf(value: unknown, events: readonly string[]): ReceiptsAnswer {
  if (!isObject(value) || !Array.isArray(value.rejected)) throw foreign();
  const { recorded, duplicate, rejected } = value;
  const isRight = rejected.every(
    (one) => isObject(one) && isCount(one.index) && one.event === events[one.index] && isText(one.reason),
  );
  if (!isRight || !isCount(recorded) || !isCount(duplicate)) throw foreign();
  if (recorded + duplicate + rejected.length !== events.length) throw foreign();
  return { rejected: rejected as ReceiptsAnswer["rejected"] };
}

/** A token without blanks around it. @throws TypeError: it is none; it is not repeated */
function tokenOf(given: unknown): string {
  const token = typeof given === "string" ? given.trim() : "";
  if (!/^[A-Za-z0-9._-]+$/.test(token))
    throw new TypeError("the token is no JWT: it must be letters, digits and . _ - alone");
  return token;
}

/** @throws TypeError when it is no address of a service: trying again would not make it one */
function baseOf(given: string): string {
  let url: URL | null = null;
  try {
    url = new URL(given);
  } catch {
    // It is told below.
  }
  if (url === null || !/^https?:\/\//.test(given))
    throw new TypeError(`url must begin with http:// or https://, not "${given.replace(/\/\/.*@/, "//…@")}"`);
  if (url.username !== "" || url.password !== "")
    throw new TypeError("url must hold no name and no password; a token is given beside it");
  if (/[?#]/.test(given)) throw new TypeError(`url must end before "${/[?#]/.exec(given)![0]}": it is where PERE is`);
  return given.replace(/\/+$/, "");
}

/** What is tried again, and how: shared by all that talks to the service. */
class ServiceClient {
  readonly base: string;
  readonly fetch: (url: string, init: RequestInit) => Promise<Response>;
  readonly WebSocket: (new (url: string, protocols: string[]) => SocketLike) | null;
  readonly random: () => number;
  readonly now: () => number;
  readonly monotonic: () => number;
  readonly setTimer: SetTimer;
  readonly timing: Timing;
  readonly parse: (text: string) => unknown;
  readonly trouble: (why: string) => void;
  readonly #token: Token | null;
  #current: string | null = null;
  #asking: Promise<string> | null = null;
  #refusals = 0;
  /** When a fresh token is due, by the clock that is never set. */
  #dueAt = Number.POSITIVE_INFINITY;

  /** @throws TypeError when `url` is no address, or the token is none: trying again would not make it one */
  constructor(reach: ConnectionOptions) {
    const socket = (globalThis as { WebSocket?: ServiceClient["WebSocket"] }).WebSocket;
    const { onTrouble, setTimer: timer = setTimer } = reach;
    this.base = baseOf(reach.url);
    this.fetch = reach.fetch ?? ((url, init) => fetch(url, init));
    this.WebSocket = reach.WebSocket === undefined ? (socket ?? null) : reach.WebSocket;
    this.random = reach.random ?? Math.random;
    this.now = reach.now ?? Date.now;
    this.monotonic = reach.monotonic ?? (() => performance.now());
    this.setTimer = (run, ms) => timer(run, Math.min(Math.max(0, ms), TIMER_MS_MAX));
    this.timing = { ...TIMING, ...reach.timing };
    this.parse = reach.parse ?? JSON.parse;
    this.trouble = onTrouble ? (why) => call(() => onTrouble(why)) : () => {};
    const { token = null } = reach;
    this.#token = typeof token === "function" || token === null ? token : tokenOf(token);
  }

  /** The token for the next request; null: there is none. @throws what the token's giver throws */
  async token(): Promise<string | null> {
    if (typeof this.#token !== "function") return this.#token;
    if (this.#current !== null && this.dueMs > 0) return this.#current;
    this.#asking ??= this.#fetchToken(this.#token);
    this.#current = await this.#asking;
    const { exp } = claimsOf(this.#current);
    const leftMs = typeof exp === "number" ? exp * 1000 - this.now() : Number.POSITIVE_INFINITY;
    // One that is past by this clock is used all the same: the clock may be wrong, and the service says so if not.
    this.#dueAt = leftMs > 0 ? this.monotonic() + leftMs - Math.min(30_000, leftMs / 5) : Number.POSITIVE_INFINITY;
    return this.#current;
  }

  async #fetchToken(giver: () => string | Promise<string>): Promise<string> {
    const late = promised<never>();
    const stop = this.setTimer(() => late.reject(new Trouble("no token was given in time")), this.timing.requestMs);
    try {
      return tokenOf(await Promise.race([giver(), late.promise]));
    } finally {
      stop();
      this.#asking = null;
    }
  }

  /** Milliseconds until a fresh token is due. */
  get dueMs(): number {
    return this.#dueAt - this.monotonic();
  }

  /** The service took the token. */
  accepted(): void {
    this.#refusals = 0;
  }

  /** The service did not take it. @returns whether there may be another one */
  refused(token: string | null): boolean {
    if (typeof this.#token !== "function") return false;
    this.#refusals++;
    if (this.#current === token) this.#current = null;
    return true;
  }

  /** Whether 401 was the answer more than once in a row. */
  get isUnwelcome(): boolean {
    return this.#refusals > 1;
  }

  /**
   * One request. 307 and 308 are followed within the origin (RFC 9110, 15.4): the request stays what it is, and the token goes to nobody else. A browser
   * does not say which it was; there, what leads to the same request under another path is followed.
   * @throws Blocked: something leads elsewhere
   */
  async request(url: string, init: Init): Promise<Response> {
    let at = url;
    let lead: Blocked | null = null;
    for (let count = 0; ; count++) {
      const response = await this.fetch(at, { ...init, redirect: "manual" });
      const { status, type } = response;
      const isHidden = type === "opaqueredirect";
      if (!isHidden && ![301, 302, 303, 307, 308].includes(status)) {
        // What has led away from PERE's own path has led to something else of PERE's, or of another one's.
        if (lead !== null && status === 404) throw lead;
        return response;
      }
      response.body?.cancel().catch(() => {});
      const to = isHidden ? await this.#revealed(at, init) : leadsTo(response, at);
      lead = redirected(status, to && this.#addressTo(to, url));
      const isFollowed = isHidden ? to?.href.endsWith(this.#requestOf(url)) : status === 307 || status === 308;
      if (!isFollowed || to?.origin !== new URL(at).origin || count === REDIRECTS_MAX) throw lead;
      at = to.href;
    }
  }

  /** What is asked of the service, without where it is: path and query. */
  #requestOf(url: string): string {
    const { pathname, search } = new URL(url);
    return pathname.slice(new URL(this.base).pathname.replace(/\/+$/, "").length) + search;
  }

  /** Where a redirect leads that a browser does not show: it is followed with nothing in hand. @returns null: it does not say */
  async #revealed(
    url: string,
    { headers: { Authorization: _, ...headers } = {}, signal, cache }: Init,
  ): Promise<URL | null> {
    try {
      const {
        body,
        redirected,
        url: to,
      } = await this.fetch(url, { headers, ...(signal ? { signal } : {}), ...(cache ? { cache } : {}) });
      body?.cancel().catch(() => {});
      return redirected ? new URL(to) : null;
    } catch {
      return null;
    }
  }

  /** The address to use instead of this one, where a redirect leads to the same place elsewhere; without the query, which is not for showing. */
  #addressTo({ origin, pathname }: URL, url: string): string {
    const own = this.#requestOf(url).replace(/\?.*/, "");
    return origin + (pathname.endsWith(own) ? pathname.slice(0, -own.length) : pathname);
  }

  /**
   * One request with the token. @param limitMs the longest that it may take
   * @returns what an answer of 200 or 201 holds: PERE has no other
   * @throws PereError when the service said no for good, Trouble when another try may help
   */
  async ask(url: string, init: Init, signal: AbortSignal | null, limitMs: number): Promise<string> {
    const stop = new AbortController();
    const abort = (): void => stop.abort();
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort);
    const endTimer = this.setTimer(abort, limitMs);
    try {
      for (;;) {
        const token = await this.token();
        const headers = { ...init.headers, ...(token === null ? {} : { Authorization: `Bearer ${token}` }) };
        const response = await this.request(url, { ...init, headers, signal: stop.signal });
        if (response.ok) {
          if (response.status !== 200 && response.status !== 201) throw foreign();
          this.accepted();
          // The body has the same time as the head: it is read whole here, and small.
          return await response.text();
        }
        const refusal = await refusalOf(response, this.now());
        if (!(refusal instanceof PereError) || refusal.status !== 401 || !this.refused(token) || this.isUnwelcome)
          throw refusal;
      }
    } catch (error) {
      if (error instanceof PereError || error instanceof Trouble) throw error;
      throw new Trouble(stop.signal.aborted && !signal?.aborted ? "there was no answer in time" : sentenceOf(error));
    } finally {
      endTimer();
      signal?.removeEventListener("abort", abort);
    }
  }
}

/** How a request is made; its headers are written out. */
type Init = Omit<RequestInit, "headers"> & { readonly headers?: Record<string, string> };

/** Where a redirect leads. @returns null: it does not say */
function leadsTo({ headers }: Response, from: string): URL | null {
  try {
    return new URL(headers.get("location") ?? "", from);
  } catch {
    return null;
  }
}

/** What a JWT says, unchecked: only its owner needs to know, and the service checks it. */
function claimsOf(token: string | null): { exp?: unknown; sub?: unknown } {
  const part = token?.split(".")[1]?.replaceAll("-", "+").replaceAll("_", "/");
  if (!part) return {};
  try {
    const claims = jsonOf(atob(part));
    return isObject(claims) ? claims : {};
  } catch {
    return {};
  }
}

// ------------------------------------------------------------------------------------------------------------ event stream

/**
 * Reads an event stream as its characters come (WHATWG HTML, 9.2.6). `dispatch` hears each message, with the last id; and each id that came without
 * one, with `data` null. Lines end with LF, CR LF or CR, also where a chunk ends between the two.
 */
export class EventStreamReader {
  readonly #dispatch: (event: string, data: string | null, id: string) => void;
  readonly #retry: (ms: number) => void;
  #rest = "";
  #isAfterCr = false;
  #id = "";
  #told = "";
  #event = "";
  #data: string | null = null;

  constructor(dispatch: (event: string, data: string | null, id: string) => void, retry: (ms: number) => void) {
    this.#dispatch = dispatch;
    this.#retry = retry;
  }

  /** @throws Error when a line or a message is longer than any of PERE's */
  feed(chunk: string): void {
    if (chunk === "") return;
    const added = this.#isAfterCr && chunk.startsWith("\n") ? chunk.slice(1) : chunk;
    const text = this.#rest + added;
    const ends = /\r\n|\n|\r/g;
    ends.lastIndex = this.#rest.length;
    let start = 0;
    for (let end = ends.exec(text); end; end = ends.exec(text)) {
      this.#line(text.slice(start, end.index));
      start = ends.lastIndex;
    }
    this.#isAfterCr = chunk.endsWith("\r");
    this.#rest = text.slice(start);
    if (this.#rest.length > LINE_CHARACTERS_MAX || (this.#data?.length ?? 0) > LINE_CHARACTERS_MAX)
      throw new Error("a message of the event stream has no end");
  }

  #line(line: string): void {
    if (line === "") return this.#end();
    const colon = line.indexOf(":");
    const field = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") this.#data = this.#data === null ? value : `${this.#data}\n${value}`;
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^[0-9]+$/.test(value)) this.#retry(Number(value));
  }

  #end(): void {
    const [event, data] = [this.#event, this.#data];
    this.#event = "";
    this.#data = null;
    if (data === null && this.#id === this.#told) return;
    this.#told = this.#id;
    this.#dispatch(event, data, this.#id);
  }
}

// -------------------------------------------------------------------------------------------------------------------- feed

/** Who follows a feed. */
interface FeedHandler {
  /** Something that was pushed: an event, or a receipt. */
  take(value: Record<string, unknown>): void;
  /** The service's own: `ready`, `gap`, `bye`, `complete`. */
  own(name: string, body: Record<string, unknown>): void;
  /** A promise: it has more than it can take; it goes on when the promise resolves. */
  room(): Promise<void> | null;
  /** Something of the feed's state is new. */
  changed(): void;
}

/** What the service answers to receipts. */
interface ReceiptsAnswer {
  readonly rejected: readonly { index: number; reason: string }[];
}

/** Gives receipts over a socket. @param events what they are about, in order @throws Trouble */
type SendReceipts = (text: string, events: readonly string[]) => Promise<ReceiptsAnswer>;

/** Pauses after `pere.bye` on a socket, which has no `retry:`; from and to, as the service spreads them on SSE. */
const BYE_MS = new Map<unknown, readonly [number, number]>([
  ["renew", [50, 500]],
  ["drain", [500, 3_000]],
  ["busy", [5_000, 20_000]],
]);
const RETRY_MS = [1_000, 4_000] as const;

const LADDER: readonly Transport[] = ["sse", "websocket", "longpoll"];

/** Ends a connection that is silent, or that its owner ends; knows why. */
class Watch {
  readonly #stop = new AbortController();
  readonly #line: ServiceClient;
  readonly #outer: AbortSignal;
  readonly #abort = (): void => this.end("it was ended");
  #endTimer = (): void => {};
  #heardAt: number;
  #limitMs: number;
  /** Why it was ended; a silent one as an error. */
  why: string | Blocked | null = null;

  constructor(outer: AbortSignal, line: ServiceClient, limitMs: number) {
    this.#outer = outer;
    this.#line = line;
    this.#heardAt = line.monotonic();
    this.#limitMs = limitMs;
    outer.addEventListener("abort", this.#abort);
    if (outer.aborted) this.#abort();
    else this.#arm();
  }

  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  #arm(): void {
    this.#endTimer();
    if (!Number.isFinite(this.#limitMs) || this.why !== null) return;
    const leftMs = this.#heardAt + this.#limitMs - this.#line.monotonic();
    if (leftMs <= 0) this.end(new Blocked(`nothing was heard for ${this.#limitMs} ms`));
    else this.#endTimer = this.#line.setTimer(() => this.#arm(), leftMs);
  }

  /** A sign of life. */
  heard(): void {
    this.#heardAt = this.#line.monotonic();
  }

  /** From now on it may be silent for so long. */
  allow(limitMs: number): void {
    if (limitMs === this.#limitMs) return;
    this.#limitMs = limitMs;
    this.heard();
    this.#arm();
  }

  end(why: string | Blocked): void {
    this.why ??= why;
    this.#endTimer();
    this.#outer.removeEventListener("abort", this.#abort);
    this.#stop.abort();
  }
}

/** Whether an id, `<epoch>-<seq>`, comes after another one of its channel; what is of another life always does. */
function isAhead(id: string, than = ""): boolean {
  const [[epoch, seq], [before, reached]] = [id.split("-"), than.split("-")];
  return epoch !== before || Number(seq) > Number(reached);
}

/** A log that is followed for as long as it is wanted, by whatever gets through, from where it broke off. */
class Feed {
  readonly #line: ServiceClient;
  readonly #path: "feed" | "feedback";
  readonly #channels: readonly string[];
  readonly #query: Record<string, string>;
  readonly #taker: FeedHandler;
  readonly #nap: Sleep;
  /** Where it goes on; opaque. */
  last: string;
  state: "connecting" | "connected" | "behind" | "offline" = "connecting";
  transport: Transport | null = null;
  heardAt: number | null = null;
  error: string | null = null;
  retryAt: number | null = null;
  /** Whether the connection got through, and whether it told when to come back. */
  #isReady = false;
  #isTold = false;
  #retryMs: number;
  #rung = 0;
  #againAt = 0;
  #againTimes = 0;
  #ask: SendReceipts | null = null;
  /** The connection that is open. */
  #watch: Watch | null = null;
  /** Where each channel stands, on a socket, which has no `id:` line. */
  #positions: Record<string, string> = {};

  constructor(
    line: ServiceClient,
    path: "feed" | "feedback",
    channels: readonly string[],
    query: Record<string, string>,
    last: string,
    taker: FeedHandler,
  ) {
    if (channels.length === 0 || channels.length > CHANNELS_MAX)
      throw new RangeError(`channels: 1 to ${CHANNELS_MAX} on a feed`);
    this.#line = line;
    this.#nap = new Sleep(line);
    this.#path = path;
    this.#channels = channels;
    this.#query = query;
    this.#taker = taker;
    this.last = last;
    this.#retryMs = this.#between(RETRY_MS);
  }

  #between([from, to]: readonly [number, number]): number {
    return Math.min(this.#line.timing.pauseMsMax, from + (to - from) * this.#line.random());
  }

  /** Gives receipts over the socket and waits for the answer; null: there is no socket. */
  get ask(): SendReceipts | null {
    return this.#ask;
  }

  /** There may be a network again: what pauses tries at once, and SSE first. */
  hurry(): void {
    this.#againAt = 0;
    this.#nap.wake();
  }

  /** The network may have gone, and a connection with it that does not know yet: it is opened anew. */
  doubt(): void {
    this.#watch?.end("the network may have gone");
  }

  /** Follows until the signal ends it. @throws PereError when the service says no for good */
  async run(signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted;) {
      const room = this.#taker.room();
      if (room) {
        this.#show("behind");
        await room;
        continue; // It may have ended meanwhile.
      }
      if (this.#rung > 0 && this.#line.monotonic() >= this.#againAt) this.#rung = 0;
      this.#isReady = this.#isTold = false;
      if (this.state !== "offline") this.#show("connecting");
      const error = await this.#follow(signal);
      if (signal.aborted) return;
      if (error instanceof PereError) throw error;
      if (this.#isReady) failures = 0;
      else if (!(error instanceof Blocked)) failures++;
      const pauseMs = this.#next(error, failures);
      if (pauseMs === null) continue;
      this.error = error?.message ?? this.error;
      if (error) this.#line.trouble(error.message);
      this.retryAt = this.#line.now() + pauseMs;
      this.#show(this.#isReady ? "connecting" : "offline");
      await this.#nap.sleep(pauseMs, signal);
      this.retryAt = null;
    }
  }

  /** One connection, to its end. @returns why it ended; null: it is to be opened anew at once */
  async #follow(signal: AbortSignal): Promise<PereError | Trouble | null> {
    const transport = LADDER[this.#rung]!;
    let token: string | null;
    try {
      token = await this.#line.token();
    } catch (error) {
      return new Trouble(sentenceOf(error));
    }
    const watch = new Watch(signal, this.#line, this.#line.timing.firstByteMs);
    this.#watch = watch;
    try {
      if (transport === "longpoll") return await this.#polls(watch);
      return await (transport === "sse" ? this.#sse(watch, token) : this.#socket(watch, token));
    } catch (error) {
      if (error instanceof PereError && error.status === 401 && this.#line.isUnwelcome)
        return new Trouble(error.message);
      if (error instanceof PereError || error instanceof Trouble) return error;
      if (watch.why instanceof Blocked) return watch.why;
      return watch.why === null ? new Trouble(sentenceOf(error)) : null;
    } finally {
      watch.end("it is over");
      this.#watch = null;
      this.transport = null;
    }
  }

  /** Goes down or up the ladder. @returns the pause before the next attempt; null: none */
  #next(error: Trouble | null, failures: number): number | null {
    const { monotonic, random, timing } = this.#line;
    if (error === null) return null;
    if (error instanceof Blocked && this.#rung < LADDER.length - 1) {
      if (this.#rung === 0) this.#againAt = monotonic() + timing.againMs * 2 ** Math.min(4, this.#againTimes++);
      this.#rung++;
      this.error = error.message;
      return null;
    }
    // Where nothing comes through at all, it is not the transport.
    if (this.#rung === LADDER.length - 1 && (failures > 1 || error instanceof Blocked)) this.#rung = 0;
    const ownMs = jitterMs(random, failures, 500, timing.pauseMsMax);
    if (error.pauseMs !== null) return Math.max(error.pauseMs * (1 + random() / 5), ownMs, RETRY_MS_MIN);
    // Never sooner than the service told last, also where it could not be heard this time.
    if (this.#isReady) return Math.max(this.#retryMs, RETRY_MS_MIN);
    return this.#isTold ? Math.max(this.#retryMs, ownMs, RETRY_MS_MIN) : this.#retryMs + ownMs;
  }

  #show(state: Feed["state"]): void {
    this.state = state;
    this.#taker.changed();
  }

  /** Bytes of the service have come. Until it has said that it is ready they may be anybody's, who may go on for ever. */
  #heard(watch: Watch): void {
    if (!this.#isReady) return;
    watch.heard();
    this.heardAt = this.#line.now();
  }

  #connected(): void {
    this.#isReady = true;
    this.error = null;
    this.transport = LADDER[this.#rung]!;
    this.#line.accepted();
    this.#show("connected");
  }

  /** The service's own word. @throws Blocked: it can be none */
  #own(name: string, body: Record<string, unknown>): void {
    if (name === "gap" && ![body.channel, body.after, body.from].every(isText)) throw foreign();
    if (name === "complete" && ![body.event, body.channel, body.at].every(isText)) throw foreign();
    if (name === "ready") {
      const { channels } = body;
      if (!isObject(channels) || !this.#channels.every((channel) => typeof channels[channel] === "string"))
        throw foreign();
      this.#connected();
    }
    this.#taker.own(name, body);
  }

  /** What was pushed, or a receipt. @throws Blocked: it can be none */
  #entry(text: string, value: unknown): Record<string, unknown> {
    return entryOf(this.#path, text, value, this.#channels);
  }

  #address(query: Record<string, string> = {}): string {
    const last: Record<string, string> = this.last === "" ? {} : { "last-event-id": this.last };
    return addressOf(this.#line.base, this.#path, this.#channels, { ...this.#query, ...last, ...query });
  }

  // ------------------------------------------------------------------------------------------------- Server-Sent Events

  async #sse(watch: Watch, token: string | null): Promise<Trouble | null> {
    const response = await this.#line.request(this.#address(), {
      headers: { Accept: "text/event-stream", ...(token === null ? {} : { Authorization: `Bearer ${token}` }) },
      cache: "no-store",
      signal: watch.signal,
    });
    if (!response.ok) {
      const refusal = await refusalOf(response, this.#line.now());
      return refusal instanceof PereError ? this.#refused(refusal, token) : refusal;
    }
    const type = response.headers.get("content-type") ?? "";
    if (response.status !== 200 || !/^text\/event-stream *(;|$)/i.test(type) || !response.body)
      throw new Blocked("the answer is not an event stream");
    await this.#readStream(response.body, watch);
    return new Trouble("the stream ended");
  }

  async #readStream(body: ReadableStream<Uint8Array>, watch: Watch): Promise<void> {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    const stream = new EventStreamReader(
      (event, data, id) => this.#message(event, data, id),
      (ms) => {
        if (ms > ASKED_MS_MAX) return;
        this.#retryMs = ms;
        this.#isTold = true;
      },
    );
    const openedAt = this.#line.monotonic();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        watch.allow(this.#line.timing.silentMs);
        // A stream that brought something late is one that will do.
        if (this.#line.monotonic() - openedAt > this.#line.timing.silentMs / 4) this.#againTimes = 0;
        stream.feed(decoder.decode(value, { stream: true }));
        this.#heard(watch);
        this.#taker.changed();
        const room = this.#taker.room();
        if (room) await this.#rest(watch, room);
      }
    } finally {
      // One that was cut has nothing to say of it.
      reader.cancel().catch(() => {});
    }
  }

  /** Reads nothing until there is room: what is not read stays at the service. */
  async #rest(watch: Watch, room: Promise<void>): Promise<void> {
    this.#show("behind");
    watch.allow(Number.POSITIVE_INFINITY);
    const ended = promised();
    watch.signal.addEventListener("abort", () => ended.resolve());
    await Promise.race([room, ended.promise]);
    watch.allow(this.#line.timing.silentMs);
    this.#show("connected");
  }

  /** @throws Blocked: it is not the service's; the position stays where it is */
  #message(event: string, data: string | null, id: string): void {
    if (data !== null) {
      const value = objectOf(data, this.#line.parse);
      if (event.startsWith("pere.")) this.#own(event.slice(5), value);
      else if (this.#isReady) this.#taker.take(this.#entry(data, value));
      else throw foreign();
    }
    // A position counts when what stands before it has been taken, and the stream is the service's.
    if (id !== "" && this.#isReady) this.last = id;
  }

  /**
   * Who gives tokens may give a better one, at once or later: a device that is left alone for years does not give up.
   * @returns null: it is asked at once. @throws the refusal, where there is no other token
   */
  #refused(refusal: PereError, token: string | null): Trouble | null {
    if (refusal.status !== 401 || !this.#line.refused(token)) throw refusal;
    return this.#line.isUnwelcome ? new Trouble(refusal.message) : null;
  }

  // ---------------------------------------------------------------------------------------------------------- WebSocket

  async #socket(watch: Watch, token: string | null): Promise<Trouble | null> {
    const { WebSocket, timing, parse, setTimer } = this.#line;
    if (WebSocket === null) throw new Blocked("there is no WebSocket here");
    const url = this.#address().replace(/^http/, "ws");
    let socket: SocketLike;
    try {
      socket = new WebSocket(url, token === null ? [] : ["pere.v1", `pere.token.${token}`]);
    } catch (error) {
      throw new Blocked(sentenceOf(error)); // As on a page with TLS that would open a socket without.
    }
    const closed = promised<number>();
    const asked = new RequestQueue(
      (text) => socket.send(text),
      timing.requestMs,
      setTimer,
      () => watch.end("receipts were not answered"),
    );
    let isHeard = false;
    const hear = (text: string): void => {
      const value = objectOf(text, parse);
      const { pere, ...body } = value;
      if (pere === "receipts" || pere === "error") asked.answer(pere, body);
      else if (typeof pere === "string") {
        this.#own(pere, body);
        if (pere === "ready") this.#openSocket(body, asked);
        if (pere === "bye") this.#byeFromSocket(body.reason);
        this.#moveOnSocket(body);
      } else if (this.#isReady) this.#takeFromSocket(this.#entry(text, value));
      else throw foreign();
    };
    socket.onerror = () => {};
    socket.onclose = ({ code }: { code: number }) => closed.resolve(code);
    socket.onmessage = ({ data }: { data: unknown }) => {
      if (watch.why !== null) return;
      isHeard = true;
      watch.allow(timing.silentMs);
      try {
        hear(String(data));
      } catch (error) {
        return watch.end(error instanceof Blocked ? error : new Blocked(sentenceOf(error)));
      }
      this.#heard(watch);
      this.#taker.changed();
      // A socket can't be left unread: it is closed, and opened again when there is room.
      if (this.#taker.room()) watch.end("there is no room");
    };
    watch.signal.addEventListener("abort", () => closed.resolve(0));
    // The browser keeps pings to itself; receipts that are none are answered like any.
    const beatMs = timing.silentMs * 0.375;
    const beat = (): void => {
      // A feed of receipts takes none and says so, which is a sign of life as well; only on a device's feed is that an answer to be waited for.
      if (this.#path === "feedback") isHeard && socket.send("[]");
      else if (this.#ask && !asked.isBusy) void asked.ask("[]", []).catch(() => {});
      stopBeat = setTimer(beat, beatMs);
    };
    let stopBeat = setTimer(beat, beatMs);
    const stopRenewal = this.#renewal(socket);
    const stopReturn = setTimer(() => watch.end("back to SSE"), this.#againAt - this.#line.monotonic());
    try {
      const code = await closed.promise;
      if (watch.why instanceof Blocked) throw watch.why;
      if (watch.why !== null) return null;
      if (!isHeard) throw new Blocked("no WebSocket could be opened");
      return new Trouble(`the socket was closed with ${code}`);
    } finally {
      this.#ask = null;
      stopBeat();
      stopReturn();
      stopRenewal();
      asked.fail("the socket is gone");
      socket.onmessage = null;
      try {
        socket.close(1000);
      } catch {
        // It was never open.
      }
    }
  }

  /** Before a socket's token ends, a fresh one is sent by it. An event stream can't be told: it ends, and is opened anew. @returns ends the waiting */
  #renewal(socket: SocketLike): () => void {
    const { dueMs } = this.#line;
    if (!Number.isFinite(dueMs)) return () => {};
    const renew = async (): Promise<void> => {
      try {
        socket.send(JSON.stringify({ pere: "token", token: await this.#line.token() }));
        stop = this.#renewal(socket);
      } catch {
        // It is asked for again when the feed has ended.
      }
    };
    let stop = this.#line.setTimer(() => void renew(), dueMs);
    return () => stop();
  }

  #openSocket({ channels }: Record<string, unknown>, asked: RequestQueue): void {
    this.#positions = { ...(channels as Record<string, string>) };
    this.last = Object.values(this.#positions).join(".");
    this.#ask = (text, events) => asked.ask(text, events);
  }

  #takeFromSocket(value: Record<string, unknown>): void {
    this.#taker.take(value);
    this.#moveOnSocket(value);
  }

  #moveOnSocket({ channel, id }: Record<string, unknown>): void {
    // A reminder is an event of before: it moves no position back.
    if (typeof channel !== "string" || typeof id !== "string" || !isAhead(id, this.#positions[channel])) return;
    this.#positions[channel] = id;
    this.last = Object.values(this.#positions).join(".");
  }

  #byeFromSocket(reason: unknown): void {
    this.#isTold = true;
    this.#retryMs = this.#between(BYE_MS.get(reason) ?? RETRY_MS);
  }

  // ---------------------------------------------------------------------------------------------------------- long-poll

  async #polls(watch: Watch): Promise<Trouble | null> {
    const { timing, monotonic } = this.#line;
    // Each poll has its own limit.
    watch.allow(Number.POSITIVE_INFINITY);
    for (let wait = 0; ; wait = Math.min(POLL_SECONDS, Math.max(1, Math.ceil((this.#againAt - monotonic()) / 1000)))) {
      if (this.#taker.room() || (this.#isReady && monotonic() >= this.#againAt)) return null;
      const text = await this.#line.ask(
        this.#address({ wait: String(wait) }),
        { headers: { Accept: "application/json" }, cache: "no-store" },
        watch.signal,
        wait * 1000 + timing.requestMs,
      );
      const { entries, gaps, complete, last } = this.#pollOf(text);
      if (!this.#isReady) {
        this.#connected();
        this.#taker.own("ready", {});
      }
      this.#heard(watch);
      for (const gap of gaps) this.#own("gap", gap);
      for (const entry of entries) this.#taker.take(entry);
      for (const event of complete) this.#own("complete", event);
      this.last = last;
      this.#taker.changed();
    }
  }

  /** What a long-poll brought; all of it is looked at before any is taken. @throws Blocked: it is another one's answer */
  #pollOf(text: string) {
    const { events, last, gaps = [], complete = [] } = objectOf(text, this.#line.parse);
    const lists = [events, gaps, complete].every(Array.isArray);
    if (
      !lists ||
      typeof last !== "string" ||
      !/^[!-~]*$/.test(last) ||
      ![...(gaps as unknown[]), ...(complete as unknown[])].every(isObject)
    )
      throw foreign();
    const texts = partsOf(partsOf(text).get("events") ?? "[]");
    return {
      entries: (events as unknown[]).map((value, index) => this.#entry(texts.get(String(index)) ?? "", value)),
      gaps: gaps as Record<string, unknown>[],
      complete: complete as Record<string, unknown>[],
      last,
    };
  }
}

/** Questions on a socket, one at a time: answers name no question. */
class RequestQueue {
  readonly #send: (text: string) => void;
  readonly #limitMs: number;
  readonly #setTimer: SetTimer;
  readonly #broken: () => void;
  #turn: Promise<unknown> = Promise.resolve();
  #open: Promised<unknown> | null = null;
  #waiting = 0;

  /** @param broken called when a question failed: an answer that comes after all would be taken for the next one's, so nothing more may be asked */
  constructor(send: (text: string) => void, limitMs: number, setTimer: SetTimer, broken: () => void) {
    this.#broken = broken;
    this.#send = send;
    this.#limitMs = limitMs;
    this.#setTimer = setTimer;
  }

  get isBusy(): boolean {
    return this.#waiting > 0;
  }

  /** @throws Trouble */
  ask(text: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    this.#waiting++;
    const asked = this.#turn.then(() => this.#one(text, events)).finally(() => this.#waiting--);
    this.#turn = asked.catch(() => {});
    return asked;
  }

  async #one(text: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    const open = promised<unknown>();
    this.#open = open;
    const stop = this.#setTimer(() => this.fail("there was no answer in time"), this.#limitMs);
    try {
      this.#send(text);
      return answerOf(await open.promise, events);
    } catch (error) {
      this.#broken();
      throw error instanceof Trouble ? error : new Trouble(sentenceOf(error));
    } finally {
      stop();
      this.#open = null;
    }
  }

  answer(kind: "receipts" | "error", body: Record<string, unknown>): void {
    if (kind === "receipts") this.#open?.resolve(body);
    else this.fail(isText(body.detail) ? body.detail : "an error was answered");
  }

  fail(why: string): void {
    this.#open?.reject(new Trouble(why));
  }
}

// ------------------------------------------------------------------------------------------------------- what is remembered

/** Where a device keeps what must survive a restart: its outbox and what it has finished. Any store of texts by name will do. */
export interface DeviceStorage {
  get(name: string): string | null | undefined | Promise<string | null | undefined>;
  set(name: string, text: string): unknown;
}

/** The browser's `localStorage`, as far as there is one. @throws what a browser throws that allows none */
const localStore = (): Pick<Storage, "getItem" | "setItem"> | null => globalThis.localStorage ?? null;

/**
 * The browser's `localStorage`. In a browser that keeps nothing a listener works all the same, and `status().error` says so.
 * @param store another of its kind, such as `sessionStorage`
 */
export function browserStorage(store?: Pick<Storage, "getItem" | "setItem">): DeviceStorage {
  return {
    get(name) {
      try {
        return (store ?? localStore())?.getItem(name);
      } catch {
        return null; // What allows no look has kept nothing.
      }
    },
    set(name, text) {
      const kept = store ?? localStore();
      if (!kept) throw new Error("this browser keeps nothing");
      kept.setItem(name, text);
    },
  };
}

/** What is used here of Bun's, Node's and Deno's files. */
interface Files {
  readFile(path: string, encoding: "utf8"): Promise<string>;
  readlink(path: string): Promise<string>;
  stat(path: string): Promise<{ isFile(): boolean; mode: number }>;
  rename(from: string, to: string): Promise<void>;
  rm(path: string, options: { force: boolean }): Promise<void>;
  open(
    path: string,
    flags: string,
    mode: number,
  ): Promise<{ writeFile(text: string): Promise<void>; sync(): Promise<void>; close(): Promise<void> }>;
}

/** What a promise gives, or null where there is no such file. */
const unlessMissing = <Value>(asked: Promise<Value>): Promise<Value | null> =>
  asked.catch((error: { code?: string }) => {
    if (error.code !== "ENOENT") throw error;
    return null;
  });

/** Links in a row that lead to a file. */
const LINKS_MAX = 20;

/** The file that a path leads to, by links too, which stay what they are; and its mode. @throws Error: it is a folder, a device or the like */
async function placeOf({ readlink, stat }: Files, path: string): Promise<{ path: string; mode: number }> {
  let place = path;
  for (let count = 0; count < LINKS_MAX; count++) {
    const to = await readlink(place).catch(() => null);
    if (to === null) break;
    place = /^([/\\]|[A-Za-z]:)/.test(to) ? to : `${place.replace(/[^/\\]*$/, "")}${to}`;
  }
  const found = await unlessMissing(stat(place));
  if (found && !found.isFile()) throw new Error(`${path} is no file`);
  return { path: place, mode: found ? found.mode & 0o777 : 0o600 };
}

/**
 * A file, on Bun, Node and Deno, held by one process: written beside itself, synced and put in its place, so that it is whole at any moment. A link stays
 * one. What is no file, or a file of something else, is refused, and nothing takes its place.
 */
export function fileStorage(path: string): DeviceStorage {
  // The name is no literal, so that bundlers for browsers leave it alone.
  const module = "node:fs/promises";
  const files = import(module) as Promise<Files>;
  files.catch(() => {}); // Told to whoever reads or writes.
  let kept: Record<string, unknown> = {};
  let writing: Promise<void> = Promise.resolve();
  const read = async (): Promise<Record<string, unknown>> => {
    const place = await placeOf(await files, path);
    const text = (await unlessMissing((await files).readFile(place.path, "utf8"))) ?? "";
    if (text.trim() === "") return {};
    const found = jsonOf(text);
    if (!isObject(found) || !Object.values(found).every((value) => typeof value === "string"))
      throw new Error(`${path} holds something else`);
    return found;
  };
  const write = async (): Promise<void> => {
    const { open, rename, rm } = await files;
    const place = await placeOf(await files, path);
    const fresh = `${place.path}.new`;
    await rm(fresh, { force: true });
    const file = await open(fresh, "wx", place.mode);
    try {
      await file.writeFile(JSON.stringify(kept));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(fresh, place.path);
  };
  return {
    async get(name) {
      kept = { ...(await read()), ...kept };
      const text = kept[name];
      return typeof text === "string" ? text : null;
    },
    set(name, text) {
      kept[name] = text;
      writing = writing.then(write, write);
      return writing;
    },
  };
}

// ------------------------------------------------------------------------------------------------------------------ status

/** How a listener is. Counts are of this moment; times are milliseconds since 1970. */
export interface Status {
  /**
   * `connected`: the feed is open. `behind`: it is left unread, because more has come than `onEvent` gets done. `offline`: it could not be had, and
   * is tried again at `retryAt`. `closed`: it has ended.
   */
  readonly state: "connecting" | "connected" | "behind" | "offline" | "closed";
  readonly transport: Transport | null;
  /** The device's name, as the service knows it. */
  readonly device: string | null;
  /** Another tab of this device has the connection, and runs its `onEvent`. */
  readonly isElsewhere: boolean;
  /** Events that have come and were not begun. */
  readonly waiting: number;
  /** Events that are being worked on. */
  readonly open: number;
  /** Receipts that the service has not answered for. */
  readonly unsent: number;
  /** Receipts that it refused for good. */
  readonly rejected: number;
  /** The last sign of life of the service. */
  readonly heardAt: number | null;
  readonly retryAt: number | null;
  /** What went wrong last; null since it went well. */
  readonly error: string | null;
}

/** Something that changes, to look at, to be told of, or to follow with `for await`. */
export interface Observable<Value> extends AsyncIterable<Value> {
  get(): Value;
  /** `hear` is called with the value now and after each change. @returns ends that */
  subscribe(hear: (value: Value) => void): () => void;
}

class StatusSignal implements Observable<Status> {
  #value: Status;
  readonly #hearers = new Set<(value: Status) => void>();

  constructor(value: Status) {
    this.#value = value;
  }

  get(): Status {
    return this.#value;
  }

  set(value: Status): boolean {
    const names = Object.keys(value) as (keyof Status)[];
    if (names.every((name) => value[name] === this.#value[name])) return false;
    this.#value = value;
    for (const hear of [...this.#hearers]) call(() => hear(value));
    return true;
  }

  subscribe(hear: (value: Status) => void): () => void {
    this.#hearers.add(hear);
    hear(this.#value);
    return () => void this.#hearers.delete(hear);
  }

  /** Each change, the ones between two looks left out, until it is closed. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Status> {
    let changed = promised();
    const stop = this.subscribe(() => changed.resolve());
    try {
      for (;;) {
        await changed.promise;
        changed = promised();
        const value = this.#value;
        yield value;
        if (value.state === "closed") return;
      }
    } finally {
      stop();
    }
  }
}

// ------------------------------------------------------------------------------------------------------------------ listen

/** What `onEvent` may do besides returning or throwing. */
export interface Context {
  /** Says that the work is under way. */
  working(detail?: unknown): void;
  /** Aborted when the listener ends: what throws then gives no receipt, and comes again next time. */
  readonly signal: AbortSignal;
}

export interface ListenOptions<Data = unknown> extends ConnectionOptions {
  /** One, or up to 16. */
  readonly channels: string | readonly string[];
  /**
   * The device's name. Where there are tokens it is the token's; without either the feed is anonymous and gives no receipts. Where the token is a
   * cookie, which can't be looked into, it is to be given.
   */
  readonly device?: string | undefined;
  /**
   * Works on an event: `received` is given before it is called, `done` when it returns (with what it returned as the detail), `failed` when it throws (with
   * the error's message). It may take as long as it likes: a promise that resolves when somebody presses a button will do.
   */
  readonly onEvent: (event: PushedEvent<Data>, context: Context) => unknown;
  /** How many events may be worked on at once. The default is 1: one after the other, in their channel's order. */
  readonly concurrency?: number | undefined;
  /** Where a device that was never enrolled begins; the service's default is `now`. */
  readonly since?: "now" | "earliest" | (string & {}) | undefined;
  /** Where outbox and finished events are kept; by default in memory, until the program ends. */
  readonly storage?: DeviceStorage | undefined;
  /**
   * Whether tabs of one device share one connection, where the browser can (Web Locks, BroadcastChannel). The default is true. A tab that is frozen, or
   * gives no sign of life for `leaderMs`, is replaced by another.
   */
  readonly share?: boolean | undefined;
  /** An event that another tab of this device works on. */
  readonly onElsewhere?: ((event: PushedEvent<Data>) => void) | undefined;
  /** The service has a receipt. */
  readonly onReceipt?: ((receipt: Receipt) => void) | undefined;
  /** The service refused a receipt for good, as for an event that is no longer kept; it is let go of. */
  readonly onRejected?: ((receipt: Receipt, reason: string) => void) | undefined;
  readonly onGap?: ((gap: Gap) => void) | undefined;
}

export interface Listener {
  status(): Observable<Status>;
  /** Resolves when it has ended. @throws PereError when the service said no for good */
  readonly closed: Promise<void>;
  /** Ends it, as the signal does: no new event is begun; what is open, and receipts, have `flushMs` to get away. */
  close(): Promise<void>;
  /** Where another tab of this device has the connection, it comes here, and what is open there comes again here. */
  take(): void;
}

/**
 * Follows channels as a device, until it is ended. It comes back after whatever happens, with pauses that grow.
 * @throws RangeError when there are no channels, or too many
 */
export function listen<Data = unknown>(options: ListenOptions<Data>): Listener {
  return new Device(options as ListenOptions);
}

/** What one device remembers, as it is kept. */
interface Kept {
  readonly version: 1;
  /** Finished events that the service has the receipts of, oldest first. */
  readonly settled: readonly (readonly [id: string, status: Word])[];
  readonly outbox: readonly Receipt[];
  /** Where an anonymous feed goes on; a named one is told by the service. */
  readonly last: string;
}

/** What tabs of one device say to each other. */
interface TabMessage {
  readonly status?: Status;
  readonly event?: PushedEvent;
  /** An event, as JSON. */
  readonly text?: string;
  /** Who leads is to say how it is. */
  readonly question?: true;
}

/** What is known of an event that has come: it waits or is open, or this was its final word. */
type Known = "open" | Pick<Receipt, "status" | "detail">;

class Device implements Listener {
  readonly closed: Promise<void>;
  readonly #options: ListenOptions;
  readonly #line: ServiceClient;
  readonly #feed: Feed;
  readonly #channels: readonly string[];
  readonly #status: StatusSignal;
  readonly #concurrency: number;
  /** Aborted when it is to end; `#over` when it has. */
  readonly #ending = new AbortController();
  readonly #over = new AbortController();
  /** Aborted when the connection is not here: at the end, and when another tab has it. */
  #term = new AbortController();
  readonly #known = new Map<string, Known>();
  readonly #settled: string[] = [];
  readonly #nap: Sleep;
  #name = "";
  #device: string | null;
  #isAnonymous: boolean;
  #waiting: PushedEvent[] = [];
  #open = 0;
  #room: Promised<void> | null = null;
  #outbox: Receipt[] = [];
  #rejected = 0;
  #sending: Promise<void> | null = null;
  #batchMax = RECEIPTS_MAX;
  /** The pause before receipts are sent again is our own, not one that was asked for. */
  #mayHurry = true;
  #idle: (() => void)[] = [];
  #saving: Promise<void> | null = null;
  #isDirty = false;
  #trouble: string | null = null;
  #isElsewhere = false;
  #isClosed = false;
  #last = "";
  #isTelling = false;
  /** The service takes its receipts for this device's: a cookie that nobody here sees may be another one's. */
  #isKnown: boolean;
  #tabs: BroadcastChannel | null = null;
  /** By what tabs agree on who has the connection; null: they don't. */
  #locks: LockManager | null = null;
  /** What the leading tab was asked since it gave a sign of life, and when that was. */
  #questions = 0;
  #leaderHeardAt = 0;
  /** Ends the waiting for the turn, to take it. */
  #toTake: (() => void) | null = null;
  /** There while the page is frozen. */
  #frozen: Promised<void> | null = null;

  constructor(options: ListenOptions) {
    this.#options = options;
    this.#line = new ServiceClient(options);
    this.#nap = new Sleep(this.#line);
    this.#channels = typeof options.channels === "string" ? options.channels.split(",") : options.channels;
    this.#concurrency = Math.max(1, options.concurrency ?? 1);
    this.#device = options.device ?? null;
    this.#isAnonymous = options.device === undefined && options.token === undefined;
    this.#isKnown = options.device === undefined || options.token !== undefined;
    this.#feed = new Feed(
      this.#line,
      "feed",
      this.#channels,
      {
        ...(options.device === undefined ? {} : { device: options.device }),
        ...(options.since === undefined ? {} : { since: options.since }),
      },
      "",
      {
        take: (value) => this.#take(value as unknown as PushedEvent),
        own: (name, body) => this.#own(name, body),
        room: () => this.#hasRoom(),
        changed: () => this.#changed(),
      },
    );
    this.#status = new StatusSignal(this.#snapshot());
    const end = (): void => void this.close();
    if (options.signal?.aborted) end();
    options.signal?.addEventListener("abort", end);
    this.closed = this.#run().finally(() => options.signal?.removeEventListener("abort", end));
    // Whoever does not ask how it ended is not told by a crash.
    this.closed.catch(() => {});
  }

  status(): Observable<Status> {
    return this.#status;
  }

  close(): Promise<void> {
    this.#ending.abort();
    return this.closed;
  }

  // -------------------------------------------------------------------------------------------------------- from start to end

  take(): void {
    this.#toTake?.();
  }

  async #run(): Promise<void> {
    const online = (): void => {
      this.#feed.hurry();
      if (this.#mayHurry) this.#nap.wake();
    };
    const offline = (): void => this.#feed.doubt();
    const end = (): void => this.#term.abort();
    globalThis.addEventListener?.("online", online);
    globalThis.addEventListener?.("offline", offline);
    this.#ending.signal.addEventListener("abort", end);
    if (this.#ending.signal.aborted) end();
    this.#locks = this.#tabLocks();
    try {
      await this.#named();
      await (this.#locks && this.#openTabs() ? this.#share(this.#locks) : this.#lead());
    } catch (error) {
      this.#trouble = sentenceOf(error);
      throw error;
    } finally {
      globalThis.removeEventListener?.("online", online);
      globalThis.removeEventListener?.("offline", offline);
      this.#over.abort();
      this.#ending.abort();
      this.#isClosed = true;
      this.#tell();
      this.#tabs?.close();
    }
  }

  /** Finds what it is called in storage and among tabs; where its token names it, that must be had first. */
  async #named(): Promise<void> {
    const { device, token, storage, url } = this.#options;
    let name = device ?? "";
    const isTokens = device === undefined && token !== undefined && (storage !== undefined || this.#locks !== null);
    for (let failures = 1; isTokens && !this.#ending.signal.aborted; failures++)
      try {
        const { sub } = claimsOf(await this.#line.token());
        if (typeof sub === "string") this.#device = name = sub;
        break;
      } catch (error) {
        this.#trouble = sentenceOf(error);
        this.#changed();
        await this.#nap.sleep(this.#pauseMs(failures), this.#ending.signal);
      }
    this.#trouble = null;
    this.#name = `pere ${url.replace(/\/+$/, "")} ${[...this.#channels].sort().join(",")} ${name}`;
  }

  /** The connection is here, until the end or until another tab has it. */
  async #lead(): Promise<void> {
    this.#isElsewhere = false;
    await this.#recall();
    if (this.#outbox.length > 0) this.#send();
    this.#feed.last = this.#last;
    this.#tell();
    try {
      await this.#feed.run(this.#term.signal);
    } catch (error) {
      // What it can't be told now is kept.
      this.#ending.abort();
      this.#giveUp();
      await this.#save();
      throw error;
    }
    if (this.#ending.signal.aborted) return this.#finish();
    // What was finished goes on being told; what was not comes again, in the other tab.
    this.#isElsewhere = true;
    this.#giveUp();
  }

  /** No new event is begun; what is open and what is unsent has `flushMs`. */
  async #finish(): Promise<void> {
    this.#giveUp();
    const stop = this.#line.setTimer(() => this.#over.abort(), this.#line.timing.flushMs);
    this.#nap.wake();
    const over = promised();
    this.#over.signal.addEventListener("abort", () => over.resolve());
    while (!this.#over.signal.aborted && (this.#open > 0 || this.#outbox.length > 0)) {
      const idle = promised();
      this.#idle.push(idle.resolve);
      await Promise.race([idle.promise, over.promise]);
    }
    stop();
    this.#over.abort();
    await this.#save();
  }

  /** What was not begun comes again, next time. */
  #giveUp(): void {
    for (const { id } of this.#waiting) this.#known.delete(id);
    this.#waiting = [];
    this.#makeRoom();
  }

  #pauseMs(failures: number): number {
    return jitterMs(this.#line.random, failures, 500, this.#line.timing.pauseMsMax);
  }

  // -------------------------------------------------------------------------------------------------------------------- tabs

  /** What tabs would agree by; null: they need not, or this browser can't. */
  #tabLocks(): LockManager | null {
    const { share = true } = this.#options;
    if (!share || this.#isAnonymous || typeof document === "undefined") return null;
    try {
      return navigator.locks ?? null;
    } catch {
      return null;
    }
  }

  /** Tabs hear each other from now on. @returns false: this browser does not let them */
  #openTabs(): boolean {
    try {
      this.#tabs = new BroadcastChannel(this.#name);
    } catch {
      return false;
    }
    this.#tabs.onmessage = ({ data }: MessageEvent<TabMessage>) => {
      if (!this.#isElsewhere) return void (data.question && this.#tell());
      if (data.status && data.status.state !== "closed") {
        this.#questions = 0;
        this.#leaderHeardAt = this.#line.monotonic();
        this.#status.set({ ...data.status, isElsewhere: true });
      }
      const event = data.event ?? (data.text === undefined ? undefined : jsonOf(data.text, this.#line.parse));
      if (event) call(() => this.#options.onElsewhere?.(event as PushedEvent));
    };
    return true;
  }

  /** Says something to the other tabs. @returns whether it could be */
  #say(message: TabMessage): boolean {
    try {
      this.#tabs?.postMessage(message);
      return true;
    } catch {
      return false;
    }
  }

  /** One tab leads; the others hear of it what it sees, and one of them follows when it ends, is frozen, or shows no sign of life. */
  async #share(locks: LockManager): Promise<void> {
    const freeze = (): void => {
      this.#frozen ??= promised();
      this.#term.abort();
    };
    const resume = (): void => {
      this.#frozen?.resolve();
      this.#frozen = null;
    };
    document.addEventListener("freeze", freeze);
    document.addEventListener("resume", resume);
    this.#ending.signal.addEventListener("abort", resume);
    try {
      let isTaking = false;
      while (!this.#ending.signal.aborted) {
        await this.#frozen?.promise;
        this.#term = new AbortController();
        isTaking = await this.#turn(locks, isTaking);
      }
      await this.#finish();
    } finally {
      document.removeEventListener("freeze", freeze);
      document.removeEventListener("resume", resume);
    }
  }

  /**
   * Waits for the turn and leads, until the end or until another tab has taken it; or waits until the turn is to be taken.
   * @param isTaking it is taken from whoever has it @returns whether it is to be taken next
   */
  async #turn(locks: LockManager, isTaking: boolean): Promise<boolean> {
    const waiting = new AbortController();
    const stop = (): void => waiting.abort();
    let leading: Promise<unknown> | null = null;
    let isToTake = false;
    const lead = (): Promise<unknown> => {
      stopWaiting();
      leading = this.#lead().then(
        () => null,
        (error: unknown) => ({ error }),
      );
      return leading;
    };
    const stopWaiting = this.#waitElsewhere(() => {
      isToTake = true;
      stop();
    });
    this.#term.signal.addEventListener("abort", stop);
    if (this.#ending.signal.aborted) this.#term.abort();
    try {
      await locks.request(this.#name, isTaking ? { steal: true } : { signal: waiting.signal }, lead);
    } catch {
      // Another tab has taken the turn, this one is to take it or to end; or the browser gives no locks, and nobody shares.
      if (leading === null && !waiting.signal.aborted) void lead();
      else this.#term.abort();
    } finally {
      stopWaiting();
    }
    const failure = (await leading) as { error: unknown } | null;
    if (failure) throw failure.error;
    return isToTake;
  }

  /** Asks the leading tab for a sign of life, now and then. @param take called when there is none, or when this tab is told to @returns ends it */
  #waitElsewhere(take: () => void): () => void {
    const { setTimer, timing, monotonic } = this.#line;
    this.#questions = 0;
    this.#leaderHeardAt = monotonic();
    this.#isElsewhere = true;
    this.#toTake = take;
    const ask = (): void => {
      // A tab that nobody sees is seldom given time: what counts is that several questions had none.
      if (this.#questions > 2 && monotonic() - this.#leaderHeardAt > timing.leaderMs) return take();
      this.#questions++;
      this.#say({ question: true });
      stopAsking = setTimer(ask, Math.min(QUESTION_MS, timing.leaderMs / 4));
    };
    let stopAsking = setTimer(ask, 0);
    const stopShowing = setTimer(
      () => this.#questions > 0 && this.#status.set({ ...this.#snapshot(), isElsewhere: true }),
      ELSEWHERE_MS,
    );
    return () => {
      this.#toTake = null;
      stopAsking();
      stopShowing();
    };
  }

  /** The other tabs see an event that is worked on here. What `parse` made may be nothing that can be handed over; its text can. */
  #showTabs(event: PushedEvent): void {
    if (this.#tabs === null || this.#say({ event })) return;
    const { data: _, ...rest } = event;
    this.#say({ text: `${JSON.stringify(rest).slice(0, -1)},"data":${event.text}}` });
  }

  // ------------------------------------------------------------------------------------------------------------------ status

  #snapshot(): Status {
    const { state, transport, heardAt, retryAt, error } = this.#feed;
    return {
      state: this.#isClosed ? "closed" : state,
      transport,
      device: this.#device,
      isElsewhere: this.#isElsewhere,
      waiting: this.#waiting.length,
      open: this.#open,
      unsent: this.#outbox.length,
      rejected: this.#rejected,
      heardAt,
      retryAt,
      error: this.#trouble ?? error,
    };
  }

  /** Something changed; it is told once for all that changes in this turn. */
  #changed(): void {
    if (this.#isTelling || this.#isClosed) return;
    this.#isTelling = true;
    queueMicrotask(() => {
      this.#isTelling = false;
      this.#tell();
    });
  }

  #tell(): void {
    if (this.#isElsewhere && !this.#isClosed) return;
    const status = this.#snapshot();
    this.#status.set(status);
    if (!this.#isElsewhere) this.#say({ status });
  }

  // ------------------------------------------------------------------------------------------------------------------ events

  #own(name: string, body: Record<string, unknown>): void {
    if (name === "ready" && this.#mayHurry) this.#nap.wake();
    if (name === "ready" && "device" in body) {
      // A token says who its bearer is.
      this.#device = typeof body.device === "string" ? body.device : null;
      this.#isAnonymous = this.#device === null;
    }
    if (name === "ready") this.#meet(body);
    if (name === "gap") call(() => this.#options.onGap?.(body as unknown as Gap));
  }

  /** The service said whom it takes this for; before that, and to another one, no receipt is given. A long-poll does not say. */
  #meet({ device }: Record<string, unknown>): void {
    const wanted = this.#options.device;
    if (this.#options.token === undefined && wanted !== undefined) {
      this.#isKnown = device === undefined || device === wanted;
      if (!this.#isKnown) this.#trouble = `receipts wait: the service takes this device for ${String(device)}`;
    }
    if (this.#outbox.length > 0) this.#send();
  }

  #take(event: PushedEvent): void {
    if (this.#term.signal.aborted) return;
    const known = this.#known.get(event.id);
    if (known === "open") return;
    if (known) {
      // It comes again although it was finished: the service has not its final word, which may be on its way.
      if (!this.#outbox.some((receipt) => receipt.event === event.id && receipt.status === known.status))
        this.#give(event, known.status, known.detail);
      return;
    }
    this.#known.set(event.id, "open");
    this.#waiting.push(event);
    this.#give(event, "received");
    this.#showTabs(event);
    this.#begin();
  }

  #begin(): void {
    while (this.#open < this.#concurrency && this.#waiting.length > 0 && !this.#term.signal.aborted) {
      this.#open++;
      void this.#work(this.#waiting.shift()!);
    }
    if (this.#waiting.length <= WAITING_MAX / 2) this.#makeRoom();
    this.#changed();
  }

  async #work(event: PushedEvent): Promise<void> {
    const { signal } = this.#term;
    const context: Context = {
      signal,
      working: (detail) => void (this.#known.get(event.id) === "open" && this.#give(event, "working", detail)),
    };
    let [word, detail]: [Word | null, unknown] = ["done", undefined];
    try {
      detail = await this.#options.onEvent(event, context);
    } catch (error) {
      // What is broken off by the end is not failed: it comes again.
      [word, detail] = [signal.aborted ? null : "failed", messageOf(error) || undefined];
    }
    if (word === null) this.#known.delete(event.id);
    else this.#give(event, word, detail);
    // The next one is not begun before this one's end is written down: after a kill no more than `concurrency` come again.
    await this.#save();
    this.#open--;
    this.#begin();
    this.#isIdle();
  }

  #isIdle(): void {
    for (const resolve of this.#idle.splice(0)) resolve();
  }

  #hasRoom(): Promise<void> | null {
    if (this.#waiting.length < WAITING_MAX || this.#term.signal.aborted) return null;
    this.#room ??= promised();
    return this.#room.promise;
  }

  #makeRoom(): void {
    this.#room?.resolve();
    this.#room = null;
  }

  // ---------------------------------------------------------------------------------------------------------------- receipts

  #give({ id, channel }: PushedEvent, status: Word, result?: unknown): void {
    const detail = detailOf(result);
    const isFinal = status === "done" || status === "failed";
    if (isFinal) this.#known.set(id, { status, detail });
    if (this.#isAnonymous) {
      if (isFinal) this.#settle(id);
    } else {
      const at = new Date(this.#line.now()).toISOString();
      this.#outbox.push({ event: id, channel, status, ...(detail === undefined ? {} : { detail }), at });
      this.#send();
    }
    void this.#save();
    this.#changed();
  }

  /** The service has the event's final receipt: it need not be remembered for ever. */
  #settle(id: string): void {
    this.#settled.push(id);
    if (this.#settled.length > SETTLED_MAX) this.#known.delete(this.#settled.shift()!);
  }

  #send(): void {
    if (!this.#isKnown) return;
    this.#sending ??= this.#sendAll().finally(() => {
      this.#sending = null;
      this.#isIdle();
      if (this.#outbox.length > 0 && !this.#over.signal.aborted) this.#send();
    });
  }

  /** Sends what is in the outbox, in order, until it is empty or all is over. */
  async #sendAll(): Promise<void> {
    const { signal } = this.#over;
    if (!this.#ending.signal.aborted && this.#outbox.length < RECEIPTS_MAX)
      await this.#nap.sleep(this.#line.timing.gatherMs, signal);
    for (let failures = 0; this.#isKnown && this.#outbox.length > 0 && !signal.aborted;) {
      // What was finished is written down before anybody is told.
      await this.#save();
      const { channel } = this.#outbox[0]!;
      const ask = failures === 0 ? this.#feed.ask : null;
      const batch = this.#outbox.filter((receipt) => ask || receipt.channel === channel).slice(0, this.#batchMax);
      try {
        const body = JSON.stringify(batch.map(({ channel: _, ...receipt }) => receipt));
        const events = batch.map(({ event }) => event);
        const { rejected } = await (ask ? ask(body, events) : this.#post(channel, body, events));
        this.#answered(batch, rejected);
        failures = 0;
        this.#trouble = null;
        this.#batchMax = RECEIPTS_MAX;
      } catch (error) {
        if (error instanceof PereError && this.#refused(batch, error)) continue;
        failures++;
        this.#trouble = `receipts wait: ${sentenceOf(error)}`;
        this.#line.trouble(this.#trouble);
        this.#changed();
        const askedMs = error instanceof Trouble ? error.pauseMs : null;
        const pauseMs = Math.max(this.#pauseMs(failures), (askedMs ?? 0) * (1 + this.#line.random() / 5));
        this.#mayHurry = askedMs === null;
        // A socket that failed is followed by a request at once.
        if (!ask) await this.#nap.sleep(pauseMs, signal);
      }
    }
  }

  async #post(channel: string, body: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    const { device } = this.#options;
    const url = addressOf(this.#line.base, "feedback", [channel], device === undefined ? {} : { device });
    const init = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    try {
      const text = await this.#line.ask(url, init, this.#over.signal, this.#line.timing.requestMs);
      return answerOf(objectOf(text), events);
    } catch (error) {
      if (error instanceof PereError && isObject(error.problem) && Array.isArray(error.problem.rejected))
        return answerOf(error.problem, events);
      throw error;
    }
  }

  /** The service has these receipts, save those that it rejects. */
  #answered(batch: readonly Receipt[], rejected: ReceiptsAnswer["rejected"]): void {
    const reasons = new Map(rejected.map(({ index, reason }) => [index, reason]));
    const gone = new Set(batch);
    this.#outbox = this.#outbox.filter((receipt) => !gone.has(receipt));
    batch.forEach((receipt, index) => {
      if (receipt.status === "done" || receipt.status === "failed") this.#settle(receipt.event);
      const reason = reasons.get(index);
      if (reason === undefined) return call(() => this.#options.onReceipt?.(receipt));
      this.#rejected++;
      call(() => this.#options.onRejected?.(receipt, reason));
    });
    void this.#save();
    this.#changed();
  }

  /**
   * The service refused a whole request: the receipt that it is about is found by halves, is given without its detail, and else let go of.
   * @returns false: it is not about a receipt; all of them wait
   */
  #refused(batch: readonly Receipt[], { status, message }: PereError): boolean {
    if (status !== 400 && status !== 413 && status !== 422) return false;
    this.#batchMax = Math.max(1, Math.floor(batch.length / 2));
    const [receipt] = batch;
    if (batch.length > 1 || !receipt) return true;
    if (receipt.detail === undefined || (isObject(receipt.detail) && "refused" in receipt.detail))
      this.#answered(batch, [{ index: 0, reason: message || "it was refused" }]);
    else {
      const spare = { ...receipt, detail: { refused: message } };
      this.#outbox = this.#outbox.map((other) => (other === receipt ? spare : other));
    }
    return true;
  }

  // ----------------------------------------------------------------------------------------------------------------- storage

  async #recall(): Promise<void> {
    const { storage } = this.#options;
    if (!storage) return;
    let kept: unknown;
    try {
      kept = jsonOf((await storage.get(this.#name)) ?? "null");
    } catch (error) {
      // Nothing may be put in the place of what can't be read now.
      throw new Error(`what was kept can't be read: ${sentenceOf(error)}`, { cause: error });
    }
    const { settled, outbox, last } = keptOf(kept);
    for (const [id, status] of settled) {
      if (this.#known.has(id)) continue;
      this.#known.set(id, { status });
      this.#settle(id);
    }
    const isThere = new Set(this.#outbox.map(({ event, status }) => `${event} ${status}`));
    for (const receipt of outbox) {
      const { event, status, detail } = receipt;
      if (isThere.has(`${event} ${status}`)) continue;
      if (status === "done" || status === "failed") this.#known.set(event, { status, detail });
      this.#outbox.push(receipt); // One by one: there may be more than one call takes.
    }
    this.#last = last;
  }

  /** Keeps what must survive. Resolves when all that was there at the call is kept, or could not be. */
  async #save(): Promise<void> {
    // What another tab keeps is not written over.
    const isLost = this.#isElsewhere || (this.#term.signal.aborted && !this.#ending.signal.aborted);
    if (!this.#options.storage || (this.#tabs && isLost)) return;
    this.#isDirty = true;
    this.#saving ??= this.#saveAll();
    await this.#saving;
  }

  async #saveAll(): Promise<void> {
    // All that is given in this turn is written at once.
    await null;
    while (this.#isDirty) {
      this.#isDirty = false;
      // Where nothing waits and nothing is open, all before the feed's position is done.
      if (this.#isAnonymous && this.#waiting.length === 0 && this.#open === 0) this.#last = this.#feed.last;
      const settled = this.#settled.flatMap((id) => {
        const known = this.#known.get(id);
        return known && known !== "open" ? [[id, known.status] as const] : [];
      });
      const kept: Kept = { version: 1, settled, outbox: this.#outbox, last: this.#last };
      try {
        await this.#options.storage!.set(this.#name, JSON.stringify(kept));
      } catch (error) {
        this.#trouble = `nothing can be kept: ${sentenceOf(error)}`;
        this.#changed();
      }
    }
    this.#saving = null;
  }
}

const isWord = (value: unknown): value is Word =>
  value === "received" || value === "working" || value === "done" || value === "failed";

/** What was kept, as far as it is what a device keeps. */
function keptOf(kept: unknown): Kept {
  const { settled, outbox, last } = isObject(kept) && kept.version === 1 ? kept : {};
  const list = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);
  return {
    version: 1,
    settled: list(settled).filter(
      (one): one is [string, Word] => Array.isArray(one) && isText(one[0]) && isWord(one[1]),
    ),
    outbox: list(outbox).filter(
      (one): one is Receipt => isObject(one) && isText(one.event) && isText(one.channel) && isWord(one.status),
    ),
    last: typeof last === "string" ? last : "",
  };
}

/** What a receipt can carry of a value: itself, or, where it is too large or no JSON, what can be said of it. Undefined: there is none. */
function detailOf(value: unknown): unknown {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch (error) {
    return { unwritable: messageOf(error).slice(0, 200) };
  }
  if (text === undefined) return undefined;
  const bytes = new TextEncoder().encode(text).length;
  if (bytes > DETAIL_BYTES_MAX) return { trimmed: true, bytes, start: text.slice(0, 1_000) };
  return depthOf(text) > DETAIL_DEPTH_MAX ? { trimmed: true, bytes, start: text.slice(0, 1_000) } : JSON.parse(text);
}

/** How deep a JSON text nests. */
function depthOf(text: string): number {
  let [depth, deepest] = [0, 0];
  for (const [mark] of text.matchAll(/"(?:[^"\\]|\\.)*"|[[\]{}]/g)) {
    if (mark === "[" || mark === "{") deepest = Math.max(deepest, ++depth);
    else if (mark === "]" || mark === "}") depth--;
  }
  return deepest;
}

// ----------------------------------------------------------------------------------------------------------------- publish

export interface PublishOptions extends Omit<ConnectionOptions, "url" | "WebSocket"> {
  /** Becomes the SSE event's name. `open`, `message`, `error` and what begins with `pere.` are refused (422). */
  readonly type?: string | undefined;
  /** Devices that it is for; without, all that are enrolled. */
  readonly to?: readonly string[] | undefined;
  /** Seconds after which it is delivered to nobody. */
  readonly ttl?: number | undefined;
  /** Seconds by which each device owes a final receipt. */
  readonly deadline?: number | undefined;
  /** Seconds after which devices that said nothing are reminded, again and again. */
  readonly remind?: number | undefined;
  /** Seconds for which the answer waits until each device gave a final receipt; at most 120. */
  readonly wait?: number | undefined;
  /** The same key and data are stored once, within 24 hours. By default one is made. */
  readonly key?: string | undefined;
  /** The data is a JSON text, or are JSON texts, and goes out as it is. */
  readonly isJson?: boolean | undefined;
  /** Milliseconds after which it is tried no more; by default a minute, beside `wait`. */
  readonly giveUpMs?: number | undefined;
}

/** What became of a push. With `wait`, `receipts` and `complete` say how far it had come. */
export interface Pushed {
  readonly id: string;
  readonly channel: string;
  readonly seq: number;
  readonly at: string;
  readonly type?: string;
  readonly deadline?: string;
  readonly audience: { readonly addressed: number; readonly connected: number };
  readonly receipts?: Tally;
  readonly complete?: boolean;
}

/** What became of many. */
export interface PushedMany {
  readonly events: readonly {
    readonly id: string;
    readonly seq: number;
    readonly at: string;
    readonly receipts?: Tally;
    readonly complete?: boolean;
  }[];
  readonly audience: { readonly addressed: number; readonly connected: number };
}

/**
 * Pushes one event. It is repeated with the same key until the service has answered, so it is stored once however often the network fails.
 * @throws PereError when it is refused; Error when there was no answer within `giveUpMs`, or the signal ended it: it may have been stored
 */
export const publish = (url: string, channel: string, data: unknown, options: PublishOptions = {}): Promise<Pushed> =>
  push(url, channel, textOf(data, options), "application/json", null, options) as Promise<Pushed>;

/** Pushes up to 1,000 events: all are stored, or none. @throws as `publish`, and RangeError */
export async function publishMany(
  url: string,
  channel: string,
  data: readonly unknown[],
  options: PublishOptions = {},
): Promise<PushedMany> {
  if (data.length === 0 || data.length > LINES_MAX) throw new RangeError(`1 to ${LINES_MAX} events at once`);
  // Line breaks in a JSON text stand between its tokens, where a space is as good.
  const lines = data.map((value) => textOf(value, options).replaceAll(/[\r\n]/g, " "));
  return push(url, channel, lines.join("\n"), "application/x-ndjson", lines.length, options) as Promise<PushedMany>;
}

function textOf(data: unknown, { isJson = false }: PublishOptions): string {
  const text = isJson ? data : JSON.stringify(data);
  if (typeof text !== "string") throw new TypeError("what is pushed must be JSON");
  return text;
}

async function push(
  base: string,
  channel: string,
  body: string,
  type: string,
  count: number | null,
  options: PublishOptions,
): Promise<unknown> {
  const line = new ServiceClient({ ...options, url: base });
  const {
    to,
    ttl,
    deadline,
    remind,
    wait,
    signal = null,
    key = newKey(),
    giveUpMs = 60_000 + (wait ?? 0) * 1000,
  } = options;
  const query: Record<string, string> = {};
  for (const [name, value] of Object.entries({ type: options.type, to: to?.join(","), ttl, deadline, remind }))
    if (value !== undefined) query[name] = String(value);
  const url = addressOf(line.base, "push", [channel], query);
  const startedAt = line.monotonic();
  const never = new AbortController().signal;
  const nap = new Sleep(line);
  for (let failures = 1; ; failures++) {
    const leftMs = Math.max(0, (wait ?? 0) * 1000 - (line.monotonic() - startedAt));
    const prefer: Record<string, string> = wait === undefined ? {} : { Prefer: `wait=${Math.ceil(leftMs / 1000)}` };
    const headers = { "Content-Type": type, "Idempotency-Key": key, ...prefer };
    try {
      const text = await line.ask(url, { method: "POST", headers, body }, signal, line.timing.requestMs + leftMs);
      const answer = objectOf(text);
      if (!isPushed(answer, channel, count)) throw foreign();
      return answer;
    } catch (error) {
      const pastMs = line.monotonic() - startedAt;
      if (!(error instanceof Trouble) || signal?.aborted || pastMs >= giveUpMs) throw error;
      const pauseMs = Math.max(
        jitterMs(line.random, failures, 250, line.timing.pauseMsMax),
        (error.pauseMs ?? 0) * (1 + line.random() / 5),
      );
      line.trouble(error.message);
      await nap.sleep(Math.min(pauseMs, giveUpMs - pastMs), signal ?? never);
    }
  }
}

const isStored = (value: unknown): value is Record<string, unknown> =>
  isObject(value) && isText(value.id) && isCount(value.seq) && isText(value.at);

/** Whether this says that what was pushed is stored. @param count of events; null: one, that was pushed alone */
function isPushed(answer: Record<string, unknown>, channel: string, count: number | null): boolean {
  const { audience, events } = answer;
  if (!isObject(audience) || !isCount(audience.addressed) || !isCount(audience.connected)) return false;
  if (count === null) return isStored(answer) && answer.channel === channel;
  return Array.isArray(events) && events.length === count && events.every(isStored);
}

// ---------------------------------------------------------------------------------------------------------------- receipts

/** A receipt as publishers get it; `missing` is the service's own word. */
export interface DeviceReceipt {
  readonly kind: "receipt";
  readonly id: string;
  readonly event: string;
  readonly channel: string;
  readonly device: string;
  readonly status: Word | "missing";
  readonly detail: unknown;
  /** `detail` as its device wrote it: with the numbers that JavaScript would round. */
  readonly text: string;
  readonly at: string;
  readonly deviceAt: string | null;
  readonly late: boolean;
}

/** Each device that the event was addressed to gave its final receipt. */
export interface Complete {
  readonly kind: "complete";
  readonly id: string;
  readonly event: string;
  readonly channel: string;
  readonly at: string;
  readonly receipts: Tally;
  readonly complete: true;
}

/** What devices say, in order; and what is no longer kept. */
export type ReceiptMessage = DeviceReceipt | Complete | (Gap & { readonly kind: "gap" });

export interface ReceiptsOptions extends ConnectionOptions {
  /** One, or up to 16. */
  readonly channel: string | readonly string[];
  /** Where it begins: `now` by default, `earliest`, or a position of before. */
  readonly since?: "now" | "earliest" | (string & {}) | undefined;
}

/** Receipts as they come. */
export interface Receipts extends AsyncIterableIterator<ReceiptMessage> {
  /** Resolves when it is followed: no receipt that is given from then on is missed. @throws PereError when the service says no for good */
  readonly ready: Promise<void>;
  /** Where the next one would go on: a later call's `since`. What was taken from it stands before that. */
  readonly position: string;
  /** What went wrong last; null since it went well. */
  readonly error: string | null;
}

/**
 * Follows what devices say, from now on or from where it was, through whatever happens to the connection.
 * It ends when the signal ends it, or the loop that reads it. @throws PereError, in the loop, when the service says no for good
 */
export function receipts(options: ReceiptsOptions): Receipts {
  return new Follower(options);
}

class Follower implements Receipts {
  readonly ready: Promise<void>;
  readonly #ending = new AbortController();
  readonly #feed: Feed;
  readonly #said: { readonly said: ReceiptMessage; readonly last: string }[] = [];
  readonly #signal: AbortSignal | undefined;
  readonly #end = (): void => {
    this.#ending.abort();
    this.#room?.resolve();
  };
  #position: string;
  #news: Promised<void> = promised();
  #room: Promised<void> | null = null;
  #failure: unknown = null;
  #isOver = false;

  constructor(options: ReceiptsOptions) {
    const { channel, since, signal } = options;
    const ready = promised();
    this.ready = ready.promise;
    this.ready.catch(() => {});
    const channels = typeof channel === "string" ? channel.split(",") : channel;
    // A position of before is where it goes on, so that a gap is told.
    const isPlace = since !== undefined && since !== "now" && since !== "earliest";
    this.#position = isPlace ? since : "";
    this.#feed = new Feed(
      new ServiceClient(options),
      "feedback",
      channels,
      since === "earliest" ? { since } : {},
      this.#position,
      {
        take: (value) => this.#add({ kind: "receipt", ...value } as DeviceReceipt),
        own: (name, body) => {
          if (name === "ready") ready.resolve();
          if (name === "complete") this.#add({ kind: "complete", ...body } as Complete);
          if (name === "gap") this.#add({ kind: "gap", ...body } as unknown as ReceiptMessage);
        },
        room: () => this.#hasRoom(),
        changed: () => {},
      },
    );
    this.#signal = signal;
    if (signal?.aborted) this.#end();
    signal?.addEventListener("abort", this.#end);
    void this.#feed
      .run(this.#ending.signal)
      .catch((error: unknown) => {
        this.#failure = error;
        ready.reject(error);
      })
      .finally(() => this.#over());
  }

  get position(): string {
    return this.#position;
  }

  get error(): string | null {
    return this.#feed.error;
  }

  #over(): void {
    this.#isOver = true;
    this.#signal?.removeEventListener("abort", this.#end);
    this.#news.resolve();
  }

  #add(said: ReceiptMessage): void {
    // The position behind it is known when the next one comes; until then it would come again.
    this.#said.push({ said, last: this.#feed.last });
    this.#news.resolve();
  }

  #hasRoom(): Promise<void> | null {
    if (this.#said.length < WAITING_MAX || this.#ending.signal.aborted) return null;
    this.#room ??= promised();
    return this.#room.promise;
  }

  async next(): Promise<IteratorResult<ReceiptMessage>> {
    for (;;) {
      const first = this.#said.shift();
      if (this.#said.length <= WAITING_MAX / 2) {
        this.#room?.resolve();
        this.#room = null;
      }
      if (first) {
        this.#position = this.#said.length === 0 ? this.#feed.last : this.#said[0]!.last;
        return { done: false, value: first.said };
      }
      if (this.#isOver) {
        if (this.#failure !== null) throw this.#failure;
        return { done: true, value: undefined };
      }
      this.#news = promised();
      await this.#news.promise;
    }
  }

  async return(): Promise<IteratorResult<ReceiptMessage>> {
    this.#end();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
