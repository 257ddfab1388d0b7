/**
 * Readers that others wrote, as they are: the browser's `EventSource`, npm's `eventsource` and `ws`, `curl -N`, and python reading lines. No code of PERE's is in them, and each does what
 * its users do: the first two come back by themselves, the others are started again with the last id that they saw.
 *
 * Each goes through the same morning. Something was pushed before it came; the service is told to end and started again, and then it is killed and started again; something is
 * pushed at once each time, whether or not the reader is back. It gives no receipts, so whoever resumed wrongly would be sent all of it anew: it must have everything once, in order.
 */
import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { EventSource } from "eventsource";
import { WebSocket as NodeSocket } from "ws";
import { closeBrowser, isInstalled as isBrowserInstalled, openTab } from "./support/browser.ts";
import { ask, spawn, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

afterAll(closeBrowser);

/** What one event was to its reader: the id that it came with, and the text. */
type Got = readonly [id: string, text: string];

interface Reader {
  /** Events so far, oldest first; not the server's own. */
  got(): Promise<Got[]>;
  close(): Promise<void>;
}
/** Begins to follow a feed, and goes on through whatever happens to it. */
type Open = (feed: string) => Promise<Reader>;

/** What a browser, a phone and most libraries have. */
const browser: Open = async (feed) => {
  const tab = openTab(400, 400);
  await tab.navigate(new URL("/health", feed).href);
  await tab.evaluate(`(() => {
    window.got = [];
    window.source = new EventSource(${JSON.stringify(feed)});
    source.onmessage = ({ lastEventId, data }) => got.push([lastEventId, data]);
  })()`);
  return {
    got: async () => JSON.parse((await tab.evaluate("JSON.stringify(got)")) as string) as Got[],
    close: async () => tab.close(),
  };
};

const eventsource: Open = async (feed) => {
  const got: Got[] = [];
  const source = new EventSource(feed);
  source.onmessage = ({ lastEventId, data }) => got.push([lastEventId, data as string]);
  return { got: async () => got, close: async () => source.close() };
};

/** Milliseconds after which a reader that does not come back by itself is started again. */
const AGAIN_MS = 200;

const ws: Open = async (feed) => {
  const got: Got[] = [];
  let socket: NodeSocket;
  let isOver = false;
  const open = (): void => {
    if (isOver) return;
    const last = got.at(-1)?.[0];
    socket = new NodeSocket(feed.replace("http", "ws") + (last ? `&last-event-id=${last}` : ""));
    socket.on("message", (text) => {
      const { id, pere } = JSON.parse(String(text)) as { id: string; pere?: string };
      if (pere === undefined) got.push([id, String(text)]);
    });
    socket.on("error", () => {}); // It is closed next.
    socket.on("close", () => setTimeout(open, AGAIN_MS));
  };
  open();
  return {
    got: async () => got,
    async close() {
      isOver = true;
      socket.terminate();
    },
  };
};

/** A program that writes an event stream's lines, until it is cut. @param command with the header that says where it goes on, if any */
const lines =
  (command: (feed: string, header: string | null) => readonly string[]): Open =>
  async (feed) => {
    const got: Got[] = [];
    let child: Bun.Subprocess<"ignore", "pipe", "ignore"> | undefined;
    let isOver = false;
    const follow = async (): Promise<void> => {
      let last: string | null = null;
      while (!isOver) {
        child = Bun.spawn([...command(feed, last && `Last-Event-ID: ${last}`)], {
          env: { PATH: process.env.PATH },
          stdin: "ignore",
          stdout: "pipe",
          stderr: "ignore",
        });
        const decoder = new TextDecoder();
        let rest = "";
        for await (const chunk of child.stdout) {
          const frames = (rest + decoder.decode(chunk, { stream: true })).split("\n\n");
          rest = frames.pop()!;
          for (const frame of frames) {
            const field = (name: string): string[] =>
              frame.split("\n").flatMap((line) => (line.startsWith(`${name}: `) ? [line.slice(name.length + 2)] : []));
            const [id, data] = [field("id")[0], field("data").join("\n")];
            if (id !== undefined) last = id;
            if (data !== "" && field("event").length === 0) got.push([id!, data]);
          }
        }
        await child.exited;
        await Bun.sleep(AGAIN_MS);
      }
    };
    const followed = follow();
    return {
      got: async () => got,
      async close() {
        isOver = true;
        child?.kill();
        await followed;
      },
    };
  };

const curl = lines((feed, header) => ["curl", "-sN", ...(header ? ["-H", header] : []), feed]);

/** As one writes it in a few lines, with what python brings. */
const PYTHON = `
import sys, urllib.request

name, _, value = sys.argv[2].partition(": ")
request = urllib.request.Request(sys.argv[1], headers={name: value} if value else {})
with urllib.request.urlopen(request) as feed:
    for line in feed:
        print(line.decode(), end="", flush=True)
`;
const python = lines((feed, header) => ["python3", "-c", PYTHON, feed, header ?? ""]);

const lack = (program: string): string | null => (Bun.which(program) ? null : `no ${program} is installed`);
const READERS: Record<string, { open: Open; missing: string | null }> = {
  "the browser's EventSource": { open: browser, missing: isBrowserInstalled ? null : "no Chromium is installed" },
  "npm eventsource": { open: eventsource, missing: null },
  "npm ws": { open: ws, missing: null },
  "curl -N": { open: curl, missing: lack("curl") },
  "python3 reading lines": { open: python, missing: lack("python3") },
};

/** What is pushed, as a publisher writes it: with line breaks between its tokens too, and with what takes more than one byte. */
const TEXTS = ["1", '{\n  "order": "A-1001",\n  "table": 7\n}', '"naïve 🚚\\n"', "[]", "null", '{"last":true}'];

/** The service is started twice again, on a machine that may be busy, and a reader waits up to 4 s before it comes back. */
const PATIENCE_MS = 30_000;
const LIMIT_MS = 120_000;

for (const [name, { open, missing }] of Object.entries(READERS))
  test.skipIf(missing !== null && process.env.CI !== "true")(
    `${name} gets everything once, in order, through a restart and a crash${missing ? ` (skipped: ${missing})` : ""}`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const env = { PERE_DB: join(temporary(), "pere.db"), PORT: String(lastingPort()) };
      let pere = await spawn(env);
      cleanup.defer(async () => void (await pere.end("SIGKILL")));
      const again = async (signal: "SIGTERM" | "SIGKILL"): Promise<void> => {
        await pere.end(signal);
        pere = await spawn(env);
      };
      const pushed: [id: string, data: unknown][] = [];
      const push = async (): Promise<void> => {
        const text = TEXTS[pushed.length]!;
        const { status, body } = await ask(`${pere.url}/push/orders`, { body: text });
        expect(status).toBe(201);
        pushed.push([body.id as string, JSON.parse(text)]);
      };

      expect((await ask(`${pere.url}/devices/orders/till-7`, { method: "PUT" })).status).toBe(201);
      await push();
      const reader = await open(`${pere.url}/feed/orders?device=till-7`);
      cleanup.defer(() => reader.close());
      const caughtUp = async (): Promise<void> => {
        let got: Got[] = [];
        const hasAll = async () => (got = await reader.got()).length >= pushed.length;
        await until(hasAll, () => `${pushed.length} events; came: ${JSON.stringify(got)}`, PATIENCE_MS);
        expect(got.map(([id, text]) => [id, (JSON.parse(text) as { data: unknown }).data])).toEqual(pushed);
      };
      await caughtUp();
      await push();
      await caughtUp();
      for (const signal of ["SIGTERM", "SIGKILL"] as const) {
        await again(signal);
        await push();
        await caughtUp();
        await push();
        await caughtUp();
      }
      expect(pushed).toHaveLength(TEXTS.length);
    },
    LIMIT_MS,
  );
