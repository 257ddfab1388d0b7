#!/usr/bin/env bun
/**
 * PERE: Pushed Events with return Receipt Engine.
 *
 *   events    ↓   POST /push/:channel       GET /feed/:channel        (devices)
 *   receipts  ↑   POST /feedback/:channel   GET /feedback/:channel    (publishers)
 *
 * This file is the wire: every URL, header and status, read top to bottom. Settings → store → engine → routes → start and drain. What it all
 * means is behind it in `engine/`, which knows no HTTP; how it is described to others is in `web/openapi.ts` and `asyncapi.ts`.
 */
import { uptime } from "node:os";
import { join } from "node:path";
import { staticPlugin } from "@elysiajs/static";
import { swagger } from "@elysiajs/swagger";
import type { Server } from "bun";
import { Elysia } from "elysia";
import swaggerScript from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };
import swaggerStyle from "swagger-ui-dist/swagger-ui.css" with { type: "file" };
import packageJson from "./package.json";
import type { Command } from "./engine/ops/commands.ts";
import { wwwAuthenticate, deviceOfGrant, NO_DEVICE, openAccess } from "./engine/auth/tokens.ts";
import { BODY_MS, type BodyReader, bodyReader, takeIn } from "./engine/http/body.ts";
import { Turn } from "./engine/yield.ts";
import { Admission, NOTHING } from "./engine/http/admission.ts";
import { readCertificate } from "./engine/http/certificate.ts";
import { Clock } from "./engine/clock.ts";
import { Counters } from "./engine/counters.ts";
import { descriptors, isOutOfDescriptors } from "./engine/descriptors.ts";
import { Engine, LIMITS, type EngineOptions, type Feedback } from "./engine/engine.ts";
import { unexpected } from "./engine/faults.ts";
import type { FeedRequest } from "./engine/feeds/feed.ts";
import { addressesOf, type Listener, listen } from "./engine/http/listener.ts";
import { KeyUnknown } from "./engine/auth/key-set.ts";
import { openLog } from "./engine/ops/logger.ts";
import type { Metrics } from "./engine/ops/metrics.ts";
import { issueToken } from "./engine/auth/issue.ts";
import {
  BODY_BYTES_MAX,
  DEADLINE_SECONDS_MAX,
  DEADLINE_SECONDS_MIN,
  type Code,
  DETAIL_BYTES_MAX,
  EVENT_BYTES_MAX,
  HOOK_BYTES_MAX,
  id,
  isComplete,
  iso,
  keyOf,
  type Kind,
  PAGE_DEFAULT,
  optionsText,
  PereError,
  POLL_SECONDS_MAX,
  type Position,
  RECEIPTS_MAX,
  REMIND_SECONDS_MAX,
  REMIND_SECONDS_MIN,
  type ReceiptDraft,
  type Row,
  readChannel,
  readChannels,
  readData,
  readDevice,
  readReceiptsJson,
  readKey,
  readLimit,
  readLines,
  readOldStatus,
  readPosition,
  readPositions,
  readReceipt,
  readSeconds,
  readText,
  readTo,
  readType,
  STATES,
  type State,
  TARGETS_MAX,
  type Tally,
  tallyCounts,
  TTL_SECONDS_MAX,
  TTL_SECONDS_MIN,
  WAIT_SECONDS_MAX,
} from "./engine/model.ts";
import { readHookName } from "./engine/hooks/hooks.ts";
import { rateHeaders, RateLimiter, TooMany } from "./engine/http/rate-limit.ts";
import { demand, type Grant, type Right } from "./engine/auth/rights.ts";
import { freshSecret } from "./engine/sqlite/secret-file.ts";
import { readSettings, type Settings } from "./engine/ops/settings.ts";
import { SqliteStore } from "./engine/sqlite/store.ts";
import type { Store } from "./engine/store.ts";
import {
  EventStream,
  type DirectController,
  Poll,
  Socket,
  type SocketData,
  WatchStream,
} from "./engine/http/transports.ts";
import { asyncapi } from "./web/asyncapi.ts";
import { BUILT } from "./web/build.ts";
import { document, operations } from "./web/openapi.ts";
import { file, PAGE, pagesOf } from "./web/pages.ts";

// ---------------------------------------------------------------------------------------------------------------- errors

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

/** What every answer carries that is made for this request: nobody keeps it, nobody takes it for something else. */
const PLAIN = { "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff" };

/** A problem document (RFC 9457). `more` stands beside the standard members. */
function problem(error: PereError, more: object = {}): Response {
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
  if (error instanceof Coded) headers.set("Accept-Encoding", "identity"); // RFC 9110, 12.5.3.
  if (status === 507) headers.set("Retry-After", "30"); // Somebody has to make room.
  // What is still to come of the body is not waited for.
  if (status === 408) headers.set("Connection", "close");
  if (status === 401 || error.faults.some(({ path }) => path === "token"))
    headers.set("WWW-Authenticate", wwwAuthenticate(error));
  return new Response(JSON.stringify(body), { status, headers });
}

/** What the service says of itself; opened anew where the operator wants to hear more, or less. */
let log = openLog();

/** What went wrong, for whom it happened to. What is not ours to explain goes to the log, and only the id to find it by goes out. */
const sentenceOf = (error: unknown): string =>
  error instanceof PereError && error.code !== "inside"
    ? error.message
    : `something went wrong in PERE; the log has it as ${log.incident(error)}`;

/** Causes go to the log and stay there. */
function toResponse(error: unknown): Response {
  if (isOutOfDescriptors(error) && !(error instanceof PereError))
    return toResponse(
      new PereError("away", "too many connections or files are open; come again in a moment", [], error),
    );
  if (!(error instanceof PereError) || error.code === "inside")
    return problem(new PereError("inside", sentenceOf(error)));
  if (error.cause !== undefined) log.cause(error.message, error.cause);
  return problem(error);
}

// --------------------------------------------------------------------------------------------------------- reading requests

