#!/usr/bin/env bun
/**
 * PERE: Pushed Events with return Receipt Engine.
 *
 *   events    ↓   POST /push/:channel       GET /feed/:channel        (devices)
 *   receipts  ↑   POST /feedback/:channel   GET /feedback/:channel    (publishers)
 *
 * This file is the wire: every URL, header and status, read top to bottom. Settings → store → engine → routes → start and drain. What it all
 * means is behind it in `engine/`, which knows no HTTP; how it is described to others is in `web/openapi.ts`.
 */
import { join } from "node:path";
import { staticPlugin } from "@elysiajs/static";
import { swagger } from "@elysiajs/swagger";
import type { Server } from "bun";
import { Elysia } from "elysia";
import swaggerScript from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };
import swaggerStyle from "swagger-ui-dist/swagger-ui.css" with { type: "file" };
import packageJson from "./package.json";
import { Breath } from "./engine/breath.ts";
import { Engine, type EngineOptions, type Feedback } from "./engine/engine.ts";
import type { FeedRequest } from "./engine/feeds.ts";
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
  type Kind,
  PAGE_DEFAULT,
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
import { readHookName } from "./engine/hooks.ts";
import { readSettings, type Settings } from "./engine/settings.ts";
import { SqliteStore } from "./engine/sqlite.ts";
import type { Store } from "./engine/store.ts";
import { EventStream, type DirectController, Poll, Socket, type SocketData } from "./engine/wires.ts";
import { document, operations } from "./web/openapi.ts";

// ---------------------------------------------------------------------------------------------------------------- errors

/** The one table from what went wrong to an HTTP status. */
const STATUS: Record<Code, readonly [number, string]> = {
  malformed: [400, "Malformed request"],
  unauthorized: [401, "Unauthorized"],
  forbidden: [403, "Forbidden"],
  unknown: [404, "Not found"],
  wrongMethod: [405, "Method not allowed"],
  conflict: [409, "Conflict"],
  tooLarge: [413, "Too large"],
  wrongType: [415, "Wrong content type"],
  refused: [422, "Refused"],
  away: [503, "Not available now"],
  inside: [500, "Internal error"],
};

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
  const headers = new Headers({ "Content-Type": "application/problem+json", "Cache-Control": "no-store" });
  if (status === 503) headers.set("Retry-After", "2");
  return new Response(JSON.stringify(body), { status, headers });
}

/** What is not ours to explain: the inside goes to the log, with an id to find it by, and only that goes out. */
function inside(error: unknown): Response {
  const incident = crypto.randomUUID();
  console.error(JSON.stringify({ level: "error", incident, error: Bun.inspect(error) }));
  return problem(new PereError("inside", `something went wrong in PERE; the log has it as ${incident}`));
}

/** Causes go to the log once a second, with how many there were: thousands are refused while a disk is full. */
const QUIET_MS = 1_000;
let warnedAt = Number.NEGATIVE_INFINITY;
let unwarned = 0;

function toResponse(error: unknown): Response {
  if (!(error instanceof PereError)) return inside(error);
  if (error.cause !== undefined && performance.now() - warnedAt < QUIET_MS) unwarned++;
  else if (error.cause !== undefined) {
    console.error(
      JSON.stringify({ level: "warn", message: error.message, cause: String(error.cause), others: unwarned }),
    );
    [warnedAt, unwarned] = [performance.now(), 0];
  }
  return problem(error);
}

// --------------------------------------------------------------------------------------------------------- reading requests

/** The query, each name once. @throws PereError malformed */
function queryOf(request: Request, known?: readonly string[]): Map<string, string> {
  const query = new Map<string, string>();
  const start = request.url.indexOf("?");
  if (start === -1) return query;
  for (const [name, value] of new URLSearchParams(request.url.slice(start))) {
    if (query.has(name))
      throw new PereError("malformed", `${name}: given twice`, [{ path: name, message: "given twice" }]);
    if (known && !known.includes(name) && name !== "token")
      throw new PereError("malformed", `${name}: there is no such option`, [
        { path: name, message: "there is no such option" },
      ]);
    query.set(name, value);
  }
  return query;
}

