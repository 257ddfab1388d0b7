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
 * On a terminal it keeps a table with a bar for each event; elsewhere it prints a line for each change, with `--json` an object.
 *
 * All that a publisher must do is in the SDK, `pere.ts`; this is an example of what is left to do. One thing is worth a look: receipts are
 * followed from before the first push, so that none is missed.
 */
import { fstatSync } from "node:fs";
import { createInterface } from "node:readline";
import { defineCommand, runMain } from "citty";
import { PereError, publish, receipts, type Given } from "./pere.ts";

/** Between two events of its own. */
const EVERY_MS = 1_000;
/** How long it waits, after the last line, for those that have not answered; and at the start, for the service. */
const PATIENCE_MS = 10_000;
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
  readonly words: Map<string, Given["status"]>;
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
  #shown: Pushed[] = [];
  #lines = 0;

  constructor(isTable: boolean) {
    this.#isTable = isTable;
  }

  update(event: Pushed): void {
    if (!this.#isTable) return console.log(lineOf(event));
    if (!this.#shown.includes(event)) this.#shown.push(event);
    // What scrolls away stays above the table as it was.
    const gone = this.#shown.splice(0, Math.max(0, this.#shown.length - SHOWN_MAX));
    const up = this.#lines === 0 ? "" : `\x1b[${this.#lines}A`;
    const lines = [...gone.map(rowOf), HEADING, ...this.#shown.map(rowOf)];
    process.stdout.write(`${up}${lines.map((line) => `\x1b[2K${line}\n`).join("")}`);
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

/** @throws Error when it is no number of seconds */
function secondsOf(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const seconds = Number(text);
  if (text.trim() === "" || !(seconds >= 0)) throw new Error(`--${name} must be a number of seconds, not "${text}"`);
  return seconds;
}

interface Options {
  readonly url: string;
  readonly channel: string;
  readonly wait: number | undefined;
  readonly deadline: number | undefined;
  readonly remind: number | undefined;
  readonly isJson: boolean;
}

async function run({ url, channel, isJson, ...options }: Options): Promise<void> {
  // A terminal and /dev/null are character devices; a pipe or a file is somebody's input.
  const isGiven = !fstatSync(0).isCharacterDevice();
  const token = process.env.PERE_TOKEN || undefined;
  const board = new Board(process.stdout.isTTY && process.stdout.columns >= TABLE_COLUMNS);
  const pushed = new Map<string, Pushed>();
  /** A receipt can be quicker than the answer to its push. */
  const early = new Map<string, Pushed["words"]>();
  let changed = Promise.withResolvers<void>();
  const show = (event: Pushed): void => (isJson ? undefined : board.update(event));
  const print = (name: string, value: unknown): void => void (isJson && console.log(JSON.stringify({ [name]: value })));

  /** Before the service was reached, the last that went wrong; undefined from then on, when all of it is told as it comes. */
  let away: string | undefined = "no answer";
  const onTrouble = (why: string): void => {
    if (away === undefined) console.error(`feedback: ${why}; coming back`);
    else away = why;
  };
  const said = receipts({ url, channel, token, onTrouble });
  const note = ({ event, device, status }: Given): void => {
    const known = pushed.get(event);
    const words = known?.words ?? early.get(event) ?? new Map<string, Given["status"]>();
    words.set(device, status);
    if (!known) return void early.set(event, words);
    show(known);
    changed.resolve();
  };
  const listen = async (): Promise<void> => {
    for await (const word of said) {
      if (word.kind === "receipt") note(word);
      print(word.kind, word);
    }
  };

  const finish = (): never => {
    const complete = [...pushed.values()].filter(isComplete).length;
    if (isJson) print("end", { pushed: pushed.size, complete });
    else console.log(`${pushed.size} pushed, ${complete} complete`);
    process.exit(!isGiven || complete === pushed.size ? 0 : 1);
  };
  process.once("SIGINT", finish);
  const late = setTimeout(() => fail(new Error(`${url} can't be reached: ${away}`)), PATIENCE_MS);
  await said.ready;
  clearTimeout(late);
  away = undefined;
  listen().catch(fail);
  const retries = {
    token,
    giveUpMs: Number.POSITIVE_INFINITY,
    onTrouble: (why: string) => console.error(`push: ${why}; again`),
  };
  for await (const text of texts(isGiven)) {
    const answer = await publish(url, channel, text, { ...options, ...retries, isJson: true });
    const event = { id: answer.id, addressed: answer.audience.addressed, words: early.get(answer.id) ?? new Map() };
    early.clear();
    pushed.set(event.id, event);
    show(event);
    print("pushed", answer);
  }
  const end = Date.now() + PATIENCE_MS;
  while (Date.now() < end && ![...pushed.values()].every(isComplete)) {
    changed = Promise.withResolvers();
    await Promise.race([changed.promise, Bun.sleep(end - Date.now())]);
  }
  finish();
}

function fail(error: Error): never {
  console.error(`publisher: ${error.message}${error instanceof PereError ? ` (status ${error.status})` : ""}`);
  process.exit(1);
}

const command = defineCommand({
  meta: { name: "publisher", description: "Pushes events, and shows what became of each" },
  args: {
    url: { type: "positional", default: "http://127.0.0.1:4567", description: "where PERE is" },
    channel: { type: "positional", default: "orders", description: "where to" },
    wait: { type: "string", description: "seconds to wait for an event to be complete before the next" },
    deadline: { type: "string", description: "seconds in which each device owes a final receipt" },
    remind: { type: "string", description: "seconds after which silent devices are reminded" },
    json: { type: "boolean", description: "print JSON, an object a line" },
  },
  async run({ args: { url, channel, wait, deadline, remind, json } }) {
    try {
      const seconds = {
        wait: secondsOf("wait", wait),
        deadline: secondsOf("deadline", deadline),
        remind: secondsOf("remind", remind),
      };
      await run({ url, channel, isJson: json === true, ...seconds });
    } catch (error) {
      fail(error as Error);
    }
  },
});

if (import.meta.main) await runMain(command);
