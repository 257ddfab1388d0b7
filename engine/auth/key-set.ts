/**
 * The keys that tokens are checked with: the operator's secret, and key sets from a file or a URL.
 *
 * A key knows the one algorithm it is for, and a token's header only picks among such keys (RFC 8725, 3.1): a public key never checks an
 * HMAC, and nothing in a header brings a key along. A file is read once, a URL again and again; while its server is away, its last word
 * stands for a while.
 *
 * This file never writes a secret into a message, asks no key server that a token names, and reads no token.
 */
import { readFile } from "node:fs/promises";
import { type CryptoKey, type JWK, importJWK } from "jose";
import { PereError } from "../model.ts";

/** An HMAC key is as long as its hash: RFC 7518, 3.2. */
const SECRET_BYTES_MIN = 32;
/** RFC 7518, 3.3. */
const RSA_BITS_MIN = 2_048;
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

/** Why a token is turned down, for the person who holds it. */
export const refused = (reason: string, cause?: unknown): PereError =>
  new PereError("unauthorized", `token: ${reason}`, [{ path: "token", message: reason }], cause);

const UNKNOWN = (): PereError => refused("it is signed with a key that PERE doesn't know");

/** What is said where the key set can't be had: the token may well be good. */
const noKeys = (cause: unknown): PereError =>
  new PereError("away", "the keys that tokens are checked with can't be had at the moment", [], cause);

/** A token is signed with a key that PERE doesn't know, and may not ask for before so many seconds: it may well be a new one. */
export class KeyUnknown extends PereError {
  readonly retryAfterSeconds: number;

  constructor(retryAfterMs: number) {
    const seconds = Math.max(1, Math.ceil(retryAfterMs / 1000));
    super(
      "away",
      `token: it is signed with a key that PERE doesn't know, and the key set was asked for just now; try again in ${seconds} s`,
    );
    this.retryAfterSeconds = seconds;
  }
}

/** What a token may be signed with. */
export type Algorithm = "HS256" | "EdDSA" | "ES256" | "RS256";

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

/** What a key server answers. */
export interface KeyServerReply {
  readonly status: number;
  readonly body: AsyncIterable<Uint8Array> | null;
}

/** Asks a key server; tests bring their own. */
export type Fetch = (url: string, init: RequestInit) => Promise<KeyServerReply>;

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

/** The keys of a set, and where they come from. A file is read when it is said, a URL again and again. */
export class KeySet {
  #keys: readonly Key[] = [];
  /** When `#keys` came, when an answer was last asked for, and when so because of an unknown key; all milliseconds since 1970. */
  #keysAt = -Infinity;
  #askedAt = -Infinity;
  #unknownAt = -Infinity;
  /** Why the last answer was none; null when it was one. */
  #failure: Error | null = null;
  #asking: Promise<void> | null = null;
  /** Names of keys that were in the set and are no longer: of the last change alone. */
  #withdrawn: ReadonlySet<string> = new Set();
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
    this.#take(await this.#readFile());
  }

  async #readFile(): Promise<readonly Key[]> {
    const text = await readFile(this.#from, "utf8").catch((cause: unknown) => {
      throw new Error(`PERE_JWKS: the file ${this.#from} can't be read`, { cause });
    });
    return readKeys(text).catch((cause: unknown) => {
      throw new BadSet(cause);
    });
  }

  /** Goes by these keys from now on. */
  #take(keys: readonly Key[]): void {
    const names = (set: readonly Key[]): Set<string> => new Set(set.flatMap(({ kid }) => kid ?? []));
    const withdrawn = names(this.#keys).difference(names(keys));
    if (withdrawn.size > 0) this.#withdrawn = withdrawn;
    this.#keys = keys;
    this.#onChange();
  }

  /** Reads the file again, or asks the server now. @throws Error with the one line to print; the keys are as they were */
  async reload(): Promise<void> {
    if (!this.#fetch) return this.#take(await this.#readFile());
    await this.#asking;
    this.#failure = null;
    await this.#ask();
    if (this.#failure) throw this.#failure;
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
    if (found.length === 0 && this.#fetch) {
      const mayAsk = this.#asking || this.#failure || !isWithin(KEYS_UNKNOWN_MS, now, this.#unknownAt);
      if (!mayAsk) {
        if (kid !== undefined && this.#withdrawn.has(kid)) throw UNKNOWN();
        throw new KeyUnknown(KEYS_UNKNOWN_MS - Math.abs(now - this.#unknownAt));
      }
      this.#unknownAt = now;
      await this.#ask();
      found = this.#candidates(algorithm, kid);
    }
    const [key, another] = found;
    if (another) throw refused("its header has no kid, and there are several keys that it could mean");
    if (key) return key.key;
    if (this.#failure) throw noKeys(this.#failure);
    throw UNKNOWN();
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
      const keys = await readKeys(text).catch((cause: unknown) => {
        throw new BadSet(cause);
      });
      this.#take(keys);
      this.#keysAt = this.#now();
      this.#failure = null;
    } catch (error) {
      this.#failure = error instanceof Error ? error : new Error(String(error));
    }
    this.#askedAt = this.#now();
  }
}

/** The key of HS256. @throws Error with the one line to print, which doesn't repeat the secret */
export async function secretKey(secret: string | Uint8Array): Promise<CryptoKey> {
  const bytes = typeof secret === "string" ? new TextEncoder().encode(secret) : Uint8Array.from(secret);
  if (bytes.length < SECRET_BYTES_MIN)
    throw new Error(`PERE_JWT_SECRET must have at least ${SECRET_BYTES_MIN} bytes; it has ${bytes.length}`);
  return crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
}
