/**
 * One call of a webhook, as Standard Webhooks has it (https://www.standardwebhooks.com): a signed POST to an address that was checked.
 *
 * A hook's URL comes from whoever may set hooks on a channel, and the call is made from where PERE runs: behind the firewall, beside
 * databases and the cloud's metadata. So only public addresses are called, and those that the operator named in PERE_HOOKS_ALLOW.
 * What a name leads to can change between two questions; each call therefore asks once, checks every address of the answer, and gives
 * the connection these addresses and no name. Bun's `fetch` asks for itself, whatever one gives it; `node:http` takes a `lookup`.
 *
 * The answer is the status. A body is read, so that the receiver can end in peace, and thrown away; when to try again is for
 * others to say. It never follows a redirect, never reuses a connection, never asks a proxy, never throws.
 */
import { lookup } from "node:dns/promises";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { type LookupFunction, isIP } from "node:net";
import { Webhook } from "standardwebhooks";
import { type AddressRange, isCallable, literalAddress } from "../addresses.ts";
import { descriptors } from "../descriptors.ts";
import { PereError } from "../model.ts";

/** What a URL can be long and still pass every proxy on its way. */
const URL_CHARACTERS_MAX = 2_048;
/** A key of HMAC-SHA256: Standard Webhooks, "Signature scheme". */
const SECRET_BYTES_MIN = 24;
const SECRET_BYTES_MAX = 64;
/** As long as the digest; more adds nothing. */
const SECRET_BYTES = 32;
/** Standard Webhooks, "Request timeout", gives 15 to 30 seconds; a receiver that needs longer should answer first and work then. */
const CALL_MS = 15_000;
/** Somebody waits for the answer while a name is looked up. */
const CHECK_MS = 5_000;
/** A receiver that asks for more is called after a day all the same: who would know that it still wants to be? */
const QUIET_MS_MAX = 24 * 3600 * 1000;
/** An answer's body is for people who debug; none of it is kept. */
const ANSWER_BYTES_MAX = 64 * 1024;
/** Answers that only announce an answer (RFC 9110, 15.2): a receiver has one or two of them, and a joker has no end. */
const ANNOUNCEMENTS_MAX = 8;

/** The addresses of a name, as texts. */
export type Resolve = (name: string) => Promise<readonly string[]>;

/** What a receiver answered: the status, and `Retry-After` as it stands where there is one. */
export interface HookReply {
  readonly status: number;
  readonly retryAfter?: string | undefined;
}

/** Makes a call to one of the addresses and gives the answer. */
export type Send = (
  url: URL,
  addresses: readonly string[],
  call: HookCall,
  deadline: AbortSignal,
) => Promise<HookReply>;

/** How long it may take, who knows the addresses of a name, and who calls them: Bun's own resolver and `node:http`, unless a test brings others. */
export interface CallOptions {
  readonly timeoutMs?: number;
  readonly resolve?: Resolve;
  readonly send?: Send;
}

/** One attempt. `at`, in milliseconds since 1970, is when it is made; `id` stays the same on every attempt. */
export interface HookCall {
  readonly id: string;
  readonly url: string;
  readonly secret: string;
  /** Secrets that it is signed with as well, newest first: the receiver may still know one of these only. */
  readonly formerSecrets?: readonly string[];
  readonly body: string;
  readonly at: number;
}

/** The status that the receiver gave, 3xx as it came; or null, and in one sentence why there is none. */
export interface HookAnswer {
  readonly status: number | null;
  readonly error: string | null;
  /** How long the receiver asks not to be called again, in milliseconds; absent: it did not say. */
  readonly quietMs?: number;
}

const refused = (message: string, cause?: unknown): PereError =>
  new PereError("refused", `url: ${message}`, [{ path: "url", message }], cause);
const malformed = (path: string, message: string): PereError =>
  new PereError("malformed", `${path}: ${message}`, [{ path, message }]);

// -------------------------------------------------------------------------------------------------------------- addresses

const notPublic = (): PereError =>
  refused("leads to an address that is not public; hooks may call such a one only where PERE_HOOKS_ALLOW says so");

/** Every address of the URL's host, all of them good to call. @throws PereError refused */
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
  // A resolver that gets no descriptor says that there is no such name.
  if (descriptors().short)
    throw new PereError("away", "its host can't be looked up now: too many connections or files are open", [], cause);
  throw refused("its host has no address", cause);
}

const resolveName: Resolve = async (name) => (await lookup(name, { all: true })).map(({ address }) => address);

/** The promise's outcome, or the signal's reason when that comes first. */
const abortable = <Value>(signal: AbortSignal, promise: Promise<Value>): Promise<Value> =>
  new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    promise.then(resolve, reject);
  });

// ------------------------------------------------------------------------------------------------------------ reading them

/**
 * A hook's URL: http or https, without user and password, at most 2,048 characters. An address that may not be called is refused
 * at once; a name is not looked up. @throws PereError malformed or refused
 */
export function readHookUrl(text: string, allowed: readonly AddressRange[]): URL {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (!url || (url.protocol !== "http:" && url.protocol !== "https:"))
    throw malformed("url", "must be a URL that begins with http:// or https://");
  if (Math.max(text.length, url.href.length) > URL_CHARACTERS_MAX)
    throw refused(`must have at most ${URL_CHARACTERS_MAX} characters`);
  if (url.username !== "" || url.password !== "") throw refused("must not hold a user or a password");
  const literal = literalAddress(url);
  if (literal !== null && !isCallable(literal, allowed)) throw notPublic();
  return url;
}

