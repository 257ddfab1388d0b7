#!/usr/bin/env bun
/**
 * A publisher: it pushes events and shows, for each, how many of its devices have answered, and what.
 *
 *   bun clients/publisher.ts [--wait=seconds] [--deadline=seconds] [--remind=seconds] [--json] [url] [channel]
 *   printf '{"table": 7}\\ntwo coffees\\n' | bun clients/publisher.ts
 *
 * On its own it pushes an event every second, until it is interrupted. Given lines on its input it pushes those (a line that is JSON as it is,
 * any other as a JSON string), and ends when every event is complete, or ten seconds after the last line, with status 1 if one is not.
 * A service that can't be reached within the first ten seconds ends it too, with status 1; one that goes later is waited for.
 * Where the service asks for a token, it is taken from the environment, `PERE_TOKEN`; it needs the right to push on the channel.
 * With `--wait` it pushes the next event when the one before is complete, or after so many seconds; the other two are given to each event.
 * On a terminal it keeps a table with a bar for each event; elsewhere it prints a line for each change, with `--json` an object. Where nothing more can be
 * printed it pushes nothing more. INT and TERM end it when the push under way was answered; a second one at once.
 *
 * All that a publisher must do is in the SDK, `clients/sdk/`; this is an example of what is left to do. One thing is worth a look: receipts are
 * followed from before the first push, so that none is missed.
 */
import { fstatSync } from "node:fs";
import { createInterface } from "node:readline";
import { PereError, publish, receipts, type DeviceReceipt, type Receipts } from "./sdk/index.ts";
import { fail as failAs, proxyOf, nameOf, onEnd, Printer, readArgs, secondsOf } from "./program.ts";
import { UsageError, withText } from "./program.ts";

const USAGE = `bun clients/publisher.ts [url] [channel] [options]      lines on its input are what it pushes; without, one event a second

  url                 where PERE is; http://127.0.0.1:4567
  channel             where to; orders
  --wait=seconds      wait for an event to be complete before the next
  --deadline=seconds  each device owes a final receipt in this time
  --remind=seconds    silent devices are reminded after each such time
  --json              print JSON, an object a line

PERE_TOKEN: a token with the right to push. HTTP_PROXY, HTTPS_PROXY and NO_PROXY hold.`;

/** Between two events of its own. */
const EVERY_MS = 1_000;
/** How long it waits, after the last line, for those that have not answered; and at the start, for the service. */
const PATIENCE_MS = 10_000;
/** Before it is connected it says that it tries after this; and at the end a push has so long to be answered. */
const TRYING_MS = 1_000;
const FLUSH_MS = 5_000;
const RECEIPTS_MS = 500;
/** Events that a terminal shows; those before them scroll away as they were. */
const SHOWN_MAX = 10;
/** A table is this wide; on a narrower terminal there are lines. */
const TABLE_COLUMNS = 80;
/** Cells of a bar: what the terminal has room for. */
const BAR_CELLS = Math.min(40, Math.max(0, (process.stdout.columns || 0) - TABLE_COLUMNS) + 4);

/** An event that was pushed, and the last word of each device on it. */
interface Pushed {
  readonly id: string;
  readonly addressed: number;
  readonly words: Map<string, DeviceReceipt["status"]>;
}

const WORDS = ["received", "working", "done", "failed", "missing"] as const;
/** Colours of a terminal: blue, yellow, green, red, magenta. */
const COLOURS: Record<(typeof WORDS)[number], number> = {
  received: 34,
  working: 33,
  done: 32,
  failed: 31,
  missing: 35,
};

const count = ({ words }: Pushed, word: string): number => [...words.values()].filter((other) => other === word).length;
const isComplete = (event: Pushed): boolean => count(event, "done") + count(event, "failed") >= event.addressed;

function lineOf(event: Pushed): string {
  if (event.addressed === 0) return `${event.id}: addressed to nobody, no device is enrolled`;
  const counts = WORDS.map((word) => [word, count(event, word)] as const).filter(([, number]) => number > 0);
  const answers = counts.map(([word, number]) => `${number} ${word}`).join(", ") || "no answer";
  return `${event.id}: ${event.words.size} of ${event.addressed} answered: ${answers}${isComplete(event) ? ", complete" : ""}`;
}

/** A bar whose parts are as long as each word is frequent: final words first. */
function barOf(event: Pushed): string {
  let [reached, cells] = [0, 0];
  const parts = (["done", "failed", "missing", "working", "received"] as const).map((word) => {
    reached += count(event, word);
    const length = Math.round((reached / Math.max(1, event.addressed)) * BAR_CELLS) - cells;
    cells += length;
    return `\x1b[${COLOURS[word]}m${"█".repeat(Math.max(0, length))}\x1b[39m`;
  });
  return `${parts.join("")}\x1b[2m${"░".repeat(Math.max(0, BAR_CELLS - cells))}\x1b[22m`;
}

function rowOf(event: Pushed): string {
  const numbers = WORDS.map((word) => `\x1b[${COLOURS[word]}m${String(count(event, word)).padStart(9)}\x1b[39m`).join(
    "",
  );
  return `${event.id.padEnd(16)} ${barOf(event)} ${`${event.words.size}/${event.addressed}`.padStart(9)}${numbers} ${isComplete(event) ? "✓" : ""}`;
}

