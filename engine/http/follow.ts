/**
 * `GET /feed/:channel` and `GET /feedback/:channel`: following a log by whichever transport the request asks for.
 */
import type { Server } from "bun";
import type { FeedRequest } from "../feeds/feed.ts";
import { type Grant, OPEN } from "../auth/rights.ts";
import { type Kind, PereError, type Position } from "../model.ts";
import { readChannels, readPositions } from "../parsing.ts";
import { readTagList, type Tags } from "../tags.ts";
import { OPEN_ROWS, yieldToEventLoop } from "../yield.ts";
import type { Params, RouteContext } from "./context.ts";
import { poll } from "./feed-poll.ts";
import { socket, upgraded } from "./feed-socket.ts";
import { ended, stream } from "./feed-stream.ts";
import { nullIfTemporary, refusal } from "./refusal.ts";
import { deviceOf, isPoll, isSocket, queryOf } from "./request.ts";
import { EventStream, Socket, type SocketData } from "./transports.ts";

/** Query options of a feed, in the order of the error message. A feed of receipts has no device: it holds those of all devices. */
const FEED_OPTIONS: Record<Kind, readonly string[]> = {
  events: ["device", "since", "last-event-id", "lastEventId", "wait", "tags"],
  receipts: ["since", "last-event-id", "lastEventId", "wait"],
};

/** Where a feed can start without a position. Only events have keys. */
const isNamed = (since: string, kind: Kind): since is "now" | "earliest" | "latest" =>
  since === "now" || since === "earliest" || (since === "latest" && kind === "events");

/** The last event id in the query. EventSource polyfills add `lastEventId` when they reconnect, which is then the later position. */
const lastOf = (query: ReadonlyMap<string, string>): string | undefined =>
  query.get("lastEventId") ?? query.get("last-event-id");

/** Follows by the transport that the request asks for. The URL and the positions are the same for all transports. */
async function follow(
  kind: Kind,
  context: RouteContext,
  { channel: channelsText }: Params,
  request: Request,
  server: Server<SocketData>,
) {
  await yieldToEventLoop("open", OPEN_ROWS); // Very many may come at once.
  const { engine, admission, random, log, right } = context;
  const query = queryOf(request, FEED_OPTIONS[kind]);
  const channels = readChannels(channelsText);
  const grant = await admission
    .authorize(request, right, channels)
    .catch((error: unknown) => nullIfTemporary(error, request));
  if (grant === null) return closeAsBusy(random, request, server);
  const positions = (text: string | null | undefined, path: string): readonly Position[] | null =>
    text ? readPositions(text, path) : null;
  const since = query.get("since") ?? "now";
  const device = kind === "events" ? deviceOf(grant, request, query) : null;
  // After an upgrade the address of a request is not known any more.
  const countFeed = admission.counter("feed", grant, request, server);
  const countReceipts = admission.counter("receipt", grant, request, server);
  const asked: FeedRequest = {
    kind,
    channels,
    device,
    tags: tagsOfFeed(grant, device, query.get("tags")),
    expires: grant.expires,
    caller: admission.caller(grant, request, server),
    address: admission.address(request, server),
    refused: await refusal(log, () => countFeed(channels.length)),
    last: positions(request.headers.get("last-event-id") || lastOf(query), "last-event-id"),
    since: isNamed(since, kind) ? since : readPositions(since, "since"),
    renew: false,
  };
  if (isSocket(request)) return socket(context, asked, countReceipts, request, server);
  if (isPoll(request)) return poll(engine, asked, query, request, server);
  return stream(request, server, asked.refused, (out) =>
    engine.follow({ ...asked, renew: true }, new EventStream(out, random)),
  );
}

/**
 * The tags that a device gets as it opens its feed: those of its token, or, without tokens, those in the query. Null: they stay as they are.
 * @throws PereError malformed, refused
 */
function tagsOfFeed(grant: Grant, device: string | null, text: string | undefined): Tags | null {
  if (text === undefined) return device === null ? null : grant.tags;
  const fault =
    grant !== OPEN
      ? "with a token, tags come from its claim pere.tags; leave this option out"
      : "only a feed with a device can have tags; give device as well";
  if (grant !== OPEN || device === null)
    throw new PereError("malformed", `tags: ${fault}`, [{ path: "tags", message: fault }]);
  return readTagList(text);
}

/** Tells a reader to reconnect later, by closing its feed as `busy`. */
function closeAsBusy(random: () => number, request: Request, server: Server<SocketData>): Response | undefined {
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

/** Events, for devices. */
export const followEvents = (
  context: RouteContext,
  params: Params,
  request: Request,
  server: Server<SocketData>,
): Promise<Response | undefined> => follow("events", context, params, request, server);

/** Receipts, for publishers. */
export const followReceipts = (
  context: RouteContext,
  params: Params,
  request: Request,
  server: Server<SocketData>,
): Promise<Response | undefined> => follow("receipts", context, params, request, server);