/** A body of at most `max` bytes, also where its length was not announced. @throws PereError tooLarge */
async function bodyOf(request: Request, max: number): Promise<Uint8Array> {
  const tooLarge = (): PereError => new PereError("tooLarge", `the body is larger than ${max} bytes`);
  if (Number(request.headers.get("content-length") ?? 0) > max) throw tooLarge();
  const chunks: Uint8Array[] = [];
  let length = 0;
  try {
    if (request.headers.has("content-length")) return await request.bytes();
    for await (const chunk of request.body ?? []) {
      length += chunk.length;
      if (length > max) throw tooLarge();
      chunks.push(chunk);
    }
  } catch (error) {
    if (error instanceof PereError) throw error;
    throw new PereError("malformed", "the body ended before its end"); // Its sender is gone, and reads this no more.
  }
  return Buffer.concat(chunks);
}

/** Whether the request names a media type among those that it takes. Wildcards do not count: they leave the choice to us. */
const accepts = (request: Request, type: string): boolean =>
  (request.headers.get("accept") ?? "")
    .toLowerCase()
    .split(",")
    .some((range) => range.split(";", 1)[0]!.trim() === type);

const contentType = (request: Request): string =>
  (request.headers.get("content-type") ?? "").split(";", 1)[0]!.trim().toLowerCase();

/** The device that a request speaks for, where it says so beside its body: `device` in the query, else the header `device`. */
function deviceOf(request: Request, query: ReadonlyMap<string, string>): string | null {
  const name = query.get("device") || request.headers.get("device");
  return name ? readDevice(name) : null;
}

const json = (body: object, status = 200, headers: Record<string, string> = {}): Response =>
  Response.json(body, { status, headers: { "Cache-Control": "no-store", ...headers } });
const jsonText = (text: string): Response =>
  new Response(text, { headers: { "Content-Type": "application/json", "Cache-Control": "no-store" } });

// ------------------------------------------------------------------------------------------------------------------- push

const PUSH_OPTIONS = ["type", "to", "ttl", "deadline", "remind"] as const;