/** The query, each name once; a token may always stand there. @param known the names that mean something here. @throws PereError malformed */
function queryOf(request: Request, known: readonly string[] = []): Map<string, string> {
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
const pathOf = (request: Request): string => new URL(request.url).pathname;

/** Seconds that a connection may rest between two requests: what Elysia sets. */
const IDLE_SECONDS = 30;

/** What requests are served with. */
export interface HandlerContext {
  readonly engine: Engine;
  readonly door: Admission;
  readonly bodyOf: BodyReader;
  /** From 0 up to 1; spreads the readers' return. */
  readonly random: () => number;
  /** What stands before the paths of answers. */
  readonly basePath: string;
}

/** Whether the request names a media type among those that it takes. Wildcards do not count: they leave the choice to us. */
const accepts = (request: Request, type: string): boolean =>
  (request.headers.get("accept") ?? "")
    .toLowerCase()
    .split(",")
    .some((range) => range.split(";", 1)[0]!.trim() === type);

/** A body that was packed on its way. */
class Coded extends PereError {
  constructor(coding: string) {
    super("wrongType", `Content-Encoding: ${quotable(coding)} is not taken; send the body as it is`);
  }
}

/** What a message may repeat of a header. */
const quotable = (text: string): string => JSON.stringify(text.slice(0, 40));

/** Looks at what a body is packed with, before it is read. @throws PereError wrongType */
function demandPlain(request: Request): void {
  const header = request.headers.get("content-encoding");
  if (header === null) return;
  const codings = header.split(",").map((coding) => coding.trim().toLowerCase());
  const coding = codings.find((one) => one !== "" && one !== "identity");
  if (coding !== undefined) throw new Coded(coding);
}

/** A parameter of a media type, its value quoted or not: RFC 9110, 5.6.6. */
const PARAMETER = /;\s*([^\s=;]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)/g;

/** What a request's body is, which is plain UTF-8. @throws PereError wrongType, before anything of it is read */
function contentType(request: Request): string {
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
function deviceOf(grant: Grant, request: Request, query: ReadonlyMap<string, string>): string | null {
  const own = deviceOfGrant(grant);
  if (own !== null) return own;
  const name = query.get("device") || request.headers.get("device");
  return name ? readDevice(name) : null;
}

/** Made once: a `Headers` is copied in a third of the time that it takes to make one. */
const JSON_HEADERS = new Headers({ "Content-Type": "application/json", ...PLAIN });

const jsonText = (text: string): Response => new Response(text, { headers: JSON_HEADERS });
const json = (body: object, status = 200, headers?: Record<string, string>): Response => {
  const response = new Response(JSON.stringify(body), { status, headers: JSON_HEADERS });
  for (const name in headers) response.headers.set(name, headers[name]!);
  return response;
};

// ------------------------------------------------------------------------------------------------------------------- push

const PUSH_OPTIONS = ["type", "to", "ttl", "deadline", "remind"] as const;

/** `Prefer: wait=<seconds>` (RFC 7240, section 4.3) in milliseconds; null: nobody waits. Other preferences are left alone. @throws PereError */
function waitOf(request: Request): number | null {
  const prefer = request.headers.get("prefer");
  if (prefer === null) return null;
  for (const [preference] of prefer.matchAll(/(?:"[^"]*"|[^,"])+/g)) {
    const [name, value = ""] = preference.split(";", 1)[0]!.split("=");
    if (name!.trim().toLowerCase() === "wait")
      return 1000 * readSeconds(value.trim().replace(/^"(.*)"$/, "$1"), "Prefer: wait", 0, WAIT_SECONDS_MAX);
  }
  return null;
}

/** What became of an event until now. */
const outcomeJson = (tally: Tally | undefined) =>
  tally ? { receipts: tallyCounts(tally), complete: isComplete(tally) } : {};

async function push(
  { engine, door, bodyOf, basePath }: HandlerContext,
  channelText: string,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const channel = readChannel(channelText);
  const grant = await door.authorize(request, "push", [channel]);
  const query = queryOf(request, PUSH_OPTIONS);
  const [type, to, ttl, deadline, remind] = PUSH_OPTIONS.map((name) => query.get(name));
  const seconds = (text: string | undefined, name: string, min: number, max: number): number | null =>
    text === undefined ? null : readSeconds(text, name, min, max);
  const options = {
    type: type === undefined ? null : readType(type),
    to: to === undefined ? null : readTo(to),
    ttl: seconds(ttl, "ttl", TTL_SECONDS_MIN, TTL_SECONDS_MAX),
    deadline: seconds(deadline, "deadline", DEADLINE_SECONDS_MIN, DEADLINE_SECONDS_MAX),
    remind: seconds(remind, "remind", REMIND_SECONDS_MIN, REMIND_SECONDS_MAX),
  };
  const waitMs = waitOf(request);
  const keyText = request.headers.get("idempotency-key");
  const key = keyText === null ? null : readKey(keyText);
  const take = door.counter("push", grant, request, server);
  const form = contentType(request);
  const many = form === "application/x-ndjson";
  if (!many && form !== "application/json")
    throw new PereError("wrongType", "push takes application/json, or application/x-ndjson for many events at once");

  const bytes = await bodyOf(request, many ? BODY_BYTES_MAX : EVENT_BYTES_MAX);
  const text = readText(bytes);
  const drafts = (many ? readLines(text) : [readData(text)]).map((data) => ({ ...options, data }));
  if ((options.to?.length ?? 0) * drafts.length > TARGETS_MAX)
    throw new PereError("tooLarge", `to: names times lines may be at most ${TARGETS_MAX}; send several requests`);
  await take(drafts.length);
  const pushed = await engine.push(
    channel,
    drafts,
    key === null
      ? undefined
      : {
          key: keyOf(grant.subject, key),
          earlier: key,
          digest: `${many ? "many" : "one"}:${Bun.SHA256.hash(bytes, "base64")}?${Bun.SHA256.hash(optionsText(options), "base64")}`,
        },
  );

  const status = pushed.replayed ? 200 : 201;
  const headers: Record<string, string> = pushed.replayed ? { "Idempotent-Replayed": "true" } : {};
  const { epoch, first, count, audience } = pushed;
  const at = iso(pushed.at);
  let outcomes: ReadonlyMap<number, Tally> = new Map();
  if (waitMs !== null) {
    server.timeout(request, 0);
    // What was stored is acknowledged, also where its tally can't be read now.
    const found = await engine.outcome(pushed, channel, waitMs, request.signal).catch((error: unknown) => {
      unexpected(log.incident, error);
      return outcomes;
    });
    // What was stored and lost is not.
    if (found === null)
      throw new PereError(
        "away",
        `the log of channel ${channel} was lost or put back while this push waited, and event ${id(epoch, first)} with it; push again`,
      );
    outcomes = found;
    if (outcomes.size > 0) headers["Preference-Applied"] = "wait";
  }
  if (many) {
    const events = Array.from({ length: count }, (_, n) => {
      const seq = first + n;
      return { id: id(epoch, seq), seq, at, ...outcomeJson(outcomes.get(seq)) };
    });
    return json({ events, audience }, status, headers);
  }
  const name = id(epoch, first);
  const typed = pushed.type === null ? {} : { type: pushed.type };
  const event = { id: name, channel, seq: first, at, ...typed, audience, ...outcomeJson(outcomes.get(first)) };
  return json(event, status, { Location: `${basePath}/events/${channel}/${name}`, ...headers });
}

// ----------------------------------------------------------------------------------------------------------------- follow

/** Where there are too many connections, one that is refused is not kept for what comes next; HTTP/2 has other words for that. */
const closing = (request: Request, refused: PereError | null): Record<string, string> =>
  refused?.code === "away" && request.url.startsWith("http:") ? { Connection: "close" } : {};

