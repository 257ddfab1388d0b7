/**
 * Reading a token: where it stands in a request, whether it is a good one, and what it must not leave in a log.
 *
 * A token is a JWT (RFC 7519) that somebody else may have signed; PERE only asks three things of it: is it signed with a key that the
 * operator named (`key-set.ts`), is it in its time, and what does its `pere` claim allow its `sub` (`rights.ts`). Signatures are `jose`'s
 * work; what a claim means to PERE is decided here. Whatever isn't understood is refused with a reason.
 *
 * A device sends the same token with every receipt, and its signature is checked once: what was found is remembered by the token's
 * text, as long as the token and the keys live and the memory is small.
 *
 * This file never writes a token or a secret into a message, and knows no route.
 */
import { type CryptoKey, type JWTPayload, decodeProtectedHeader, errors, jwtVerify } from "jose";
import { type Algorithm, type Fetch, KeySet, refused, secretKey } from "./key-set.ts";
import { DEVICE, PereError } from "../model.ts";
import { type Grant, readRights } from "./rights.ts";

/** Longer ones are not read at all; with cookies and all, a request's head has 16 KiB. */
export const TOKEN_BYTES_MAX = 8 * 1024;
/** Clocks of good will differ by less: RFC 7519, 4.1.4, speaks of "no more than a few minutes". */
const TOLERANCE_SECONDS = 30;
/** The last second of the year 9999. Times in milliseconds, where seconds belong, are all beyond it. */
const TIME_SECONDS_MAX = 253_402_300_799;
/** Verified tokens that are remembered, by the length of their texts: 20,000 devices with ordinary tokens, in some 20 MB. */
const REMEMBERED_CHARACTERS_MAX = 4 * 1024 * 1024;

/** Where keys come from and what tokens must hold besides; at least one of `secret` and `jwks`, and both may be. */
export interface AccessOptions {
  /** For HS256, at least 32 bytes; a text counts as its UTF-8. */
  readonly secret?: string | Uint8Array;
  /** A key set: the path of a file, or an http or https URL. */
  readonly jwks?: string;
  /** What `aud` must be or hold. */
  readonly audience?: string;
  /** What `iss` must be. */
  readonly issuer?: string;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /** The same, and never behind the wall clock: what a token that was made just now says it was made at. */
  readonly stamp?: () => number;
  readonly fetch?: Fetch;
}

/** Makes tokens readable. A key set behind a URL is asked for. @throws Error with the one line to print */
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

/** The one way to write these bytes: without that, one signature has several texts (RFC 4648, 3.5). */
const isCanonical = (part: string): boolean => Buffer.from(part, "base64url").toString("base64url") === part;

/** What a token's header says that PERE listens to. @throws PereError unauthorized */
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
  // PERE knows no extension, so whatever is critical is not understood: RFC 7515, 4.1.11.
  if (crit !== undefined) throw refused("its header has crit, and PERE knows no extensions");
  if (alg !== "HS256" && alg !== "EdDSA" && alg !== "ES256" && alg !== "RS256")
    throw refused("its alg must be HS256, EdDSA, ES256 or RS256");
  if (kid !== undefined && typeof kid !== "string") throw refused("its kid must be a text");
  return { algorithm: alg, kid };
}

