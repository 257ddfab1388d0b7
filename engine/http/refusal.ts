/**
 * Why a caller gets no feed now. It is told on the feed where it can be, for an EventSource that gets any status but 200 never comes back.
 */
import { descriptors } from "../descriptors.ts";
import { PereError } from "../model.ts";
import type { Log } from "./problem.ts";
import { TooMany } from "./rate-limit.ts";
import { accepts } from "./request.ts";

let toldOfDescriptors = false;

/** Why there may be no feed more: too many connections and files are open; null: there is room. */
function shortage(log: Log): PereError | null {
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
export async function refusal(log: Log, take: () => Promise<void> | void): Promise<PereError | null> {
  const short = shortage(log);
  if (short !== null) return short;
  try {
    await take();
    return null;
  } catch (error) {
    if (error instanceof TooMany) return error;
    throw error;
  }
}

/** Where there are too many connections, one that is refused is not kept for what comes next; HTTP/2 has other words for that. */
export const closing = (request: Request, refused: PereError | null): Record<string, string> =>
  refused?.code === "away" && request.url.startsWith("http:") ? { Connection: "close" } : {};

export const isSocket = (request: Request): boolean => request.headers.get("upgrade")?.toLowerCase() === "websocket";
export const isPoll = (request: Request): boolean =>
  accepts(request, "application/json") && !accepts(request, "text/event-stream");

/** Null for trouble that passes, where it is told on the feed: an EventSource that gets any other status than 200 never comes back. @throws all else */
export function passing(error: unknown, request: Request): null {
  if (!(error instanceof PereError) || error.code !== "away" || (isPoll(request) && !isSocket(request))) throw error;
  return null;
}