/** `Prefer: wait=<seconds>` (RFC 7240, section 4.3) in milliseconds; null: nobody waits. Other preferences are left alone. @throws PereError */
function waitOf(request: Request): number | null {
  for (const [preference] of (request.headers.get("prefer") ?? "").matchAll(/(?:"[^"]*"|[^,"])+/g)) {
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
  engine: Engine,
  channelText: string,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const channel = readChannel(channelText);
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
  const form = contentType(request);
  const many = form === "application/x-ndjson";
  if (!many && form !== "application/json")
    throw new PereError("wrongType", "push takes application/json, or application/x-ndjson for many events at once");

  const bytes = await bodyOf(request, many ? BODY_BYTES_MAX : EVENT_BYTES_MAX);
  const text = readText(bytes);
  const drafts = (many ? readLines(text) : [readData(text)]).map((data) => ({ ...options, data }));
  if ((options.to?.length ?? 0) * drafts.length > TARGETS_MAX)
    throw new PereError("tooLarge", `to: names times lines may be at most ${TARGETS_MAX}; send several requests`);
  const digest = key === null ? "" : `${many ? "many" : "one"}:${Bun.SHA256.hash(bytes, "base64")}`;
  const pushed = await engine.push(channel, drafts, key === null ? undefined : { key, digest });

  const status = pushed.replayed ? 200 : 201;
  const headers: Record<string, string> = pushed.replayed ? { "Idempotent-Replayed": "true" } : {};
  const { epoch, first, count, audience } = pushed;
  const at = iso(pushed.at);
  let outcomes: ReadonlyMap<number, Tally> = new Map();
  if (waitMs !== null) {
    server.timeout(request, 0);
    // What was stored is acknowledged, also where its tally can't be read now.
    outcomes = await engine.outcome(pushed, channel, waitMs, request.signal).catch(() => outcomes);
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
  return json(event, status, { Location: `/events/${channel}/${name}`, ...headers });
}

// ----------------------------------------------------------------------------------------------------------------- follow

const STREAM_HEADERS = {
  "Content-Type": "text/event-stream",
  "Cache-Control": "no-cache, no-transform",
  "X-Accel-Buffering": "no",
};
/** Seconds that a peer who does not read may hold a stream that was ended. */
const LINGER_SECONDS = 10;

/** A feed by whichever transport the request asks for: the same URL, the same cursor. */
function follow(
  engine: Engine,
  kind: Kind,
  channels: string,
  request: Request,
  server: Server<SocketData>,
  random: () => number,
) {
  const query = queryOf(request);
  const positions = (text: string | null | undefined, path: string): readonly Position[] | null =>
    text ? readPositions(text, path) : null;
  const since = query.get("since") ?? "now";
  const asked: FeedRequest = {
    kind,
    channels: readChannels(channels),
    device: kind === "events" ? deviceOf(request, query) : null,
    last: positions(request.headers.get("last-event-id") || query.get("last-event-id"), "last-event-id"),
    since: since === "now" || since === "earliest" ? since : readPositions(since, "since"),
    renew: false,
  };
  if (request.headers.get("upgrade")?.toLowerCase() === "websocket") return socket(engine, asked, request, server);
  if (accepts(request, "application/json") && !accepts(request, "text/event-stream"))
    return poll(engine, asked, query, request, server);
  return eventStream(engine, { ...asked, renew: true }, request, server, random);
}

function eventStream(
  engine: Engine,
  asked: FeedRequest,
  request: Request,
  server: Server<SocketData>,
  random: () => number,
): Response {
  if (request.method === "HEAD") return new Response(null, { headers: STREAM_HEADERS });
  server.timeout(request, 0);
  let stop = (): void => {};
  const stream = new ReadableStream({
    type: "direct",
    pull(out: DirectController) {
      // Without a promise the stream stays open until it is closed.
      const feed = engine.follow(asked, new EventStream(out, random, () => server.timeout(request, LINGER_SECONDS)));
      stop = () => feed.stop();
    },
    cancel: () => stop(),
  } as unknown as UnderlyingDefaultSource);
  return new Response(stream, { headers: STREAM_HEADERS });
}

/** Messages that a socket may send before it is told that it is ready. */
const EARLY_MESSAGES_MAX = 16;

function socket(
  engine: Engine,
  asked: FeedRequest,
  request: Request,
  server: Server<SocketData>,
): Response | undefined {
  const offered = (request.headers.get("sec-websocket-protocol") ?? "").split(",").map((name) => name.trim());
  let wire: Socket;
  let feed: ReturnType<Engine["follow"]>;
  /** What came before the feed was ready: only then is it known which channel an event is of. */
  let early: (string | Buffer)[] | null = [];
  const take = (message: string | Buffer): void => {
    feed.heard();
    void socketFeedback(engine, asked, feed.logs, message).then(
      (feedback) => wire.say("receipts", feedback),
      (error: unknown) =>
        wire.say("error", { detail: error instanceof PereError ? error.message : "something went wrong in PERE" }),
    );
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
      if (asked.kind === "receipts") return wire.say("error", { detail: "this feed only tells; receipts go to /feed" });
      if (early === null) return take(message);
      if (early.length < EARLY_MESSAGES_MAX) early.push(message);
      else wire.say("error", { detail: "wait for ready before you send so much" });
    },
    drain: () => wire.drained(),
    pong: () => feed.heard(),
    close() {
      feed.stop();
      wire.drained();
    },
  };
  if (offered[0] !== "" && !offered.includes("pere.v1"))
    throw new PereError(
      "malformed",
      "of the subprotocols that were offered PERE speaks none; offer pere.v1 among them, or none",
    );
  const headers = offered.includes("pere.v1") ? { "Sec-WebSocket-Protocol": "pere.v1" } : {};
  if (server.upgrade(request, { data, headers })) return undefined;
  throw new PereError("malformed", "the WebSocket handshake is incomplete");
}

/** Receipts in a WebSocket message: as in `POST /feedback`, from the feed's own device. An event's epoch tells its channel. */
async function socketFeedback(
  engine: Engine,
  { device, channels }: FeedRequest,
  logs: readonly { channel: string; epoch: string }[],
  message: string | Buffer,
): Promise<Feedback> {
  if (typeof message !== "string") throw new PereError("malformed", "a message is a JSON text, not bytes");
  if (device === null)
    throw new PereError("refused", "this feed is anonymous: it owes no receipts; open it with ?device=");
  return engine.feedback(
    receiptItems(
      readReceiptsJson(message, "message"),
      device,
      ({ event }) => logs.find(({ epoch }) => epoch === event.epoch)?.channel ?? channels[0]!,
    ),
  );
}

