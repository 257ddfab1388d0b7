#!/usr/bin/env bun
/**
 * A device that is a host: it listens, works a moment on each event, and says what became of it.
 *
 *   bun clients/hostlistener.ts [url] [channel] [device] [--flaky] [--json] [--state=file] [--concurrency=number]
 *
 * It works for a moment on each event and is done; it fails where the event's data has `"fail": true`, and with `--flaky` one time in ten. With
 * `--state` it remembers in a file what it has finished, and receipts that could not be given. Where the service asks for a token, it is taken
 * from the environment, `PERE_TOKEN`; the device is then the token's, whatever the arguments say. Without either it has a name of this machine's.
 *
 * An event counts as received here when its line was printed: where nothing more can be printed, it ends, and what it had not printed stays open. INT and
 * TERM end it when what it has begun is done and told; a second one at once.
 *
 * All that a device must do is in the SDK, `clients/sdk/`; this is an example of what is left to do.
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

  url                   where PERE is; http://127.0.0.1:4567
  channel               one, or several with commas; orders
  device                the device's name; without, one that is made for this machine and kept
  --flaky               fail one time in ten
  --json                print JSON, an object a line
  --state=file          a file to remember in
  --concurrency=number  events worked on at once, up to 10,000; 100

PERE_TOKEN: a token, which names the device. HTTP_PROXY, HTTPS_PROXY and NO_PROXY hold.`;

/** The device's work: a moment that differs, and perhaps a failure. */
async function work({ data }: PushedEvent, isFlaky: boolean): Promise<void> {
  await Bun.sleep(50 + Math.random() * 450);
  if (typeof data === "object" && data !== null && "fail" in data && data.fail === true)
    throw new Error("the event asked for it");
  if (isFlaky && Math.random() < 0.1) throw new Error("it went wrong by chance");
}

/** What there is to say of the connection; the same sentence as before is nothing new. */
function sentence({ state, transport, device, error, retryAt }: Status, url: string): string {
  if (state === "connected") return error === null ? `. connected by ${transport} as ${device}` : `! ${error}`;
  if (retryAt === null) return state === "connecting" ? `. connecting to ${url}` : `. ${state}`;
  return `! ${error ?? state}; coming back in ${((retryAt - Date.now()) / 1000).toFixed(1)} s`;
}

const fail = (error: unknown): never => failAs("hostlistener", error);

/** A file to remember in. @throws UsageError: it is another one's, no file, or can't be read */
async function keeperOf(path: string): Promise<DeviceStorage> {
  const keeper = fileStorage(path);
  try {
    await keeper.get("");
    return keeper;
  } catch (error) {
    throw new UsageError(`--state: ${(error as Error).message}`);
  }
}

/** Listens. @throws UsageError where the options can't be right */
function begin(options: ListenOptions): Listener {
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
  const listener = begin({
    url,
    channels: nameOf("channel", channel) ?? "orders",
    device: nameOf("device", device) ?? (token === undefined ? ownName() : undefined),
    token,
    concurrency,
    storage: values.state === undefined ? undefined : await keeperOf(values.state),
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
    // A socket would go past the proxy.
    ...(URL.canParse(url) && proxyOf(url) !== null ? { WebSocket: null } : {}),
  });
  let before = "";
  listener.status().subscribe((status) => {
    // While connected, an error is that receipts or the state don't get away.
    const trouble = status.state === "connected" ? status.error : null;
    const now = `${status.state} ${status.transport} ${status.retryAt} ${trouble}`;
    if (now !== before && status.state !== "closed")
      void print("status", JSON.stringify(status), sentence(status, url));
    before = now;
  });
  let inHand: Pick<Status, "open" | "waiting"> | null = null;
  onEnd(() => {
    inHand = listener.status().get();
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
  const { open, waiting } = inHand ?? { open: 0, waiting: 0 };
  const left = unsent > 0 ? `, ${unsent} receipts could not be given` : "";
  await print("end", JSON.stringify({ open, waiting, unsent }), `stopped; ${open + waiting} were in hand${left}`).catch(
    () => {},
  );
}

if (import.meta.main) await run().then(() => process.exit(0), fail);
