/**
 * Admission: the checks before a request is handled. Its `Host`, its `Origin`, whether it came through a proxy, and what its token allows.
 *
 * A browser sends requests for any page that it shows, even to services behind the firewall and on its own machine. So requests from foreign pages are
 * refused, and their answers can't be read: an origin must be this service's own, or be named by the operator. A local service allows everything to
 * every program on its machine, so it answers only to loopback names; otherwise a foreign page could point a name of its own at it (DNS rebinding). It
 * also refuses requests that came through a proxy: programs on the same machine need none, and behind a proxy every request comes from this machine.
 *
 * The routes say which right a request needs.
 */
import type { Access } from "../auth/tokens.ts";
import { type AddressRange, addressOf } from "../addresses.ts";
import { PereError } from "../model.ts";
import type { RateKind, RateLimiter } from "./rate-limit.ts";
import { tokenOf } from "./request.ts";
import { demand, type Grant, OPEN, type Right } from "../auth/rights.ts";

/** A name or an address, perhaps with a port: RFC 9110, 7.2. */
const HOST = /^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?$/;
const LOOPBACK = /^(?:localhost\.?|[^:]+\.localhost\.?|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?$/i;
/** How long a browser may cache the answer to a preflight. */
const PREFLIGHT_SECONDS = 600;

/** Origins whose pages may call: exact ones, or all. */
export type Origins = readonly string[] | "*";

/** Origins of apps: `capacitor://localhost`, `chrome-extension://…`, `file://`. Browsers differ in how they write them. */
const APP_ORIGIN = /^(?!(?:https?|wss?):)[a-z][a-z0-9+.-]*:\/\/[^\s/?#@,\\]*$/i;

/** Reads `PERE_ORIGINS`. Origins are compared as they are written. @throws Error with the one line to print */
export function readOrigins(text: string): Origins {
  if (text === "*") return "*";
  return text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "")
    .map((part) => {
      if (part === "null" || APP_ORIGIN.test(part)) return part;
      const url = URL.canParse(part) ? new URL(part) : null;
      if (url && (url.protocol === "http:" || url.protocol === "https:") && url.origin === part) return part;
      throw new Error(
        `PERE_ORIGINS must be origins like https://shop.example or capacitor://localhost, comma separated, or *, not "${part}"`,
      );
    });
}

/** Whether pages of an origin may come from another machine; so may those of `null`, which any page can take. Apps are on this machine. */
export const isDistant = (origin: string): boolean =>
  origin === "null" || (/^https?:/.test(origin) && !LOOPBACK.test(new URL(origin).host));

/**
 * Header fields that proxies, CDNs and tunnels add, and clients don't: `Forwarded` (RFC 7239), `X-Forwarded-*`, `Via`, and those with the
 * client's address, such as `X-Real-IP`, `CF-Connecting-IP` and `True-Client-IP`. Tracing fields don't count: programs pass them on.
 */
const PROXIED =
  /^(?:forwarded|via|cdn-loop|cf-ray|x-forward.*|x-original-.*|x-envoy-.*|x-arr-.*|tailscale-.*|(?:.*-)?(?:real|client|connecting|connection|viewer|socket|remote|peer|user|external)-?(?:ip(?:v6)?|addr(?:ess)?))$/;

/** The name of a header field that shows that a request came through a proxy. */
function proxyField(headers: Headers): string | undefined {
  for (const name of headers.keys()) if (PROXIED.test(name)) return name;
  return undefined;
}

export interface AdmissionOptions {
  /** Null: no tokens, every caller may do everything. */
  readonly access: Access | null;
  readonly origins: Origins;
  /** Whether only this machine may call: to a loopback name, and through no proxy. */
  readonly isLocal: boolean;
  /** Rate limits per caller. */
  readonly rates: RateLimiter;
  /** Proxies whose `X-Forwarded-For` is trusted. */
  readonly proxies: readonly AddressRange[];
  readonly now: () => number;
}

/** The part of Bun's server that knows the address of a request's connection. */
interface PeerAddresses {
  requestIP(request: Request): { readonly address: string } | null;
}

export class Admission {
  readonly #options: AdmissionOptions;

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** Whether answers depend on the `Origin` of the request. */
  get variesByOrigin(): boolean {
    const { origins } = this.#options;
    return origins !== "*" && origins.length > 0;
  }

  /**
   * Checks `Host` and `Origin`.
   * @returns the headers that let a page of another origin read the answer, and tell caches what it depends on
   * @throws PereError malformed, forbidden
   */
  checkOrigin(headers: Headers): Record<string, string> {
    const host = headers.get("host") ?? "";
    if (!HOST.test(host)) throw new PereError("malformed", "Host: missing or not a valid host name");
    const { origins, isLocal } = this.#options;
    if (isLocal) checkLocal(host, headers);
    const origin = headers.get("origin");
    const varies = this.variesByOrigin ? { Vary: "Origin" } : NO_HEADERS;
    if (origin === null || this.#isOwn(origin, host)) return varies;
    if (origins === "*" ? origin === "null" : !origins.includes(origin))
      throw new PereError(
        "forbidden",
        "Origin: pages of this origin may not call this service; PERE_ORIGINS lists the origins that may",
      );
    return { "Access-Control-Allow-Origin": origins === "*" ? "*" : origin, ...varies, ...EXPOSED };
  }

  /** Whether an origin is this service's own. Behind a proxy with TLS only the host is known, not the scheme. */
  #isOwn(origin: string, host: string): boolean {
    return origin === `http://${host}` || origin === `https://${host}`;
  }

  /** The headers that answer a CORS preflight; null: the request is none, or its origin is not allowed. */
  preflight(request: Request, allowed: Record<string, string>): Record<string, string> | null {
    if (request.method !== "OPTIONS" || !request.headers.has("access-control-request-method")) return null;
    if (!("Access-Control-Allow-Origin" in allowed)) return null;
    return {
      ...allowed,
      "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
      "Access-Control-Allow-Headers": allowedFields(request.headers.get("access-control-request-headers")),
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
    // A token within the tolerance after its expiry is good for a request, but not for a feed, which would end at once.
    return request.method === "GET" ? this.#lasting(grant) : grant;
  }

  /** The grant of a new token for a feed that is open. @throws PereError unauthorized, away */
  async renewed(token: string): Promise<Grant> {
    const { access } = this.#options;
    return access === null ? OPEN : this.#lasting(await access.read(token));
  }

  /** @throws PereError unauthorized when the grant has expired */
  #lasting(grant: Grant): Grant {
    if (grant.expires > this.#options.now()) return grant;
    throw new PereError("unauthorized", "token: it has expired", [{ path: "token", message: "it has expired" }]);
  }

  /**
   * The grant without tokens: everything, except to foreign pages. For an image, a script or a link a browser sends no `Origin`, only whether the page
   * is of another site (Fetch Metadata, `Sec-Fetch-Site`), and opening a feed once is enough to enrol a device. @throws PereError forbidden
   */
  #open(headers: Headers): Grant {
    const site = headers.get("sec-fetch-site") ?? "none";
    if (site === "none" || site === "same-origin" || headers.has("origin") || this.#options.origins === "*")
      return OPEN;
    throw new PereError(
      "forbidden",
      "Sec-Fetch-Site: requests from pages of other sites are refused; open the address directly, or use tokens",
    );
  }

  /** The `Set-Cookie` with which a browser keeps a token for a path, unreadable for scripts. Null: no tokens. @throws PereError unauthorized, away */
  async cookie(token: string, isSecure: boolean, path: string): Promise<string | null> {
    const { access, now } = this.#options;
    if (access === null) return null;
    const seconds = Math.floor((this.#lasting(await access.read(token)).expires - now()) / 1000);
    return `pere_token=${token}; Path=${path}; HttpOnly; SameSite=Strict; Max-Age=${seconds}${isSecure ? "; Secure" : ""}`;
  }

  /** The grant of a request, which must have a right on all channels given. @throws PereError unauthorized, forbidden, malformed, away */
  async authorize(request: Request, right: Right, channels: readonly string[]): Promise<Grant> {
    const grant = this.#options.access === null ? this.#open(request.headers) : await this.grant(request);
    for (const channel of channels) demand(grant, right, channel);
    return grant;
  }

  /** The caller of a request: the subject of its token, or its address. Not after an upgrade: then a request has no address. */
  caller({ subject }: Grant, request: Request, server: PeerAddresses): string {
    return subject !== null ? `token ${subject}` : this.address(request, server);
  }

  /** The address that a request comes from; of IPv6 the network; empty: unknown. Not after an upgrade. */
  address(request: Request, server: PeerAddresses): string {
    const address = server.requestIP(request)?.address ?? "";
    return addressOf(address, request.headers.get("x-forwarded-for"), this.#options.proxies);
  }

  /** Returns a function that counts the caller's work against its limit, and throws `TooMany` or rejects with it. The caller is determined now. */
  counter(
    work: RateKind,
    grant: Grant,
    request: Request,
    server: PeerAddresses,
  ): (points: number) => Promise<void> | void {
    const { rates } = this.#options;
    if (!rates.counts(work)) return noLimit;
    const caller = this.caller(grant, request, server);
    return (points) => rates.take(work, caller, points);
  }
}

const noLimit = (): void => {};

/** Checks a request to a service for this machine alone. @throws PereError forbidden */
function checkLocal(host: string, headers: Headers): void {
  const advice = "set PERE_JWT_SECRET or PERE_JWKS to ask for tokens (PERE_OPEN=1 lets every caller do everything)";
  if (!LOOPBACK.test(host))
    throw new PereError(
      "forbidden",
      `Host: this service has no tokens, so it answers only on its own machine, and not to "${host}"; ${advice}`,
    );
  const field = proxyField(headers);
  if (field !== undefined)
    throw new PereError(
      "forbidden",
      `${field}: this service has no tokens, so it answers only on its own machine, but this request came through a proxy; ${advice}`,
    );
}

/** Header fields that PERE reads, and the syntax of a field's name (RFC 9110, 5.1). */
const FIELDS = ["authorization", "content-type", "device", "idempotency-key", "last-event-id", "prefer"];
const FIELD = /^[!#$%&'*+.^_`|~0-9a-z-]+$/;

/** The header fields that a page may send: those that PERE reads, and any others that it asks for, such as tracing; these are ignored. */
function allowedFields(asked: string | null): string {
  const names = (asked ?? "").split(",").map((name) => name.trim().toLowerCase());
  return [...new Set([...FIELDS, ...names.filter((name) => FIELD.test(name))])].join(", ");
}

/** For most requests, which no page of another origin sent. */
export const NO_HEADERS: Record<string, string> = {};

/** The headers of an answer that pages of other origins may read. */
const EXPOSED = {
  "Access-Control-Expose-Headers":
    "Location, Idempotent-Replayed, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate",
};
