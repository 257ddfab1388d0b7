/**
 * A device on the SDK, as `client.ts` wants it: its `Job` stands in the environment, `JOB`. It runs on Bun and, bundled, on Node.
 */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { WebSocket as NodeSocket } from "ws";
import { Deferred, fileStorage, listen } from "../../clients/sdk/index.ts";
import type { Job } from "./client.ts";

const { url, channels, device, tokenFile, state, record, patience } = JSON.parse(process.env.JOB!) as Job;

const listener = listen({
  url,
  channels,
  device,
  token: tokenFile === null ? undefined : () => readFileSync(tokenFile, "utf8").trim(),
  storage: fileStorage(state),
  // Node has one since 22.
  WebSocket: "WebSocket" in globalThis ? undefined : NodeSocket,
  timing: {
    firstByteMs: patience.firstByteMs,
    silentMs: patience.silenceMs,
    againMs: patience.returnMs,
    pauseMsMax: patience.pauseMs,
  },
  async onEvent({ id, data, round = 1 }, { signal }) {
    appendFileSync(record, `${id} ${JSON.stringify(data)}\n`);
    const wish = typeof data === "object" && data !== null ? data : {};
    while ("hold" in wish && !existsSync(`${record}.go`)) await new Promise((resolve) => setTimeout(resolve, 50));
    while ("stop" in wish && !signal.aborted) await new Promise((resolve) => setTimeout(resolve, 50));
    if ("stop" in wish) throw new Error("told to stop");
    if ("defer" in wish && round <= Number(wish.defer)) throw new Deferred(1);
    if ("fail" in wish) throw new Error("it was asked to fail");
  },
});
listener.status().subscribe(({ state, transport, error, unsent }) => console.log(state, transport, error, unsent));
await listener.closed;
