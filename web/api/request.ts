/**
 * A request that is tried: how it is built, sent and shown.
 *
 * The examples use each other's event ids, but real ids can't be known in advance: each service chooses its own epochs. So the page remembers the id of
 * the last event that was pushed from it, and replaces the ids of the examples (`SAMPLE_EPOCH` in `openapi-schemas.ts`) by it. It shows the request that
 * was really sent.
 */
import { queryOf } from "../console/floor.ts";
import { shellWord } from "../console/words.ts";
import { HERE, type Place } from "./openapi.ts";

/** An event id in the examples. */
export const SAMPLE_ID = /k3x9q2vd-\d+/g;

/** How many milliseconds of an event stream are shown. It does not end by itself. */
const STREAM_SHOWN_MS = 2_000;

let pushedId = "";
const real = (text: string): string => (pushedId === "" ? text : text.replace(SAMPLE_ID, pushedId));

/** What the form contains: values of parameters by place and name, empty ones left out; the media type of the answer; a body with its media type. */
export interface Draft {
  readonly parameters: readonly (readonly [where: "path" | "query" | "header", name: string, value: string])[];
  readonly accept: string | null;
  readonly body: { readonly type: string; readonly text: string } | null;
  readonly token: string;
}

export interface Prepared {
  readonly method: string;
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | null;
}

/** The request of a form. */
export function prepare({ method, path }: Place, { parameters, accept, body, token }: Draft): Prepared {
  let address = path;
  const query: [string, string][] = [];
  const headers: Record<string, string> = {};
  for (const [where, name, text] of parameters) {
    const value = real(text);
    if (where === "path") address = address.replace(`{${name}}`, encodeURIComponent(value));
    else if (where === "query") query.push([name, value]);
    else headers[name] = value;
  }
  if (accept !== null) headers.Accept = accept;
  if (token !== "") headers.Authorization = `Bearer ${token}`;
  if (body !== null) headers["Content-Type"] = body.type;
  return { method, url: HERE + address.slice(1) + queryOf(query), headers, body: body && real(body.text) };
}

/** The same request for a shell; the token is left out. */
export function curlOf({ method, url, headers, body }: Prepared): string {
  const parts = ["curl", ...(method === "GET" ? [] : ["-X", method]), shellWord(url)];
  for (const [name, value] of Object.entries(headers))
    parts.push("\\\n  -H", shellWord(`${name}: ${name === "Authorization" ? "Bearer …" : value}`));
  if (body !== null) parts.push("\\\n  --data-binary", shellWord(body));
  return parts.join(" ");
}

export interface Answered {
  readonly status: string;
  readonly isOk: boolean;
  readonly milliseconds: number;
  readonly headers: readonly (readonly [name: string, value: string])[];
  readonly text: string;
  readonly isJson: boolean;
  /** It was a stream, which was cut. */
  readonly isCut: boolean;
}

/** Sends a request; of an event stream, returns what arrives in two seconds. @throws TypeError when the service can't be reached */
export async function send({ method, url, headers, body }: Prepared): Promise<Answered> {
  const leaving = new AbortController();
  const began = performance.now();
  const response = await fetch(url, { method, headers, body, signal: leaving.signal });
  const milliseconds = Math.round(performance.now() - began);
  const type = response.headers.get("content-type") ?? "";
  const isCut = type.startsWith("text/event-stream");
  const text = isCut ? await readFor(response, leaving) : await response.text();
  const { pathname } = new URL(url);
  if (response.ok && pathname.includes("/push/"))
    pushedId = [...text.matchAll(/"id":"([0-9a-z]+-\d+)"/g)].pop()?.[1] ?? pushedId;
  return {
    status: `${response.status} ${response.statusText}`.trim(),
    isOk: response.ok,
    milliseconds,
    headers: [...response.headers],
    text,
    isJson: /[/+]json\b/.test(type),
    isCut,
  };
}

/** What arrives until the time is over. */
async function readFor(response: Response, leaving: AbortController): Promise<string> {
  setTimeout(() => leaving.abort(), STREAM_SHOWN_MS);
  const reader = response.body!.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read())
      text += decoder.decode(part.value, { stream: true });
  } catch {
    // The time is over.
  }
  return text;
}

/** An example as the text of a body. */
export function bodyText(type: string, value: unknown): string {
  if (typeof value === "string" && type !== "application/json") return value;
  if (type === "application/x-www-form-urlencoded") return String(new URLSearchParams(value as Record<string, string>));
  return JSON.stringify(value, null, 2);
}
