/**
 * The body of an open event stream.
 */
import type { Server } from "bun";
import type { PereError } from "../model.ts";
import { closing } from "./refusal.ts";
import type { DirectController, SocketData } from "./transports.ts";

const STREAM_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Content-Type": "text/event-stream",
  "Cache-Control": "no-cache, no-transform",
  "X-Accel-Buffering": "no",
};

/** Writes to a stream from now on; gives what is to be stopped when the reader is gone. */
type Begin = (out: DirectController) => { stop(): void };

/** What Bun asks of an open stream. A class, and nothing of the request in it: a quiet feed should cost next to nothing. */
class OpenStream {
  readonly type = "direct";
  #begin: Begin | null;
  #running: { stop(): void } | null = null;

  constructor(begin: Begin) {
    this.#begin = begin;
  }

  pull(out: DirectController): void {
    // Without a promise the stream stays open until it is closed.
    this.#running = this.#begin!(out);
    this.#begin = null;
  }

  cancel(): void {
    this.#running?.stop();
  }
}

export function stream(
  request: Request,
  server: Server<SocketData>,
  refused: PereError | null,
  begin: Begin,
): Response {
  if (request.method === "HEAD") return new Response(null, { headers: STREAM_HEADERS });
  server.timeout(request, 0);
  const body = new ReadableStream(new OpenStream(begin) as unknown as UnderlyingDefaultSource);
  return new Response(body, { headers: { ...STREAM_HEADERS, ...closing(request, refused) } });
}

/** A feed that ends as it begins. */
export function ended(wire: { bye(reason: "busy"): void }): { stop(): void } {
  wire.bye("busy");
  return { stop() {} };
}
