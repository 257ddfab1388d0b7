/**
 * The door: what is looked at before a request is. Whom it was sent to (`Host`), which page sent it (`Origin`), and what its token allows.
 *
 * A browser sends requests for any page that it shows, also to services behind the firewall and on its own machine. So a page of a stranger gets
 * nothing here, neither an answer that it may read nor a request that is carried out: an origin is this service's own or it was named by the
 * operator. Where everybody may do everything, on a loopback address, a name that a stranger had point there would make his page one of
 * ours; there, only loopback names and named ones are taken for this service.
 *
 * It knows no route: which right a request needs is said by whoever asks.
 */
import { type Access, tokenOf } from "./access.ts";
import type { Allowed } from "./hook-call.ts";
import { PereError } from "./model.ts";
import { addressOf, type Rates, type Work } from "./rates.ts";
import { demand, type Grant, OPEN, type Right } from "./rights.ts";

/** A name or an address, perhaps with a port: RFC 9110, 7.2. */
const HOST = /^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?$/;
const LOOPBACK = /^(?:localhost\.?|[^:]+\.localhost\.?|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?$/i;
/** How long a browser may remember what it was allowed. */
const PREFLIGHT_SECONDS = 600;

/** Origins that browsers may call from: exact ones, or all. */
export type Origins = readonly string[] | "*";

/** @throws Error with the one line to print */
export function readOrigins(text: string): Origins {
  if (text === "*") return "*";
  return text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "")
    .map((part) => {
      const url = URL.canParse(part) ? new URL(part) : null;
      if (url && (url.protocol === "http:" || url.protocol === "https:") && url.origin === part) return part;
      throw new Error(`PERE_ORIGINS must be origins like https://shop.example, comma separated, or *, not "${part}"`);
    });
}

export interface DoorOptions {
  /** Null: everybody may do everything. */
  readonly access: Access | null;
  readonly origins: Origins;
  /** Whether only loopback names, and hosts of named origins, are taken for this service. */
  readonly loopbackOnly: boolean;
  /** How much one caller may do. */
  readonly rates: Rates;
  /** Proxies whose word is taken for whose request they pass on. */
  readonly proxies: readonly Allowed[];
  readonly now: () => number;
}

/** Who knows from which address a request came. */
interface Addresses {
  requestIP(request: Request): { readonly address: string } | null;
}

export class Door {
  readonly #options: DoorOptions;
  readonly #hosts: ReadonlySet<string>;

  constructor(options: DoorOptions) {
    this.#options = options;
    const { origins } = options;
    this.#hosts = new Set(origins === "*" ? [] : origins.map((origin) => new URL(origin).host));
  }

