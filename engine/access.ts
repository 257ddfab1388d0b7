/**
 * Who may what: tokens, the keys they are checked with, and the rights they give.
 *
 * A token is a JWT (RFC 7519) that somebody else may have signed; PERE only asks three things of it: is it signed with a key that the
 * operator named, is it in its time, and what does its `pere` claim allow its `sub`. A key knows the one algorithm it is for, and the
 * token's header only picks among such keys (RFC 8725, 3.1): a public key never checks an HMAC, and nothing in a header brings a key
 * along. Signatures are `jose`'s work; what a claim means to PERE is decided here. Whatever isn't understood is refused with a
 * reason, so that nobody believes in a right that doesn't work.
 *
 * A device sends the same token with every receipt, and its signature is checked once: what was found is remembered by the token's
 * text, as long as the token and the keys live and the memory is small.
 *
 * This file never writes a token or a secret into a message, asks no key server that a token names, and knows no route.
 */
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import {
  type CryptoKey,
  type JWK,
  type JWTPayload,
  SignJWT,
  decodeProtectedHeader,
  errors,
  importJWK,
  jwtVerify,
} from "jose";
import { CHANNEL, DEVICE, PereError } from "./model.ts";

/** Longer ones are not read at all; with cookies and all, a request's head has 16 KiB. */
const TOKEN_BYTES_MAX = 8 * 1024;
/** An HMAC key is as long as its hash: RFC 7518, 3.2. */
const SECRET_BYTES_MIN = 32;
/** RFC 7518, 3.3. */
const RSA_BITS_MIN = 2_048;
/** Clocks of good will differ by less: RFC 7519, 4.1.4, speaks of "no more than a few minutes". */
const TOLERANCE_SECONDS = 30;
/** The last second of the year 9999. Times in milliseconds, where seconds belong, are all beyond it. */
const TIME_SECONDS_MAX = 253_402_300_799;
/** Patterns a right; what needs more is a pattern of its own. */
const PATTERNS_MAX = 100;
/** Verified tokens that are remembered, by the length of their texts: 20,000 devices with ordinary tokens, in some 20 MB. */
const REMEMBERED_CHARACTERS_MAX = 4 * 1024 * 1024;
/** A key set names the keys of today, yesterday and tomorrow. */
const KEYS_MAX = 32;
const KEYS_BYTES_MAX = 256 * 1024;
/** Somebody waits for the answer. */
const KEYS_FETCH_MS = 5_000;
/** After this time the key server is asked again, so that a key that was withdrawn is soon none. */
const KEYS_FRESH_MS = 10 * 60_000;
/** While the key server is away, its last word stands so long. */
const KEYS_STALE_MS = 60 * 60_000;
/** Strangers can invent key names as fast as they like; the key server hears of it this often. */
const KEYS_UNKNOWN_MS = 30_000;
/** How soon a key server that gave no good answer is asked again. */
const KEYS_RETRY_MS = 5_000;
/** A token on paper for ten years is a password. */
const DAYS_MAX = 3_660;
const DAYS_DEFAULT = 30;
const DAY_SECONDS = 24 * 3600;

// ----------------------------------------------------------------------------------------------------------------- rights

/** On a channel: `push` is all that a publisher does, `feed` is following it and giving receipts. */
export type Right = "push" | "feed";

/** What a token allows, to whom, and until when: milliseconds since 1970. */
export interface Grant {
  /** The device that the bearer is; null: whichever it says. */
  readonly subject: string | null;
  /** The token's `exp` as it stands, without the tolerance; `Infinity` where nothing expires. */
  readonly expires: number;
  may(right: Right, channel: string): boolean;
}

/** Everybody may everything: no key is configured. */
export const OPEN: Grant = { subject: null, expires: Infinity, may: () => true };

/** A list of patterns, made ready: every channel, or these names and what begins with one of these. */
interface Patterns {
  readonly every: boolean;
  readonly names: readonly string[];
  readonly beginnings: readonly string[];
}

const NO_PATTERNS: Patterns = { every: false, names: [], beginnings: [] };

