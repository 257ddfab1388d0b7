/**
 * A device on the SDK in a browser's page, as `client.ts` wants it. A page reaches no files, so what it records and keeps it gives to the server that it
 * came from. Each device has a tab and a server of its own; they share the browser, which costs more to start than all else here.
 *
 * Killed is a tab when it is closed: the SDK hears nothing of that. It is over when the line that the page holds open to its server is gone.
 */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Job, Running } from "./client.ts";
import { openTab } from "../support/browser.ts";
import { until } from "../support/harness.ts";

/**
 * A page may not read what a stranger's proxy answers in the service's stead, `Retry-After` in particular; here it may. And a tab's timers go on while
 * another one is in front.
 */
const FLAGS = [
  "--disable-web-security",
  "--disable-background-timer-throttling",
  "--disable-backgrounding-occluded-windows",
  "--disable-renderer-backgrounding",
];

/** For a browser that starts while others want the machine. */
const START_MS = 60_000;

/** The page's script. @param job as it was given @param clients the SDK */
async function run(
  { url, channels, device, tokenFile, patience }: Job,
  { Deferred, listen }: typeof import("../../clients/sdk/index.ts"),
) {
  const ask = async (path: string, body?: string): Promise<string> =>
    (await fetch(path, body === undefined ? {} : { method: "POST", body })).text();
  void ask("/alive");
  const listener = listen({
    url,
    channels,
    device,
    token: tokenFile === null ? undefined : () => ask("/token"),
    storage: { get: () => ask("/state"), set: (_, text) => ask("/state", text) },
    timing: {
      firstByteMs: patience.firstByteMs,
      silentMs: patience.silenceMs,
      againMs: patience.returnMs,
      pauseMsMax: patience.pauseMs,
    },
    async onEvent({ id, data, round = 1 }, { signal }) {
      await ask("/record", `${id} ${JSON.stringify(data)}\n`);
      const wish = typeof data === "object" && data !== null ? data : {};
      while ("hold" in wish && (await ask("/go")) === "") await new Promise((resolve) => setTimeout(resolve, 50));
      while ("stop" in wish && !signal.aborted) await new Promise((resolve) => setTimeout(resolve, 50));
      if ("stop" in wish) throw new Error("told to stop");
      if ("defer" in wish && round <= Number(wish.defer)) throw new Deferred(1);
      if ("fail" in wish) throw new Error("it was asked to fail");
    },
  });
  listener.status().subscribe(({ state, transport, error, unsent }) => console.error(state, transport, error, unsent));
}

/** The SDK as a page has it, and the page's script. */
async function build(): Promise<{ sdk: string; script: string }> {
  const built = await Bun.build({
    entrypoints: [join(import.meta.dir, "..", "..", "clients", "sdk", "index.ts")],
    target: "browser",
  });
  const script = new Bun.Transpiler({ loader: "ts" }).transformSync(run.toString());
  return { sdk: await built.outputs[0]!.text(), script };
}

let texts: ReturnType<typeof build> | undefined;

/** The file, or nothing. */
const read = (path: string): string => (existsSync(path) ? readFileSync(path, "utf8") : "");

/** Opens a tab with a device in it. @param said hears what the page reports */
export function startPage(job: Job, said: (text: string) => void): Running {
  /** Null: the page has not come yet. */
  let isAlive: boolean | null = null;
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 0,
    routes: {
      "/": async () => {
        const { script } = await (texts ??= build());
        const page = `<!doctype html><script type="module">import * as clients from "/pere.js"; ${script}; run(${JSON.stringify(job)}, clients);</script>`;
        return new Response(page, { headers: { "Content-Type": "text/html" } });
      },
      "/pere.js": async () =>
        new Response((await (texts ??= build())).sdk, { headers: { "Content-Type": "text/javascript" } }),
      "/alive": ({ signal }) => {
        isAlive = true;
        signal.addEventListener("abort", () => (isAlive = false));
        return new Promise<Response>(() => {});
      },
      "/token": () => new Response(read(job.tokenFile!).trim()),
      "/go": () => new Response(existsSync(`${job.record}.go`) ? "go" : ""),
      "/record": async (request) => {
        appendFileSync(job.record, await request.text());
        return new Response();
      },
      "/state": async (request) => {
        if (request.method === "GET") return new Response(read(job.state));
        writeFileSync(job.state, await request.text());
        return new Response();
      },
    },
  });
  const tab = openTab(400, 300, (what) => said(`${what}\n`), FLAGS);
  const opened = tab.navigate(server.url.href).then(() => until(() => isAlive !== null, "the page", START_MS));
  opened.catch((error) => said(`${error}\n`));
  let isKilled = false;
  return {
    get isRunning() {
      return !isKilled && isAlive !== false;
    },
    async kill() {
      if (isKilled) return;
      isKilled = true;
      try {
        await opened;
      } finally {
        tab.close();
      }
      await until(() => isAlive === false, "the page to be gone");
      await server.stop(true);
    },
  };
}
