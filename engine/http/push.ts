/**
 * `POST /push/:channel`: stores one event or many, and with `Prefer: wait` answers when all their devices are done, or after that time.
 * `POST /events/:channel/:id/again` pushes an event once more, to those who did not do it.
 */
import type { Server } from "bun";
import type { Grant } from "../auth/rights.ts";
import type { Pushed } from "../engine.ts";
import { unexpected } from "../faults.ts";
import {
  BODY_BYTES_MAX,
  EVENT_BYTES_MAX,
  type EventDraft,
  id,
  isComplete,
  iso,
  PereError,
  type Tally,
  tallyCounts,
  TARGETS_MAX,
} from "../model.ts";
import { EVENT_OPTIONS, readChannel, readData, readEventOptions, readKey, readLines, readText } from "../parsing.ts";
import { eventOptionsOf, readTiming, SCHEDULE_OPTIONS, type Timing } from "../schedule/schedules.ts";
import type { Schedule } from "../store.ts";
import type { Params, RouteContext } from "./context.ts";
import { contentType, queryOf, refuseEncodedBody, waitOf } from "./request.ts";
import { json } from "./response.ts";
import type { SocketData } from "./transports.ts";

const PUSH_OPTIONS = [...EVENT_OPTIONS, ...SCHEDULE_OPTIONS];

/**
 * An idempotency key as stored, so that keys of two publishers never collide. A key can't contain the separator.
 * @param subject of the token; null: no token
 */
const ownedKey = (subject: string | null, key: string): string => (subject === null ? key : `${subject}\x1f${key}`);

/** The key of a request; undefined: it has none. @throws PereError malformed */
function keyOf(request: Request, { subject }: Grant): { readonly key: string; readonly earlier: string } | undefined {
  const text = request.headers.get("idempotency-key");
  if (text === null) return undefined;
  const key = readKey(text);
  return { key: ownedKey(subject, key), earlier: key };
}

/** A digest of the options of a push; absent options are left out. */
function optionsDigest({ to, ...options }: Omit<EventDraft, "data">, timing: Timing | null): string {
  const given = Object.entries({ ...options, ...timing, to: to && [...to].sort() }).filter(
    ([, value]) => value !== null,
  );
  const text = JSON.stringify(Object.fromEntries(given.sort(([a], [b]) => (a < b ? -1 : 1))));
  return Bun.SHA256.hash(text, "base64");
}

/** The tallies of events by their seq; without `Prefer: wait` there are none. */
type Outcomes = ReadonlyMap<number, Tally>;
const NO_OUTCOMES: Outcomes = new Map();

/** Waits for the final receipts of what was pushed. Empty: its tallies can't be read now. @throws PereError away, where it was lost since */
async function outcomesOf(
  { engine, log }: RouteContext,
  pushed: Pushed,
  channel: string,
  waitMs: number,
  signal: AbortSignal,
): Promise<Outcomes> {
  // A stored event is acknowledged even when its tally can't be read now.
  const found = await engine.outcome(pushed, channel, waitMs, signal).catch((error: unknown) => {
    unexpected(log.incident, error);
    return NO_OUTCOMES;
  });
  if (found !== null) return found;
  // A stored event that was lost since is not.
  const event = id(pushed.epoch, pushed.first);
  throw new PereError(
    "away",
    `the log of channel ${channel} was lost or restored from a backup while this push waited, and event ${event} is gone; push again`,
  );
}

/** Waits as long as the request asks for. */
async function awaited(
  context: RouteContext,
  pushed: Pushed,
  channel: string,
  waitMs: number | null,
  request: Request,
  server: Server<SocketData>,
): Promise<Outcomes> {
  if (waitMs === null) return NO_OUTCOMES;
  server.timeout(request, 0);
  return outcomesOf(context, pushed, channel, waitMs, request.signal);
}

const outcomeJson = (tally: Tally | undefined) =>
  tally ? { receipts: tallyCounts(tally), complete: isComplete(tally) } : {};

/** The answer to a push of one event, or of many. */
function answer(pushed: Pushed, channel: string, many: boolean, outcomes: Outcomes, basePath: string): Response {
  const status = pushed.replayed ? 200 : 201;
  const headers: Record<string, string> = pushed.replayed ? { "Idempotent-Replayed": "true" } : {};
  if (outcomes.size > 0) headers["Preference-Applied"] = "wait";
  const { epoch, first, count, audience } = pushed;
  const warnings = pushed.warnings.length === 0 ? {} : { warnings: pushed.warnings };
  const at = iso(pushed.at);
  if (many) {
    const events = Array.from({ length: count }, (_, n) => {
      const seq = first + n;
      return { id: id(epoch, seq), seq, at, ...outcomeJson(outcomes.get(seq)) };
    });
    return json({ events, audience, ...warnings }, status, headers);
  }
  const name = id(epoch, first);
  const typed = pushed.type === null ? {} : { type: pushed.type };
  const about = { id: name, channel, seq: first, at, ...typed, audience, ...warnings };
  return json({ ...about, ...outcomeJson(outcomes.get(first)) }, status, {
    Location: `${basePath}/events/${channel}/${name}`,
    ...headers,
  });
}

