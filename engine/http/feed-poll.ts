/**
 * A feed by long-poll: one answer, as soon as there is an event or the time is up.
 */
import type { Server } from "bun";
import type { Engine } from "../engine.ts";
import type { FeedRequest } from "../feeds/feed.ts";
import { PereError, POLL_SECONDS_MAX } from "../model.ts";
import { readSeconds } from "../parsing.ts";
import { problem } from "./problem.ts";
import { closeHeader } from "./refusal.ts";
import { jsonText } from "./response.ts";
import { Poll, type SocketData } from "./transports.ts";

/** Milliseconds that a poll waits for the store after its time is up; and at least in all, as long as a call to Redis may take. */
const POLL_GRACE_MS = 1_000;
const POLL_MS_MIN = 2_500;

export async function poll(
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
    for (const [name, value] of Object.entries(closeHeader(request, asked.refused))) response.headers.set(name, value);
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
  // Without a position to resume from, events would be lost before the next poll.
  if (!answer?.last) throw new PereError("away", "PERE can't serve this feed now; ask again in a moment");
  const gaps = answer.gaps.length > 0 ? `,"gaps":${JSON.stringify(answer.gaps)}` : "";
  const notes = [...answer.notes].map(([kind, texts]) => `,"${kind}":[${texts.join(",")}]`).join("");
  const shared = answer.shared === null ? "" : `,"shared":${JSON.stringify(answer.shared)}`;
  return jsonText(`{"events":[${answer.texts.join(",")}],"last":"${answer.last}"${gaps}${notes}${shared}}`);
}