async function poll(
  engine: Engine,
  asked: FeedRequest,
  query: ReadonlyMap<string, string>,
  request: Request,
  server: Server<SocketData>,
) {
  const wait = readSeconds(query.get("wait") ?? "0", "wait", 0, POLL_SECONDS_MAX);
  if (request.method === "HEAD") return jsonText("");
  server.timeout(request, 0);
  const wire = new Poll();
  const feed = engine.follow(asked, wire);
  wire.of(feed);
  request.signal.addEventListener("abort", () => feed.stop());
  const timer = setTimeout(() => wire.timeUp(), wait * 1000);
  const answer = await wire.answer;
  clearTimeout(timer);
  if (!answer) throw new PereError("away", "PERE can't serve this feed now; ask again in a moment");
  const gaps = answer.gaps.length > 0 ? `,"gaps":${JSON.stringify(answer.gaps)}` : "";
  const complete = answer.complete.length > 0 ? `,"complete":[${answer.complete.join(",")}]` : "";
  return jsonText(`{"events":[${answer.texts.join(",")}],"last":"${answer.last}"${gaps}${complete}}`);
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
function oldReceipt(text: string, request: Request, device: string | null, channel: string): ReceiptItem {
  const form = new URLSearchParams(text);
  const event = form.get("id") ?? form.get("event") ?? request.headers.get("last-event-id") ?? "";
  const name = form.get("device") ?? device;
  if (name === null) return { event, reason: "device: must be named, as a field, in the query or in a header" };
  const said = readOldStatus(form.get("status") ?? "");
  const draft = { event: readPosition(event, "id"), device: readDevice(name), ...said, deviceAt: null };
  return { channel, draft };
}

async function feedback(engine: Engine, channelText: string, request: Request): Promise<Response> {
  const channel = readChannel(channelText);
  const device = deviceOf(request, queryOf(request));
  const form = contentType(request);
  if (form !== "application/json" && form !== "application/x-www-form-urlencoded")
    throw new PereError("wrongType", "feedback takes application/json, or a form as the first PERE clients sent it");
  const text = readText(await bodyOf(request, RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024)));
  const items =
    form === "application/json"
      ? receiptItems(readReceiptsJson(text), device, () => channel)
      : [oldReceipt(text, request, device, channel)];
  const result = await engine.feedback(items);
  if (items.length === 0 || result.rejected.length < items.length) return json(result);
  const why = result.rejected.length === 1 ? result.rejected[0]!.reason : "every receipt was rejected";
  return problem(new PereError("refused", why), result);
}

// ---------------------------------------------------------------------------------------------------------------- reading

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

async function rows(engine: Engine, channelText: string, event: string, request: Request): Promise<Response> {
  const channel = readChannel(channelText);
  const query = queryOf(request);
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
    for (const breath = new Breath(); ;) {
      yield page.items.map((row) => (asCsv ? `${rowCsv(row)}\r\n` : `${rowJson(row)}\n`)).join("");
      left -= page.items.length;
      if (page.next === null || left <= 0) return;
      await breath.take();
      page = await read(page.next, Math.min(left, EXPORT_ROWS));
    }
  }
  const type = asCsv ? "text/csv; charset=utf-8; header=present" : "application/x-ndjson";
  return new Response(lines() as unknown as BodyInit, {
    headers: { "Content-Type": type, "Cache-Control": "no-store" },
  });
}

const deviceJson = (device: Awaited<ReturnType<Engine["devices"]>>["devices"][number]) => ({
  ...device,
  enrolledAt: iso(device.enrolledAt),
  seenAt: device.seenAt === null ? null : iso(device.seenAt),
});

// ------------------------------------------------------------------------------------------------------------------ hooks

async function putHook(engine: Engine, params: { channel: string; name: string }, request: Request): Promise<Response> {
  const channel = readChannel(params.channel);
  const name = readHookName(params.name);
  if (contentType(request) !== "application/json") throw new PereError("wrongType", "a hook is application/json");
  const body = readReceiptsJson(readText(await bodyOf(request, HOOK_BYTES_MAX)));
  const { hook, created } = await engine.hooks.put(channel, name, body);
  return json(hook, created ? 201 : 200);
}

