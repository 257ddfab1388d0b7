/**
 * Reads tokens: where a request has one, whether it is valid, and how to keep it out of logs.
 *
 * A token is a JWT (RFC 7519), possibly signed by another party. PERE checks whether it is signed with a configured key (`key-set.ts`), whether it is
 * valid now, and what its `pere` claim allows its `sub` (`rights.ts`). `jose` verifies signatures; the claims are interpreted here. Anything that is
 * not understood is rejected with a reason.
 *
 * A device sends the same token with every receipt, and its signature is verified once: the result is cached by the token's text while the token and
 * the keys are valid and the cache has room.
 *
 * Never writes a token or a secret into a message, and knows no routes.
 */
import { type CryptoKey, type JWTPayload, decodeProtectedHeader, errors, jwtVerify } from "jose";
import { type Algorithm, type Fetch, KeySet, refused, secretKey } from "./key-set.ts";
import { DEVICE, PereError } from "../model.ts";
import { type Grant, readRights } from "./rights.ts";

/** Longer tokens are not read; with cookies, a request's headers have 16 KiB. */
export const TOKEN_BYTES_MAX = 8 * 1024;
/** Clock tolerance; RFC 7519, 4.1.4: "no more than a few minutes". */
const TOLERANCE_SECONDS = 30;
/** The last second of the year 9999. Any time given in milliseconds by mistake is beyond it. */
const TIME_SECONDS_MAX = 253_402_300_799;
/** Limit of the token cache, by the length of tokens: 20,000 devices with ordinary tokens, in about 20 MB. */
const REMEMBERED_CHARACTERS_MAX = 4 * 1024 * 1024;

/** Where keys come from and what tokens must contain. At least one of `secret` and `jwks`; both are allowed. */
export interface AccessOptions {
  /** For HS256, at least 32 bytes; a text counts as UTF-8. */
  readonly secret?: string | Uint8Array;
  /** A key set: the path of a file, or an http or https URL. */
  readonly jwks?: string;
  /** What `aud` must be or contain. */
  readonly audience?: string;
  /** What `iss` must be. */
  readonly issuer?: string;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /** The same, and never behind the wall clock: what a token that was made just now says it was made at. */
  readonly stamp?: () => number;
  readonly fetch?: Fetch;
}

/** Prepares reading tokens; fetches the key set if it has a URL. @throws Error with a one-line message */
export async function openAccess(options: AccessOptions): Promise<Access> {
  if (options.secret === undefined && options.jwks === undefined)
    throw new Error("tokens need PERE_JWT_SECRET or PERE_JWKS");
  const secret = options.secret === undefined ? null : await secretKey(options.secret);
  const access = new Access(secret, options);
  await access.open();
  return access;
}

/** Three texts in base64url (RFC 7515, 7.1), none of them empty. */
const COMPACT = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/;

/** Whether base64url is canonical: otherwise one signature would have several texts (RFC 4648, 3.5). */
const isCanonical = (part: string): boolean => Buffer.from(part, "base64url").toString("base64url") === part;

/** The fields that PERE uses from a token's header. @throws PereError unauthorized */
function readHeader(token: string): { algorithm: Algorithm; kid: string | undefined } {
  if (token.length > TOKEN_BYTES_MAX) throw refused(`it is longer than ${TOKEN_BYTES_MAX} bytes`);
  if (!COMPACT.test(token) || !token.split(".").every(isCanonical)) throw refused("it is not a signed JWT");
  let header: Record<string, unknown>;
  try {
    header = decodeProtectedHeader(token);
  } catch (cause) {
    throw refused("its header can't be read", cause);
  }
  const { alg, kid, crit } = header;
  // PERE knows no extensions, so it rejects any critical one: RFC 7515, 4.1.11.
  if (crit !== undefined) throw refused("its header has crit, and PERE knows no extensions");
  if (alg !== "HS256" && alg !== "EdDSA" && alg !== "ES256" && alg !== "RS256")
    throw refused("its alg must be HS256, EdDSA, ES256 or RS256");
  if (kid !== undefined && typeof kid !== "string") throw refused("its kid must be a string");
  return { algorithm: alg, kid };
}