/** The answer to a push that is stored for later. */
function scheduledAnswer(
  { schedule: { id: name, next }, replayed }: { schedule: Schedule; replayed: boolean },
  channel: string,
  basePath: string,
): Response {
  return json({ id: name, channel, next: next === null ? null : iso(next) }, replayed ? 200 : 202, {
    Location: `${basePath}/scheduled/${channel}/${name}`,
    ...(replayed ? { "Idempotent-Replayed": "true" } : {}),
  });
}

export async function push(
  context: RouteContext,
  params: Params,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const { engine, admission, bodyOf, basePath, right } = context;
  const channel = readChannel(params.channel);
  const grant = await admission.authorize(request, right, [channel]);
  const query = queryOf(request, PUSH_OPTIONS);
  const options = readEventOptions(query);
  const timing = readTiming(query, engine.clock.stamp());
  const waitMs = waitOf(request);
  if (timing && waitMs !== null)
    throw new PereError("refused", "Prefer: wait is for what is pushed now; leave it out, or at and every");
  const named = keyOf(request, grant);
  const take = admission.counter("push", grant, request, server);
  const form = contentType(request);
  const many = form === "application/x-ndjson";
  if (!many && form !== "application/json")
    throw new PereError("wrongType", "push takes application/json, or application/x-ndjson for many events at once");

  if (timing && many)
    throw new PereError("refused", "only one event can be scheduled at a time; send application/json");
  if (many && options.key !== null)
    throw new PereError("refused", "key: many events at once can't have a key; push them one by one", [
      { path: "key", message: "not with application/x-ndjson" },
    ]);

  const bytes = await bodyOf(request, many ? BODY_BYTES_MAX : EVENT_BYTES_MAX);
  const text = readText(bytes);
  const drafts = (many ? readLines(text) : [readData(text)]).map((data) => ({ ...options, data }));
  if ((options.to?.length ?? 0) * drafts.length > TARGETS_MAX)
    throw new PereError(
      "tooLarge",
      `to: device names times lines must be at most ${TARGETS_MAX}; send several requests`,
    );
  await take(drafts.length);
  const idempotency = named && {
    ...named,
    digest: `${many ? "many" : "one"}:${Bun.SHA256.hash(bytes, "base64")}?${optionsDigest(options, timing)}`,
  };
  if (timing) {
    const scheduled = await engine.schedules.put(channel, timing, drafts[0]!.data, eventOptionsOf(query), idempotency);
    return scheduledAnswer(scheduled, channel, basePath);
  }
  const pushed = await engine.push(channel, drafts, idempotency);
  const outcomes = await awaited(context, pushed, channel, waitMs, request, server);
  return answer(pushed, channel, many, outcomes, basePath);
}

/** Why these options of a push can't be given where an event is pushed again. */
const NOT_AGAIN: Readonly<Record<string, string>> = {
  to: "the devices are those that failed the event, are missing on it or had it withdrawn; leave it out",
  where: "the devices are those that failed the event, are missing on it or had it withdrawn; leave it out",
  type: "the event is pushed again with its own type; leave it out",
  ask: "the event is pushed again with its own question; leave it out",
  at: "an event is pushed again now; leave it out",
  every: "an event is pushed again now; leave it out",
  tz: "an event is pushed again now; leave it out",
};
const AGAIN_OPTIONS = EVENT_OPTIONS.filter((option) => !(option in NOT_AGAIN));

/** Pushes an event again to those who did not do it; answers as a push does. */
export async function pushAgain(
  context: RouteContext,
  params: Params,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const { engine, admission, basePath, right } = context;
  const channel = readChannel(params.channel);
  const grant = await admission.authorize(request, right, [channel]);
  refuseNotAgain(request);
  const options = readEventOptions(queryOf(request, AGAIN_OPTIONS));
  refuseEncodedBody(request);
  const waitMs = waitOf(request);
  const named = keyOf(request, grant);
  const key = named && { ...named, digest: `again:${params.id}?${optionsDigest(options, null)}` };
  await admission.counter("push", grant, request, server)(1);
  const pushed = await engine.again(channel, params.id, options, key);
  const outcomes = await awaited(context, pushed, channel, waitMs, request, server);
  return answer(pushed, channel, false, outcomes, basePath);
}

/** @throws PereError refused */
function refuseNotAgain(request: Request): void {
  for (const path of new URL(request.url).searchParams.keys()) {
    const message = Object.hasOwn(NOT_AGAIN, path) ? NOT_AGAIN[path]! : null;
    if (message !== null) throw new PereError("refused", `${path}: ${message}`, [{ path, message }]);
  }
}
