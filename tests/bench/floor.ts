/**
 * The floor: what a durable push costs on Bun when a push server is nothing else.
 *
 * `GET /feed/cN` is an event stream. `POST /push/cN` writes its body to a file, waits for a sync that it shares with whatever came while the last
 * one ran, writes the event to each stream of channel N, and answers; any other POST is stored and answered, as a receipt would be. That is all: no
 * rights, no router, no reading of JSON, no tallies, no catching up, and who reads slowly is buffered without bound. So a durable service on
 * this runtime that does more can't be faster with as many syncs and writes.
 *
 *     bun floor.ts FILE
 *
 * listens on a free port of 127.0.0.1 and prints its number.
 */
import { fdatasync, openSync, writeSync } from "node:fs";

/** The file is written over and over, as a log is that has its size: growing costs a sync more. */
const FILE_BYTES = 8 * 1024 * 1024;

interface Stream {
  write(chunk: string | Uint8Array): number | Promise<number>;
}

interface Post {
  /** Null: it is stored, and told to nobody. */
  readonly channel: string | null;
  readonly body: Uint8Array;
  readonly answer: (response: Response) => void;
}

const file = openSync(process.argv[2]!, "w");
writeSync(file, new Uint8Array(FILE_BYTES), 0, FILE_BYTES, 0);
let at = 0;
const streams = new Map<string, Stream[]>();
let posts: Post[] = [];
let events = 0;
let isSyncing = false;

function deliver(channel: string, body: Uint8Array): void {
  const frame = Buffer.concat([Buffer.from(`id: ${++events}\ndata: `), body, Buffer.from("\n\n")]);
  for (const stream of streams.get(channel) ?? []) void stream.write(frame);
}

function commit(): void {
  const some = posts;
  posts = [];
  const bytes = Buffer.concat(some.map(({ body }) => body));
  if (at + bytes.length > FILE_BYTES) at = 0;
  at += writeSync(file, bytes, 0, bytes.length, at);
  isSyncing = true;
  fdatasync(file, (error) => {
    if (error) throw error;
    isSyncing = false;
    for (const { channel, body, answer } of some) {
      if (channel !== null) deliver(channel, body);
      answer(new Response(null, { status: 201 }));
    }
    if (posts.length > 0) commit();
  });
}

function feed(channel: string): Response {
  const stream = new ReadableStream({
    type: "direct",
    pull(out: Stream) {
      void out.write(": hi\n\n");
      const others = streams.get(channel);
      if (others) others.push(out);
      else streams.set(channel, [out]);
      return new Promise(() => {});
    },
  } as unknown as UnderlyingDefaultSource);
  return new Response(stream, { headers: { "Content-Type": "text/event-stream" } });
}

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  idleTimeout: 0,
  async fetch(request) {
    const { url } = request;
    const name = url.indexOf("/c", "http://127.0.0.1".length);
    const end = url.indexOf("?", name);
    const channel = url.slice(name, end === -1 ? undefined : end);
    if (request.method === "GET") return feed(channel);
    const body = await request.bytes();
    return new Promise<Response>((answer) => {
      posts.push({ channel: url.includes("/push/") ? channel : null, body, answer });
      if (!isSyncing && posts.length === 1) setImmediate(commit);
    });
  },
});
console.log(server.port);