const STREAM_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Content-Type": "text/event-stream",
  "Cache-Control": "no-cache, no-transform",
  "X-Accel-Buffering": "no",
};
/** What a reader of a log must be allowed to. */
const RIGHT: Record<Kind, Right> = { events: "feed", receipts: "push" };

let toldOfDescriptors = false;

/** Why there may be no feed more: too many connections and files are open; null: there is room. */
function shortage(): PereError | null {
  if (!descriptors().short) return null;
  if (!toldOfDescriptors)
    log.warn(
      `nearly all ${descriptors().limit} files and connections that this process may have are open: new feeds are told to come later; ` +
        "raise the limit (ulimit -n, LimitNOFILE=)",
    );
  toldOfDescriptors = true;
  return new PereError("away", "too many connections are open; come again in a moment");
}

/** Why a caller may not have a feed now; null: he may. */
async function refusal(take: () => Promise<void> | void): Promise<PereError | null> {
  const short = shortage();
  if (short !== null) return short;
  try {
    await take();
    return null;
  } catch (error) {
    if (error instanceof TooMany) return error;
    throw error;
  }
}

/** Of a feed, in the order in which they are named to who gives another. The receipts' has no device: they are all devices'. */
const FEED_OPTIONS: Record<Kind, readonly string[]> = {
  events: ["device", "since", "last-event-id", "lastEventId", "wait"],
  receipts: ["since", "last-event-id", "lastEventId", "wait"],
};

/** Where the reader was, by its query; EventSource polyfills have a spelling of their own. @throws PereError malformed */
function lastOf(query: ReadonlyMap<string, string>): string | undefined {
  const [last, polyfill] = [query.get("last-event-id"), query.get("lastEventId")];
  if (last === undefined || polyfill === undefined) return last ?? polyfill;
  const message = "last-event-id and lastEventId are the same option; give one of them";
  throw new PereError("malformed", message, [{ path: "lastEventId", message }]);
}

/** A feed by whichever transport the request asks for: the same URL, the same cursor. */
async function follow(
  { engine, door, random }: HandlerContext,
  kind: Kind,
  channelsText: string,
  request: Request,
  server: Server<SocketData>,
) {
  const query = queryOf(request, FEED_OPTIONS[kind]);
  const channels = readChannels(channelsText);
  const grant = await door.authorize(request, RIGHT[kind], channels).catch((error: unknown) => passing(error, request));
  if (grant === null) return comeBack(random, request, server);
  const positions = (text: string | null | undefined, path: string): readonly Position[] | null =>
    text ? readPositions(text, path) : null;
  const since = query.get("since") ?? "now";
  // After an upgrade nobody knows any more where a request came from.
  const countFeed = door.counter("feed", grant, request, server);
  const countReceipts = door.counter("receipt", grant, request, server);
  const asked: FeedRequest = {
    kind,
    channels,
    device: kind === "events" ? deviceOf(grant, request, query) : null,
    expires: grant.expires,
    caller: door.caller(grant, request, server),
    address: door.address(request, server),
    refused: await refusal(() => countFeed(channels.length)),
    last: positions(request.headers.get("last-event-id") || lastOf(query), "last-event-id"),
    since: since === "now" || since === "earliest" ? since : readPositions(since, "since"),
    renew: false,
  };
  if (isSocket(request)) return socket(engine, door, asked, countReceipts, request, server);
  if (isPoll(request)) return poll(engine, asked, query, request, server);
  return stream(request, server, asked.refused, (out) =>
    engine.follow({ ...asked, renew: true }, new EventStream(out, random)),
  );
}

const isSocket = (request: Request): boolean => request.headers.get("upgrade")?.toLowerCase() === "websocket";
const isPoll = (request: Request): boolean =>
  accepts(request, "application/json") && !accepts(request, "text/event-stream");

/** Null for trouble that passes, where it is told on the feed: an EventSource that gets any other status than 200 never comes back. @throws all else */
function passing(error: unknown, request: Request): null {
  if (!(error instanceof PereError) || error.code !== "away" || (isPoll(request) && !isSocket(request))) throw error;
  return null;
}

/** Tells a reader to come back later. */
function comeBack(random: () => number, request: Request, server: Server<SocketData>): Response | undefined {
  if (!isSocket(request)) return stream(request, server, null, (out) => ended(new EventStream(out, random)));
  const data: SocketData = {
    open: (ws) => new Socket(ws, nothing).bye("busy"),
    message() {},
    drain() {},
    pong() {},
    close() {},
  };
  return upgraded(request, server, data);
}

const nothing = (): void => {};

/** A feed that ends as it begins. */
function ended(wire: { bye(reason: "busy"): void }): { stop(): void } {
  wire.bye("busy");
  return { stop() {} };
}

/** @throws PereError malformed */
function upgraded(request: Request, server: Server<SocketData>, data: SocketData): undefined {
  if (server.upgrade(request, { data, headers: protocolOf(request) })) return undefined;
  throw new PereError("malformed", "the WebSocket handshake is incomplete");
}

/** Writes to a stream from now on; gives what is to be stopped when the reader is gone. */
type Begin = (out: DirectController) => { stop(): void };

/** What Bun asks of an open stream. A class, and nothing of the request in it: a quiet feed should cost next to nothing. */
class OpenStream {
  readonly type = "direct";
  #begin: Begin | null;
  #running: { stop(): void } | null = null;

  constructor(begin: Begin) {
    this.#begin = begin;
  }

  pull(out: DirectController): void {
    // Without a promise the stream stays open until it is closed.
    this.#running = this.#begin!(out);
    this.#begin = null;
  }

  cancel(): void {
    this.#running?.stop();
  }
}

function stream(request: Request, server: Server<SocketData>, refused: PereError | null, begin: Begin): Response {
  if (request.method === "HEAD") return new Response(null, { headers: STREAM_HEADERS });
  server.timeout(request, 0);
  const body = new ReadableStream(new OpenStream(begin) as unknown as UnderlyingDefaultSource);
  return new Response(body, { headers: { ...STREAM_HEADERS, ...closing(request, refused) } });
}

/** What goes on, in all channels that the caller may push to, and in one of them event by event. */
async function watch(
  { engine, door, random }: HandlerContext,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const name = queryOf(request, ["channel"]).get("channel");
  const channel = name === undefined ? null : readChannel(name);
  const grant = await door.authorize(request, "push", []).catch((error: unknown) => passing(error, request));
  if (grant === null) return stream(request, server, null, (out) => ended(new WatchStream(out, random)));
  demand(grant, "push", channel);
  const asked = {
    channel,
    may: (one: string): boolean => grant.may("push", one),
    expires: grant.expires,
    refused: await refusal(() => door.counter("feed", grant, request, server)(1)),
  };
  return stream(request, server, asked.refused, (out) => ({
    stop: engine.watch(asked, new WatchStream(out, random)),
  }));
}

