/**
 * The keys that verify tokens: the configured secret, and key sets from a file or a URL.
 *
 * A key is for a single algorithm, and a token's header only selects among these keys (RFC 8725, 3.1): a public key never verifies an HMAC, and no
 * key is taken from a header. A file is read once, a URL repeatedly. While its server is away, the last key set stays valid for a while.
 *
 * Never writes a secret into a message, never contacts a server named by a token, and does not read tokens.
 */
import { readFile } from "node:fs/promises";
import { type CryptoKey, type JWK, importJWK } from "jose";
import { PereError } from "../model.ts";

/** An HMAC key must be as long as its hash: RFC 7518, 3.2. */
const SECRET_BYTES_MIN = 32;
/** RFC 7518, 3.3. */
const RSA_BITS_MIN = 2_048;
/** A key set holds current, previous and next keys. */
const KEYS_MAX = 32;
const KEYS_BYTES_MAX = 256 * 1024;
/** A request waits for the answer. */
const KEYS_FETCH_MS = 5_000;
/** After this time the key set is read again, so that a withdrawn key stops working soon. */
const KEYS_FRESH_MS = 10 * 60_000;
/** How long the last key set stays valid while its server is away. */
const KEYS_STALE_MS = 60 * 60_000;
/** Anyone can invent key ids; they cause at most one request to the key server in this time. */
const KEYS_UNKNOWN_MS = 30_000;
/** Delay before a key server that failed is asked again. */
const KEYS_RETRY_MS = 5_000;

/** Why a token is rejected, for its owner. */
export const refused = (reason: string, cause?: unknown): PereError =>
  new PereError("unauthorized", `token: ${reason}`, [{ path: "token", message: reason }], cause);

const UNKNOWN = (): PereError => refused("it is signed with a key that PERE doesn't know");

/** The error while the key set is not available: the token may well be valid. */
const noKeys = (cause: unknown): PereError =>
  new PereError("away", "the keys that verify tokens are not available now; try again in a moment", [], cause);

/** The token's key is unknown, and the key set may not be read again for this many seconds: the key may be new. */
export class KeyUnknown extends PereError {
  readonly retryAfterSeconds: number;

  constructor(retryAfterMs: number) {
    const seconds = Math.max(1, Math.ceil(retryAfterMs / 1000));
    super(
      "away",
      `token: it is signed with a key that PERE doesn't know, and the key set was fetched just now; try again in ${seconds} s`,
    );
    this.retryAfterSeconds = seconds;
  }
}

/** The accepted signature algorithms. */
export type Algorithm = "HS256" | "EdDSA" | "ES256" | "RS256";

/** A key, its id in the set, and its algorithm. */
interface Key {
  readonly kid: string | undefined;
  readonly algorithm: Algorithm;
  readonly key: CryptoKey;
}

/** Members that only private and symmetric keys have: RFC 7518, 6.2.2, 6.3.2 and 6.4.1; RFC 9964 for `priv`. */
const SECRET_MEMBERS = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"] as const;

/** The algorithm of a key, by its type; null: PERE does not use it, which is allowed: RFC 7517, 5. */
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

/** One member of a key set, or null if PERE does not use it. @throws Error with a message that begins with its name */
async function readKey(jwk: JWK, name: string): Promise<Key | null> {
  if (jwk.kty === "oct" || SECRET_MEMBERS.some((member) => member in jwk))
    throw new Error(
      `${name} is a private or symmetric key; a key set that verifies tokens must contain only public keys`,
    );
  const algorithm = algorithmOf(jwk);
  if (algorithm === null) return null;
  if (jwk.kid !== undefined && typeof jwk.kid !== "string") throw new Error(`${name} has a kid that is not a string`);
  const key = await importJWK(jwk, algorithm).catch((cause: unknown) => {
    throw new Error(`${name} is not a valid ${algorithm} key`, { cause });
  });
  if (key instanceof Uint8Array) throw new Error(`${name} is not a public key`);
  const { modulusLength } = key.algorithm as { modulusLength?: number };
  if (modulusLength !== undefined && modulusLength < RSA_BITS_MIN)
    throw new Error(`${name} has ${modulusLength} bits, and RS256 needs ${RSA_BITS_MIN}`);
  return { kid: jwk.kid, algorithm, key };
}