/** Why `jose` turned a token down, for the person who holds it. What isn't its refusal is an error of ours, and thrown on. */
function reason(error: unknown): string {
  if (error instanceof errors.JWTExpired) return "it has expired";
  if (error instanceof errors.JWTClaimValidationFailed)
    return error.reason === "missing" ? `it has no ${error.claim}` : (CLAIM_REASONS[error.claim] ?? "a claim is wrong");
  if (error instanceof errors.JWTInvalid) return "its claims must be a JSON object";
  if (error instanceof errors.JWSSignatureVerificationFailed) return "its signature doesn't fit";
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
 * The `sub` of who is no device, as an operator with a browser: such a bearer is whichever device it says, or none. Only the secret's owner may
 * say so; in a key set of somebody else's, who knows who chooses names.
 */
export const NO_DEVICE = "*";

/** The device that a grant's bearer is; null: whichever they say. A publisher's `sub` may be any text, a device's is its name. @throws PereError unauthorized */
export function deviceOfGrant({ subject }: Grant): string | null {
  if (subject === null || DEVICE.test(subject)) return subject;
  throw refused("its sub must be a device's name here, 1 to 128 of A-Z a-z 0-9 . _ : ~ -");
}

/** What verified claims allow. @throws PereError unauthorized */
function readClaims({ sub, exp, iat, pere }: JWTPayload, algorithm: Algorithm, now: number): Grant {
  const isNoDevice = sub === NO_DEVICE && algorithm === "HS256";
  if (typeof sub !== "string" || sub === "") throw refused("its sub must be a text that is not empty");
  if (exp === undefined || exp > TIME_SECONDS_MAX)
    throw refused("its exp must be in seconds, and before the year 10000");
  if (iat !== undefined && iat > now / 1000 + TOLERANCE_SECONDS) throw refused(CLAIM_REASONS.iat!);
  const may = readRights(pere);
  if (typeof may === "string") throw refused(may);
  return { subject: isNoDevice ? null : sub, expires: exp * 1000, may };
}

/** Reads tokens. `openAccess` makes one. */
export class Access {
  readonly #secret: CryptoKey | null;
  readonly #set: KeySet | null;
  readonly #now: () => number;
  readonly #stamp: () => number;
  /** The claims that tokens must have, for `jose`. */
  readonly #demands: { readonly audience?: string; readonly issuer?: string };
  /** Grants by the texts of their tokens, oldest first, and how long these texts are together. */
  readonly #remembered = new Map<string, Grant>();
  #characters = 0;
  /** Counts the changes of the keys: what was verified with the keys before one isn't remembered after it. */
  #changes = 0;

  /** `secret` is the key of `options.secret`. */
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

  /** Reads the key set for the first time. @throws Error with the one line to print */
  async open(): Promise<void> {
    await this.#set?.open();
  }

  /** Reads the key set again, where there is one. @throws Error with the one line to print; the keys are as they were */
  async reload(): Promise<void> {
    await this.#set?.reload();
  }

  /**
   * What a token allows; null is no token at all. A token is taken until 30 s after its `exp`.
   * @throws PereError unauthorized, with a reason; away when the key set can't be had
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
        // Where the clock leapt, a token that is new by the one time may have expired by the other.
        if (error instanceof errors.JWTExpired && now < latest) return verifyAt(now);
        throw error;
      })
      .catch((error: unknown) => {
        // Without its cause: that holds the claims, which are nobody's business but the bearer's, and the reason says it all.
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
 * The value of `WWW-Authenticate` for an error about a token (RFC 6750, 3). Without a token there is no `error` in it, as the RFC asks;
 * a token that was refused is `invalid_token`, one that doesn't go far enough `insufficient_scope`, all else `invalid_request`.
 */
export function wwwAuthenticate({ code, faults, message }: PereError): string {
  if (code === "unauthorized" && faults.length === 0) return 'Bearer realm="PERE"';
  const error =
    code === "unauthorized" ? "invalid_token" : code === "forbidden" ? "insufficient_scope" : "invalid_request";
  const description = message.replaceAll('"', "'").replace(/[^ !#-[\]-~]/g, "?");
  return `Bearer realm="PERE", error="${error}", error_description="${description}"`;
}

/** `token` as the name of a query's field, in a URL or in a URL within one, percent-encoded here or there; and its value. */
const TOKEN_FIELD =
  /(^|[?&]|%(?:25){0,3}(?:3f|26))((?:t|%74)(?:o|%6f)(?:k|%6b)(?:e|%65)(?:n|%6e)(?:=|%(?:25){0,3}3d))[^&#\s"]*/gi;
/** What looks like a JWT anywhere: base64url of what begins with `{` and a quote or space, twice followed by a dot. */
const TOKEN_LOOK = /(?<=%(?:25){0,3}[0-9a-f]{2}|(?<![\w-]))e[wy][\w-]{14,}\.[\w-]+\.[\w-]*/gi;

/** A URL, a path, a query or a `Referer` as it may be written to a log: tokens are replaced by `…`. Takes linear time. */
export const redact = (url: string): string => url.replace(TOKEN_FIELD, "$1$2…").replace(TOKEN_LOOK, "…");