/** A longer message brings no token. */
const MESSAGE_WITH_TOKEN_MAX = 16 * 1024;
/** Characters of a socket's messages that wait for their answers, before its feed is ready or for the store: one message of the longest, and some more. */
const UNANSWERED_MAX = 8 * 1024 * 1024;
/** What a message costs beside its characters. */
const MESSAGE_COST = 256;

/** A fresh token for an open socket, instead of the one that it came with: `{"pere":"token","token":…}`. */
function freshToken(message: string | Buffer): string | null {
  if (typeof message !== "string" || message.length > MESSAGE_WITH_TOKEN_MAX || !message.includes('"pere"'))
    return null;
  try {
    const { pere, token } = JSON.parse(message) as { pere?: unknown; token?: unknown };
    return pere === "token" && typeof token === "string" ? token : null;
  } catch {
    return null;
  }
}

/** The answer to the subprotocols that a client offers (RFC 6455, section 4.2.2): ours, or none where none was offered. @throws PereError malformed */
function protocolOf(request: Request): Record<string, string> {
  const offered = request.headers.get("sec-websocket-protocol") ?? "";
  if (offered.split(",").some((name) => name.trim() === "pere.v1")) return { "Sec-WebSocket-Protocol": "pere.v1" };
  if (offered.split(",", 1)[0]!.trim() === "") return {};
  throw new PereError(
    "malformed",
    "of the subprotocols that were offered PERE speaks none; offer pere.v1 among them, or none",
  );
}

function socket(
  engine: Engine,
  door: Admission,
  asked: FeedRequest,
  count: (receipts: number) => Promise<void> | void,
  request: Request,
  server: Server<SocketData>,
): Response | undefined {
  let wire: Socket;
  let feed: ReturnType<Engine["follow"]>;
  /** What came before the feed was ready: only then is it known which channel an event is of. */
  let early: (string | Buffer)[] | null = [];
  /** What is not answered yet. */
  let unanswered = 0;
  const take = (message: string | Buffer): void => {
    feed.heard();
    void answered(
      message,
      socketFeedback(engine, asked, count, feed.logs, message).then((feedback) => wire.say("receipts", feedback)),
    );
  };
  const answered = async (message: string | Buffer, work: Promise<void>): Promise<void> => {
    await work.catch((error: unknown) => wire.say("error", { detail: sentenceOf(error) }));
    unanswered -= message.length + MESSAGE_COST;
  };
  /** Puts the feed's end off to the fresh token's; one that allows less, or is somebody else's, changes nothing. */
  const renew = async (token: string): Promise<void> => {
    const grant = await door.renewed(token);
    for (const channel of asked.channels) demand(grant, RIGHT[asked.kind], channel);
    if (asked.device !== null && grant.subject !== null && grant.subject !== asked.device)
      throw new PereError("forbidden", "token: it is another device's");
    feed.expires = grant.expires;
    wire.say("token", { expires: Number.isFinite(grant.expires) ? iso(grant.expires) : null });
  };
  const data: SocketData = {
    open(ws) {
      wire = new Socket(ws, () => {
        const waiting = early ?? [];
        early = null;
        waiting.forEach(take);
      });
      feed = engine.follow(asked, wire);
    },
    message(_ws, message) {
      if (!feed.open) return;
      const token = freshToken(message);
      if (token === null && asked.kind === "receipts")
        return wire.say("error", { detail: "this feed is read-only; receipts go to /feed" });
      unanswered += message.length + MESSAGE_COST;
      if (unanswered > UNANSWERED_MAX) {
        const when = early === null ? "the answers to those before" : "ready";
        wire.say("error", { detail: `too many messages at once; wait for ${when}, and send these again` });
        return feed.end("busy");
      }
      if (token !== null) void answered(message, renew(token));
      else if (early === null) take(message);
      else early.push(message);
    },
    drain: () => wire.drained(),
    pong: () => feed.heard(),
    close() {
      early = [];
      feed.stop();
      wire.drained();
    },
  };
  return upgraded(request, server, data);
}

/** Receipts in a WebSocket message: as in `POST /feedback`, from the feed's own device. An event's epoch tells its channel. */
async function socketFeedback(
  engine: Engine,
  { device, channels }: FeedRequest,
  count: (receipts: number) => Promise<void> | void,
  logs: readonly { channel: string; epoch: string }[],
  message: string | Buffer,
): Promise<Feedback> {
  if (typeof message !== "string") throw new PereError("malformed", "a message is a JSON text, not bytes");
  if (device === null)
    throw new PereError("refused", "this feed is anonymous: it owes no receipts; open it with ?device=");
  const items = receiptItems(
    readReceiptsJson(message, "message"),
    device,
    ({ event }) => logs.find(({ epoch }) => epoch === event.epoch)?.channel ?? channels[0]!,
  );
  await count(items.length);
  return engine.feedback(items);
}

/** A poll whose time is up waits so long for a store that does not answer; one that waits for nothing gives it as long as a call to Redis may take. */
const POLL_GRACE_MS = 1_000;
const POLL_MS_MIN = 2_500;

async function poll(
  engine: Engine,
  asked: FeedRequest,
  query: ReadonlyMap<string, string>,
  request: Request,
  server: Server<SocketData>,
) {
  const wait = readSeconds(query.get("wait") ?? "0", "wait", 0, POLL_SECONDS_MAX);
  if (request.method === "HEAD") return jsonText("");
  if (asked.refused !== null) {
    const response = problem(asked.refused);
    for (const [name, value] of Object.entries(closing(request, asked.refused))) response.headers.set(name, value);
    return response;
  }
  server.timeout(request, 0);
  const wire = new Poll();
  const feed = engine.follow(asked, wire);
  wire.of(feed);
  request.signal.addEventListener("abort", () => feed.stop());
  const waitMs = wait * 1000;
  const timers = [
    setTimeout(() => wire.timeUp(), waitMs),
    setTimeout(() => wire.giveUp(), Math.max(waitMs + POLL_GRACE_MS, POLL_MS_MIN)),
  ];
  const answer = await wire.answer;
  timers.forEach(clearTimeout);
  // Without a place to go on from, an answer would lose what comes until the next one.
  if (!answer?.last) throw new PereError("away", "PERE can't serve this feed now; ask again in a moment");
  const gaps = answer.gaps.length > 0 ? `,"gaps":${JSON.stringify(answer.gaps)}` : "";
  const complete = answer.complete.length > 0 ? `,"complete":[${answer.complete.join(",")}]` : "";
  const shared = answer.shared === null ? "" : `,"shared":${JSON.stringify(answer.shared)}`;
  return jsonText(`{"events":[${answer.texts.join(",")}],"last":"${answer.last}"${gaps}${complete}${shared}}`);
}

// --------------------------------------------------------------------------------------------------------------- feedback

type ReceiptItem = { channel: string; draft: ReceiptDraft } | { event: string | null; reason: string };

