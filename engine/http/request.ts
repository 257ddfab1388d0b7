/**
 * Reading a request: its query, its headers, the token and the device that it names.
 */
import { deviceOfGrant } from "../auth/tokens.ts";
import type { Grant } from "../auth/rights.ts";
import { PAGE_DEFAULT, PereError, readDevice, readLimit, readSeconds, WAIT_SECONDS_MAX } from "../model.ts";
import { EncodedBody } from "./problem.ts";

/** The query, each name once; a token may always stand there. @param known the names that mean something here. @throws PereError malformed */
export function queryOf(request: Request, known: readonly string[] = []): Map<string, string> {
  const query = new Map<string, string>();
  const start = request.url.indexOf("?");
  if (start === -1) return query;
  for (const [name, value] of new URLSearchParams(request.url.slice(start))) {
    if (!known.includes(name) && name !== "token") {
      const path = name.slice(0, 40);
      const message = `there is no such option here; ${known.length === 0 ? "none is taken" : `those are ${known.join(", ")}`}`;
      throw new PereError("malformed", `${path}: ${message}`, [{ path, message }]);
    }
    if (query.has(name))
      throw new PereError("malformed", `${name}: given twice`, [{ path: name, message: "given twice" }]);
    query.set(name, value);
  }
  return query;
}

/** Elysia takes a path with a slash behind it for the same path. */
export const pathOf = (request: Request): string => new URL(request.url).pathname;

/** Of a list that is read page by page. */
export const PAGE_OPTIONS = ["after", "limit"];

export const pageOf = (query: ReadonlyMap<string, string>): { after: string; limit: number } => ({
  after: query.get("after") ?? "",
  limit: query.has("limit") ? readLimit(query.get("limit")!) : PAGE_DEFAULT,
});

/** Whether the request names a media type among those that it takes. Wildcards do not count: they leave the choice to us. */
export const accepts = (request: Request, type: string): boolean =>
  (request.headers.get("accept") ?? "")
    .toLowerCase()
    .split(",")
    .some((range) => range.split(";", 1)[0]!.trim() === type);

/** What a message may repeat of a header. */
const quotable = (text: string): string => JSON.stringify(text.slice(0, 40));

/** Looks at what a body is packed with, before it is read. @throws PereError wrongType */
export function demandPlain(request: Request): void {
  const header = request.headers.get("content-encoding");
  if (header === null) return;
  const codings = header.split(",").map((coding) => coding.trim().toLowerCase());
  const coding = codings.find((one) => one !== "" && one !== "identity");
  if (coding !== undefined)
    throw new EncodedBody(`Content-Encoding: ${quotable(coding)} is not taken; send the body as it is`);
}

/** A parameter of a media type, its value quoted or not: RFC 9110, 5.6.6. */
const PARAMETER = /;\s*([^\s=;]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)/g;

/** What a request's body is, which is plain UTF-8. @throws PereError wrongType, before anything of it is read */
export function contentType(request: Request): string {
  demandPlain(request);
  const type = request.headers.get("content-type") ?? "";
  if (type === "application/json") return type;
  for (const [, name, value] of type.matchAll(PARAMETER)) {
    if (name!.toLowerCase() !== "charset") continue;
    const charset = value!
      .trim()
      .replace(/^"(.*)"$/s, "$1")
      .replace(/\\(.)/gs, "$1");
    if (!/^utf-?8$/i.test(charset))
      throw new PereError("wrongType", `Content-Type: charset ${quotable(charset)} is not taken; send UTF-8`);
  }
  return type.split(";", 1)[0]!.trim().toLowerCase();
}

/** The device that a request speaks for: its token's, else what it says beside its body, `device` in the query or in a header. */
export function deviceOf(grant: Grant, request: Request, query: ReadonlyMap<string, string>): string | null {
  const own = deviceOfGrant(grant);
  if (own !== null) return own;
  const name = query.get("device") || request.headers.get("device");
  return name ? readDevice(name) : null;
}

/** `Prefer: wait=<seconds>` (RFC 7240, section 4.3) in milliseconds; null: nobody waits. Other preferences are left alone. @throws PereError */
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
