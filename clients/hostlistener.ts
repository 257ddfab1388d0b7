#!/usr/bin/env bun
/**
 * A device on a host: it follows channels, works on each event for a moment, and sends receipts.
 *
 *   bun clients/hostlistener.ts [url] [channel] [device] [--flaky] [--json] [--state=file] [--concurrency=number]
 *
 * Work on an event fails if the event's data has `"fail": true`, and with `--flaky` one time in ten. With `--state` it stores in a file which events it
 * has finished and which receipts are unsent. If the service requires a token, set `PERE_TOKEN`; the token then names the device, and the argument is
 * ignored. Without a name and a token it uses a name that is made for this machine.
 *
 * An event is worked on after its line was printed. If nothing more can be printed, the program ends, and the events that were not printed stay open. INT
 * and TERM end it when the open events are finished and their receipts sent; a second signal ends it at once.
 *
 * The SDK, `clients/sdk/`, does all that a device must do. This is an example of the rest.
 */
import {
  fileStorage,
  type DeviceStorage,
  listen,
  type Listener,
  type ListenOptions,
  type PereError,
} from "./sdk/index.ts";
import type { PushedEvent, Status } from "./sdk/index.ts";
import { fail as failAs, proxyOf, nameOf, onEnd, onOneLine, ownName, Printer } from "./program.ts";
import { readArgs, UsageError, wholeOf, withText } from "./program.ts";

const USAGE = `bun clients/hostlistener.ts [url] [channel] [device] [options]

Follows channels as a device, works on each event for a moment, and sends receipts.

  url                   the address of PERE (default: http://127.0.0.1:4567)
  channel               one channel, or several separated by commas (default: orders)
  device                the device's name (default: a name that is made for this machine and stored)
  --flaky               fail one time in ten
  --json                print one JSON object per line
  --state=file          store finished events and unsent receipts in this file
  --concurrency=number  events that are worked on at once, 1 to 10000 (default: 100)
  --help                print this

Environment: PERE_TOKEN is the token, which names the device. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used.`;

/** The device's work: it takes up to half a second, and may fail. */
async function work({ data }: PushedEvent, isFlaky: boolean): Promise<void> {
  await Bun.sleep(50 + Math.random() * 450);
  if (typeof data === "object" && data !== null && "fail" in data && data.fail === true)
    throw new Error("the event asked for a failure");
  if (isFlaky && Math.random() < 0.1) throw new Error("a random failure (--flaky)");
}

/** The status in one line. */
function sentence({ state, transport, device, error, retryAt }: Status, url: string): string {
  if (state === "connected") return error === null ? `. connected by ${transport} as ${device}` : `! ${error}`;
  if (retryAt === null) return state === "connecting" ? `. connecting to ${url}` : `. ${state}`;
  return `! ${error ?? state}; reconnecting in ${((retryAt - Date.now()) / 1000).toFixed(1)} s`;
}

const fail = (error: unknown): never => failAs("hostlistener", error);

/** The storage in a file. @throws UsageError when the file can't be read, or is not a state file */
async function storageOf(path: string): Promise<DeviceStorage> {
  const storage = fileStorage(path);
  try {
    await storage.get("");
    return storage;
  } catch (error) {
    throw new UsageError(`--state: ${(error as Error).message}`);
  }
}

/** Listens. @throws UsageError when an option is invalid */
function start(options: ListenOptions): Listener {
  try {
    return listen(options);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

async function run(): Promise<void> {
  const options = {
    flaky: { type: "boolean" },
    json: { type: "boolean" },
    state: { type: "string" },
    concurrency: { type: "string" },
  } as const;
  const { values, positionals } = readArgs(options, 3, USAGE);
  const [url = "http://127.0.0.1:4567", channel, device] = positionals;
  const token = process.env.PERE_TOKEN || undefined;
  const concurrency = wholeOf("concurrency", values.concurrency ?? "100", 1, 10_000);
  if (values.state?.trim() === "") throw new UsageError("--state must name a file");
  const { json: isJson = false, flaky: isFlaky = false } = values;
  let broken: string | null = null;
  const printer = new Printer((why) => {
    broken = `${why}; events that were not printed stay open`;
    void listener.close();
  });
  const print = (name: string, json: string, line: string): Promise<void> =>
    printer.print(isJson ? `{"${name}":${json}}\n` : `${line}\n`);
  const listener = start({
    url,
    channels: nameOf("channel", channel) ?? "orders",
    device: nameOf("device", device) ?? (token === undefined ? ownName() : undefined),
    token,
    concurrency,
    storage: values.state === undefined ? undefined : await storageOf(values.state),
    async onEvent(event) {
      const { data: _, text, ...about } = event;
      const { id, type = "" } = about;
      await print("event", withText(about, "data", text), `v ${id}${type && ` ${type}`} ${onOneLine(text)}`);
      await work(event, isFlaky);
    },
    onReceipt: (receipt) => void print("receipt", JSON.stringify(receipt), `^ ${receipt.event} ${receipt.status}`),
    onRejected: (receipt, reason) =>
      void print(
        "rejected",
        JSON.stringify({ ...receipt, reason }),
        `! ${receipt.event} ${receipt.status} was rejected: ${reason}`,
      ),
    onGap: (gap) =>
      void print("gap", JSON.stringify(gap), `! events after ${gap.after} and before ${gap.from} are no longer kept`),
    // A WebSocket would bypass the proxy.
    ...(URL.canParse(url) && proxyOf(url) !== null ? { WebSocket: null } : {}),
  });
  let before = "";
  listener.status().subscribe((status) => {
    // While connected, an error means that receipts can't be sent or the state can't be stored.
    const trouble = status.state === "connected" ? status.error : null;
    const now = `${status.state} ${status.transport} ${status.retryAt} ${trouble}`;
    if (now !== before && status.state !== "closed")
      void print("status", JSON.stringify(status), sentence(status, url));
    before = now;
  });
  let unfinished: Pick<Status, "open" | "waiting"> | null = null;
  onEnd(() => {
    unfinished = listener.status().get();
    void listener.close();
  });
  try {
    await listener.closed;
  } catch (error) {
    const { message, status } = error as PereError;
    fail(new Error(status === undefined ? message : `${message} (status ${status})`));
  }
  const { unsent } = listener.status().get();
  if (broken !== null) fail(new Error(broken));
  const { open, waiting } = unfinished ?? { open: 0, waiting: 0 };
  const left = unsent > 0 ? `, ${unsent} receipts were not sent` : "";
  await print(
    "end",
    JSON.stringify({ open, waiting, unsent }),
    `stopped; ${open + waiting} events were open${left}`,
  ).catch(() => {});
}

if (import.meta.main) await run().then(() => process.exit(0), fail);