/** One receipt or an array of them. @throws PereError */
function receiptItems(body: unknown, device: string | null, channelOf: (draft: ReceiptDraft) => string): ReceiptItem[] {
  const values = Array.isArray(body) ? (body as unknown[]) : [body];
  if (values.length > RECEIPTS_MAX) throw new PereError("tooLarge", `at most ${RECEIPTS_MAX} receipts at once`);
  return values.map((value) => {
    const draft = readReceipt(value, device);
    if (typeof draft !== "string") return { channel: channelOf(draft), draft };
    const event = (value as { event?: unknown } | null)?.event;
    return { event: typeof event === "string" ? event : null, reason: draft };
  });
}

/** The form that the clients of 2014 send: `id`, `device` and `status`, each where they put it. @throws PereError */
function oldReceipt(
  text: string,
  request: Request,
  device: string | null,
  owner: string | null,
  channel: string,
): ReceiptItem {
  const form = new URLSearchParams(text);
  const event = form.get("id") ?? form.get("event") ?? request.headers.get("last-event-id") ?? "";
  const name = form.get("device") ?? device;
  if (owner !== null && name !== owner) return { event, reason: "device: this token speaks for another device" };
  if (name === null) return { event, reason: "device: must be named, as a field, in the query or in a header" };
  const said = readOldStatus(form.get("status") ?? "");
  const draft = { event: readPosition(event, "id"), device: readDevice(name), ...said, deviceAt: null };
  return { channel, draft };
}

async function feedback(
  { engine, door, bodyOf }: HandlerContext,
  channelText: string,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const channel = readChannel(channelText);
  const grant = await door.authorize(request, "feed", [channel]);
  const device = deviceOf(grant, request, queryOf(request, ["device"]));
  const take = door.counter("receipt", grant, request, server);
  const form = contentType(request);
  if (form !== "application/json" && form !== "application/x-www-form-urlencoded")
    throw new PereError("wrongType", "feedback takes application/json, or a form as the first PERE clients sent it");
  const text = readText(await bodyOf(request, RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024)));
  const items =
    form === "application/json"
      ? receiptItems(readReceiptsJson(text), device, () => channel)
      : [oldReceipt(text, request, device, grant.subject, channel)];
  await take(items.length);
  const result = await engine.feedback(items);
  if (items.length === 0 || result.rejected.length < items.length) return json(result);
  const why = result.rejected.length === 1 ? result.rejected[0]!.reason : "every receipt was rejected";
  return problem(new PereError("refused", why), result);
}

// ---------------------------------------------------------------------------------------------------------------- reading

/** Of a list that is read page by page. */
const PAGE_OPTIONS = ["after", "limit"];

const pageOf = (query: ReadonlyMap<string, string>): { after: string; limit: number } => ({
  after: query.get("after") ?? "",
  limit: query.has("limit") ? readLimit(query.get("limit")!) : PAGE_DEFAULT,
});

const rowJson = ({ device, status, detail, at, deviceAt, late }: Row): string =>
  `{"device":"${device}","status":"${status}","detail":${detail ?? "null"},"at":${at === null ? "null" : `"${iso(at)}"`},` +
  `"deviceAt":${deviceAt === null ? "null" : `"${iso(deviceAt)}"`},"late":${late}}`;

/** RFC 4180. Only `detail` can hold anything that needs quotes. */
const rowCsv = ({ device, status, detail, at, deviceAt, late }: Row): string =>
  `${device},${status},${detail === null ? "" : `"${detail.replaceAll('"', '""')}"`},` +
  `${at === null ? "" : iso(at)},${deviceAt === null ? "" : iso(deviceAt)},${late}`;

/** Rows that an export reads at once: with the longest details a mebibyte, which is what a reader who stops costs. */
const EXPORT_ROWS = 250;

async function rows(engine: Engine, channel: string, event: string, request: Request): Promise<Response> {
  const query = queryOf(request, ["status", ...PAGE_OPTIONS]);
  const { after, limit } = pageOf(query);
  const status = query.get("status") ?? null;
  if (status !== null && !STATES.includes(status as State)) {
    const message = `must be one of ${STATES.join(", ")}`;
    throw new PereError("malformed", `status: ${message}`, [{ path: "status", message }]);
  }
  const read = (from: string, size: number) => engine.rows(channel, event, status as State | null, from, size);
  const asCsv = accepts(request, "text/csv");
  if (!asCsv && !accepts(request, "application/x-ndjson")) {
    const { items, next } = await read(after, limit);
    return jsonText(`{"receipts":[${items.map(rowJson).join(",")}],"next":${JSON.stringify(next)}}`);
  }
  // An export: all rows unless a limit was named, a page at a time, as fast as the reader takes them.
  let left = query.has("limit") ? limit : Number.POSITIVE_INFINITY;
  let page = await read(after, Math.min(left, EXPORT_ROWS));
  async function* lines() {
    if (asCsv) yield "device,status,detail,at,deviceAt,late\r\n";
    for (const breath = new Turn(); ;) {
      yield page.items.map((row) => (asCsv ? `${rowCsv(row)}\r\n` : `${rowJson(row)}\n`)).join("");
      left -= page.items.length;
      if (page.next === null || left <= 0) return;
      await breath.yieldToEventLoop();
      page = await read(page.next, Math.min(left, EXPORT_ROWS));
    }
  }
  const type = asCsv ? "text/csv; charset=utf-8; header=present" : "application/x-ndjson";
  return new Response(lines() as unknown as BodyInit, {
    headers: { "Content-Type": type, ...PLAIN },
  });
}

const deviceJson = (device: Awaited<ReturnType<Engine["devices"]>>["devices"][number]) => ({
  ...device,
  enrolledAt: iso(device.enrolledAt),
  seenAt: device.seenAt === null ? null : iso(device.seenAt),
});

// ------------------------------------------------------------------------------------------------------------------ hooks

async function putHook(
  { engine, door, bodyOf }: HandlerContext,
  params: { channel: string; name: string },
  request: Request,
): Promise<Response> {
  const channel = readChannel(params.channel);
  const name = readHookName(params.name);
  await door.authorize(request, "push", [channel]);
  queryOf(request);
  if (contentType(request) !== "application/json") throw new PereError("wrongType", "a hook is application/json");
  const body = readReceiptsJson(readText(await bodyOf(request, HOOK_BYTES_MAX)));
  const { hook, created } = await engine.hooks.put(channel, name, body);
  return json(hook, created ? 201 : 200);
}

/** The handlers of what carries events and receipts, for who brings requests without a server's socket: the simulation. */
export const handlers = { push, follow, feedback, putHook, toResponse };

// ----------------------------------------------------------------------------------------------------------------- routes

/** The pages, and what they load: from source and from the executable alike. */
const WEB = join(import.meta.dir, "web");
/** In it, what is not served as it is: all in folders but what watches PERE, and what is bundled or has a route of its own. */
const SOURCES = new RegExp(`^${RegExp.escape(WEB)}/(?!monitoring/).+/|\\.(ts|html)$`);
const built = pagesOf(WEB);

