/**
 * A feed over a WebSocket: events go out, receipts and fresh tokens come in.
 */
import type { Server } from "bun";
import { demand } from "../auth/rights.ts";
import type { Engine, Feedback } from "../engine.ts";
import type { FeedRequest } from "../feeds/feed.ts";
import { iso, PereError } from "../model.ts";
import { readReceiptsJson } from "../parsing.ts";
import type { RouteContext } from "./context.ts";
import { receiptItems } from "./feedback.ts";
import { sentenceOf } from "./problem.ts";
import { Socket, type SocketData } from "./transports.ts";

/** Upgrades to a WebSocket. @throws PereError malformed */
export function upgraded(request: Request, server: Server<SocketData>, data: SocketData): undefined {
  if (server.upgrade(request, { data, headers: protocolOf(request) })) return undefined;
  throw new PereError("malformed", "the WebSocket handshake is incomplete");
}

/** Longer messages are not checked for a token. */
const MESSAGE_WITH_TOKEN_MAX = 16 * 1024;
/** Characters of unanswered messages on one socket, waiting for the feed or the store: one message of maximum length and some more. */
const UNANSWERED_MAX = 8 * 1024 * 1024;
/** What each message counts in addition to its characters. */
const MESSAGE_COST = 256;

/** The token in a message that renews the token of an open socket: `{"pere":"token","token":…}`. Null: it is another message. */
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

/** The header that accepts our subprotocol, or none where the client offers none (RFC 6455, section 4.2.2). @throws PereError malformed */
function protocolOf(request: Request): Record<string, string> {
  const offered = request.headers.get("sec-websocket-protocol") ?? "";
  if (offered.split(",").some((name) => name.trim() === "pere.v1")) return { "Sec-WebSocket-Protocol": "pere.v1" };
  if (offered.split(",", 1)[0]!.trim() === "") return {};
  throw new PereError("malformed", "no supported subprotocol was offered; offer pere.v1, or no subprotocol at all");
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
  /** Messages that came before the feed was ready; only then is the channel of each event known. Null: it is ready. */
  let early: (string | Buffer)[] | null = [];
  /** Characters of messages that are not answered yet. */
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
  /** Extends the feed to the new token's expiry. A token with fewer rights or of another device changes nothing. */
  const renew = async (token: string): Promise<void> => {
    const grant = await admission.renewed(token);
    for (const channel of asked.channels) demand(grant, right, channel);
    if (asked.device !== null && grant.subject !== null && grant.subject !== asked.device)
      throw new PereError("forbidden", `token: it is for another device; this feed is for ${asked.device}`);
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
        const fault = early === null ? "unanswered messages; wait for answers" : "messages before `ready`; wait for it";
        wire.say("error", { detail: `too many ${fault}, then send these again` });
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

/** Stores the receipts in a WebSocket message, as `POST /feedback` does, for the feed's own device. An event's epoch identifies its channel. */
async function socketFeedback(
  engine: Engine,
  { device, channels }: FeedRequest,
  count: (receipts: number) => Promise<void> | void,
  logs: readonly { channel: string; epoch: string }[],
  message: string | Buffer,
): Promise<Feedback> {
  if (typeof message !== "string")
    throw new PereError("malformed", "messages must be text frames with JSON, not binary frames");
  if (device === null)
    throw new PereError("refused", "this feed is anonymous and can't give receipts; open it with ?device=");
  const items = receiptItems(
    readReceiptsJson(message, "message"),
    device,
    ({ event }) => logs.find(({ epoch }) => epoch === event.epoch)?.channel ?? channels[0]!,
  );
  await count(items.length);
  return engine.feedback(items);
}