/** Refuses a URL whose host has no address, or any that may not be called; its name is looked up. @throws PereError refused */
export async function checkHookUrl(
  url: URL,
  allowed: readonly AddressRange[],
  { timeoutMs = CHECK_MS, resolve = resolveName }: CallOptions = {},
): Promise<void> {
  const deadline = AbortSignal.timeout(timeoutMs);
  await abortable(deadline, checkedAddresses(url, allowed, resolve)).catch((error: unknown) => {
    throw deadline.aborted ? refused("its host could not be looked up in time", error) : error;
  });
}

/**
 * A secret as Standard Webhooks writes it: `whsec_` and the base64, with its padding, of 24 to 64 bytes.
 * @throws PereError malformed, which does not repeat it
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
 * Makes the call and gives its outcome. From looking up the name to the end of the answer it takes at most `timeoutMs`; a status that
 * came before counts, whatever becomes of the body. Never throws.
 */
export async function callHook(
  call: HookCall,
  allowed: readonly AddressRange[],
  { timeoutMs = CALL_MS, resolve = resolveName, send = post }: CallOptions = {},
): Promise<HookAnswer> {
  // No AbortSignal.timeout: that would hold the body until its time comes, seconds after the call.
  const clock = new AbortController();
  const timer = setTimeout(() => clock.abort(), timeoutMs);
  const deadline = clock.signal;
  try {
    const url = readHookUrl(call.url, allowed);
    const addresses = await abortable(deadline, checkedAddresses(url, allowed, resolve));
    const { status, retryAfter } = await send(url, addresses, call, deadline);
    const quietMs = status >= 400 ? readRetryAfter(retryAfter, call.at) : null;
    return { status, error: null, ...(quietMs === null ? {} : { quietMs }) };
  } catch (error) {
    const late = `there was no answer within ${timeoutMs / 1000} seconds`;
    return { status: null, error: deadline.aborted ? late : sentence(error) };
  } finally {
    clearTimeout(timer);
  }
}

/** Seconds, or a date in one of the three forms of RFC 9110, 5.6.7: all begin with a day of the week. */
const DELAY_SECONDS = /^\d+$/;
const HTTP_DATE = /^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? .*\d\d:\d\d:\d\d/;

/**
 * How long a receiver asks to be left alone (RFC 9110, 10.2.3): milliseconds, at most a day, 0 for a date that has passed.
 * @param now milliseconds since 1970, on the clock of the machine
 * @returns null where it did not say, or what it said can't be read
 */
export function readRetryAfter(text: string | undefined, now: number): number | null {
  const value = text?.trim() ?? "";
  if (DELAY_SECONDS.test(value)) return Math.min(Number(value) * 1000, QUIET_MS_MAX);
  if (!HTTP_DATE.test(value)) return null;
  // The oldest form names no zone; all of them are GMT.
  const at = Date.parse(value.endsWith("GMT") ? value : `${value} GMT`);
  return Number.isFinite(at) ? Math.min(Math.max(0, at - now), QUIET_MS_MAX) : null;
}

/** Standard Webhooks, "Webhook headers"; several signatures stand one after the other, and any of them is good. */
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

/** Connects to one of `addresses`, the next where one takes no connection, and gives the answer. */
function post(url: URL, addresses: readonly string[], call: HookCall, deadline: AbortSignal): Promise<HookReply> {
  const found = addresses.map((address) => ({ address, family: isIP(address) }));
  const known: LookupFunction = (_name, _options, answer) => answer(null, found);
  return new Promise((resolve, reject) => {
    const open = url.protocol === "https:" ? httpsRequest : httpRequest;
    const options = { method: "POST", headers: headers(call), agent: false, lookup: known, autoSelectFamily: true };
    const request = open(url, options);
    let status: number | undefined;
    let retryAfter: string | undefined;
    const end = (error?: unknown): void => {
      if (status === undefined) reject(error);
      else resolve({ status, retryAfter });
      request.destroy();
    };
    let announcements = 0;
    request.on("information", () => {
      if (++announcements > ANNOUNCEMENTS_MAX) end(new Error("announcements without end"));
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

/** Error codes of Node, llhttp and OpenSSL, and what they come to for somebody who looks at his hook. */
const SENTENCES: readonly (readonly [RegExp, string])[] = [
  [/^ECONNREFUSED$/, "the connection was refused"],
  [/^(EHOSTUNREACH|ENETUNREACH|ETIMEDOUT|EADDRNOTAVAIL)$/, "its address can't be reached"],
  [/^(ECONNRESET|EPIPE)$/, "the connection closed before the answer"],
  [/^HPE_/, "the answer is not HTTP"],
  [/^(ERR_SSL_|EPROTO$)/, "TLS could not be agreed on"],
  [/CERT|SIGNATURE/, "its certificate can't be verified"],
];

function sentence(error: unknown): string {
  if (error instanceof PereError) return error.message;
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return SENTENCES.find(([pattern]) => pattern.test(code))?.[1] ?? "the call failed";
}