/** The first page; with a link's token the way in: it leaves the address bar for a cookie that no script reads, and the browser comes again. */
async function home(door: Admission, basePath: string, request: Request): Promise<Response> {
  const token = new URL(request.url).searchParams.get("token");
  if (token === null) return built("/", request);
  const headers: Record<string, string> = { Location: `${basePath}/`, "Cache-Control": "no-store", ...PAGE };
  const isSecure = request.url.startsWith("https:") || request.headers.get("x-forwarded-proto") === "https";
  const cookie = await door.cookie(token, isSecure, `${basePath}/`);
  if (cookie !== null) headers["Set-Cookie"] = cookie;
  return new Response(null, { status: 303, headers });
}

/** How a service is run. */
interface RouteOptions {
  /** From 0 up to 1; spreads the readers' return. */
  readonly random: () => number;
  /** What a body may take. */
  readonly bodyMs: number;
  /** Each request is written to the log. */
  readonly isWatched: boolean;
  /** URLs begin with https. */
  readonly isTls: boolean;
  /** What stands before the paths of answers. */
  readonly basePath: string;
  /** Made for the first who asks. */
  readonly metrics: () => Promise<Metrics>;
}

/** Where the process is looked at: these answer whoever asks, whatever name they ask it by. Without a Host a URL is a path. */
const PROBED = /^(?:https?:\/\/[^/]*)?\/(health|ready)(?:\?|$)/;

/** All routes. */
function routes(
  engine: Engine,
  door: Admission,
  { random, bodyMs, isWatched, isTls, basePath, metrics }: RouteOptions,
) {
  /** The channel of a request about it, for who may push on it. @throws PereError */
  const managed = async (text: string, request: Request): Promise<string> => {
    const channel = readChannel(text);
    await door.authorize(request, "push", [channel]);
    return channel;
  };
  /** The same, of a request that has no options. @throws PereError */
  const plain = async (text: string, request: Request): Promise<string> => {
    const channel = await managed(text, request);
    queryOf(request);
    return channel;
  };
  const probes = {
    health: async () => json({ status: "ok" }),
    async ready() {
      if (engine.draining) throw new PereError("away", "PERE is shutting down");
      const store = await engine.ready();
      return json({ status: "ready", ...store });
    },
  };
  const raw = { parse: "none" } as const;
  const app = new Elysia({
    normalize: false,
    // Elysia looks for a path behind the 7th character of a URL, or else behind the 11th: one is too early in https://, the other too late in
    // http:// with a short host. What has a route is found by Bun, whatever is said here.
    handler: { standardHostname: isTls },
    serve: {
      reusePort: false,
      maxRequestBodySize: Number.MAX_SAFE_INTEGER /* Each route has its own, and says so. */,
      development: false,
      error: toResponse, // Of what Bun does by itself: a file of a page that can't be opened.
    },
    websocket: {
      maxPayloadLength: RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024),
      backpressureLimit: 1024 * 1024,
      closeOnBackpressureLimit: true,
      sendPings: true,
      idleTimeout: 60,
    },
  });
  const bodyOf = bodyReader(bodyMs, (request, isLeft) => app.server?.timeout(request, isLeft ? 0 : IDLE_SECONDS));
  const parts = { engine, door, bodyOf, random, basePath };
  if (isWatched)
    app.onAfterResponse(({ request, responseValue }) => {
      const status = responseValue instanceof Response ? responseValue.status : null;
      log.debug("answered", { request: crypto.randomUUID(), method: request.method, url: request.url, status });
    });
  // What is answered without a look at the body, a GET or DELETE that brings one.
  if (isTls) app.onAfterHandle(({ request }) => takeIn(request));
  return app
    .onRequest(({ request, set }) => {
      try {
        const allowed = door.look(request.headers);
        const answer = door.preflight(request, allowed);
        if (answer) return new Response(null, { status: 204, headers: answer });
        if (allowed !== NOTHING) Object.assign(set.headers, allowed);
      } catch (error) {
        // Balancers and supervisors name no host, or one of their own.
        const probe = request.method === "GET" || request.method === "HEAD" ? PROBED.exec(request.url)?.[1] : undefined;
        if (probe) return probes[probe as keyof typeof probes]().catch(toResponse);
        return isTls ? takeIn(request).then(() => toResponse(error)) : toResponse(error);
      }
      return undefined;
    })
    .onError(async ({ code, error, request, path }) => {
      if (isTls) await takeIn(request);
      if (code !== "NOT_FOUND") return toResponse(error);
      const allowed = methodsAt(app.routes, path);
      if (allowed.length === 0) return problem(new PereError("unknown", `there is nothing at ${path}`));
      const response = problem(new PereError("wrongMethod", `${path} does not take ${request.method}`));
      response.headers.set("Allow", allowed.join(", "));
      return response;
    })

    .post(
      "/push/:channel",
      ({ params, request, server }) => push(parts, params.channel, request, server as Server<SocketData>),
      { ...raw, detail: operations.push },
    )
    .get(
      "/feed/:channel",
      ({ params, request, server }) => follow(parts, "events", params.channel, request, server as Server<SocketData>),
      { detail: operations.feed },
    )
    .post(
      "/feedback/:channel",
      ({ params, request, server }) => feedback(parts, params.channel, request, server as Server<SocketData>),
      { ...raw, detail: operations.feedback },
    )
    .get(
      "/feedback/:channel",
      ({ params, request, server }) => follow(parts, "receipts", params.channel, request, server as Server<SocketData>),
      { detail: operations.receipts },
    )

    .get("/watch", ({ request, server }) => watch(parts, request, server as Server<SocketData>), {
      detail: operations.watch,
    })
    .get(
      "/channels",
      async ({ request }) => {
        const grant = await door.grant(request);
        const query = queryOf(request, PAGE_OPTIONS);
        const { after, limit } = pageOf(query);
        const may = (channel: string): boolean => grant.may("push", channel);
        return json(await engine.channels(after, query.has("limit") ? limit : null, may));
      },
      { detail: operations.channels },
    )
    .get(
      "/events/:channel",
      async ({ params, request }) => {
        const channel = await managed(params.channel, request);
        const { after, limit } = pageOf(queryOf(request, PAGE_OPTIONS));
        const { texts, next } = await engine.events(channel, after ? readPosition(after, "after") : null, limit);
        return jsonText(`{"events":[${texts.join(",")}],"next":${JSON.stringify(next)}}`);
      },
      { detail: operations.events },
    )
    .get(
      "/events/:channel/:id",
      async ({ params, request }) => jsonText(await engine.event(await plain(params.channel, request), params.id)),
      { detail: operations.event },
    )
    .get(
      "/events/:channel/:id/receipts",
      async ({ params, request }) => rows(engine, await managed(params.channel, request), params.id, request),
      { detail: operations.rows },
    )
    .get(
      "/devices/:channel",
      async ({ params, request }) => {
        const channel = await managed(params.channel, request);
        const { after, limit } = pageOf(queryOf(request, PAGE_OPTIONS));
        const { devices, next } = await engine.devices(channel, after, limit);
        return json({ devices: devices.map(deviceJson), next });
      },
      { detail: operations.devices },
    )
    .put(
      "/devices/:channel/:device",
      async ({ params, request }) => {
        const channel = await plain(params.channel, request);
        const device = readDevice(params.device);
        demandPlain(request);
        const enrolled = await engine.enrol(channel, device);
        return json({ channel, device, enrolled: true }, enrolled ? 201 : 200);
      },
      { ...raw, detail: operations.enrol },
    )
    .delete(
      "/devices/:channel/:device",
      async ({ params, request }) => {
        await engine.retire(await plain(params.channel, request), readDevice(params.device));
        return new Response(null, { status: 204 });
      },
      { ...raw, detail: operations.retire },
    )

    .get(
      "/hooks/:channel",
      async ({ params, request }) => json({ hooks: await engine.hooks.list(await plain(params.channel, request)) }),
      { detail: operations.hooks },
    )
    .put("/hooks/:channel/:name", ({ params, request }) => putHook(parts, params, request), {
      ...raw,
      detail: operations.putHook,
    })
    .delete(
      "/hooks/:channel/:name",
      async ({ params, request }) => {
        await engine.hooks.drop(await plain(params.channel, request), readHookName(params.name));
        return new Response(null, { status: 204 });
      },
      { ...raw, detail: operations.dropHook },
    )
    .post(
      "/hooks/:channel/:name/retry",
      async ({ params, request }) => {
        const channel = await plain(params.channel, request);
        demandPlain(request);
        const retried = await engine.hooks.retry(channel, readHookName(params.name));
        return json({ retried });
      },
      { ...raw, detail: operations.retryHook },
    )

    .get("/health", probes.health, { detail: operations.health })
    .get("/ready", probes.ready, { detail: operations.ready })

    .get(
      "/metrics",
      async ({ request }) => {
        demand(await door.grant(request), "push", "*");
        queryOf(request);
        const scraped = await metrics();
        return new Response(await scraped.text(), { headers: { ...PLAIN, "Content-Type": scraped.contentType } });
      },
      { detail: operations.metrics },
    )

    .get("/asyncapi.json", () => json(asyncapi(packageJson.version, basePath)), { detail: { hide: true } })
    .get("/", ({ request }) => home(door, basePath, request), { detail: { hide: true } })
    .get("/weblistener.html", ({ request }) => built("/weblistener.html", request), { detail: { hide: true } })
    .get("/weblistener-worker.js", ({ request }) => built("/weblistener-worker.js", request), {
      detail: { hide: true },
    })
    .get(`${BUILT}:file`, ({ params, request }) => built(BUILT + params.file, request), { detail: { hide: true } })
    .get("/swagger/ui.js", () => file(swaggerScript, "text/javascript"), {
      detail: { hide: true },
    })
    .get("/swagger/ui.css", () => file(swaggerStyle, "text/css"), { detail: { hide: true } });
}

