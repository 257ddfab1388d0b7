/**
 * One call to a webhook, as described by Standard Webhooks (https://www.standardwebhooks.com): a signed POST to an address that was checked.
 *
 * A hook's URL comes from a publisher, and the call is made from where PERE runs: behind the firewall, next to databases and the cloud's
 * metadata service. So only public addresses are called, and those that the operator listed in PERE_HOOKS_ALLOW. A name may resolve to other
 * addresses a moment later. So each call resolves it once, checks all addresses, and connects to one of them without resolving again. Bun's
 * `fetch` always resolves for itself; `node:http` takes a `lookup` function.
 *
 * The result is the status, the beginning of the answer's body, and how long it took; the caller decides when to retry. The rest of the body is read, so
 * that the receiver can finish its answer, and dropped. Never follows a redirect, never reuses a connection, never uses a proxy, never throws.
 */
import { lookup } from "node:dns/promises";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { type LookupFunction, isIP } from "node:net";
import { Webhook } from "standardwebhooks";
import { type AddressRange, isCallable, literalAddress } from "../addresses.ts";
import { descriptors } from "../descriptors.ts";
import { PereError } from "../model.ts";

/** URLs up to this length pass all common proxies. */
const URL_CHARACTERS_MAX = 2_048;
/** A key of HMAC-SHA256: Standard Webhooks, "Signature scheme". */
const SECRET_BYTES_MIN = 24;
const SECRET_BYTES_MAX = 64;
/** As long as the digest; a longer one would not be stronger. */
const SECRET_BYTES = 32;
/** Standard Webhooks, "Request timeout", recommends 15 to 30 seconds; a receiver that needs longer should answer first and do its work afterwards. */
const CALL_MS = 15_000;
/** A request waits while a name is resolved. */
const CHECK_MS = 5_000;
/** A receiver that asks for a longer pause is called after a day all the same; otherwise a mistake there could stop its calls for years. */
const QUIET_MS_MAX = 24 * 3600 * 1000;
/** At most this much of an answer's body is read. */
const ANSWER_BYTES_MAX = 64 * 1024;
/** This much of it is kept: enough for an error message. */
const KEPT_BYTES_MAX = 1024;
/** Interim answers (1xx; RFC 9110, 15.2). A receiver sends one or two; an endless series is an attack. */
const ANNOUNCEMENTS_MAX = 8;

/** Resolves a name to its addresses. */
export type Resolve = (name: string) => Promise<readonly string[]>;

/** A receiver's answer: the status, `Retry-After` as it was sent, if there is one, and the beginning of the body. */
export interface HookReply {
  readonly status: number;
  readonly retryAfter?: string | undefined;
  readonly body?: string;
}

/** Makes a call to one of the addresses. @returns the receiver's answer */
export type Send = (
  url: URL,
  addresses: readonly string[],
  call: HookCall,
  deadline: AbortSignal,
) => Promise<HookReply>;

/** The time limit, the resolver and the function that connects. By default Bun's resolver and `node:http`; tests pass others. */
export interface CallOptions {
  readonly timeoutMs?: number;
  readonly resolve?: Resolve;
  readonly send?: Send;
}

/** One attempt, made at `at`, in milliseconds since 1970. `id` is the same for every attempt. */
export interface HookCall {
  readonly id: string;
  readonly url: string;
  readonly secret: string;
  /** Former secrets that it is also signed with, newest first: the receiver may know only one of these. */
  readonly formerSecrets?: readonly string[];
  readonly body: string;
  readonly at: number;
}

/** The receiver's status, 3xx included; or null, and the reason in one sentence. */
export interface HookAnswer {
  readonly status: number | null;
  readonly error: string | null;
  /** How long the call took. */
  readonly ms: number;
  /** The beginning of the answer's body, at most 1 KiB, as text; null: there was no answer. */
  readonly body: string | null;
  /** How long the receiver asked not to be called, in milliseconds; absent: it did not ask. */
  readonly quietMs?: number;
}

const refused = (message: string, cause?: unknown): PereError =>
  new PereError("refused", `url: ${message}`, [{ path: "url", message }], cause);
const malformed = (path: string, message: string): PereError =>
  new PereError("malformed", `${path}: ${message}`, [{ path, message }]);

// -------------------------------------------------------------------------------------------------------------- addresses

const notPublic = (): PereError =>
  refused("its host has an address that is not public; to allow it, the operator can list it in PERE_HOOKS_ALLOW");

