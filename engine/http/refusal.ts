/**
 * Feeds that are refused for now. The refusal is sent on the feed itself where possible, because an EventSource never reconnects after a status
 * other than 200.
 */
import { descriptors } from "../descriptors.ts";
import { PereError } from "../model.ts";
import type { ErrorLog } from "./problem.ts";
import { TooMany } from "./rate-limit.ts";
import { isPoll, isSocket } from "./request.ts";

let warnedOfDescriptors = false;

/** Refuses feeds while too many connections and files are open; null: there is room. */
function shortage(log: ErrorLog): PereError | null {
  if (!descriptors().short) return null;
  if (!warnedOfDescriptors)
    log.warn(
      `nearly all ${descriptors().limit} file descriptors of this process are in use, so new feeds are refused for now; ` +
        "raise the limit (ulimit -n, LimitNOFILE=)",
    );
  warnedOfDescriptors = true;
  return new PereError("away", "too many connections are open; try again in a moment");
}

/** Why a caller gets no feed now; null: it gets one. `take` counts it against the rate limit. */
export async function refusal(log: ErrorLog, take: () => Promise<void> | void): Promise<PereError | null> {
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

/** Closes the connection of a refused feed when there are too many connections. HTTP/2 has no such header. */
export const closeHeader = (request: Request, refused: PereError | null): Record<string, string> =>
  refused?.code === "away" && request.url.startsWith("http:") ? { Connection: "close" } : {};

/** Null for temporary trouble that the feed itself can report: all but that of a long-poll. @throws every other error */
export function nullIfTemporary(error: unknown, request: Request): null {
  if (!(error instanceof PereError) || error.code !== "away" || (isPoll(request) && !isSocket(request))) throw error;
  return null;
}