const HEADING = `\x1b[1m${"event".padEnd(16)} ${"".padEnd(BAR_CELLS)} ${"answered".padStart(9)}${WORDS.map((word) => word.padStart(9)).join("")}\x1b[22m`;

/** Shows events: on a terminal the last ones in a table, in place; elsewhere a line for each change. */
class Board {
  readonly #isTable: boolean;
  readonly #print: (text: string) => void;
  #shown: Pushed[] = [];
  #lines = 0;

  constructor(isTable: boolean, print: (text: string) => void) {
    this.#isTable = isTable;
    this.#print = print;
  }

  update(event: Pushed): void {
    if (!this.#isTable) return this.#print(`${lineOf(event)}\n`);
    if (!this.#shown.includes(event)) this.#shown.push(event);
    // What scrolls away stays above the table as it was.
    const gone = this.#shown.splice(0, Math.max(0, this.#shown.length - SHOWN_MAX));
    const up = this.#lines === 0 ? "" : `\x1b[${this.#lines}A`;
    const lines = [...gone.map(rowOf), HEADING, ...this.#shown.map(rowOf)];
    this.#print(`${up}${lines.map((line) => `\x1b[2K${line}\n`).join("")}`);
    this.#lines = lines.length - gone.length;
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

/** The texts to push: the input's lines where there is one, otherwise one a second for ever. */
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

/** Follows the receipts. @throws UsageError where the options can't be right */
function follow(options: Parameters<typeof receipts>[0]): Receipts {
  try {
    return receipts(options);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

async function run({ url, channel, isJson, ...options }: Options): Promise<void> {
  // A terminal and /dev/null are character devices; a pipe or a file is somebody's input.
  const isGiven = !fstatSync(0).isCharacterDevice();
  const token = process.env.PERE_TOKEN || undefined;
  const pushed = new Map<string, Pushed>();
  /** A receipt can be quicker than the answer to its push. */
  const early = new Map<string, Pushed["words"]>();
  let changed = Promise.withResolvers<void>();
  /** The push under way; and whether there is to be another one. */
  let underWay: Promise<unknown> | null = null;
  let isEnding = false;
  const end = async (finish: () => never): Promise<void> => {
    isEnding = true;
    let isAnswered = underWay === null;
    const answered = underWay?.then(
      () => (isAnswered = true),
      () => {},
    );
    await Promise.race([answered, Bun.sleep(FLUSH_MS)]);
    if (!isAnswered) console.error("publisher: the last push was not answered, and may have been stored or not");
    // Its receipts may be a moment behind its answer.
    const until = performance.now() + RECEIPTS_MS;
    while (answered && ![...pushed.values()].every(isComplete) && performance.now() < until) await Bun.sleep(20);
    finish();
  };
  const printer = new Printer((why) => void end(() => fail(new Error(`${why}; nothing more is pushed`))));
  const board = new Board(
    process.stdout.isTTY && process.stdout.columns >= TABLE_COLUMNS,
    (text) => void printer.print(text),
  );
  const show = (event: Pushed): void => (isJson ? undefined : board.update(event));
  const print = (name: string, json: string): void => void (isJson && printer.print(`{"${name}":${json}}\n`));

  /** Before the service was reached, the last that went wrong; undefined from then on, when all of it is told as it comes. */
  let away: string | undefined = "no answer";
  const onTrouble = (why: string): void => {
    if (away === undefined) console.error(`feedback: ${why}; coming back`);
    else away = why;
  };
  const said = follow({
    url,
    channel,
    token,
    onTrouble,
    // A socket would go past the proxy.
    ...(URL.canParse(url) && proxyOf(url) !== null ? { WebSocket: null } : {}),
  });
  const note = ({ event, device, status }: DeviceReceipt): void => {
    const known = pushed.get(event);
    const words = known?.words ?? early.get(event) ?? new Map<string, DeviceReceipt["status"]>();
    words.set(device, status);
    if (!known) return void early.set(event, words);
    show(known);
    changed.resolve();
  };
  const listen = async (): Promise<void> => {
    for await (const word of said) {
      if (word.kind !== "receipt") print(word.kind, JSON.stringify(word));
      else {
        note(word);
        const { detail: _, text, ...about } = word;
        print(word.kind, withText(about, "detail", text));
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
      .catch(() => {}); // The printer ends it.
    return undefined as never;
  };
  onEnd(() => void end(finish));
  const late = setTimeout(() => fail(new Error(`${url} can't be reached: ${away}`)), PATIENCE_MS);
  const trying = setTimeout(() => console.error(`publisher: connecting to ${url}: ${away}; trying again`), TRYING_MS);
  await said.ready;
  clearTimeout(late);
  clearTimeout(trying);
  away = undefined;
  listen().catch(fail);
  const retries = {
    token,
    giveUpMs: Number.POSITIVE_INFINITY,
    onTrouble: (why: string) => console.error(`push: ${why}; again`),
  };
  for await (const text of texts(isGiven)) {
    if (isEnding) return;
    const push = publish(url, channel, text, { ...options, ...retries, isJson: true });
    underWay = push;
    const answer = await push;
    underWay = null;
    const event = { id: answer.id, addressed: answer.audience.addressed, words: early.get(answer.id) ?? new Map() };
    early.clear();
    pushed.set(event.id, event);
    show(event);
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