/** The usable keys of a key set (RFC 7517, 5), at least one. @throws Error with a message that says what is wrong with it */
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
      throw new Error(`key ${index + 1} has the same kid and type as another key`);
    keys.push(key);
  }
  if (keys.length === 0) throw new Error("it has no EdDSA, ES256 or RS256 key");
  return keys;
}

/** An invalid key set was received. */
class BadSet extends Error {
  constructor(cause: unknown) {
    super(`PERE_JWKS can't be used: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** Fetches a URL; tests inject their own. */
export interface KeyServerReply {
  readonly status: number;
  readonly body: AsyncIterable<Uint8Array> | null;
}

/** Reads a URL, at most `KEYS_BYTES_MAX`. Redirects are errors: they could lead away from TLS. @throws Error */
export type Fetch = (url: string, init: RequestInit) => Promise<KeyServerReply>;

/** Whether two times are closer than this, in either order: clocks may be set back. */
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

/** A key set and its source. A file is read on request, a URL repeatedly. */
const isWithin = (ms: number, one: number, other: number): boolean => Math.abs(one - other) < ms;

/** When `#keys` was received, when the source was last asked, and when it was last asked because of an unknown key; milliseconds since 1970. */
export class KeySet {
  #keys: readonly Key[] = [];
  /** Why the last request failed; null: it succeeded. */
  #keysAt = -Infinity;
  #askedAt = -Infinity;
  #unknownAt = -Infinity;
  /** Ids of the keys that the last change removed. */
  #failure: Error | null = null;
  #asking: Promise<void> | null = null;
  /** Reads the key set for the first time. An unavailable server does not prevent the start. @throws Error with a one-line message */
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

  /** Uses these keys from now on. */
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

  /** Reads the file again, or asks the server now. @throws Error with a one-line message; the keys stay as they were */
  #take(keys: readonly Key[]): void {
    const names = (set: readonly Key[]): Set<string> => new Set(set.flatMap(({ kid }) => kid ?? []));
    const withdrawn = names(this.#keys).difference(names(keys));
    if (withdrawn.size > 0) this.#withdrawn = withdrawn;
    this.#keys = keys;
    this.#onChange();
  }

  /** Whether the keys are too old to use. If they are merely old, starts a request for new ones. */
  async reload(): Promise<void> {
    if (!this.#fetch) return this.#take(await this.#readFile());
    await this.#asking;
    this.#failure = null;
    await this.#ask();
    if (this.#failure) throw this.#failure;
  }

  /**
   * The key that a token's header selects. Without `kid`, it is the only key of the algorithm; if there are several, `kid` is required (OpenID
   * Connect Core, 10.1). @throws PereError unauthorized; away: the keys are not available
   */
  isStale(): boolean {
    if (!this.#fetch) return false;
    const now = this.#now();
    if (!isWithin(KEYS_FRESH_MS, now, this.#keysAt)) void this.#ask();
    return !isWithin(KEYS_STALE_MS, now, this.#keysAt);
  }

  /** Asks the server, once for all callers. Never throws; a valid answer replaces the keys. */
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
    if (another) throw refused("its header has no kid, but several keys are possible");
    if (key) return key.key;
    if (this.#failure) throw noKeys(this.#failure);
    throw UNKNOWN();
  }

  #candidates(wanted: Algorithm, name: string | undefined): readonly Key[] {
    return this.#keys.filter(({ algorithm, kid }) => algorithm === wanted && (name === undefined || kid === name));
  }

  /** The key for HS256. @throws Error with a one-line message that does not contain the secret */
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