const quoted = (text: string): string => JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}…` : text);

/** A list of `*`, channels and `beginning.*`. @returns it made ready, or in one sentence why not */
function readPatterns(right: Right, list: unknown): Patterns | string {
  if (list === undefined) return NO_PATTERNS;
  if (!Array.isArray(list)) return `pere.${right} must be a list of channels`;
  if (list.length > PATTERNS_MAX) return `pere.${right} holds more than ${PATTERNS_MAX} patterns`;
  const names: string[] = [];
  const beginnings: string[] = [];
  let every = false;
  for (const pattern of list as unknown[]) {
    if (typeof pattern !== "string") return `pere.${right} must hold texts only`;
    if (pattern === "*") every = true;
    else if (CHANNEL.test(pattern)) names.push(pattern);
    else if (pattern.endsWith(".*") && CHANNEL.test(pattern.slice(0, -1))) beginnings.push(pattern.slice(0, -1));
    else return `pere.${right}: ${quoted(pattern)} is not a channel, a beginning followed by .*, or * alone`;
  }
  return { every, names, beginnings };
}

/** Compares no more characters than the patterns have. */
const matches = ({ every, names, beginnings }: Patterns, channel: string): boolean =>
  every || names.includes(channel) || beginnings.some((beginning) => channel.startsWith(beginning));

/** The `pere` claim. @returns the question that a grant answers, or in one sentence why not */
function readRights(claim: unknown): Grant["may"] | string {
  if (claim === undefined) return () => false;
  if (typeof claim !== "object" || claim === null || Array.isArray(claim)) return "pere must be an object";
  const { push: pushList, feed: feedList, ...others } = claim as Record<string, unknown>;
  const [other] = Object.keys(others);
  if (other !== undefined) return `pere.${quoted(other)} is not a right; there are push and feed`;
  const push = readPatterns("push", pushList);
  if (typeof push === "string") return push;
  const feed = readPatterns("feed", feedList);
  if (typeof feed === "string") return feed;
  return (right, channel) => matches(right === "push" ? push : feed, channel);
}

/** @throws PereError forbidden, unless the grant has the right on the channel */
export function demand(grant: Grant, right: Right, channel: string): void {
  if (grant.may(right, channel)) return;
  const message = `gives no right to ${right} on ${channel}`;
  throw new PereError("forbidden", `this token ${message}`, [{ path: "token", message: `it ${message}` }]);
}

// ----------------------------------------------------------------------------------------------------------------- errors

const refused = (reason: string, cause?: unknown): PereError =>
  new PereError("unauthorized", `token: ${reason}`, [{ path: "token", message: reason }], cause);

/** What is said where the key set can't be had: the token may well be good. */
const noKeys = (cause: unknown): PereError =>
  new PereError("away", "the keys that tokens are checked with can't be had at the moment", [], cause);

/**
 * The value of `WWW-Authenticate` for an error of this file (RFC 6750, 3). Without a token there is no `error` in it, as the RFC asks;
 * a token that was refused is `invalid_token`, one that doesn't go far enough `insufficient_scope`, all else `invalid_request`.
 */
export function challenge({ code, faults, message }: PereError): string {
  if (code === "unauthorized" && faults.length === 0) return 'Bearer realm="PERE"';
  const error =
    code === "unauthorized" ? "invalid_token" : code === "forbidden" ? "insufficient_scope" : "invalid_request";
  const description = message.replaceAll('"', "'").replace(/[^ !#-[\]-~]/g, "?");
  return `Bearer realm="PERE", error="${error}", error_description="${description}"`;
}

// ------------------------------------------------------------------------------------------------------------------- keys

type Algorithm = "HS256" | "EdDSA" | "ES256" | "RS256";

/** A key, its name in its set, and the one algorithm it is for. */
interface Key {
  readonly kid: string | undefined;
  readonly algorithm: Algorithm;
  readonly key: CryptoKey;
}

/** Members that only private and symmetric keys have: RFC 7518, 6.2.2, 6.3.2 and 6.4.1; RFC 9964 for `priv`. */
const SECRET_MEMBERS = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"] as const;

/** What a key is for, by its type; null where PERE has no use for it, which is no fault: RFC 7517, 5. */
function algorithmOf({ kty, crv, alg, use, key_ops }: JWK): Algorithm | null {
  if (use !== undefined && use !== "sig") return null;
  if (key_ops !== undefined && !(Array.isArray(key_ops) && key_ops.includes("verify"))) return null;
  const algorithm =
    kty === "RSA"
      ? "RS256"
      : kty === "EC" && crv === "P-256"
        ? "ES256"
        : kty === "OKP" && crv === "Ed25519"
          ? "EdDSA"
          : null;
  return alg === undefined || alg === algorithm ? algorithm : null;
}

/** One member of a key set, or null when it is not for PERE. @throws Error with a sentence that begins with its name */
async function readKey(jwk: JWK, name: string): Promise<Key | null> {
  if (jwk.kty === "oct" || SECRET_MEMBERS.some((member) => member in jwk))
    throw new Error(`${name} is secret, and a key set for checking tokens holds public keys only`);
  const algorithm = algorithmOf(jwk);
  if (algorithm === null) return null;
  if (jwk.kid !== undefined && typeof jwk.kid !== "string") throw new Error(`${name} has a kid that is not a text`);
  const key = await importJWK(jwk, algorithm).catch((cause: unknown) => {
    throw new Error(`${name} is not a good ${algorithm} key`, { cause });
  });
  if (key instanceof Uint8Array) throw new Error(`${name} is not a public key`);
  const { modulusLength } = key.algorithm as { modulusLength?: number };
  if (modulusLength !== undefined && modulusLength < RSA_BITS_MIN)
    throw new Error(`${name} has ${modulusLength} bits, and RS256 needs ${RSA_BITS_MIN}`);
  return { kid: jwk.kid, algorithm, key };
}

/** A key set (RFC 7517, 5) as the keys that PERE can use, one at least. @throws Error with a sentence that says what is wrong with it */
async function readKeys(text: string): Promise<readonly Key[]> {
  let set: unknown;
  try {
    set = JSON.parse(text);
  } catch (cause) {
    throw new Error("it is not JSON", { cause });
  }
  const list: unknown = typeof set === "object" && set !== null && "keys" in set ? set.keys : undefined;
  if (!Array.isArray(list)) throw new Error('it has no list named "keys"');
  if (list.length > KEYS_MAX) throw new Error(`it has more than ${KEYS_MAX} keys`);
  const keys: Key[] = [];
  for (const [index, jwk] of (list as unknown[]).entries()) {
    if (typeof jwk !== "object" || jwk === null) throw new Error(`key ${index + 1} is not an object`);
    const key = await readKey(jwk as JWK, `key ${index + 1}`);
    if (key === null) continue;
    if (keys.some(({ kid, algorithm }) => kid === key.kid && algorithm === key.algorithm))
      throw new Error(`key ${index + 1} has the kid and the type of another one`);
    keys.push(key);
  }
  if (keys.length === 0) throw new Error("it has no EdDSA, ES256 or RS256 key");
  return keys;
}

/** A key set that came, and is none that PERE goes by. */
class BadSet extends Error {
  constructor(cause: unknown) {
    super(`PERE_JWKS can't be used: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** Asks for a URL; the tests' own where they bring one. */
