/**
 * The body of an open event stream.
 */
import type { Server } from "bun";
import type { PereError } from "../model.ts";
import { closeHeader } from "./refusal.ts";
import type { DirectController, SocketData } from "./transports.ts";

const STREAM_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Content-Type": "text/event-stream",
  "Cache-Control": "no-cache, no-transform",
  "X-Accel-Buffering": "no",
};

/** Starts writing to a stream; returns what to stop when the reader is gone. */
type Begin = (out: DirectController) => { stop(): void };

/** The source of an open stream. A class that holds nothing of the request, so that a quiet feed costs next to nothing. */
class OpenStream {
  readonly type = "direct";
  #begin: Begin | null;
  #running: { stop(): void } | null = null;

  constructor(begin: Begin) {
    this.#begin = begin;
  }

  pull(out: DirectController): void {
    // `pull` returns no promise, so the stream stays open until it is closed.
    this.#running = this.#begin!(out);
    this.#begin = null;
  }

  cancel(): void {
    this.#running?.stop();
  }
}

/** Answers with an event stream. `refused`: why the feed will end at once. */
export function stream(
  request: Request,
  server: Server<SocketData>,
  refused: PereError | null,
  begin: Begin,
): Response {
  if (request.method === "HEAD") return new Response(null, { headers: STREAM_HEADERS });
  server.timeout(request, 0);
  const body = new ReadableStream(new OpenStream(begin) as unknown as UnderlyingDefaultSource);
  return new Response(body, { headers: { ...STREAM_HEADERS, ...closeHeader(request, refused) } });
}

/** A feed that ends at once. */
export function ended(wire: { bye(reason: "busy"): void }): { stop(): void } {
  wire.bye("busy");
  return { stop() {} };
}
