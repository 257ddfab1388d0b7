/**
 * A device on the SDK in a browser's page, as `badday.ts` wants it: its `Job` stands in the environment, `JOB`. A page reaches no files, so what it
 * records and keeps it gives to the server that it came from, which is this program; when that is killed the browser goes with it.
 */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Job } from "./badday.ts";
import { openTab } from "../support/browser.ts";

const job = JSON.parse(process.env.JOB!) as Job;

/** The page's script. @param job as it was given @param clients the SDK */
async function run(
  { url, channels, device, tokenFile, patience }: Job,
  { listen }: typeof import("../../clients/sdk/index.ts"),
) {
  const ask = async (path: string, body?: string): Promise<string> =>
    (await fetch(path, body === undefined ? {} : { method: "POST", body })).text();
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
      pauseMsMax: 2_000,
    },
    async onEvent({ id, data }) {
      await ask("/record", `${id} ${JSON.stringify(data)}\n`);
      const wish = typeof data === "object" && data !== null ? data : {};
      while ("hold" in wish && (await ask("/go")) === "") await new Promise((resolve) => setTimeout(resolve, 50));
      if ("fail" in wish) throw new Error("it was asked to fail");
    },
  });
  listener.status().subscribe(({ state, transport, error, unsent }) => console.error(state, transport, error, unsent));
}

const built = await Bun.build({
  entrypoints: [join(import.meta.dir, "..", "..", "clients", "sdk", "index.ts")],
  target: "browser",
});
const script = await built.outputs[0]!.text();
const javascript = new Bun.Transpiler({ loader: "ts" }).transformSync(run.toString());
const page = `<!doctype html><script type="module">import * as clients from "/pere.js"; ${javascript}; run(${JSON.stringify(job)}, clients);</script>`;

/** The file, or nothing. */
const read = (path: string): string => (existsSync(path) ? readFileSync(path, "utf8") : "");

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  routes: {
    "/": () => new Response(page, { headers: { "Content-Type": "text/html" } }),
    "/pere.js": () => new Response(script, { headers: { "Content-Type": "text/javascript" } }),
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

// A page may not read what a stranger's proxy answers in the service's stead, `Retry-After` in particular; here it may.
const tab = openTab(400, 300, (what) => console.log(what), ["--disable-web-security"]);
await tab.navigate(server.url.href);
