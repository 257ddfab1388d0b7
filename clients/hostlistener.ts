#!/usr/bin/env bun
/**
 * A device on a host: it follows channels, works on each event for a moment, and sends receipts.
 *
 *   bun clients/hostlistener.ts [url] [channel] [device] [--exec=command] [--flaky] [--json] [--state=file] [--since=latest] [--concurrency=number]
 *
 * With `--exec` the work is a command (`command.ts`). Otherwise it is a moment's wait, which fails if the event's data has `"fail": true`, and with
 * `--flaky` one time in ten. With `--state` it stores in a file which events it
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
import { Command } from "./command.ts";
import { fail as failAs, proxyOf, nameOf, onEnd, onOneLine, ownName, Printer } from "./program.ts";
import { readArgs, UsageError, wholeOf, withText } from "./program.ts";

const USAGE = `bun clients/hostlistener.ts [url] [channel] [device] [options]

Follows channels as a device, works on each event for a moment or runs a command for it, and sends receipts.

  url                   the address of PERE (default: http://127.0.0.1:4567)
  channel               one channel, or several separated by commas (default: orders)
  device                the device's name (default: a name that is made for this machine and stored)
  --exec=command        run this for each event, with its data on standard input: status 0 is done, 75 deferred
                        (PERE_AFTER=600 as the last line of the output sets the time), any other failed
  --flaky               fail one time in ten
  --json                print one JSON object per line
  --state=file          store finished events and unsent receipts in this file
  --since=latest        start with the newest event of each key, also if it was finished before
  --concurrency=number  events that are worked on at once, 1 to 10000 (default: 100, with --exec 1)
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

/** How long commands may run on when the program is told to end. A second signal ends it at once. */
const COMMAND_MS_MAX = 24 * 3600 * 1000;

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
    exec: { type: "string" },
    flaky: { type: "boolean" },
    since: { type: "string" },
    json: { type: "boolean" },
    state: { type: "string" },
    concurrency: { type: "string" },
  } as const;
  const { values, positionals } = readArgs(options, 3, USAGE);
  const [url = "http://127.0.0.1:4567", channel, device] = positionals;
  const token = process.env.PERE_TOKEN || undefined;
  const concurrency = wholeOf(
    "concurrency",
    values.concurrency ?? (values.exec === undefined ? "100" : "1"),
    1,
    10_000,
  );
  if (values.exec?.trim() === "") throw new UsageError("--exec must be a command");
  if (values.since !== undefined && !["now", "earliest", "latest"].includes(values.since))
    throw new UsageError(`--since must be now, earliest or latest, not "${values.since}"`);
  if (values.state?.trim() === "") throw new UsageError("--state must name a file");
  const { json: isJson = false, flaky: isFlaky = false } = values;
  let broken: string | null = null;
  const printer = new Printer((why) => {
    broken = `${why}; events that were not printed stay open`;
    void listener.close();
  });
  const print = (name: string, json: string, line: string): Promise<void> =>
    printer.print(isJson ? `{"${name}":${json}}\n` : `${line}\n`);
  const command =
    values.exec === undefined ? null : new Command(values.exec, (line) => console.error(`hostlistener: ${line}`));
  let isEnding = false;
  const listener = start({
    url,
    channels: nameOf("channel", channel) ?? "orders",
    device: nameOf("device", device) ?? (token === undefined ? ownName() : undefined),
    token,
    concurrency,
    storage: values.state === undefined ? undefined : await storageOf(values.state),
    since: values.since,
    ...(command ? { timing: { flushMs: COMMAND_MS_MAX } } : {}),
    async onEvent(event, { signal }) {
      const { data: _, text, ...about } = event;
      const { id, type = "", round } = about;
      const name = `${id}${round === undefined ? "" : ` (round ${round})`}${type && ` ${type}`}`;
      await print("event", withText(about, "data", text), `v ${name} ${onOneLine(text)}`);
      if (command) return command.run(event, signal, () => isEnding);
      return work(event, isFlaky);
    },
    onWithdrawn(withdrawal) {
      command?.withdraw(withdrawal.withdrawn);
      const { withdrawn, reason, by, note } = withdrawal;
      const why = [reason, by, note].filter((part) => part !== undefined).join(": ");
      void print("withdrawn", JSON.stringify(withdrawal), `x ${withdrawn} was withdrawn: ${why.replaceAll("\n", " ")}`);
    },
    onLate: (receipt, reason) =>
      void print(
        "late",
        JSON.stringify({ ...receipt, reason }),
        `! ${receipt.event} ${receipt.status} was late: ${reason}`,
      ),
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
    isEnding = true;
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