export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** What a URL gives, at most `KEYS_BYTES_MAX` of it. A redirect is no answer: it could lead away from TLS. @throws Error */
async function fetchText(url: string, fetch: Fetch): Promise<string> {
  const signal = AbortSignal.timeout(KEYS_FETCH_MS);
  const response = await fetch(url, { signal, redirect: "manual", headers: { Accept: "application/json" } });
  if (response.status !== 200 || !response.body) throw new Error(`its server answers ${response.status}`);
  const decoder = new TextDecoder();
  let bytes = 0;
  let text = "";
  for await (const chunk of response.body) {
    bytes += chunk.length;
    if (bytes > KEYS_BYTES_MAX) throw new Error(`it is longer than ${KEYS_BYTES_MAX} bytes`);
    text += decoder.decode(chunk, { stream: true });
  }
  return text + decoder.decode();
}

/** Two moments are closer than that, whichever comes first: clocks are set back, too. */
const isWithin = (ms: number, one: number, other: number): boolean => Math.abs(one - other) < ms;

/** The keys of a set, and where they come from. A file is read once, a URL again and again. */
class KeySet {
  #keys: readonly Key[] = [];
  /** When `#keys` came, when an answer was last asked for, and when so because of an unknown key; all milliseconds since 1970. */
  #keysAt = -Infinity;
  #askedAt = -Infinity;
  #unknownAt = -Infinity;
  /** Why the last answer was none; null when it was one. */
  #failure: Error | null = null;
  #asking: Promise<void> | null = null;
  readonly #from: string;
  readonly #now: () => number;
  readonly #fetch: Fetch | null;
  readonly #onChange: () => void;