  /**
   * Looks at `Host` and `Origin`.
   * @returns what the answer must carry so that a page of another origin may read it, and that caches know what it depends on
   * @throws PereError malformed, forbidden
   */
  look(headers: Headers): Record<string, string> {
    const host = headers.get("host") ?? "";
    if (!HOST.test(host)) throw new PereError("malformed", "Host: must name this service");
    const { origins, loopbackOnly } = this.#options;
    if (loopbackOnly && !LOOPBACK.test(host) && !this.#hosts.has(host.toLowerCase()))
      throw new PereError(
        "forbidden",
        `Host: this service is open to its own machine and does not answer to "${host}"; name it in PERE_ORIGINS, or use tokens`,
      );
    const origin = headers.get("origin");
    const varies = origins === "*" || origins.length === 0 ? NOTHING : { Vary: "Origin" };
    if (origin === null || this.#isOwn(origin, host)) return varies;
    if (origin === "null" || (origins !== "*" && !origins.includes(origin)))
      throw new PereError(
        "forbidden",
        "Origin: pages from there may not call this service; PERE_ORIGINS names those that may",
      );
    return { "Access-Control-Allow-Origin": origins === "*" ? "*" : origin, ...varies, ...EXPOSED };
  }

  /** A page of this service. Behind a proxy with TLS the scheme is not known here, the host is. */
  #isOwn(origin: string, host: string): boolean {
    return origin === `http://${host}` || origin === `https://${host}`;
  }

  /** What a browser asks before a request that a form could not make; null: this is no such question. */
  preflight(request: Request, allowed: Record<string, string>): Record<string, string> | null {
    if (request.method !== "OPTIONS" || !request.headers.has("access-control-request-method")) return null;
    if (!("Access-Control-Allow-Origin" in allowed)) return null;
    return {
      ...allowed,
      "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
      "Access-Control-Allow-Headers": "authorization, content-type, device, idempotency-key, last-event-id, prefer",
      "Access-Control-Max-Age": String(PREFLIGHT_SECONDS),
    };
  }

  /** Reads the token of a request. @throws PereError unauthorized, malformed, away */
  async grant(request: Request): Promise<Grant> {
    const { access } = this.#options;
    if (access === null) return this.#open(request.headers);
    const start = request.url.indexOf("?");
    const query = new URLSearchParams(start === -1 ? "" : request.url.slice(start));
    const grant = await access.read(tokenOf(request.headers, query));
    // Within the tolerance a token is taken for a request, but not for a feed, which would end as it begins.
    return request.method === "GET" ? this.#lasting(grant) : grant;
  }

  /** What a fresh token allows from now on, for a feed that is open. @throws PereError unauthorized, away */
  async renewed(token: string): Promise<Grant> {
    const { access } = this.#options;
    return access === null ? OPEN : this.#lasting(await access.read(token));
  }

  /** @throws PereError unauthorized, where the grant has ended */
  #lasting(grant: Grant): Grant {
    if (grant.expires > this.#options.now()) return grant;
    throw new PereError("unauthorized", "token: it has expired", [{ path: "token", message: "it has expired" }]);
  }

  /**
   * Everybody may everything, save pages of strangers. With an image, a script or a link a browser names no origin, only whether it is from
   * elsewhere (Fetch Metadata, `Sec-Fetch-Site`); and it is enough to open a feed once to make a device. @throws PereError forbidden
   */
  #open(headers: Headers): Grant {
    const site = headers.get("sec-fetch-site") ?? "none";
    if (site === "none" || site === "same-origin" || headers.has("origin") || this.#options.origins === "*")
      return OPEN;
    throw new PereError(
      "forbidden",
      "Sec-Fetch-Site: pages from elsewhere may not lead here; open the address itself, or use tokens",
    );
  }

  /** The cookie in which a browser keeps a token from now on, out of reach of scripts. @throws PereError unauthorized, away */
  async cookie(token: string, isSecure: boolean): Promise<string | null> {
    const { access, now } = this.#options;
    if (access === null) return null;
    const seconds = Math.floor((this.#lasting(await access.read(token)).expires - now()) / 1000);
    return `pere_token=${token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=${seconds}${isSecure ? "; Secure" : ""}`;
  }

  /** The grant of a request that needs a right on some channels. @throws PereError unauthorized, forbidden, malformed, away */
  async admit(request: Request, right: Right, channels: readonly string[]): Promise<Grant> {
    const grant = this.#options.access === null ? this.#open(request.headers) : await this.grant(request);
    for (const channel of channels) demand(grant, right, channel);
    return grant;
  }

  /** Whose request it is: a token's bearer, or an address. */
  caller({ subject }: Grant, request: Request, server: Addresses): string {
    if (subject !== null) return `token ${subject}`;
    const address = server.requestIP(request)?.address ?? "";
    return addressOf(address, request.headers.get("x-forwarded-for"), this.#options.proxies);
  }

  /** Counts what a caller does. @throws TooMany, or rejects with it */
  take(work: Work, grant: Grant, request: Request, server: Addresses, points = 1): Promise<void> | void {
    const { rates } = this.#options;
    if (rates.counts(work)) return rates.take(work, this.caller(grant, request, server), points);
  }
}

/** What most answers need: no page of another origin asked. */
export const NOTHING: Record<string, string> = {};

/** Headers of answers that pages of other origins may read. */
const EXPOSED = {
  "Access-Control-Expose-Headers":
    "Location, Idempotent-Replayed, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate",
};