/** All addresses of the URL's host, each of which may be called. @throws PereError refused */
async function checkedAddresses(
  url: URL,
  allowed: readonly AddressRange[],
  resolve: Resolve,
): Promise<readonly string[]> {
  const literal = literalAddress(url);
  const addresses = literal === null ? await resolve(url.hostname).catch(unknownName) : [literal];
  if (addresses.length === 0) unknownName();
  if (!addresses.every((address) => isCallable(address, allowed))) throw notPublic();
  return addresses;
}

function unknownName(cause?: unknown): never {
  // A resolver that gets no file descriptor reports that the name does not exist.
  if (descriptors().short)
    throw new PereError("away", "its host can't be resolved now: too many connections or files are open", [], cause);
  throw refused("its host has no address", cause);
}

const resolveName: Resolve = async (name) => (await lookup(name, { all: true })).map(({ address }) => address);

/** Settles as the promise does, or rejects with the signal's reason if that is aborted first. */
const abortable = <Value>(signal: AbortSignal, promise: Promise<Value>): Promise<Value> =>
  new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    promise.then(resolve, reject);
  });

// ---------------------------------------------------------------------------------------------------------------- parsing

/**
 * Parses a hook's URL: http or https, without user name and password, at most 2,048 characters. An address that may not be called is
 * refused at once; a name is not resolved. @throws PereError malformed or refused
 */
export function readHookUrl(text: string, allowed: readonly AddressRange[]): URL {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (!url || (url.protocol !== "http:" && url.protocol !== "https:"))
    throw malformed("url", "must be a URL that begins with http:// or https://");
  if (Math.max(text.length, url.href.length) > URL_CHARACTERS_MAX)
    throw refused(`must have at most ${URL_CHARACTERS_MAX} characters`);
  if (url.username !== "" || url.password !== "") throw refused("must not contain a user name or password");
  const literal = literalAddress(url);
  if (literal !== null && !isCallable(literal, allowed)) throw notPublic();
  return url;
}

/** Resolves the URL's host. @throws PereError refused: it has no address, or one that may not be called */
export async function checkHookUrl(
  url: URL,
  allowed: readonly AddressRange[],
  { timeoutMs = CHECK_MS, resolve = resolveName }: CallOptions = {},
): Promise<void> {
  const deadline = AbortSignal.timeout(timeoutMs);
  await abortable(deadline, checkedAddresses(url, allowed, resolve)).catch((error: unknown) => {
    throw deadline.aborted ? refused("its host could not be resolved in time", error) : error;
  });
}

/**
 * Parses a secret in the format of Standard Webhooks: `whsec_` and the padded base64 of 24 to 64 bytes.
 * @throws PereError malformed; the message does not contain the secret
 */
export function readSecret(text: string): string {
  const [, base64 = ""] = /^whsec_([A-Za-z0-9+/]{32,86}={0,2})$/.exec(text) ?? [];
  const bytes = Buffer.from(base64, "base64");
  if (bytes.length >= SECRET_BYTES_MIN && bytes.length <= SECRET_BYTES_MAX && bytes.toString("base64") === base64)
    return text;
  throw malformed("secret", `must be whsec_ and the base64 of ${SECRET_BYTES_MIN} to ${SECRET_BYTES_MAX} bytes`);
}

/** A new secret, of 32 random bytes. */
export const makeSecret = (): string =>
  `whsec_${Buffer.from(crypto.getRandomValues(new Uint8Array(SECRET_BYTES))).toString("base64")}`;

// --------------------------------------------------------------------------------------------------------------- the call

/**
 * Makes the call. From resolving the name to the end of the answer it takes at most `timeoutMs`. A status that arrived in time counts, even
 * if the body is cut off. Never throws.
 */
export async function callHook(
  call: HookCall,
  allowed: readonly AddressRange[],
  { timeoutMs = CALL_MS, resolve = resolveName, send = post }: CallOptions = {},
): Promise<HookAnswer> {
  // Not AbortSignal.timeout, which would keep the call's body in memory until the timeout, seconds after the call.
  const clock = new AbortController();
  const timer = setTimeout(() => clock.abort(), timeoutMs);
  const deadline = clock.signal;
  const startedAt = performance.now();
  const elapsed = (): number => Math.round(performance.now() - startedAt);
  try {
    const url = readHookUrl(call.url, allowed);
    const addresses = await abortable(deadline, checkedAddresses(url, allowed, resolve));
    const { status, retryAfter, body = "" } = await send(url, addresses, call, deadline);
    const quietMs = status >= 400 ? readRetryAfter(retryAfter, call.at) : null;
    return { status, error: null, ms: elapsed(), body, ...(quietMs === null ? {} : { quietMs }) };
  } catch (error) {
    const late = `there was no answer within ${timeoutMs / 1000} seconds`;
    return { status: null, error: deadline.aborted ? late : sentence(error), ms: elapsed(), body: null };
  } finally {
    clearTimeout(timer);
  }
}