/** Why `jose` rejected a token, for its owner. Other errors are faults and are thrown on. */
function reason(error: unknown): string {
  if (error instanceof errors.JWTExpired) return "it has expired";
  if (error instanceof errors.JWTClaimValidationFailed)
    return error.reason === "missing" ? `it has no ${error.claim}` : (CLAIM_REASONS[error.claim] ?? "a claim is wrong");
  if (error instanceof errors.JWTInvalid) return "its claims must be a JSON object";
  if (error instanceof errors.JWSSignatureVerificationFailed) return "its signature is wrong";
  if (error instanceof errors.JOSEError) return "it is not a JWT that PERE can read";
  throw error;
}

const CLAIM_REASONS: Readonly<Record<string, string>> = {
  exp: "its exp must be a number of seconds",
  nbf: "its nbf must be a number of seconds, and not in the future",
  iat: "its iat must be a number of seconds, and not in the future",
  aud: "it is for another audience (aud)",
  iss: "it is from another issuer (iss)",
};

/**
 * The `sub` of a bearer that is not a device, such as an operator with a browser, who may act as any device or none. Only tokens signed with the
 * secret may use it; in a third party's key set, users might choose that name.
 */
export const NO_DEVICE = "*";

/** The device of a grant's bearer; null: any. A publisher's `sub` may be any text, a device's is its name. @throws PereError unauthorized */
export function deviceOfGrant({ subject }: Grant): string | null {
  if (subject === null || DEVICE.test(subject)) return subject;
  throw refused("its sub must be a device's name here, 1 to 128 of A-Z a-z 0-9 . _ : ~ -");
}

/** What verified claims allow. @throws PereError unauthorized */
function readClaims({ sub, exp, iat, pere }: JWTPayload, algorithm: Algorithm, now: number): Grant {
  const isNoDevice = sub === NO_DEVICE && algorithm === "HS256";
  if (typeof sub !== "string" || sub === "") throw refused("its sub must be a non-empty string");
  if (exp === undefined || exp > TIME_SECONDS_MAX)
    throw refused("its exp must be in seconds, and before the year 10000");
  if (iat !== undefined && iat > now / 1000 + TOLERANCE_SECONDS) throw refused(CLAIM_REASONS.iat!);
  const rights = readRights(pere);
  if (typeof rights === "string") throw refused(rights);
  return { subject: isNoDevice ? null : sub, expires: exp * 1000, ...rights };
}

/** Reads tokens. Create one with `openAccess`. */
export class Access {
  readonly #secret: CryptoKey | null;
  readonly #set: KeySet | null;
  readonly #now: () => number;
  readonly #stamp: () => number;
  /** The required claims, for `jose`. */
  readonly #demands: { readonly audience?: string; readonly issuer?: string };
  /** Grants by token, oldest first, and the total length of these tokens. */
  readonly #remembered = new Map<string, Grant>();
  #characters = 0;
  /** Counts changes of the keys: results from before a change are not cached after it. */
  #changes = 0;

  /** `secret` is the key from `options.secret`. */
  constructor(
    secret: CryptoKey | null,
    { jwks, audience, issuer, now = Date.now, stamp = now, fetch = globalThis.fetch }: AccessOptions,
  ) {
    this.#secret = secret;
    this.#set = jwks === undefined ? null : new KeySet(jwks, now, fetch, () => this.#forget());
    this.#now = now;
    this.#stamp = stamp;
    this.#demands = { ...(audience === undefined ? {} : { audience }), ...(issuer === undefined ? {} : { issuer }) };
  }

  /** Reads the key set for the first time. @throws Error with a one-line message */
  async open(): Promise<void> {
    await this.#set?.open();
  }

  /** Reads the key set again, if there is one. @throws Error with a one-line message; the keys stay as they were */
  async reload(): Promise<void> {
    await this.#set?.reload();
  }