/** Serves all routes under a path as well. @throws Error with the one line to print, where that is the path of one of them */
function mount(app: ReturnType<typeof routes>, basePath: string): void {
  const all = [...app.routes];
  const [, first] = basePath.split("/");
  if (all.some(({ path }) => path.split("/")[1] === first))
    throw new Error(`PERE_BASE_PATH must not begin with a path of PERE's own, as "${basePath}" does`);
  for (const { method, path, handler, hooks } of all) {
    const hidden = { ...(hooks as object), detail: { hide: true } };
    if (path !== "/") app.route(method, basePath + path, handler as () => unknown, hidden as object);
  }
  // Without the slash what the page loads would be looked for beside it.
  app.get(
    `${basePath}/`,
    ({ request, ...context }) => {
      if (!pathOf(request).endsWith("/"))
        return new Response(null, {
          status: 308,
          headers: { Location: `${basePath}/${new URL(request.url).search}` },
        });
      const { handler } = all.find(({ path: one }) => one === "/")!;
      return (handler as unknown as (context: object) => Promise<Response>)({ request, ...context });
    },
    { detail: { hide: true } },
  );
}

/** All that is served. @throws Error with the one line to print */
async function appOf(engine: Engine, door: Admission, ways: RouteOptions): Promise<ReturnType<typeof routes>> {
  const app = routes(engine, door, ways);
  app.use(
    await staticPlugin({
      assets: WEB,
      prefix: "/",
      alwaysStatic: true,
      ignorePatterns: [SOURCES],
      directive: "no-cache",
      maxAge: null,
      headers: { "X-Content-Type-Options": "nosniff" },
    }),
  );
  // The plugin makes the document. Its page loads a script from elsewhere, so ours takes that page's place, with a slash behind it or not.
  app.use(swagger({ documentation: document(packageJson.version, ways.basePath) }));
  const page = ({ request }: { readonly request: Request }): Promise<Response> =>
    file(join(WEB, "swagger.html"), "text/html; charset=utf-8", pathOf(request).endsWith("/") ? "../" : "");
  for (const path of ["/swagger", "/swagger/"]) app.get(path, page, { detail: { hide: true } });
  if (ways.basePath !== "") mount(app, ways.basePath);
  return app;
}

/** The methods that some route takes at a path. */
function methodsAt(routes: readonly { method: string; path: string }[], path: string): string[] {
  const parts = path.split("/");
  return routes
    .filter((route) => {
      const pattern = route.path.split("/");
      return (
        pattern.length === parts.length &&
        pattern.every((part, n) => (part.startsWith(":") ? parts[n] !== "" : part === parts[n]))
      );
    })
    .map(({ method }) => method);
}

// -------------------------------------------------------------------------------------------------------- start and drain

/** A running service. */
export interface Service {
  readonly url: string;
  readonly engine: Engine;
  /** The path of the way in with all rights, where PERE made its own secret; else null. */
  link(): Promise<string | null>;
  /** Shows the certificate that is in its files now; who is connected stays so. @throws Error when they hold none: all is as before */
  renew(): void;
  /** Reads the key set again that tokens are checked with. @throws Error when it can't be used: all is as before */
  rekey(): Promise<void>;
  /** Takes no more pushes, tells every feed, makes everything acknowledged durable, and lets go of file and port. */
  stop(): Promise<void>;
}

/** Milliseconds after which the process ends, whatever is not done by then: who stops it kills it after ten seconds. What was acknowledged is durable. */
const STOP_MS = 9_000;

/** What the way in with all rights allows, and for how long; it is a person's, and no device's. */
const LINK = { sub: NO_DEVICE, push: ["*"], feed: ["*"], days: 30 };

/** The secret that PERE made, now or before. @throws PereError away; then the store is closed */
const ownSecret = (store: Store): Promise<string> =>
  store.secret(freshSecret()).catch(async (error: unknown) => {
    await store.close();
    throw error;
  });

