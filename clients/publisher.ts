#!/usr/bin/env bun
/**
 * A publisher: it pushes events and shows, for each event, how many of its devices have answered, and what.
 *
 *   bun clients/publisher.ts [--wait=seconds] [--deadline=seconds] [--remind=seconds] [--json] [url] [channel]
 *   printf '{"table": 7}\\ntwo coffees\\n' | bun clients/publisher.ts
 *
 * On a terminal it pushes one event per second until it is interrupted. Otherwise it pushes the lines of its input: a line of JSON as it is, any other
 * line as a JSON string. It then ends when every event is complete, or ten seconds after the last line, with status 1 if an event is not complete.
 * If it can't reach the service within the first ten seconds, it ends with status 1. Later it reconnects until it is ended.
 * If the service requires a token, set `PERE_TOKEN`; it needs the right to push on the channel.
 * With `--wait` it pushes the next event when the previous one is complete, or after so many seconds. Each event gets `--deadline` and `--remind`.
 * On a wide terminal it shows a table with one bar per event, otherwise one line per change, and with `--json` one object per change. If nothing more can
 * be printed, it pushes nothing more. INT and TERM end it when the current push was answered; a second signal ends it at once.
 *
 * The SDK, `clients/sdk/`, does all that a publisher must do. This is an example of the rest. Note that it follows receipts before it pushes the first
 * event, so that it misses none.
 */
import { fstatSync } from "node:fs";
import { createInterface } from "node:readline";
import { PereError, publish, receipts, type DeviceReceipt, type Receipts } from "./sdk/index.ts";
import { fail as failAs, proxyOf, nameOf, onEnd, Printer, readArgs, secondsOf } from "./program.ts";
import { UsageError, withText } from "./program.ts";

const USAGE = `bun clients/publisher.ts [url] [channel] [options]

Pushes each line of its input as an event, or one event per second if its input is a terminal, and shows the receipts.

  url                 the address of PERE (default: http://127.0.0.1:4567)
  channel             the channel (default: orders)
  --wait=seconds      wait up to this long for an event to be complete before the next one
  --deadline=seconds  the time within which each device must send its final receipt
  --remind=seconds    the interval at which devices that have not answered are reminded
  --json              print one JSON object per line
  --help              print this

Environment: PERE_TOKEN is a token with the right to push. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used.`;

/** The interval between events that it makes itself. */
const EVERY_MS = 1_000;
/** The time limit for receipts after the last line, and for the service at the start. */
const PATIENCE_MS = 10_000;
/** It prints that it is connecting if that takes longer than this. */
const TRYING_MS = 1_000;
/** At the end, the time limit for the answer to the last push, and then for its receipts. */
const FLUSH_MS = 5_000;
const RECEIPTS_MS = 500;
/** Rows of the table; older events scroll away. */
const SHOWN_MAX = 10;
/** The table needs a terminal of this width; a narrower one gets lines. */
const TABLE_COLUMNS = 80;
/** The width of a bar: what the terminal has room for. */
const BAR_CELLS = Math.min(40, Math.max(0, (process.stdout.columns || 0) - TABLE_COLUMNS) + 4);

/** An event that was pushed, and the last status of each device. */
interface Pushed {
  readonly id: string;
  readonly addressed: number;
  readonly statuses: Map<string, DeviceReceipt["status"]>;
}

const STATUSES = ["received", "working", "done", "failed", "missing"] as const;
/** Colours of a terminal: blue, yellow, green, red, magenta. */
const COLOURS: Record<(typeof STATUSES)[number], number> = {
  received: 34,
  working: 33,
  done: 32,
  failed: 31,
  missing: 35,
};

const count = ({ statuses }: Pushed, status: string): number =>
  [...statuses.values()].filter((other) => other === status).length;
const isComplete = (event: Pushed): boolean => count(event, "done") + count(event, "failed") >= event.addressed;

function lineOf(event: Pushed): string {
  if (event.addressed === 0) return `${event.id}: addressed to nobody, because no device is enrolled`;
  const counts = STATUSES.map((status) => [status, count(event, status)] as const).filter(([, number]) => number > 0);
  const answers = counts.map(([status, number]) => `${number} ${status}`).join(", ") || "no answer";
  return `${event.id}: ${event.statuses.size} of ${event.addressed} answered: ${answers}${isComplete(event) ? ", complete" : ""}`;
}