  /**
   * What a token allows; null: no token was sent. A token is accepted until 30 s after its `exp`.
   * @throws PereError unauthorized, with a reason; away: the key set is not available
   */
  async read(token: string | null): Promise<Grant> {
    if (token === null) throw new PereError("unauthorized", "a token is needed here");
    if (this.#set?.isStale()) this.#forget();
    const remembered = this.#remembered.get(token);
    if (remembered && this.#now() < remembered.expires) return remembered;
    const changes = this.#changes;
    const grant = await this.#verify(token);
    if (changes === this.#changes) this.#remember(token, grant);
    return grant;
  }

  async #verify(token: string): Promise<Grant> {
    const { algorithm, kid } = readHeader(token);
    const key = await this.#key(algorithm, kid);
    const [now, latest] = [this.#now(), this.#stamp()];
    const verifyAt = (at: number) =>
      jwtVerify(token, key, {
        ...this.#demands,
        algorithms: [algorithm],
        requiredClaims: ["exp", "sub"],
        clockTolerance: TOLERANCE_SECONDS,
        currentDate: new Date(at),
      });
    const verified = await verifyAt(latest)
      .catch((error: unknown) => {
        // If the clock leapt, a token that is new by one time may have expired by the other.
        if (error instanceof errors.JWTExpired && now < latest) return verifyAt(now);
        throw error;
      })
      .catch((error: unknown) => {
        // Without its cause, which contains the claims; the reason says everything needed.
        throw refused(reason(error));
      });
    return readClaims(verified.payload, algorithm, latest);
  }

  #key(algorithm: Algorithm, kid: string | undefined): CryptoKey | Promise<CryptoKey> {
    if (algorithm === "HS256") {
      if (this.#secret) return this.#secret;
      throw refused("its alg is HS256, and PERE has no secret for that");
    }
    if (this.#set) return this.#set.find(algorithm, kid);
    throw refused(`its alg is ${algorithm}, and PERE has no key set for that`);
  }

  #remember(token: string, grant: Grant): void {
    if (this.#remembered.has(token)) return;
    this.#remembered.set(token, grant);
    this.#characters += token.length;
    for (const [oldest] of this.#remembered) {
      if (this.#characters <= REMEMBERED_CHARACTERS_MAX) return;
      this.#remembered.delete(oldest);
      this.#characters -= oldest.length;
    }
  }

  #forget(): void {
    this.#changes++;
    this.#remembered.clear();
    this.#characters = 0;
  }
}

/**
 * The value of `WWW-Authenticate` for a token error (RFC 6750, 3). Without a token it has no `error`, as the RFC requires; a rejected token is
 * `invalid_token`, insufficient rights are `insufficient_scope`, anything else is `invalid_request`.
 */
export function wwwAuthenticate({ code, faults, message }: PereError): string {
  if (code === "unauthorized" && faults.length === 0) return 'Bearer realm="PERE"';
  const error =
    code === "unauthorized" ? "invalid_token" : code === "forbidden" ? "insufficient_scope" : "invalid_request";
  const description = message.replaceAll('"', "'").replace(/[^ !#-[\]-~]/g, "?");
  return `Bearer realm="PERE", error="${error}", error_description="${description}"`;
}

/** A query field named `token`, in a URL or in a URL within one, percent-encoded or not; and its value. */
const TOKEN_FIELD =
  /(^|[?&]|%(?:25){0,3}(?:3f|26))((?:t|%74)(?:o|%6f)(?:k|%6b)(?:e|%65)(?:n|%6e)(?:=|%(?:25){0,3}3d))[^&#\s"]*/gi;
/** Anything that looks like a JWT: base64url of a text that begins with `{` and a quote or space, twice, each followed by a dot. */
const TOKEN_LOOK = /(?<=%(?:25){0,3}[0-9a-f]{2}|(?<![\w-]))e[wy][\w-]{14,}\.[\w-]+\.[\w-]*/gi;

/** A URL, path, query or `Referer` for a log: tokens are replaced by `…`. Takes linear time. */
export const redact = (url: string): string => url.replace(TOKEN_FIELD, "$1$2…").replace(TOKEN_LOOK, "…");
