/**
 * HTTP requests to the service: base address, token and its renewal, redirects, time limits. All parts of the SDK share it.
 */
import { PereError } from "./model.ts";
import { call, promised, type SetTimer, setTimer, TIMER_MS_MAX, type Timing, TIMING } from "./timing.ts";
import { Blocked, foreign, redirected, refusalOf, sentenceOf, Trouble } from "./trouble.ts";
import { isObject, jsonOf } from "./values.ts";

/** Redirects that are followed in a row. */
const REDIRECTS_MAX = 5;

/** A JWT, or a function that returns one, which is called again before `exp` and after a refusal. Whitespace around a token is ignored. */
export type Token = string | (() => string | Promise<string>);

/** The part of WebSocket that the SDK uses. Browsers, Bun, Deno, Node 22 and the package `ws` have it. */
export interface SocketLike {
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

/** How to reach the service. Tests inject their own fetch, clocks and timers. */
export interface ConnectionOptions {
  /** The address of PERE, such as `https://pere.example`, with a path where it has one. A query, a user name or an invalid URL throws a TypeError. */
  readonly url: string;
  readonly token?: Token | undefined;
  /** Ends it when aborted. */
  readonly signal?: AbortSignal | undefined;
  readonly fetch?: ((url: string, init: RequestInit) => Promise<Response>) | undefined;
  /** The default is the global WebSocket, if there is one. Null: use none. */
  readonly WebSocket?: (new (url: string, protocols: string[]) => SocketLike) | null | undefined;
  /** A random number from 0 up to 1. */
  readonly random?: (() => number) | undefined;
  /** Milliseconds since 1970, for times that are shown or sent. */
  readonly now?: (() => number) | undefined;
  /** Milliseconds by a clock that is never adjusted, for measuring durations. */
  readonly monotonic?: (() => number) | undefined;
  /** Calls `run` after `ms` milliseconds. Returns a function that cancels it. */
  readonly setTimer?: ((run: () => void, ms: number) => () => void) | undefined;
  readonly timing?: Partial<Timing> | undefined;
  /** Called with the reason each time something fails and will be retried. */
  readonly onTrouble?: ((why: string) => void) | undefined;
  /** Parses incoming JSON. The default is `JSON.parse`; another parser can keep numbers that JavaScript would round. */
  readonly parse?: ((text: string) => unknown) | undefined;
}

export const addressOf = (
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

/** A token without whitespace around it. @throws TypeError: it is not a JWT; the message does not quote it */
function tokenOf(given: unknown): string {
  const token = typeof given === "string" ? given.trim() : "";
  if (!/^[A-Za-z0-9._-]+$/.test(token))
    throw new TypeError("the token is no JWT: it must be letters, digits and . _ - alone");
  return token;
}

/** @throws TypeError when it can't be the address of a service */
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
export class ServiceClient {
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
export function claimsOf(token: string | null): { exp?: unknown; sub?: unknown } {
  const part = token?.split(".")[1]?.replaceAll("-", "+").replaceAll("_", "/");
  if (!part) return {};
  try {
    const claims = jsonOf(atob(part));
    return isObject(claims) ? claims : {};
  } catch {
    return {};
  }
}
