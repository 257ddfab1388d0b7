/**
 * Reading a request: its query, headers, content type, preferences, token and device.
 */
import { deviceOfGrant } from "../auth/tokens.ts";
import type { Grant } from "../auth/rights.ts";
import { NAME_CHARACTERS_MAX, PAGE_DEFAULT, PereError, WAIT_SECONDS_MAX } from "../model.ts";
import { readDevice, readLimit, readSeconds } from "../parsing.ts";
import { EncodedBody } from "./problem.ts";

/** The query. Each option may be given once; `token` is always allowed. @param known the options of this URL @throws PereError malformed */
export function queryOf(request: Request, known: readonly string[] = []): Map<string, string> {
  const query = new Map<string, string>();
  const start = request.url.indexOf("?");
  if (start === -1) return query;
  for (const [name, value] of new URLSearchParams(request.url.slice(start))) {
    if (!known.includes(name) && name !== "token") {
      const path = name.slice(0, 40);
      const message = `unknown option; this URL takes ${known.length === 0 ? "none" : known.join(", ")}`;
      throw new PereError("malformed", `${path}: ${message}`, [{ path, message }]);
    }
    if (query.has(name))
      throw new PereError("malformed", `${name}: given twice`, [{ path: name, message: "given twice" }]);
    query.set(name, value);
  }
  return query;
}

/** The path as it was sent: Elysia ignores a trailing slash. */
export const pathOf = (request: Request): string => new URL(request.url).pathname;

/** Query options of a list that is read page by page. */
export const PAGE_OPTIONS = ["after", "limit"];

/** Where a page begins, and how long it is. @throws PereError malformed */
export const pageOf = (query: ReadonlyMap<string, string>): { after: string; limit: number } => ({
  after: query.get("after") ?? "",
  limit: query.has("limit") ? readLimit(query.get("limit")!) : PAGE_DEFAULT,
});

/** One of these words; null: not given. @throws PereError malformed */
export function choiceOf<Word extends string>(
  query: ReadonlyMap<string, string>,
  path: string,
  words: readonly Word[],
): Word | null {
  const given = query.get(path);
  if (given === undefined || (words as readonly string[]).includes(given)) return (given as Word | undefined) ?? null;
  const message = `must be ${words.slice(0, -1).join(", ")} or ${words.at(-1)}, not ${quoted(given)}`;
  throw new PereError("malformed", `${path}: ${message}`, [{ path, message }]);
}

/** Part of a name to search for; empty: not given. @throws PereError refused: it is longer than a name */
export function searchOf(query: ReadonlyMap<string, string>): string {
  const text = query.get("search") ?? "";
  if (text.length <= NAME_CHARACTERS_MAX) return text;
  const message = `a name has at most ${NAME_CHARACTERS_MAX} characters`;
  throw new PereError("refused", `search: ${message}`, [{ path: "search", message }]);
}

/** Whether `Accept` names a media type. Wildcards don't count: they leave the choice to the server. */
export const accepts = (request: Request, type: string): boolean =>
  (request.headers.get("accept") ?? "")
    .toLowerCase()
    .split(",")
    .some((range) => range.split(";", 1)[0]!.trim() === type);

/** Whether a request asks for a WebSocket. */
export const isSocket = (request: Request): boolean => request.headers.get("upgrade")?.toLowerCase() === "websocket";

/** Whether it asks for a long-poll: for JSON, and not for an event stream. */
export const isPoll = (request: Request): boolean =>
  accepts(request, "application/json") && !accepts(request, "text/event-stream");

/** A header's value as an error message may quote it. */
const quoted = (text: string): string => JSON.stringify(text.slice(0, 40));

/** Refuses a body with a content coding, before it is read. @throws PereError wrongType */
export function refuseEncodedBody(request: Request): void {
  const header = request.headers.get("content-encoding");
  if (header === null) return;
  const codings = header.split(",").map((coding) => coding.trim().toLowerCase());
  const coding = codings.find((one) => one !== "" && one !== "identity");
  if (coding !== undefined)
    throw new EncodedBody(`Content-Encoding: ${quoted(coding)} is not supported; send the body without compression`);
}

/** A parameter of a media type, with its value quoted or not (RFC 9110, 5.6.6). */
const PARAMETER = /;\s*([^\s=;]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)/g;

/** The media type of a request's body, without parameters. @throws PereError wrongType for a content coding or a charset other than UTF-8 */
export function contentType(request: Request): string {
  refuseEncodedBody(request);
  const type = request.headers.get("content-type") ?? "";
  if (type === "application/json") return type;
  for (const [, name, value] of type.matchAll(PARAMETER)) {
    if (name!.toLowerCase() !== "charset") continue;
    const charset = value!
      .trim()
      .replace(/^"(.*)"$/s, "$1")
      .replace(/\\(.)/gs, "$1");
    if (!/^utf-?8$/i.test(charset))
      throw new PereError("wrongType", `Content-Type: charset ${quoted(charset)} is not supported; send UTF-8`);
  }
  return type.split(";", 1)[0]!.trim().toLowerCase();
}

/** The device of a request: the subject of its token, else `device` in the query, else the header `device`. Null: none. @throws PereError */
export function deviceOf(grant: Grant, request: Request, query: ReadonlyMap<string, string>): string | null {
  const own = deviceOfGrant(grant);
  if (own !== null) return own;
  const name = query.get("device") || request.headers.get("device");
  return name ? readDevice(name) : null;
}

/** `Prefer: wait=<seconds>` (RFC 7240, section 4.3) in milliseconds; null: not given. Other preferences are ignored. @throws PereError malformed */
export function waitOf(request: Request): number | null {
  const prefer = request.headers.get("prefer");
  if (prefer === null) return null;
  for (const [preference] of prefer.matchAll(/(?:"[^"]*"|[^,"])+/g)) {
    const [name, value = ""] = preference.split(";", 1)[0]!.split("=");
    if (name!.trim().toLowerCase() === "wait")
      return 1000 * readSeconds(value.trim().replace(/^"(.*)"$/, "$1"), "Prefer: wait", 0, WAIT_SECONDS_MAX);
  }
  return null;
}

const COOKIE = "pere_token=";
const SUBPROTOCOL = "pere.token.";

/** The elements of a header that holds a list, trimmed. */
const elements = (headers: Headers, name: string, separator: string): string[] =>
  (headers.get(name) ?? "").split(separator).map((element) => element.trim());

/** The rest of each text that starts with `beginning`. */
const after = (texts: readonly string[], beginning: string): string[] =>
  texts.filter((text) => text.startsWith(beginning)).map((text) => text.slice(beginning.length));

/**
 * The token of a request, unread, or null. It may be in `Authorization: Bearer`, in a WebSocket subprotocol `pere.token.<jwt>` or as
 * `token` in the query; in several of them only if they are equal (RFC 6750, 2). The cookie `pere_token` counts where there is no
 * other, because browsers send it unasked. An empty token counts as a bad token, except in the cookie, where it counts as none.
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
  const message = "a request may carry one token, in one place";
  if (another !== undefined) throw new PereError("malformed", `token: ${message}`, [{ path: "token", message }]);
  const [cookie] = after(elements(headers, "cookie", ";"), COOKIE);
  return token ?? (cookie || null);
}