// ----------------------------------------------------------------------------------------------------------------- routes

const file = (path: string, type: string): Response =>
  new Response(Bun.file(path), { headers: { "Content-Type": type, "Cache-Control": "max-age=3600" } });

/** All routes. `random` (from 0 up to 1) spreads the readers' return. */
function routes(engine: Engine, random: () => number) {
  const raw = { parse: "none" } as const;
  const app = new Elysia({
    normalize: false,
    handler: { standardHostname: false },
    serve: {
      reusePort: false,
      maxRequestBodySize: Number.MAX_SAFE_INTEGER /* Each route has its own, and says so. */,
      development: false,
    },
    websocket: {
      maxPayloadLength: RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024),
      backpressureLimit: 1024 * 1024,
      closeOnBackpressureLimit: true,
      sendPings: true,
      idleTimeout: 60,
    },
  });
  return app
    .onError(({ code, error, request, path }) => {
      if (code !== "NOT_FOUND") return toResponse(error);
      const allowed = methodsAt(app.routes, path);
      if (allowed.length === 0) return problem(new PereError("unknown", `there is nothing at ${path}`));
      const response = problem(new PereError("wrongMethod", `${path} does not take ${request.method}`));
      response.headers.set("Allow", allowed.join(", "));
      return response;
    })

    .post(
      "/push/:channel",
      ({ params, request, server }) => push(engine, params.channel, request, server as Server<SocketData>),
      { ...raw, detail: operations.push },
    )
    .get(
      "/feed/:channel",
      ({ params, request, server }) =>
        follow(engine, "events", params.channel, request, server as Server<SocketData>, random),
      { detail: operations.feed },
    )
    .post("/feedback/:channel", ({ params, request }) => feedback(engine, params.channel, request), {
      ...raw,
      detail: operations.feedback,
    })
    .get(
      "/feedback/:channel",
      ({ params, request, server }) =>
        follow(engine, "receipts", params.channel, request, server as Server<SocketData>, random),
      { detail: operations.receipts },
    )

    .get(
      "/channels",
      async ({ request }) => {
        const query = queryOf(request);
        const { after, limit } = pageOf(query);
        return json(await engine.channels(after, query.has("limit") ? limit : null));
      },
      { detail: operations.channels },
    )
    .get(
      "/events/:channel",
      async ({ params, request }) => {
        const { after, limit } = pageOf(queryOf(request));
        const { texts, next } = await engine.events(
          readChannel(params.channel),
          after ? readPosition(after, "after") : null,
          limit,
        );
        return jsonText(`{"events":[${texts.join(",")}],"next":${JSON.stringify(next)}}`);
      },
      { detail: operations.events },
    )
    .get(
      "/events/:channel/:id",
      async ({ params }) => jsonText(await engine.event(readChannel(params.channel), params.id)),
      { detail: operations.event },
    )
    .get("/events/:channel/:id/receipts", ({ params, request }) => rows(engine, params.channel, params.id, request), {
      detail: operations.rows,
    })
    .get(
      "/devices/:channel",
      async ({ params, request }) => {
        const { after, limit } = pageOf(queryOf(request));
        const { devices, next } = await engine.devices(readChannel(params.channel), after, limit);
        return json({ devices: devices.map(deviceJson), next });
      },
      { detail: operations.devices },
    )
    .put(
      "/devices/:channel/:device",
      async ({ params }) => {
        const channel = readChannel(params.channel);
        const device = readDevice(params.device);
        const enrolled = await engine.enrol(channel, device);
        return json({ channel, device, enrolled: true }, enrolled ? 201 : 200);
      },
      { ...raw, detail: operations.enrol },
    )
    .delete(
      "/devices/:channel/:device",
      async ({ params }) => {
        await engine.retire(readChannel(params.channel), readDevice(params.device));
        return new Response(null, { status: 204 });
      },
      { ...raw, detail: operations.retire },
    )

    .get(
      "/hooks/:channel",
      async ({ params }) => json({ hooks: await engine.hooks.list(readChannel(params.channel)) }),
      { detail: operations.hooks },
    )
    .put("/hooks/:channel/:name", ({ params, request }) => putHook(engine, params, request), {
      ...raw,
      detail: operations.putHook,
    })
    .delete(
      "/hooks/:channel/:name",
      async ({ params }) => {
        await engine.hooks.drop(readChannel(params.channel), readHookName(params.name));
        return new Response(null, { status: 204 });
      },
      { ...raw, detail: operations.dropHook },
    )
    .post(
      "/hooks/:channel/:name/retry",
      async ({ params }) => {
        const retried = await engine.hooks.retry(readChannel(params.channel), readHookName(params.name));
        return json({ retried });
      },
      { ...raw, detail: operations.retryHook },
    )

    .get("/health", () => json({ status: "ok" }), { detail: operations.health })
    .get(
      "/ready",
      async () => {
        const store = await engine.ready();
        if (engine.draining) throw new PereError("away", "PERE is shutting down");
        return json({ status: "ready", ...store });
      },
      { detail: operations.ready },
    )

    .get("/", () => Response.redirect("/weblistener.html", 302), { detail: { hide: true } })
    .get("/swagger/ui.js", () => file(swaggerScript, "text/javascript"), {
      detail: { hide: true },
    })
    .get("/swagger/ui.css", () => file(swaggerStyle, "text/css"), { detail: { hide: true } });
}

