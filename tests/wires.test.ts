/**
 * The end of an event stream, over real connections: who reads is told why, who does not is cut off.
 */
import { afterEach, expect, test } from "bun:test";
import type { Server, Socket } from "bun";
import { type DirectController, closeStream } from "../engine/http/transports.ts";
import { until } from "./support/harness.ts";

let server: Server<undefined>;
afterEach(() => server.stop(true));

/** A stream with so many bytes in it already, and a peer who reads or does not. */
async function open(bytes: number, reads: boolean) {
  const opened = Promise.withResolvers<DirectController>();
  server = Bun.serve({
    port: 0,
    development: false,
    fetch(request, { timeout }) {
      timeout.call(server, request, 0);
      const source = {
        type: "direct",
        pull(out: DirectController) {
          out.write("x".repeat(bytes));
          opened.resolve(out);
        },
      };
      return new Response(new ReadableStream(source as unknown as UnderlyingDefaultSource));
    },
  });
  const peer = { read: "", isClosed: false };
  const socket: Socket = await Bun.connect({
    hostname: "127.0.0.1",
    port: server.port!,
    socket: {
      data: (_, chunk) => void (peer.read = (peer.read + chunk.toString("latin1")).slice(-200)),
      close: () => void (peer.isClosed = true),
    },
  });
  if (!reads) socket.pause();
  socket.write("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  return { out: await opened.promise, peer, socket };
}

test("a reader that keeps up is told why, and the stream ends", async () => {
  const { out, peer } = await open(10, true);
  closeStream(out, "renew", () => 0);
  await until(() => peer.isClosed);
  expect(peer.read).toContain('retry: 50\nevent: pere.bye\ndata: {"reason":"renew"}\n\n');
});

test("a reader that is behind and reads again is told too", async () => {
  const { out, peer, socket } = await open(8_000_000, false);
  closeStream(out, "renew", () => 0);
  socket.resume();
  await until(() => peer.isClosed);
  expect(peer.read).toContain('event: pere.bye\ndata: {"reason":"renew"}\n\n');
});

test("a reader that does not read is cut off after a while, and holds no memory", async () => {
  const { out, peer, socket } = await open(8_000_000, false);
  closeStream(out, "renew", () => 0, 100);
  await until(() => server.pendingRequests === 0);
  socket.resume();
  await until(() => peer.isClosed);
  expect(peer.read).not.toContain("pere.bye");
});