  constructor(from: string, now: () => number, fetch: Fetch, onChange: () => void) {
    this.#from = from;
    this.#now = now;
    this.#fetch = /^https?:\/\//i.test(from) ? fetch : null;
    this.#onChange = onChange;
  }

  /** Reads it for the first time. That a server is away now is no reason not to start. @throws Error with the one line to print */
  async open(): Promise<void> {
    if (this.#fetch) {
      if (!URL.canParse(this.#from)) throw new Error("PERE_JWKS is not a URL, nor the path of a file");
      await this.#ask();
      if (this.#failure instanceof BadSet) throw this.#failure;
      return;
    }
    const text = await readFile(this.#from, "utf8").catch((cause: unknown) => {
      throw new Error(`PERE_JWKS: the file ${this.#from} can't be read`, { cause });
    });
    this.#keys = await readKeys(text).catch((cause: unknown) => {
      throw new BadSet(cause);
    });
  }

  /** Whether the keys are too old to go by. Where they are only old, new ones are asked for meanwhile. */
  isStale(): boolean {
    if (!this.#fetch) return false;
    const now = this.#now();
    if (!isWithin(KEYS_FRESH_MS, now, this.#keysAt)) void this.#ask();
    return !isWithin(KEYS_STALE_MS, now, this.#keysAt);
  }

  /**
   * The one key that a token's header leads to. A header without `kid` leads to the only key of its algorithm; with several of them it
   * must say (OpenID Connect Core, 10.1). @throws PereError unauthorized; away when the keys can't be had
   */
  async find(algorithm: Algorithm, kid: string | undefined): Promise<CryptoKey> {
    if (this.isStale()) await this.#ask();
    if (this.isStale()) throw noKeys(this.#failure);
    let found = this.#candidates(algorithm, kid);
    const now = this.#now();
    const mayAsk = this.#asking || this.#failure || !isWithin(KEYS_UNKNOWN_MS, now, this.#unknownAt);
    if (found.length === 0 && this.#fetch && mayAsk) {
      this.#unknownAt = now;
      await this.#ask();
      found = this.#candidates(algorithm, kid);
    }
    const [key, another] = found;
    if (another) throw refused("its header has no kid, and there are several keys that it could mean");
    if (key) return key.key;
    if (this.#failure) throw noKeys(this.#failure);
    throw refused("it is signed with a key that PERE doesn't know");
  }

  #candidates(wanted: Algorithm, name: string | undefined): readonly Key[] {
    return this.#keys.filter(({ algorithm, kid }) => algorithm === wanted && (name === undefined || kid === name));
  }

  /** Asks the server, once for all who wait. Never throws; a good answer replaces the keys. */
  #ask(): Promise<void> {
    if (this.#failure && isWithin(KEYS_RETRY_MS, this.#now(), this.#askedAt)) return Promise.resolve();
    this.#asking ??= this.#fetchKeys().finally(() => {
      this.#asking = null;
    });
    return this.#asking;
  }

  async #fetchKeys(): Promise<void> {
    try {
      const text = await fetchText(this.#from, this.#fetch!);
      this.#keys = await readKeys(text).catch((cause: unknown) => {
        throw new BadSet(cause);
      });
      this.#keysAt = this.#now();
      this.#failure = null;
      this.#onChange();
    } catch (error) {
      this.#failure = error instanceof Error ? error : new Error(String(error));
    }
    this.#askedAt = this.#now();
  }
}

// ----------------------------------------------------------------------------------------------------------------- tokens

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
  readonly fetch?: Fetch;
}