/** A bar with one part per status, final ones first; its length is the share of devices. */
function barOf(event: Pushed): string {
  let [reached, cells] = [0, 0];
  const parts = (["done", "failed", "missing", "working", "received"] as const).map((status) => {
    reached += count(event, status);
    const length = Math.round((reached / Math.max(1, event.addressed)) * BAR_CELLS) - cells;
    cells += length;
    return `\x1b[${COLOURS[status]}m${"█".repeat(Math.max(0, length))}\x1b[39m`;
  });
  return `${parts.join("")}\x1b[2m${"░".repeat(Math.max(0, BAR_CELLS - cells))}\x1b[22m`;
}

function rowOf(event: Pushed): string {
  const numbers = STATUSES.map(
    (status) => `\x1b[${COLOURS[status]}m${String(count(event, status)).padStart(9)}\x1b[39m`,
  ).join("");
  return `${event.id.padEnd(16)} ${barOf(event)} ${`${event.statuses.size}/${event.addressed}`.padStart(9)}${numbers} ${isComplete(event) ? "✓" : ""}`;
}

const HEADING = `\x1b[1m${"event".padEnd(16)} ${"".padEnd(BAR_CELLS)} ${"answered".padStart(9)}${STATUSES.map((status) => status.padStart(9)).join("")}\x1b[22m`;

/** Shows events: the last ones in a table that is redrawn in place, or one line per change. */
class Board {
  readonly #isTable: boolean;
  readonly #print: (text: string) => void;
  #shown: Pushed[] = [];
  #lines = 0;

  constructor(isTable: boolean, print: (text: string) => void) {
    this.#isTable = isTable;
    this.#print = print;
  }