/** Seconds, or a date in one of the three forms of RFC 9110, 5.6.7: all begin with a day of the week. */
const DELAY_SECONDS = /^\d+$/;
const HTTP_DATE = /^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? .*\d\d:\d\d:\d\d/;

/**
 * Parses `Retry-After` (RFC 9110, 10.2.3): milliseconds, at most a day, 0 for a date that has passed.
 * @param now milliseconds since 1970, by the machine's clock
 * @returns null: absent or invalid
 */
export function readRetryAfter(text: string | undefined, now: number): number | null {
  const value = text?.trim() ?? "";
  if (DELAY_SECONDS.test(value)) return Math.min(Number(value) * 1000, QUIET_MS_MAX);
  if (!HTTP_DATE.test(value)) return null;
  // The oldest format has no time zone; all formats are in GMT.
  const at = Date.parse(value.endsWith("GMT") ? value : `${value} GMT`);
  return Number.isFinite(at) ? Math.min(Math.max(0, at - now), QUIET_MS_MAX) : null;
}

/** The headers of a call: Standard Webhooks, "Webhook headers". One valid signature among several is enough for the receiver. */
function headers({ id, secret, formerSecrets = [], body, at }: HookCall): Record<string, string> {
  const time = new Date(at);
  return {
    "content-type": "application/json",
    "user-agent": "PERE",
    "webhook-id": id,
    "webhook-timestamp": String(Math.floor(at / 1000)),
    "webhook-signature": [secret, ...formerSecrets].map((one) => new Webhook(one).sign(id, time, body)).join(" "),
  };
}

/** Connects to the first of `addresses` that accepts a connection. @returns the receiver's answer */
function post(url: URL, addresses: readonly string[], call: HookCall, deadline: AbortSignal): Promise<HookReply> {
  const found = addresses.map((address) => ({ address, family: isIP(address) }));
  const known: LookupFunction = (_name, _options, answer) => answer(null, found);
  return new Promise((resolve, reject) => {
    const open = url.protocol === "https:" ? httpsRequest : httpRequest;
    const options = { method: "POST", headers: headers(call), agent: false, lookup: known, autoSelectFamily: true };
    const request = open(url, options);
    let status: number | undefined;
    let retryAfter: string | undefined;
    const kept: Buffer[] = [];
    const end = (error?: unknown): void => {
      if (status === undefined) reject(error);
      else resolve({ status, retryAfter, body: beginningOf(Buffer.concat(kept)) });
      request.destroy();
    };
    let announcements = 0;
    request.on("information", () => {
      if (++announcements > ANNOUNCEMENTS_MAX) end(new Error("too many interim answers"));
    });
    request.on("upgrade", ({ statusCode }) => {
      status = statusCode;
      end();
    });
    request.on("response", (response) => {
      status = response.statusCode;
      retryAfter = response.headers["retry-after"];
      let bytes = 0;
      response.on("data", (chunk: Buffer) => {
        if (bytes < KEPT_BYTES_MAX) kept.push(chunk.subarray(0, KEPT_BYTES_MAX - bytes));
        bytes += chunk.length;
        if (bytes > ANSWER_BYTES_MAX) end();
      });
      response.on("error", end).on("close", () => end());
    });
    request.on("error", end);
    deadline.addEventListener("abort", () => end(deadline.reason), { once: true });
    request.end(call.body);
  });
}

/** Bytes as text: U+FFFD for what is not UTF-8, and without a character that was cut at the end. */
const beginningOf = (bytes: Buffer): string => new TextDecoder().decode(bytes, { stream: true });

/** Error codes of Node, llhttp and OpenSSL, and what they mean to the owner of a hook. */
const SENTENCES: readonly (readonly [RegExp, string])[] = [
  [/^ECONNREFUSED$/, "the connection was refused"],
  [/^(EHOSTUNREACH|ENETUNREACH|ETIMEDOUT|EADDRNOTAVAIL)$/, "its address can't be reached"],
  [/^(ECONNRESET|EPIPE)$/, "the connection closed before the answer"],
  [/^HPE_/, "the answer is not HTTP"],
  [/^(ERR_SSL_|EPROTO$)/, "the TLS handshake failed"],
  [/CERT|SIGNATURE/, "its certificate can't be verified"],
];

function sentence(error: unknown): string {
  if (error instanceof PereError) return error.message;
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return SENTENCES.find(([pattern]) => pattern.test(code))?.[1] ?? "the call failed";
}
