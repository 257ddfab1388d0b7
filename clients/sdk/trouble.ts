/**
 * Errors that may pass (`Trouble`, `Blocked`), and how an answer of a server becomes one of them or a final `PereError`.
 *
 * Anything may answer in place of the service: a hotel's login page, a proxy's error. Only a problem document of PERE's own counts as a refusal.
 */
import { PereError } from "./model.ts";
import { isObject, isText, jsonOf } from "./values.ts";

/** Characters of an error's text. */
const SENTENCE_CHARACTERS_MAX = 500;

/** A longer pause than this is not believed, whoever asks for it; and no connection is opened sooner than this after the last. */
export const ASKED_MS_MAX = 3_600_000;

/** A longer pause than a day is not believed. */
const BELIEVED_MS_MAX = 86_400_000;

/** What can't be followed or sent now, and may well be later. */
export class Trouble extends Error {
  /** The service, or who answers for it, asks for this pause; null: it did not say. */
  readonly pauseMs: number | null;

  constructor(message: string, pauseMs: number | null = null) {
    super(message);
    this.pauseMs = pauseMs;
  }
}

/** A transport that does not come through: nothing is heard by it. */
export class Blocked extends Trouble {}

/** What an error says; of one that was thrown as something else, what there is to say. Whatever was thrown, this throws nothing. */
export function messageOf(error: unknown): string {
  try {
    const text = isObject(error) && typeof error.message === "string" ? error.message : String(error);
    return text.slice(0, SENTENCE_CHARACTERS_MAX);
  } catch {
    return "something was thrown that says nothing";
  }
}

/** The same with what caused it: Node's "fetch failed" keeps the code and the address there. */
export function sentenceOf(error: unknown): string {
  const said = [messageOf(error)];
  for (let cause = isObject(error) ? error.cause : undefined; isObject(cause) && said.length < 4; cause = cause.cause) {
    const errors = Array.isArray(cause.errors) ? cause.errors.slice(0, 3).map(messageOf).join(", ") : "";
    const text = messageOf(cause) || errors;
    const code = typeof cause.code === "string" && !text.includes(cause.code) ? cause.code : "";
    said.push([text, code].filter((part) => part !== "").join(" "));
  }
  return said
    .filter((part) => part !== "")
    .join(": ")
    .slice(0, SENTENCE_CHARACTERS_MAX);
}

/** A redirect, where something else is than PERE. */
export const redirected = (status: number, to: string | null): Blocked =>
  new Blocked(
    `answered with a redirect${status > 0 ? ` (status ${status})` : ""}${to === null ? "" : ` to ${to}`}: ` +
      `if PERE is there, use that address`,
  );

/** `Retry-After` (RFC 9110, 10.2.3), seconds or a date, cut to an hour. @returns null: there is none, or one beyond a day, which is not believed */
function retryAfterMs({ headers }: Response, now: number): number | null {
  const text = (headers.get("retry-after") ?? "").trim();
  const isDate = /^[A-Z][a-z]{2,8},? .*\d\d:\d\d:\d\d/.test(text);
  const ms = isDate ? Date.parse(text) - now : /^[0-9]{1,9}$/.test(text) ? Number(text) * 1000 : Number.NaN;
  return ms >= 0 && ms <= BELIEVED_MS_MAX ? Math.min(ms, ASKED_MS_MAX) : null;
}

/**
 * What an answer means that is not 2xx.
 * @returns PereError when the service itself said no for good; Blocked when somebody before it did; Trouble otherwise
 */
export async function refusalOf(response: Response, now: number): Promise<PereError | Trouble> {
  const { status } = response;
  const text = await response.text().catch(() => "");
  const problem = jsonOf(text);
  const isOurs = isObject(problem) && isText(problem.type) && problem.type.startsWith("urn:pere:");
  const passes = status >= 500 || status === 408 || status === 425 || status === 429;
  const sentence = isOurs && isText(problem.detail) ? problem.detail : `answered with status ${status}`;
  if (!passes && status >= 400) return isOurs ? new PereError(status, sentence, problem) : new Blocked(sentence);
  return new Trouble(sentence, retryAfterMs(response, now));
}

/** Something answers in the service's stead, or changes what it says. */
export const foreign = (): Blocked => new Blocked("the answer is not the service's");

/** Parses an answer or a message. @throws Blocked: it is no JSON object, and so not the service's */
export function objectOf(text: string, parse?: (text: string) => unknown): Record<string, unknown> {
  const value = jsonOf(text, parse);
  if (!isObject(value)) throw foreign();
  return value;
}
