/**
 * HTTP requests to the service: base address, token and its renewal, redirects, time limits. All parts of the SDK share it.
 */
import { BlockedError, errorOf, messageWithCauses, notFromPere, redirectError, RetryableError } from "./errors.ts";
import { PereError } from "./model.ts";
import { call, resolvable, type SetTimer, setTimer, TIMER_MS_MAX, type Timing, TIMING } from "./timing.ts";
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
  /** The address of PERE, such as `https://pere.example`, with a path if it has one. A query, a user name or an invalid URL throws a TypeError. */
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

/** The URL of a request for channels. @param path `feed`, `feedback` or `push` */
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

/** A token without whitespace around it. @throws TypeError when it is not a JWT; the message does not quote it */
function tokenOf(value: unknown): string {
  const token = typeof value === "string" ? value.trim() : "";
  if (!/^[A-Za-z0-9._-]+$/.test(token))
    throw new TypeError("the token is not a JWT: use one that consists of letters, digits and . _ - only");
  return token;
}

/** The address of the service without a slash at its end. @throws TypeError when it can't be one */
function baseOf(text: string): string {
  let url: URL | null = null;
  try {
    url = new URL(text);
  } catch {
    // Reported below.
  }
  if (url === null || !/^https?:\/\//.test(text))
    throw new TypeError(`url must begin with http:// or https://, not "${text.replace(/\/\/.*@/, "//…@")}"`);
  if (url.username !== "" || url.password !== "")
    throw new TypeError("url must not contain a user name or a password; use the option token");
  const [mark] = /[?#]/.exec(text) ?? [];
  if (mark) throw new TypeError(`url must not contain a query or a fragment: remove "${mark}" and what follows`);
  return text.replace(/\/+$/, "");
}

/** Statuses of an answer, unless a request says otherwise. */
const ANSWERS: readonly number[] = [200, 201, 204];

/** Sends requests to one service. */
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
  /** Reports an error that will be retried. */
  readonly report: (why: string) => void;
  readonly #token: Token | null;
  #currentToken: string | null = null;
  #tokenRequest: Promise<string> | null = null;
  #refusals = 0;
  /** When a new token is due, on the monotonic clock. */
  #dueAt = Number.POSITIVE_INFINITY;

  /** @throws TypeError when `url` or the token is invalid */
  constructor(options: ConnectionOptions) {
    const socket = (globalThis as { WebSocket?: ServiceClient["WebSocket"] }).WebSocket;
    const { onTrouble, setTimer: timer = setTimer } = options;
    this.base = baseOf(options.url);
    this.fetch = options.fetch ?? ((url, init) => fetch(url, init));
    this.WebSocket = options.WebSocket === undefined ? (socket ?? null) : options.WebSocket;
    this.random = options.random ?? Math.random;
    this.now = options.now ?? Date.now;
    this.monotonic = options.monotonic ?? (() => performance.now());
    this.setTimer = (run, ms) => timer(run, Math.min(Math.max(0, ms), TIMER_MS_MAX));
    this.timing = { ...TIMING, ...options.timing };
    this.parse = options.parse ?? JSON.parse;
    this.report = onTrouble ? (why) => call(() => onTrouble(why)) : () => {};
    const { token = null } = options;
    this.#token = typeof token === "function" || token === null ? token : tokenOf(token);
  }

  /** The token for the next request; null: there is none. @throws the error of the token function */
  async token(): Promise<string | null> {
    if (typeof this.#token !== "function") return this.#token;
    if (this.#currentToken !== null && this.dueMs > 0) return this.#currentToken;
    this.#tokenRequest ??= this.#fetchToken(this.#token);
    this.#currentToken = await this.#tokenRequest;
    const { exp } = claimsOf(this.#currentToken);
    const leftMs = typeof exp === "number" ? exp * 1000 - this.now() : Number.POSITIVE_INFINITY;
    // A token that has expired by this clock is used all the same: the clock may be wrong, and otherwise the service refuses it.
    this.#dueAt = leftMs > 0 ? this.monotonic() + leftMs - Math.min(30_000, leftMs / 5) : Number.POSITIVE_INFINITY;
    return this.#currentToken;
  }

  async #fetchToken(provider: () => string | Promise<string>): Promise<string> {
    const late = resolvable<never>();
    const { requestMs } = this.timing;
    const why = `the token function returned nothing within ${requestMs} ms`;
    const stop = this.setTimer(() => late.reject(new RetryableError(why)), requestMs);
    try {
      return tokenOf(await Promise.race([provider(), late.promise]));
    } finally {
      stop();
      this.#tokenRequest = null;
    }
  }

  /** Milliseconds until a new token is due. */
  get dueMs(): number {
    return this.#dueAt - this.monotonic();
  }

  /** The service accepted the token. */
  accepted(): void {
    this.#refusals = 0;
  }

  /** The service refused the token. @returns whether there may be another one */
  refused(token: string | null): boolean {
    if (typeof this.#token !== "function") return false;
    this.#refusals++;
    if (this.#currentToken === token) this.#currentToken = null;
    return true;
  }

  /** Whether the service refused tokens more than once in a row. */
  get isRefusedAgain(): boolean {
    return this.#refusals > 1;
  }

  /**
   * Sends one request. 307 and 308 are followed within the origin (RFC 9110, 15.4), so that the method stays and no other server gets the token. Browsers
   * hide the status of a redirect; there, a redirect to the same request under another path is followed.
   * @throws BlockedError for any other redirect
   */
  async request(url: string, init: Init): Promise<Response> {
    let at = url;
    let redirect: BlockedError | null = null;
    for (let count = 0; ; count++) {
      const response = await this.fetch(at, { ...init, redirect: "manual" });
      const { status, type } = response;
      const isHidden = type === "opaqueredirect";
      if (!isHidden && ![301, 302, 303, 307, 308].includes(status)) {
        // The redirect led to something that does not know this path.
        if (redirect !== null && status === 404) throw redirect;
        return response;
      }
      response.body?.cancel().catch(() => {});
      const to = isHidden ? await this.#redirectTarget(at, init) : locationOf(response, at);
      redirect = redirectError(status, to && this.#addressTo(to, url));
      const isFollowed = isHidden ? to?.href.endsWith(this.#requestOf(url)) : status === 307 || status === 308;
      if (!isFollowed || to?.origin !== new URL(at).origin || count === REDIRECTS_MAX) throw redirect;
      at = to.href;
    }
  }

  /** Path and query of a request, relative to the base address. */
  #requestOf(url: string): string {
    const { pathname, search } = new URL(url);
    return pathname.slice(new URL(this.base).pathname.replace(/\/+$/, "").length) + search;
  }

  /** The target of a redirect that the browser hides: a request without the token follows it. @returns null when it is unknown */
  async #redirectTarget(
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

  /** The base address to use instead, if the redirect leads to the same request elsewhere. Without the query, which may hold a token. */
  #addressTo({ origin, pathname }: URL, url: string): string {
    const own = this.#requestOf(url).replace(/\?.*/, "");
    return origin + (pathname.endsWith(own) ? pathname.slice(0, -own.length) : pathname);
  }

  /**
   * Sends one request with the token. @param limitMs its time limit @param statuses of an answer: PERE sends no other success
   * @returns the body of the response
   * @throws PereError when the service refuses for good, RetryableError when another attempt may succeed
   */
  async ask(url: string, init: Init, signal: AbortSignal | null, limitMs: number, statuses = ANSWERS): Promise<string> {
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
          if (!statuses.includes(response.status)) throw notFromPere();
          this.accepted();
          // The time limit includes the body.
          return await response.text();
        }
        const error = await errorOf(response, this.now());
        if (!(error instanceof PereError) || error.status !== 401 || !this.refused(token) || this.isRefusedAgain)
          throw error;
      }
    } catch (error) {
      if (error instanceof PereError || error instanceof RetryableError) throw error;
      const isLate = stop.signal.aborted && !signal?.aborted;
      throw new RetryableError(isLate ? `no answer within ${Math.round(limitMs)} ms` : messageWithCauses(error));
    } finally {
      endTimer();
      signal?.removeEventListener("abort", abort);
    }
  }
}

/** `RequestInit` with headers as an object. */
type Init = Omit<RequestInit, "headers"> & { readonly headers?: Record<string, string> };

/** The target of a redirect. @returns null when the response does not say */
function locationOf({ headers }: Response, from: string): URL | null {
  try {
    return new URL(headers.get("location") ?? "", from);
  } catch {
    return null;
  }
}

/** Claims of a JWT. They are not verified here, because the service does that. */
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
