/**
 * A feed over a WebSocket: events go out, receipts and fresh tokens come in.
 */
import type { Server } from "bun";
import { demand } from "../auth/rights.ts";
import type { Engine, Feedback } from "../engine.ts";
import type { FeedRequest } from "../feeds/feed.ts";
import { iso, PereError, readReceiptsJson } from "../model.ts";
import type { RouteContext } from "./context.ts";
import { receiptItems } from "./feedback.ts";
import { sentenceOf } from "./problem.ts";
import { Socket, type SocketData } from "./transports.ts";

/** @throws PereError malformed */
export function upgraded(request: Request, server: Server<SocketData>, data: SocketData): undefined {
  if (server.upgrade(request, { data, headers: protocolOf(request) })) return undefined;
  throw new PereError("malformed", "the WebSocket handshake is incomplete");
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

export function socket(
  { engine, admission, log, right }: RouteContext,
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
    await work.catch((error: unknown) => wire.say("error", { detail: sentenceOf(log, error) }));
    unanswered -= message.length + MESSAGE_COST;
  };
  /** Puts the feed's end off to the fresh token's; one that allows less, or is somebody else's, changes nothing. */
  const renew = async (token: string): Promise<void> => {
    const grant = await admission.renewed(token);
    for (const channel of asked.channels) demand(grant, right, channel);
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