  /** @param warnings of its push, which stay above a table */
  update(event: Pushed, warnings: readonly string[] = []): void {
    if (!this.#isTable) {
      for (const warning of warnings) console.error(`publisher: ${warning}`);
      return this.#print(`${lineOf(event)}\n`);
    }
    if (!this.#shown.includes(event)) this.#shown.push(event);
    // Rows that scroll away stay above the table.
    const gone = this.#shown.splice(0, Math.max(0, this.#shown.length - SHOWN_MAX));
    const up = this.#lines === 0 ? "" : `\x1b[${this.#lines}A`;
    const above = [...gone.map(rowOf), ...warnings.map((warning) => `\x1b[33m${warning}\x1b[39m`)];
    const lines = [...above, HEADING, ...this.#shown.map(rowOf)];
    this.#print(`${up}${lines.map((line) => `\x1b[2K${line}\n`).join("")}`);
    this.#lines = lines.length - above.length;
  }
}

function jsonOf(line: string): string {
  try {
    JSON.parse(line);
    return line;
  } catch {
    return JSON.stringify(line);
  }
}

/** The JSON texts to push: the lines of the input, or one per second without end. */
async function* texts(isGiven: boolean): AsyncGenerator<string> {
  if (isGiven) {
    for await (const line of createInterface({ input: process.stdin })) if (line.trim() !== "") yield jsonOf(line);
    return;
  }
  for (let order = 1; ; order++) {
    yield JSON.stringify({ order, table: 1 + Math.floor(Math.random() * 20) });
    await Bun.sleep(EVERY_MS);
  }
}

interface Options {
  readonly url: string;
  readonly channel: string;
  readonly wait: number | undefined;
  readonly deadline: number | undefined;
  readonly remind: number | undefined;
  readonly isJson: boolean;
}

const fail = (error: unknown): never =>
  failAs("publisher", error instanceof PereError ? new Error(`${error.message} (status ${error.status})`) : error);

/** Follows the receipts. @throws UsageError when an option is invalid */
function follow(options: Parameters<typeof receipts>[0]): Receipts {
  try {
    return receipts(options);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

async function run({ url, channel, isJson, ...options }: Options): Promise<void> {
  // A terminal and /dev/null are character devices; a pipe or a file is input.
  const isGiven = !fstatSync(0).isCharacterDevice();
  const token = process.env.PERE_TOKEN || undefined;
  const pushed = new Map<string, Pushed>();
  /** Statuses of devices whose receipts arrived before the answer to the push. */
  const early = new Map<string, Pushed["statuses"]>();
  let changed = Promise.withResolvers<void>();
  /** The current push; and whether the program is ending. */
  let currentPush: Promise<unknown> | null = null;
  let isEnding = false;
  const end = async (finish: () => never): Promise<void> => {
    isEnding = true;
    let isAnswered = currentPush === null;
    const answered = currentPush?.then(
      () => (isAnswered = true),
      () => {},
    );
    await Promise.race([answered, Bun.sleep(FLUSH_MS)]);
    if (!isAnswered) console.error("publisher: the last push was not answered; the event may have been stored");
    // Receipts may arrive a little after the answer to the push.
    const until = performance.now() + RECEIPTS_MS;
    while (answered && ![...pushed.values()].every(isComplete) && performance.now() < until) await Bun.sleep(20);
    finish();
  };
  const printer = new Printer((why) => void end(() => fail(new Error(`${why}; nothing more is pushed`))));
  const board = new Board(
    process.stdout.isTTY && process.stdout.columns >= TABLE_COLUMNS,
    (text) => void printer.print(text),
  );
  const show = (event: Pushed, warnings?: readonly string[]): void =>
    isJson ? undefined : board.update(event, warnings);
  let warned = "";
  const print = (name: string, json: string): void => void (isJson && printer.print(`{"${name}":${json}}\n`));

  /** The last error before the service was reached; undefined from then on, when errors are printed at once. */
  let connectError: string | undefined = "no answer";
  const onTrouble = (why: string): void => {
    if (connectError === undefined) console.error(`feedback: ${why}; reconnecting`);
    else connectError = why;
  };
  const feed = follow({
    url,
    channel,
    token,
    onTrouble,
    // A WebSocket would bypass the proxy.
    ...(URL.canParse(url) && proxyOf(url) !== null ? { WebSocket: null } : {}),
  });
  const note = ({ event, device, status }: DeviceReceipt): void => {
    const known = pushed.get(event);
    const statuses = known?.statuses ?? early.get(event) ?? new Map<string, DeviceReceipt["status"]>();
    statuses.set(device, status);
    if (!known) return void early.set(event, statuses);
    show(known);
    changed.resolve();
  };
  const listen = async (): Promise<void> => {
    for await (const message of feed) {
      if (message.kind !== "receipt") print(message.kind, JSON.stringify(message));
      else {
        note(message);
        const { detail: _, text, ...about } = message;
        print(message.kind, withText(about, "detail", text));
      }
    }
  };

  const finish = (): never => {
    const complete = [...pushed.values()].filter(isComplete).length;
    const text = isJson
      ? `{"end":${JSON.stringify({ pushed: pushed.size, complete })}}`
      : `${pushed.size} pushed, ${complete} complete`;
    void printer
      .print(`${text}\n`)
      .then(() => process.exit(!isGiven || complete === pushed.size ? 0 : 1))
      .catch(() => {}); // The printer ends the program.
    return undefined as never;
  };
  onEnd(() => void end(finish));
  const late = setTimeout(() => fail(new Error(`${url} can't be reached: ${connectError}`)), PATIENCE_MS);
  const trying = setTimeout(
    () => console.error(`publisher: connecting to ${url}: ${connectError}; trying again`),
    TRYING_MS,
  );
  await feed.ready;
  clearTimeout(late);
  clearTimeout(trying);
  connectError = undefined;
  listen().catch(fail);
  const retries = {
    token,
    giveUpMs: Number.POSITIVE_INFINITY,
    onTrouble: (why: string) => console.error(`push: ${why}; trying again`),
  };
  for await (const text of texts(isGiven)) {
    if (isEnding) return;
    const push = publish(url, channel, text, { ...options, ...retries, isJson: true });
    currentPush = push;
    const answer = await push;
    currentPush = null;
    const event = { id: answer.id, addressed: answer.audience.addressed, statuses: early.get(answer.id) ?? new Map() };
    early.clear();
    pushed.set(event.id, event);
    // A warning that every push has is shown once.
    const warnings = (answer.warnings ?? []).filter((warning) => warning !== warned);
    warned = warnings.at(-1) ?? warned;
    show(event, warnings);
    print("pushed", JSON.stringify(answer));
  }
  if (isEnding) return;
  const endsAt = performance.now() + PATIENCE_MS;
  for (let left = PATIENCE_MS; left > 0 && ![...pushed.values()].every(isComplete); left = endsAt - performance.now()) {
    changed = Promise.withResolvers();
    await Promise.race([changed.promise, Bun.sleep(left)]);
  }
  finish();
}

/** Reads the arguments and runs. */
async function main(): Promise<void> {
  const seconds = { type: "string" } as const;
  const options = { wait: seconds, deadline: seconds, remind: seconds, json: { type: "boolean" } } as const;
  const { values, positionals } = readArgs(options, 2, USAGE);
  const [url = "http://127.0.0.1:4567", channel] = positionals;
  await run({
    url,
    channel: nameOf("channel", channel) ?? "orders",
    wait: secondsOf("wait", values.wait),
    deadline: secondsOf("deadline", values.deadline),
    remind: secondsOf("remind", values.remind),
    isJson: values.json === true,
  });
}

if (import.meta.main) await main().catch(fail);
