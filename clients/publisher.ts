#!/usr/bin/env bun
/**
 * A publisher: it pushes events and shows, for each, how many of its devices have answered, and what.
 *
 *   bun clients/publisher.ts [--wait=seconds] [--deadline=seconds] [--remind=seconds] [url] [channel]
 *   printf '{"table": 7}\\ntwo coffees\\n' | bun clients/publisher.ts
 *
 * On its own it pushes an event every second, until it is interrupted. Given lines on its input it pushes those (a line that is JSON as it is,
 * any other as a JSON string), and ends when every event is complete, or ten seconds after the last line, with status 1 if one is not.
 * Where the service asks for a token, it is taken from the environment, `PERE_TOKEN`; it needs the right to push on the channel.
 * With `--wait` it pushes the next event when the one before is complete, or after so many seconds; the other two are given to each event.
 * It is written against PERE's public contract alone. Two things are worth a look: each push carries an `Idempotency-Key`, so that it can be
 * repeated until it was answered without being stored twice; and the receipts are followed from before the first push, so that none is missed.
 */
import { fstatSync } from "node:fs";
import { parseArgs } from "node:util";
import { authorization, follow, linesOf, passes } from "./stream.ts";

/** Between two events of its own. */
const EVERY_MS = 1_000;
/** How long it waits, after the last line, for those that have not answered. */
const PATIENCE_MS = 10_000;
/** Events that a terminal shows; those before them scroll away as they were. */
const SHOWN_MAX = 10;

/** An event that was pushed, and the last word of each device on it. */
interface Pushed {
  readonly id: string;
  readonly addressed: number;
  readonly words: Map<string, string>;
}

const WORDS = ["received", "working", "done", "failed", "missing"] as const;

const count = ({ words }: Pushed, word: string): number => [...words.values()].filter((other) => other === word).length;
const isComplete = (event: Pushed): boolean => count(event, "done") + count(event, "failed") >= event.addressed;

function lineOf(event: Pushed): string {
  const counts = WORDS.map((word) => [word, count(event, word)] as const).filter(([, number]) => number > 0);
  const answers = counts.map(([word, number]) => `${number} ${word}`).join(", ") || "no answer";
  return `${event.id}: ${event.words.size} of ${event.addressed} answered: ${answers}${isComplete(event) ? ", complete" : ""}`;
}

/** Shows events: on a terminal the last ones in place, elsewhere a line for each change. */
class Board {
  #shown: Pushed[] = [];

  update(event: Pushed): void {
    if (!process.stdout.isTTY) return console.log(lineOf(event));
    const before = this.#shown.length;
    if (!this.#shown.includes(event)) this.#shown.push(event);
    const up = before === 0 ? "" : `\x1b[${before}A`;
    process.stdout.write(`${up}${this.#shown.map((shown) => `\x1b[2K${lineOf(shown)}\n`).join("")}`);
    this.#shown = this.#shown.slice(-SHOWN_MAX);
  }
}

/** Pushes one JSON text, again until it is answered. @throws Error when it is refused */
async function push(url: string, data: string, more: Record<string, string>): Promise<Pushed> {
  const headers = {
    "Content-Type": "application/json",
    "Idempotency-Key": crypto.randomUUID(),
    ...authorization(),
    ...more,
  };
  for (let failures = 0; ; failures++) {
    const response = await fetch(url, { method: "POST", headers, body: data }).catch((error: Error) => error);
    if (response instanceof Response && !passes(response.status)) {
      if (!response.ok) throw new Error(await response.text());
      const { id, audience } = (await response.json()) as { id: string; audience: { addressed: number } };
      return { id, addressed: audience.addressed, words: new Map() };
    }
    console.error(`push: ${response instanceof Error ? response.message : `status ${response.status}`}; again`);
    await Bun.sleep(Math.min(5_000, 250 * 2 ** failures) * (0.5 + Math.random() / 2));
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
async function* texts(given: boolean): AsyncGenerator<string> {
  if (given) {
    for await (const line of linesOf(Bun.stdin.stream())) if (line.trim() !== "") yield jsonOf(line);
    return;
  }
  for (let order = 1; ; order++) {
    yield JSON.stringify({ order, table: 1 + Math.floor(Math.random() * 20) });
    await Bun.sleep(EVERY_MS);
  }
}

async function main(): Promise<void> {
  const seconds = { type: "string" } as const;
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: { wait: seconds, deadline: seconds, remind: seconds },
  });
  const { wait, ...options } = values;
  const prefer: Record<string, string> = wait === undefined ? {} : { Prefer: `wait=${wait}` };
  const base = (positionals[0] ?? "http://127.0.0.1:4567").replace(/\/+$/, "");
  const channel = encodeURIComponent(positionals[1] ?? "orders");
  // A terminal and /dev/null are character devices; a pipe or a file is somebody's input.
  const given = !fstatSync(0).isCharacterDevice();

  const board = new Board();
  const pushed = new Map<string, Pushed>();
  /** A receipt can be quicker than the answer to its push. */
  const early = new Map<string, Map<string, string>>();
  const ready = Promise.withResolvers<void>();
  let changed = Promise.withResolvers<void>();

  function note(event: string, device: string, status: string): void {
    const known = pushed.get(event);
    const words = known?.words ?? early.get(event) ?? new Map<string, string>();
    words.set(device, status);
    if (!known) return void early.set(event, words);
    board.update(known);
    changed.resolve();
  }

  async function listen(): Promise<void> {
    const lost = (why: string): void => console.error(`feedback: ${why}`);
    for await (const { event, data } of follow(`${base}/feedback/${channel}`, lost)) {
      if (event === "pere.ready") ready.resolve();
      if (event.startsWith("pere.")) continue;
      const receipt = JSON.parse(data) as { event: string; device: string; status: string };
      note(receipt.event, receipt.device, receipt.status);
    }
  }

  const finish = (): never => {
    const complete = [...pushed.values()].filter(isComplete).length;
    console.log(`${pushed.size} pushed, ${complete} complete`);
    process.exit(!given || complete === pushed.size ? 0 : 1);
  };
  process.once("SIGINT", finish);
  listen().catch(fail);
  await ready.promise;
  for await (const text of texts(given)) {
    const event = await push(`${base}/push/${channel}?${new URLSearchParams(options)}`, text, prefer);
    for (const [device, word] of early.get(event.id) ?? []) event.words.set(device, word);
    early.clear();
    pushed.set(event.id, event);
    board.update(event);
  }
  const end = Date.now() + PATIENCE_MS;
  while (Date.now() < end && ![...pushed.values()].every(isComplete)) {
    changed = Promise.withResolvers();
    await Promise.race([changed.promise, Bun.sleep(end - Date.now())]);
  }
  finish();
}

function fail(error: Error): never {
  console.error(`publisher: ${error.message}`);
  process.exit(1);
}

if (import.meta.main) await main().catch(fail);
