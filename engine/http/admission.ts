/**
 * The door: what is looked at before a request is. Whom it was sent to (`Host`), which page sent it (`Origin`), how it came here, and what its token
 * allows.
 *
 * A browser sends requests for any page that it shows, also to services behind the firewall and on its own machine. So a page of a stranger gets
 * nothing here, neither an answer that it may read nor a request that is carried out: an origin is this service's own or it was named by the
 * operator. A local service, where every program on the machine may do everything, answers to loopback names only: a name that a stranger
 * pointed there would make their page one of ours. And it refuses what came through a proxy: the machine's own programs need none, and
 * behind one everybody would come from this machine.
 *
 * It knows no route: which right a request needs is said by whoever asks.
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
/** How long a browser may remember what it was allowed. */
const PREFLIGHT_SECONDS = 600;

/** Origins that browsers may call from: exact ones, or all. */
export type Origins = readonly string[] | "*";

/** What an app's own pages send: `capacitor://localhost`, `chrome-extension://…`, `file://`. Browsers do not agree on how such origins are written. */
const APP_ORIGIN = /^(?!(?:https?|wss?):)[a-z][a-z0-9+.-]*:\/\/[^\s/?#@,\\]*$/i;

/** Origins as the operator wrote them: browsers compare them so. @throws Error with the one line to print */
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

/** Whether pages of an origin may be anybody's: those of other machines, and `null`, which any page can make itself. An app's are this machine's. */
export const isDistant = (origin: string): boolean =>
  origin === "null" || (/^https?:/.test(origin) && !LOOPBACK.test(new URL(origin).host));

/**
 * Header fields that a proxy, a CDN or a tunnel adds, and no client by itself: `Forwarded` (RFC 7239), `X-Forwarded-*`, `Via`, and those that name the
 * client's address, such as `X-Real-IP`, `CF-Connecting-IP` and `True-Client-IP`. Not those of tracing, which programs pass on.
 */
const PROXIED =
  /^(?:forwarded|via|cdn-loop|cf-ray|x-forward.*|x-original-.*|x-envoy-.*|x-arr-.*|tailscale-.*|(?:.*-)?(?:real|client|connecting|connection|viewer|socket|remote|peer|user|external)-?(?:ip(?:v6)?|addr(?:ess)?))$/;

/** The field of a request that shows that it came through a proxy, by name. */
function proxyField(headers: Headers): string | undefined {
  for (const name of headers.keys()) if (PROXIED.test(name)) return name;
  return undefined;
}

export interface AdmissionOptions {
  /** Null: everybody may do everything. */
  readonly access: Access | null;
  readonly origins: Origins;
  /** Whether it is for this machine alone: requests come to a loopback name, and through no proxy. */
  readonly isLocal: boolean;
  /** How much one caller may do. */
  readonly rates: RateLimiter;
  /** Proxies whose word is taken for whose request they pass on. */
  readonly proxies: readonly AddressRange[];
  readonly now: () => number;
}

/** Who knows from which address a request came. */
interface PeerAddresses {
  requestIP(request: Request): { readonly address: string } | null;
}

export class Admission {
  readonly #options: AdmissionOptions;

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /**
   * Looks at `Host` and `Origin`.
   * @returns what the answer must carry so that a page of another origin may read it, and that caches know what it depends on
   * @throws PereError malformed, forbidden
   */
  look(headers: Headers): Record<string, string> {
    const host = headers.get("host") ?? "";
    if (!HOST.test(host)) throw new PereError("malformed", "Host: must name this service");
    const { origins, isLocal } = this.#options;
    if (isLocal) lookLocal(host, headers);
    const origin = headers.get("origin");
    const varies = origins === "*" || origins.length === 0 ? NOTHING : { Vary: "Origin" };
    if (origin === null || this.#isOwn(origin, host)) return varies;
    if (origins === "*" ? origin === "null" : !origins.includes(origin))
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

  /** The cookie in which a browser keeps a token from now on for what is under a path, out of reach of scripts. @throws PereError unauthorized, away */
  async cookie(token: string, isSecure: boolean, path: string): Promise<string | null> {
    const { access, now } = this.#options;
    if (access === null) return null;
    const seconds = Math.floor((this.#lasting(await access.read(token)).expires - now()) / 1000);
    return `pere_token=${token}; Path=${path}; HttpOnly; SameSite=Strict; Max-Age=${seconds}${isSecure ? "; Secure" : ""}`;
  }

  /** The grant of a request that needs a right on some channels. @throws PereError unauthorized, forbidden, malformed, away */
  async authorize(request: Request, right: Right, channels: readonly string[]): Promise<Grant> {
    const grant = this.#options.access === null ? this.#open(request.headers) : await this.grant(request);
    for (const channel of channels) demand(grant, right, channel);
    return grant;
  }

  /** Whose request it is: a token's bearer, or an address. Not after an upgrade: then a request has no address. */
  caller({ subject }: Grant, request: Request, server: PeerAddresses): string {
    return subject !== null ? `token ${subject}` : this.address(request, server);
  }

  /** From where a request comes: an address, of IPv6 the network; empty where that is not known. Not after an upgrade. */
  address(request: Request, server: PeerAddresses): string {
    const address = server.requestIP(request)?.address ?? "";
    return addressOf(address, request.headers.get("x-forwarded-for"), this.#options.proxies);
  }

  /** Counts what a caller of this request does. The caller is found now; what it gives throws `TooMany`, or rejects with it. */
  counter(
    work: RateKind,
    grant: Grant,
    request: Request,
    server: PeerAddresses,
  ): (points: number) => Promise<void> | void {
    const { rates } = this.#options;
    if (!rates.counts(work)) return UNCOUNTED;
    const caller = this.caller(grant, request, server);
    return (points) => rates.take(work, caller, points);
  }
}

const UNCOUNTED = (): void => {};

/** Looks at a request to a service that is for this machine alone. @throws PereError forbidden */
function lookLocal(host: string, headers: Headers): void {
  const advice = "set PERE_JWT_SECRET or PERE_JWKS to ask for tokens (PERE_OPEN=1 lets everybody do everything)";
  if (!LOOPBACK.test(host))
    throw new PereError(
      "forbidden",
      `Host: this service has no tokens and is for its own machine, so it does not answer to "${host}"; ${advice}`,
    );
  const field = proxyField(headers);
  if (field !== undefined)
    throw new PereError(
      "forbidden",
      `${field}: this service has no tokens and is for its own machine, but this request came through a proxy; ${advice}`,
    );
}

/** Fields that PERE reads, and a field's name (RFC 9110, 5.1). */
const FIELDS = ["authorization", "content-type", "device", "idempotency-key", "last-event-id", "prefer"];
const FIELD = /^[!#$%&'*+.^_`|~0-9a-z-]+$/;

/** The fields that a page may send: those that PERE reads, and what else it asks for, tracing for example. Nobody reads that. */
function allowedFields(asked: string | null): string {
  const names = (asked ?? "").split(",").map((name) => name.trim().toLowerCase());
  return [...new Set([...FIELDS, ...names.filter((name) => FIELD.test(name))])].join(", ");
}

/** What most answers need: no page of another origin asked. */
export const NOTHING: Record<string, string> = {};

/** Headers of answers that pages of other origins may read. */
const EXPOSED = {
  "Access-Control-Expose-Headers":
    "Location, Idempotent-Replayed, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate",
};
