/**
 * `POST /push/:channel`: stores one event or many, and with `Prefer: wait` answers when all their devices are done, or after that time.
 */
import type { Server } from "bun";
import { unexpected } from "../faults.ts";
import {
  BODY_BYTES_MAX,
  DEADLINE_SECONDS_MAX,
  DEADLINE_SECONDS_MIN,
  EVENT_BYTES_MAX,
  id,
  isComplete,
  iso,
  keyOf,
  optionsText,
  PereError,
  readChannel,
  readData,
  readKey,
  readLines,
  readSeconds,
  readText,
  readTo,
  readType,
  REMIND_SECONDS_MAX,
  REMIND_SECONDS_MIN,
  type Tally,
  tallyCounts,
  TARGETS_MAX,
  TTL_SECONDS_MAX,
  TTL_SECONDS_MIN,
} from "../model.ts";
import type { Params, RouteContext } from "./context.ts";
import { contentType, queryOf, waitOf } from "./request.ts";
import { json } from "./response.ts";
import type { SocketData } from "./transports.ts";

const PUSH_OPTIONS = ["type", "to", "ttl", "deadline", "remind"] as const;

/** The receipts of an event until now. */
const outcomeJson = (tally: Tally | undefined) =>
  tally ? { receipts: tallyCounts(tally), complete: isComplete(tally) } : {};

export async function push(
  { engine, admission, bodyOf, basePath, log, right }: RouteContext,
  { channel: channelText }: Params,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const channel = readChannel(channelText);
  const grant = await admission.authorize(request, right, [channel]);
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
  const take = admission.counter("push", grant, request, server);
  const form = contentType(request);
  const many = form === "application/x-ndjson";
  if (!many && form !== "application/json")
    throw new PereError("wrongType", "push takes application/json, or application/x-ndjson for many events at once");

  const bytes = await bodyOf(request, many ? BODY_BYTES_MAX : EVENT_BYTES_MAX);
  const text = readText(bytes);
  const drafts = (many ? readLines(text) : [readData(text)]).map((data) => ({ ...options, data }));
  if ((options.to?.length ?? 0) * drafts.length > TARGETS_MAX)
    throw new PereError(
      "tooLarge",
      `to: device names times lines must be at most ${TARGETS_MAX}; send several requests`,
    );
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
    // A stored event is acknowledged even when its tally can't be read now.
    const found = await engine.outcome(pushed, channel, waitMs, request.signal).catch((error: unknown) => {
      unexpected(log.incident, error);
      return outcomes;
    });
    // A stored event that was lost since is not.
    if (found === null)
      throw new PereError(
        "away",
        `the log of channel ${channel} was lost or restored from a backup while this push waited, and event ${id(epoch, first)} is gone; push again`,
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
