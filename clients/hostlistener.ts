#!/usr/bin/env bun
/**
 * A device that is a host: it listens, works a moment on each event, and says what became of it.
 *
 *   bun clients/hostlistener.ts [url] [channel] [device] [--flaky] [--json] [--state=file] [--concurrency=number]
 *
 * It works for a moment on each event and is done; it fails where the event's data has `"fail": true`, and with `--flaky` one time in ten. With
 * `--state` it remembers in a file what it has finished, and receipts that could not be given. Where the service asks for a token, it is taken
 * from the environment, `PERE_TOKEN`; the device is then the token's, whatever the arguments say.
 *
 * All that a device must do is in the SDK, `pere.ts`; this is an example of what is left to do.
 */
import { hostname } from "node:os";
import { defineCommand, runMain } from "citty";
import {
  fileKeeper,
  listen,
  type Listener,
  type ListenOptions,
  type PereError,
  type PushedEvent,
  type Status,
} from "./pere.ts";

/** The device's work: a moment that differs, and perhaps a failure. */
async function work({ data }: PushedEvent, isFlaky: boolean): Promise<void> {
  await Bun.sleep(50 + Math.random() * 450);
  if (typeof data === "object" && data !== null && "fail" in data && data.fail === true)
    throw new Error("the event asked for it");
  if (isFlaky && Math.random() < 0.1) throw new Error("it went wrong by chance");
}

/** What there is to say of the connection; the same sentence as before is nothing new. */
function sentence({ state, transport, device, error, retryAt }: Status): string {
  if (state === "connected") return `. connected by ${transport} as ${device}`;
  if (retryAt === null) return `. ${state}`;
  return `! ${error ?? state}; coming back in ${((retryAt - Date.now()) / 1000).toFixed(1)} s`;
}

function fail(why: string): never {
  console.error(`hostlistener: ${why}`);
  process.exit(1);
}

/** Listens, or ends with a line where the options are wrong. */
function begin(options: ListenOptions): Listener {
  try {
    return listen(options);
  } catch (error) {
    return fail((error as Error).message);
  }
}

const command = defineCommand({
  meta: { name: "hostlistener", description: "A device: works on events, and gives receipts" },
  args: {
    url: { type: "positional", default: "http://127.0.0.1:4567", description: "where PERE is" },
    channel: { type: "positional", default: "orders", description: "one, or several with commas" },
    device: {
      type: "positional",
      default:
        hostname()
          .replace(/[^A-Za-z0-9._:~-]/g, "-")
          .slice(0, 128) || "host",
      description: "the device's name",
    },
    flaky: { type: "boolean", description: "fail one time in ten" },
    json: { type: "boolean", description: "print JSON, an object a line" },
    state: { type: "string", description: "a file to remember in" },
    concurrency: { type: "string", default: "100", description: "events worked on at once" },
  },
  async run({ args: { url, channel, device, flaky, json, state, concurrency } }) {
    const print = (name: string, value: unknown, line: string): void =>
      console.log(json ? JSON.stringify({ [name]: value }) : line);
    const listener = begin({
      url,
      channels: channel,
      device,
      token: process.env.PERE_TOKEN || undefined,
      concurrency: Number(concurrency) || 1,
      storage: state === undefined ? undefined : fileKeeper(state),
      onEvent(event) {
        const { id, type = "", data } = event;
        print("event", event, `v ${id}${type && ` ${type}`} ${JSON.stringify(data)}`);
        return work(event, flaky === true);
      },
      onReceipt: (receipt) => print("receipt", receipt, `^ ${receipt.event} ${receipt.status}`),
      onRejected: (receipt, reason) =>
        print("rejected", { ...receipt, reason }, `! ${receipt.event} ${receipt.status} was rejected: ${reason}`),
      onGap: (gap) => print("gap", gap, `! events after ${gap.after} and before ${gap.from} are no longer kept`),
    });
    let before = "";
    listener.status().subscribe((status) => {
      const now = `${status.state} ${status.transport} ${status.retryAt}`;
      if (now !== before && status.state !== "closed") print("status", status, sentence(status));
      before = now;
    });
    process.once("SIGINT", () => {
      const { open, waiting } = listener.status().get();
      void listener.close().then(() => print("end", { open, waiting }, `stopped; ${open + waiting} were in hand`));
    });
    await listener.closed.catch(({ message, status }: PereError) => fail(`${message} (status ${status})`));
  },
});

if (import.meta.main) await runMain(command);
