/**
 * Errors that are retried (`RetryableError`, `BlockedError`), and how a response becomes one of them or a final `PereError`.
 *
 * Anything may answer in place of the service, such as a hotel's login page or a proxy's error page. Only a problem document of PERE counts as a refusal.
 */
import { PereError } from "./model.ts";
import { isObject, isText, jsonOf } from "./values.ts";

/** The longest error message, in characters. */
const MESSAGE_CHARACTERS_MAX = 500;

/** A longer pause is cut to this one: from `Retry-After`, or from `retry:` in an event stream. */
export const RETRY_AFTER_MS_MAX = 3_600_000;

/** A `Retry-After` longer than a day is ignored. */
const RETRY_AFTER_TRUSTED_MS_MAX = 86_400_000;

/** A failure that another attempt may fix. */
export class RetryableError extends Error {
  /** The pause that the response asked for, in milliseconds; null: it asked for none. */
  readonly pauseMs: number | null;

  constructor(message: string, pauseMs: number | null = null) {
    super(message);
    this.pauseMs = pauseMs;
  }
}

/** This transport does not get through to the service; the next one may. */
export class BlockedError extends RetryableError {}

/** The message of whatever was thrown. Never throws. */
export function messageOf(error: unknown): string {
  try {
    const text = isObject(error) && typeof error.message === "string" ? error.message : String(error);
    return text.slice(0, MESSAGE_CHARACTERS_MAX);
  } catch {
    return "an error without a readable message";
  }
}

/** The message with those of its causes: Node's "fetch failed" has the error code and the address in its cause. */
export function messageWithCauses(error: unknown): string {
  const messages = [messageOf(error)];
  let cause = isObject(error) ? error.cause : undefined;
  for (; isObject(cause) && messages.length < 4; cause = cause.cause) {
    const errors = Array.isArray(cause.errors) ? cause.errors.slice(0, 3).map(messageOf).join(", ") : "";
    const text = messageOf(cause) || errors;
    const code = typeof cause.code === "string" && !text.includes(cause.code) ? cause.code : "";
    messages.push([text, code].filter((part) => part !== "").join(" "));
  }
  return messages
    .filter((part) => part !== "")
    .join(": ")
    .slice(0, MESSAGE_CHARACTERS_MAX);
}

/** A redirect that is not followed. @param to the address to use instead; null: the response does not say */
export const redirectError = (status: number, to: string | null): BlockedError =>
  new BlockedError(
    `the server answered with a redirect${status > 0 ? ` (status ${status})` : ""}${to === null ? "" : ` to ${to}`}: ` +
      `if PERE is there, use that address as url`,
  );

/** `Retry-After` (RFC 9110, 10.2.3): seconds or a date, cut to an hour. @returns milliseconds; null: there is none, or it is longer than a day */
function retryAfterMs({ headers }: Response, now: number): number | null {
  const text = (headers.get("retry-after") ?? "").trim();
  const isDate = /^[A-Z][a-z]{2,8},? .*\d\d:\d\d:\d\d/.test(text);
  const ms = isDate ? Date.parse(text) - now : /^[0-9]{1,9}$/.test(text) ? Number(text) * 1000 : Number.NaN;
  return ms >= 0 && ms <= RETRY_AFTER_TRUSTED_MS_MAX ? Math.min(ms, RETRY_AFTER_MS_MAX) : null;
}

/**
 * The error for a response that is not 2xx.
 * @returns PereError when PERE refused for good; BlockedError when something in front of it did; else RetryableError
 */
export async function errorOf(response: Response, now: number): Promise<PereError | RetryableError> {
  const { status } = response;
  const text = await response.text().catch(() => "");
  const problem = jsonOf(text);
  const isOurs = isObject(problem) && isText(problem.type) && problem.type.startsWith("urn:pere:");
  const isTemporary = status >= 500 || status === 408 || status === 425 || status === 429;
  const message = isOurs && isText(problem.detail) ? problem.detail : `the server answered with status ${status}`;
  if (!isTemporary && status >= 400)
    return isOurs ? new PereError(status, message, problem) : new BlockedError(message);
  return new RetryableError(message, retryAfterMs(response, now));
}

/** The response or message is not what PERE sends: something answers in its place, or changes what it sends. */
export const notFromPere = (): BlockedError =>
  new BlockedError("the response is not from PERE: check url, and look for a proxy or a login page on the network");

/** Parses a response or a message. @throws BlockedError when it is not a JSON object, and so not from PERE */
export function objectOf(text: string, parse?: (text: string) => unknown): Record<string, unknown> {
  const value = jsonOf(text, parse);
  if (!isObject(value)) throw notFromPere();
  return value;
}
