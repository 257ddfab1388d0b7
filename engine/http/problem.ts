/**
 * Errors as answers: a problem document (RFC 9457) with the status for the error's code.
 *
 * Internal errors are written to the log; the caller gets only the id of the log line.
 */
import { wwwAuthenticate } from "../auth/tokens.ts";
import { KeyUnknown } from "../auth/key-set.ts";
import { isOutOfDescriptors } from "../descriptors.ts";
import { type Code, PereError } from "../model.ts";
import { rateHeaders } from "./rate-limit.ts";
import { PLAIN } from "./response.ts";

/** What this folder uses of the log. */
export interface ErrorLog {
  debug(message: string, fields?: Readonly<Record<string, unknown>>): void;
  warn(message: string): void;
  /** Logs an error that the caller is not told about. @returns the id of its line */
  incident(error: unknown): string;
  /** Logs why something was refused. */
  cause(message: string, cause: unknown): void;
}

/** The one table from error codes to HTTP statuses. */
const STATUS: Record<Code, readonly [number, string]> = {
  malformed: [400, "Malformed request"],
  unauthorized: [401, "Unauthorized"],
  forbidden: [403, "Forbidden"],
  unknown: [404, "Not found"],
  wrongMethod: [405, "Method not allowed"],
  slow: [408, "Too slow"],
  conflict: [409, "Conflict"],
  tooLarge: [413, "Too large"],
  wrongType: [415, "Wrong content type"],
  refused: [422, "Refused"],
  tooMany: [429, "Too many requests"],
  away: [503, "Not available now"],
  full: [507, "The disk is full"],
  inside: [500, "Internal error"],
};

/** A request whose body has a content coding. */
export class EncodedBody extends PereError {
  constructor(message: string) {
    super("wrongType", message);
  }
}

/** A problem document (RFC 9457). `more` adds members to the standard ones. */
export function problem(error: PereError, more: object = {}): Response {
  const [status, title] = STATUS[error.code];
  const body = {
    type: `urn:pere:${error.code}`,
    title,
    status,
    detail: error.message,
    ...(error.faults.length > 0 ? { errors: error.faults } : {}),
    ...more,
  };
  const headers = new Headers({ "Content-Type": "application/problem+json", ...PLAIN, ...rateHeaders(error) });
  if (status === 503) headers.set("Retry-After", String(error instanceof KeyUnknown ? error.retryAfterSeconds : 2));
  if (error instanceof EncodedBody) headers.set("Accept-Encoding", "identity"); // RFC 9110, 12.5.3.
  if (status === 507) headers.set("Retry-After", "30"); // An operator has to free space.
  // The rest of the body is not read.
  if (status === 408) headers.set("Connection", "close");
  if (status === 401 || error.faults.some(({ path }) => path === "token"))
    headers.set("WWW-Authenticate", wwwAuthenticate(error));
  return new Response(JSON.stringify(body), { status, headers });
}

/** The message for the caller. An internal error is logged, and the message gives only the id of the log line. */
export const sentenceOf = (log: ErrorLog, error: unknown): string =>
  error instanceof PereError && error.code !== "inside"
    ? error.message
    : `something went wrong in PERE; the log has it as ${log.incident(error)}`;

/** The answer to an error. Its cause is logged, not sent. */
export function toResponse(log: ErrorLog, error: unknown): Response {
  if (isOutOfDescriptors(error) && !(error instanceof PereError))
    return toResponse(
      log,
      new PereError("away", "too many connections or files are open; try again in a moment", [], error),
    );
  if (!(error instanceof PereError) || error.code === "inside")
    return problem(new PereError("inside", sentenceOf(log, error)));
  if (error.cause !== undefined) log.cause(error.message, error.cause);
  return problem(error);
}
