/**
 * `POST /push/:channel`: stores one event or many, and with `Prefer: wait` answers when all their devices are done, or after that time.
 */
import type { Server } from "bun";
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
import { contentType, queryOf, waitOf } from "./request.ts";
import { json } from "./response.ts";
import type { SocketData } from "./transports.ts";

const PUSH_OPTIONS = [...EVENT_OPTIONS, ...SCHEDULE_OPTIONS];

/**
 * An idempotency key as stored, so that keys of two publishers never collide. A key can't contain the separator.
 * @param subject of the token; null: no token
 */
const ownedKey = (subject: string | null, key: string): string => (subject === null ? key : `${subject}\x1f${key}`);

/** The options of a push in canonical form; absent options are left out. */
function optionsText({ to, ...options }: Omit<EventDraft, "data">, timing: Timing | null): string {
  const given = Object.entries({ ...options, ...timing, to: to && [...to].sort() }).filter(
    ([, value]) => value !== null,
  );
  return JSON.stringify(Object.fromEntries(given.sort(([a], [b]) => (a < b ? -1 : 1))));
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

const outcomeJson = (tally: Tally | undefined) =>
  tally ? { receipts: tallyCounts(tally), complete: isComplete(tally) } : {};

/** The answer to a push of one event, or of many. */
function answer(pushed: Pushed, channel: string, many: boolean, outcomes: Outcomes, basePath: string): Response {
  const status = pushed.replayed ? 200 : 201;
  const headers: Record<string, string> = pushed.replayed ? { "Idempotent-Replayed": "true" } : {};
  if (outcomes.size > 0) headers["Preference-Applied"] = "wait";
  const { epoch, first, count, audience } = pushed;
  const at = iso(pushed.at);
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
  const keyText = request.headers.get("idempotency-key");
  const key = keyText === null ? null : readKey(keyText);
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
  const idempotency =
    key === null
      ? undefined
      : {
          key: ownedKey(grant.subject, key),
          earlier: key,
          digest: `${many ? "many" : "one"}:${Bun.SHA256.hash(bytes, "base64")}?${Bun.SHA256.hash(optionsText(options, timing), "base64")}`,
        };
  if (timing) {
    const scheduled = await engine.schedules.put(channel, timing, drafts[0]!.data, eventOptionsOf(query), idempotency);
    return scheduledAnswer(scheduled, channel, basePath);
  }
  const pushed = await engine.push(channel, drafts, idempotency);
  if (waitMs === null) return answer(pushed, channel, many, NO_OUTCOMES, basePath);
  server.timeout(request, 0);
  const outcomes = await outcomesOf(context, pushed, channel, waitMs, request.signal);
  return answer(pushed, channel, many, outcomes, basePath);
}