/** The pages, and what they load: from source and from the executable alike. */
const WEB = join(import.meta.dir, "web");

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
  /** Takes no more pushes, tells every feed, makes everything acknowledged durable, and lets go of file and port. */
  stop(): Promise<void>;
}

/** Milliseconds in which feeds that were told to go may read that they were. */
const FAREWELL_MS = 200;

/** Redis is loaded only when it is asked for. */
async function openRedis(urls: readonly string[], replicas: number): Promise<Store> {
  const { RedisStore } = await import("./engine/redis.ts");
  return RedisStore.open({ urls, replicas });
}

/** Starts PERE. @throws PereError or Error when the file or the port can't be had */
export async function serve(settings: Settings, options: EngineOptions = {}): Promise<Service> {
  const { db, redis, replicas, hooksAllowed, limits } = settings;
  const store = redis === null ? new SqliteStore({ path: db }) : await openRedis(redis, replicas);
  const engine = new Engine(store, { hooksAllowed, ...options, limits: { ...limits, ...options.limits } });
  const app = routes(engine, options.random ?? Math.random);
  app.use(
    await staticPlugin({
      assets: WEB,
      prefix: "/",
      alwaysStatic: true,
      ignorePatterns: [/\.ts$/, "swagger.html"],
      directive: "no-cache",
      maxAge: null,
    }),
  );
  // The plugin makes the document. Its page loads a script from elsewhere, so ours takes that page's place, with a slash behind it or not.
  app.use(swagger({ documentation: document(packageJson.version) }));
  for (const path of ["/swagger", "/swagger/"])
    app.get(path, () => file(join(WEB, "swagger.html"), "text/html; charset=utf-8"), { detail: { hide: true } });
  try {
    app.listen({ hostname: settings.host, port: settings.port });
  } catch (error) {
    await engine.drain();
    await engine.close();
    throw error;
  }
  const server = app.server!;
  return {
    url: `http://${settings.host.includes(":") ? `[${settings.host}]` : settings.host}:${server.port}`,
    engine,
    async stop() {
      await engine.drain();
      await Promise.race([server.stop(), Bun.sleep(FAREWELL_MS)]);
      await server.stop(true);
      await engine.close();
    },
  };
}

if (import.meta.main) {
  try {
    const service = await serve(readSettings(process.argv.slice(2), process.env));
    console.log(`PERE listening on ${service.url}`);
    service.engine.ready().then(
      ({ version, durability, advice }) => {
        console.log(`PERE keeps its logs in ${version}, durability: ${durability}`);
        for (const sentence of advice) console.log(sentence);
      },
      (error: Error) => console.error(`PERE's store is away: ${error.message}`),
    );
    for (const signal of ["SIGTERM", "SIGINT"] as const)
      process.once(signal, () => {
        process.once(signal, () => process.exit(1));
        void service.stop().then(() => process.exit(0));
      });
  } catch (error) {
    console.error(`PERE can't start: ${(error as Error).message}`);
    process.exit(1);
  }
}