/** Redis is loaded only when it is asked for. */
async function openRedis(urls: readonly string[], replicas: number, prefix: string): Promise<Store> {
  const { RedisStore } = await import("./engine/redis/store.ts");
  return RedisStore.open({ urls, replicas, prefix });
}

export interface ServiceOptions extends EngineOptions {
  /** Milliseconds that a body may take beside what its length needs. */
  readonly bodyMs?: number;
  /** The monotonic clock that `now` is held against, milliseconds; without it a `now` that is given is believed. */
  readonly steady?: () => number;
}

/** Starts PERE. @throws PereError or Error when the file or the port can't be had */
export async function serve(settings: Settings, options: ServiceOptions = {}): Promise<Service> {
  const { db, redis, replicas, hooksAllowed, limits, basePath } = settings;
  const { now: wall = Date.now, random = Math.random, bodyMs = BODY_MS } = options;
  const steady = options.steady ?? (options.now ? wall : () => performance.now());
  const slept = options.now || options.steady ? {} : { uptime: () => 1000 * uptime() };
  const clock = new Clock({ wall, steady, ...slept, tell: (sentence) => log.warn(sentence) });
  const { now } = clock;
  // Wrong keys stop the start before anything is opened.
  if (settings.tls) readCertificate(settings.tls);
  const given = typeof settings.access === "string" ? null : await openAccess({ ...settings.access, now });
  const counts = new Counters(settings.metricsChannels);
  const store =
    redis === null
      ? new SqliteStore({
          path: db,
          counts,
          tell: (sentence, cause) => log.warn(sentence, cause === undefined ? {} : { cause }),
        })
      : await openRedis(redis, replicas, settings.redisPrefix);
  const own = settings.access === "own" ? await ownSecret(store) : null;
  const access = own === null ? given : await openAccess({ secret: own, now });
  const report = (fault: unknown): void => void log.incident(fault);
  const all = { ...limits, ...options.limits };
  const engine = new Engine(store, {
    hooksAllowed,
    counts,
    report,
    ...options,
    now,
    clock,
    limits: { ...all, feeds: Math.min(all.feeds ?? LIMITS.feeds, descriptors().feeds) },
  });
  if (settings.log !== "info") log = openLog(settings.log);
  const { origins, proxies } = settings;
  const rates = new RateLimiter(settings.rates, redis, log.cause, settings.redisPrefix);
  const door = new Admission({ access, origins, isLocal: settings.access === "local", rates, proxies, now });
  let scraped: Promise<Metrics> | undefined;
  const metrics = (): Promise<Metrics> =>
    (scraped ??= import("./engine/ops/metrics.ts").then(
      ({ Metrics }) => new Metrics({ engine, store, version: packageJson.version }),
    ));
  const [isWatched, isTls] = [settings.log === "debug", settings.tls !== null];
  const ways = { random, bodyMs, isWatched, isTls, basePath, metrics };
  let listening: Listener;
  try {
    // An app knows one server; what is behind them all is the same.
    const addresses = await addressesOf(settings.host);
    const apps = await Promise.all(addresses.map(() => appOf(engine, door, ways)));
    listening = listen(addresses, (opening, nth) => apps[nth]!.listen(opening).server!, settings);
  } catch (error) {
    await engine.drain();
    await engine.close();
    throw error;
  }
  const host = settings.host.includes(":") ? `[${settings.host}]` : settings.host;
  return {
    link: async () => (own === null ? null : `${basePath}/?token=${await issueToken({ secret: own, now }, LINK)}`),
    url: `http${settings.tls ? "s" : ""}://${host}:${listening.port}`,
    engine,
    renew: listening.renew,
    rekey: async () => access?.reload(),
    async stop() {
      await engine.drain();
      await listening.stop();
      (await scraped)?.stop();
      await Promise.all([rates.close(), engine.close()]);
    },
  };
}

/** What is done instead of serving; loaded only when asked for. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  token: async () => (await import("./engine/ops/commands.ts")).commands.token,
  backup: async () => (await import("./engine/ops/commands.ts")).commands.backup,
  restore: async () => (await import("./engine/ops/commands.ts")).commands.restore,
  compact: async () => (await import("./engine/ops/commands.ts")).commands.compact,
  doctor: async () => (await import("./clients/doctor.ts")).doctor,
  health: async () => (await import("./clients/health.ts")).health,
  "--help": async () => (await import("./engine/ops/commands.ts")).commands.help,
};

/** What a command does, where its name does not say it. */
const VERBS: Readonly<Record<string, string>> = { token: "make a token", doctor: "examine", health: "be reached" };

/** Signals that end PERE, after a drain. */
const ENDING = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGXCPU"] as const;
/** Signals that would end a process that does not listen to them, and mean nothing here. */
const MEANINGLESS = ["SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGXFSZ"] as const;

/** Starts PERE for good: says where it listens, and ends when it is told to. @throws Error with the one line to print */
async function run(settings: Settings): Promise<void> {
  let service: Service | undefined;
  let isEnding = false;
  for (const signal of MEANINGLESS) process.on(signal, () => log.debug(`${signal} means nothing here`));
  process.on("SIGHUP", async () => {
    if (!service) return; // It reads all of it just now.
    for (const [what, read] of [
      ["the certificate", service.renew],
      ["the key set", service.rekey],
    ] as const)
      try {
        await read();
      } catch (error) {
        log.warn(`${what} is as it was`, { error: error as Error });
      }
  });
  for (const signal of ENDING)
    process.on(signal, () => {
      if (isEnding || !service) process.exit(isEnding ? 1 : 0); // Before the start nothing was acknowledged.
      isEnding = true;
      void Promise.race([service.stop(), Bun.sleep(STOP_MS)]).then(() => process.exit(0));
    });
  service = await serve(settings);
  console.log(`PERE listening on ${service.url}`);
  for (const name of settings.unknown) log.warn(`there is no setting ${name}`);
  const link = await service.link();
  if (link !== null) {
    // What listens everywhere listens here.
    const here = service.url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
    console.log(
      `No key is set, so PERE made a secret of its own. With all rights, for ${LINK.days} days: ${here}${link}`,
    );
  }
  service.engine.ready().then(
    ({ version, durability, advice }) => {
      console.log(`PERE keeps its logs in ${version}, durability: ${durability}`);
      for (const sentence of advice) console.log(sentence);
    },
    (error: Error) => log.warn("the store is away", { error }),
  );
}

if (import.meta.main) {
  const [name = "", ...args] = process.argv.slice(2);
  const load = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  try {
    // Help is for whoever has set something wrong, too.
    const env = name === "--help" ? {} : process.env;
    if (load) process.exit(await (await load())(args, readSettings([], env)));
    await run(readSettings(process.argv.slice(2), process.env));
  } catch (error) {
    console.error(`PERE can't ${load ? (VERBS[name] ?? name) : "start"}: ${(error as Error).message}`);
    process.exit(1);
  }
}