/** @throws Error with the one line to print, which doesn't repeat the secret */
async function secretKey(secret: string | Uint8Array): Promise<CryptoKey> {
  const bytes = typeof secret === "string" ? new TextEncoder().encode(secret) : Uint8Array.from(secret);
  if (bytes.length < SECRET_BYTES_MIN)
    throw new Error(`PERE_JWT_SECRET must have at least ${SECRET_BYTES_MIN} bytes; it has ${bytes.length}`);
  return crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
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

/** What verified claims allow. @throws PereError unauthorized */
function readClaims({ sub, exp, iat, pere }: JWTPayload, now: number): Grant {
  if (typeof sub !== "string" || !DEVICE.test(sub))
    throw refused("its sub must be a device's name, 1 to 128 of A-Z a-z 0-9 . _ : ~ -");
  if (exp === undefined || exp > TIME_SECONDS_MAX)
    throw refused("its exp must be in seconds, and before the year 10000");
  if (iat !== undefined && iat > now / 1000 + TOLERANCE_SECONDS) throw refused(CLAIM_REASONS.iat!);
  const may = readRights(pere);
  if (typeof may === "string") throw refused(may);
  return { subject: sub, expires: exp * 1000, may };
}

/** Reads tokens. `openAccess` makes one. */
export class Access {
  readonly #secret: CryptoKey | null;
  readonly #set: KeySet | null;
  readonly #now: () => number;
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
    { jwks, audience, issuer, now = Date.now, fetch = globalThis.fetch }: AccessOptions,
  ) {
    this.#secret = secret;
    this.#set = jwks === undefined ? null : new KeySet(jwks, now, fetch, () => this.#forget());
    this.#now = now;
    this.#demands = { ...(audience === undefined ? {} : { audience }), ...(issuer === undefined ? {} : { issuer }) };
  }

  /** Reads the key set for the first time. @throws Error with the one line to print */
  async open(): Promise<void> {
    await this.#set?.open();
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
    const now = this.#now();
    const verified = await jwtVerify(token, key, {
      ...this.#demands,
      algorithms: [algorithm],
      requiredClaims: ["exp", "sub"],
      clockTolerance: TOLERANCE_SECONDS,
      currentDate: new Date(now),
    }).catch((error: unknown) => {
      // Without its cause: that holds the claims, which are nobody's business but the bearer's, and the reason says it all.
      throw refused(reason(error));
    });
    return readClaims(verified.payload, now);
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

// ----------------------------------------------------------------------------------------------------- a token on its way

const COOKIE = "pere_token=";
const SUBPROTOCOL = "pere.token.";

/** The elements of a header that is a list, without the space around them. */
const elements = (headers: Headers, name: string, separator: string): string[] =>
  (headers.get(name) ?? "").split(separator).map((element) => element.trim());

/** What follows `beginning` in each text that begins so. */
const after = (texts: readonly string[], beginning: string): string[] =>
  texts.filter((text) => text.startsWith(beginning)).map((text) => text.slice(beginning.length));

/**
 * The token of a request, unread, or null. It may stand in `Authorization: Bearer`, in a WebSocket subprotocol `pere.token.<jwt>` or as
 * `token` in the query; in several of them only if it is the same one (RFC 6750, 2). The cookie `pere_token` counts where there is no
 * other, because a browser sends it unasked. An empty token is one, and a bad one, save in the cookie, where that is none.
 * @throws PereError malformed when there are two different ones
 */
export function tokenOf(headers: Headers, query: URLSearchParams): string | null {
  const bearer = /^bearer(?: +(.*))?$/is.exec(headers.get("authorization") ?? "");
  const given = [
    ...(bearer ? [bearer[1] ?? ""] : []),
    ...after(elements(headers, "sec-websocket-protocol", ","), SUBPROTOCOL),
    ...query.getAll("token"),
  ];
  const [token, another] = new Set(given);
  const message = "a request has one token, in one place";
  if (another !== undefined) throw new PereError("malformed", `token: ${message}`, [{ path: "token", message }]);
  const [cookie] = after(elements(headers, "cookie", ";"), COOKIE);
  return token ?? (cookie || null);
}

/** `token` as the name of a query's field, in a URL or in a URL within one, percent-encoded here or there; and its value. */
const TOKEN_FIELD =
  /(^|[?&]|%(?:25){0,3}(?:3f|26))((?:t|%74)(?:o|%6f)(?:k|%6b)(?:e|%65)(?:n|%6e)(?:=|%(?:25){0,3}3d))[^&#\s"]*/gi;
/** What looks like a JWT anywhere: base64url of what begins with `{` and a quote or space, twice followed by a dot. */
const TOKEN_LOOK = /(?<=%(?:25){0,3}[0-9a-f]{2}|(?<![\w-]))e[wy][\w-]{14,}\.[\w-]+\.[\w-]*/gi;

/** A URL, a path, a query or a `Referer` as it may be written to a log: tokens are replaced by `…`. Takes linear time. */
export const redact = (url: string): string => url.replace(TOKEN_FIELD, "$1$2…").replace(TOKEN_LOOK, "…");

// ---------------------------------------------------------------------------------------------------------------- minting

/** What a token is to allow, to whom, and for how many days. */
export interface TokenDraft {
  readonly sub: string;
  readonly push: readonly string[];
  readonly feed: readonly string[];
  readonly days: number;
}

/**
 * A token signed with the configured secret, with the `aud` and `iss` that this PERE asks for.
 * @throws Error with the one line to print, when no PERE would take such a token
 */
export async function mint(
  { secret, audience, issuer, now = Date.now }: Pick<AccessOptions, "secret" | "audience" | "issuer" | "now">,
  { sub, push, feed, days }: TokenDraft,
): Promise<string> {
  if (secret === undefined) throw new Error("a token can be made where PERE_JWT_SECRET is set");
  if (!DEVICE.test(sub)) throw new Error("--sub must be a device's name, 1 to 128 of A-Z a-z 0-9 . _ : ~ -");
  if (!(days > 0 && days <= DAYS_MAX)) throw new Error(`--days must be a number above 0, up to ${DAYS_MAX}`);
  const pere = { push, feed };
  const rights = readRights(pere);
  if (typeof rights === "string") throw new Error(rights);
  const at = Math.floor(now() / 1000);
  const draft = new SignJWT({ pere })
    .setProtectedHeader({ alg: "HS256", typ: "JWT" })
    .setSubject(sub)
    .setIssuedAt(at)
    .setExpirationTime(at + Math.ceil(days * DAY_SECONDS));
  if (audience !== undefined) draft.setAudience(audience);
  if (issuer !== undefined) draft.setIssuer(issuer);
  const token = await draft.sign(await secretKey(secret));
  if (token.length > TOKEN_BYTES_MAX) throw new Error(`the token would be longer than ${TOKEN_BYTES_MAX} bytes`);
  return token;
}

/**
 * The arguments of `bun run index.ts token`: `--push` and `--feed` take patterns, comma separated, and may be repeated.
 * @throws Error with the one line to print
 */
export function readMint(argv: readonly string[]): TokenDraft {
  const list = { type: "string", multiple: true } as const;
  const { values } = parseArgs({
    args: [...argv],
    options: { push: list, feed: list, sub: { type: "string" }, days: { type: "string" } },
  });
  const { sub, days = String(DAYS_DEFAULT) } = values;
  if (sub === undefined) throw new Error("--sub must say whom the token is for");
  if (!values.push && !values.feed) throw new Error("--push or --feed must say what the token allows");
  if (!/^\d{1,6}(\.\d{1,6})?$/.test(days)) throw new Error(`--days must be a number above 0, up to ${DAYS_MAX}`);
  const patterns = (texts: readonly string[] = []): string[] => texts.flatMap((text) => text.split(","));
  return { sub, push: patterns(values.push), feed: patterns(values.feed), days: Number(days) };
}
