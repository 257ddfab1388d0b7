/**
 * `GET /watch`: what the console's pages show live.
 */
import type { Server } from "bun";
import { demand } from "../auth/rights.ts";
import { readChannel } from "../parsing.ts";
import type { Params, RouteContext } from "./context.ts";
import { ended, stream } from "./feed-stream.ts";
import { nullIfTemporary, refusal } from "./refusal.ts";
import { queryOf } from "./request.ts";
import { type SocketData, WatchStream } from "./transports.ts";

/** Shows activity in all channels that the caller may push to, and in one of them event by event. */
export async function watch(
  { engine, admission, random, log, right }: RouteContext,
  _params: Params,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const name = queryOf(request, ["channel"]).get("channel");
  const channel = name === undefined ? null : readChannel(name);
  const grant = await admission
    .authorize(request, right, [])
    .catch((error: unknown) => nullIfTemporary(error, request));
  if (grant === null) return stream(request, server, null, (out) => ended(new WatchStream(out, random)));
  demand(grant, right, channel);
  const asked = {
    channel,
    scope: grant.scope(right),
    expires: grant.expires,
    refused: await refusal(log, () => admission.counter("feed", grant, request, server)(1)),
  };
  return stream(request, server, asked.refused, (out) => ({
    stop: engine.watch(asked, new WatchStream(out, random)),
  }));
}
