/**
 * What went wrong, as the caller is told: a problem document (RFC 9457) with the status of the error's code.
 *
 * A fault of PERE's own is written to the log, and the caller gets the id of that line only.
 */
import { wwwAuthenticate } from "../auth/tokens.ts";
import { KeyUnknown } from "../auth/key-set.ts";
import { isOutOfDescriptors } from "../descriptors.ts";
import { type Code, PereError } from "../model.ts";
import { rateHeaders } from "./rate-limit.ts";
import { PLAIN } from "./response.ts";

/** What this folder uses of the log. */
export interface Log {
  debug(message: string, fields?: Readonly<Record<string, unknown>>): void;
  warn(message: string): void;
  /** Logs an error that the caller is not told about. @returns the id of its line */
  incident(error: unknown): string;
  /** Logs why something was refused. */
  cause(message: string, cause: unknown): void;
}

/** The one table from what went wrong to an HTTP status. */
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

/** A problem document (RFC 9457). `more` stands beside the standard members. */
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
  if (status === 507) headers.set("Retry-After", "30"); // Somebody has to make room.
  // What is still to come of the body is not waited for.
  if (status === 408) headers.set("Connection", "close");
  if (status === 401 || error.faults.some(({ path }) => path === "token"))
    headers.set("WWW-Authenticate", wwwAuthenticate(error));
  return new Response(JSON.stringify(body), { status, headers });
}

/** What went wrong, for whom it happened to. What is not ours to explain goes to the log, and only the id to find it by goes out. */
export const sentenceOf = (log: Log, error: unknown): string =>
  error instanceof PereError && error.code !== "inside"
    ? error.message
    : `something went wrong in PERE; the log has it as ${log.incident(error)}`;

/** Causes go to the log and stay there. */
export function toResponse(log: Log, error: unknown): Response {
  if (isOutOfDescriptors(error) && !(error instanceof PereError))
    return toResponse(
      log,
      new PereError("away", "too many connections or files are open; come again in a moment", [], error),
    );
  if (!(error instanceof PereError) || error.code === "inside")
    return problem(new PereError("inside", sentenceOf(log, error)));
  if (error.cause !== undefined) log.cause(error.message, error.cause);
  return problem(error);
}
