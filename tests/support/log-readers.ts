/**
 * A `Sink` and a source for a log of a test's own: readers that push back at a moment of the test's choice, and a source whose answer is held.
 */
import {
  type Batch,
  type Entry,
  type Follower,
  Log,
  type LogSource,
  type Sink,
  SLICE_FOLLOWERS,
  WRITE_CHARACTERS,
} from "../../engine/feeds/log.ts";
import type { Position } from "../../engine/model.ts";

const EPOCH = "epoch";

/** More than two slices. */
export const MANY = 2 * SLICE_FOLLOWERS + 90;

export const numbers = (from: number, to: number): number[] =>
  Array.from({ length: to - from + 1 }, (_, n) => from + n);

export const entry = (seq: number, more: Partial<Entry> = {}): Entry => ({
  seq,
  id: `${EPOCH}-${seq}`,
  text: `{"seq":${seq}}`,
  note: null,
  receipt: null,
  type: null,
  to: null,
  audience: null,
  expires: null,
  event: null,
  control: null,
  withdrawnBy: 0,
  ...more,
});

export const entries = (from: number, to: number, more: Partial<Entry> = {}): Entry[] =>
  numbers(from, to).map((seq) => entry(seq, more));

/** Lets everything happen that can happen by itself. */
export async function quiet(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** A place that a test opens when it wants to. */
interface Gate {
  readonly passed: Promise<void>;
  open(): void;
}

export function gate(): Gate {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { passed: promise, open: resolve };
}

/** A log's past in memory. Like a store it gives about as much as one write may carry; it keeps a list of what was asked of it. */
export class Past implements LogSource {
  kept: Entry[];
  time = 0;
  readonly asked: number[] = [];
  /** Held: reads are answered when it opens. */
  gate: Gate | undefined;
  /** Thrown by the next read. */
  error: Error | undefined;
  readonly now = (): number => this.time;
  readonly report = (): void => {};

  constructor(kept: Entry[] = []) {
    this.kept = kept;
  }

  async read(after: number, limit: number): Promise<readonly Entry[]> {
    this.asked.push(after);
    await this.gate?.passed;
    const { error } = this;
    this.error = undefined;
    if (error) throw error;
    const found: Entry[] = [];
    let characters = 0;
    for (const entry of this.kept) {
      if (entry.seq <= after) continue;
      found.push(entry);
      characters += entry.text.length;
      if (found.length === limit || characters >= WRITE_CHARACTERS) break;
    }
    return found;
  }
}

/** Keeps what it is given. `slow`: each write pushes back until the test says `drain`. */
export class Reader implements Sink {
  blocked: Promise<unknown> | undefined;
  slow = false;
  readonly batches: Batch[] = [];
  /** Entries by `seq` and gaps, in the order in which they came. */
  readonly told: (number | string)[] = [];
  readonly errors: unknown[] = [];
  rests = 0;
  /** Called within each write. */
  onWrite = (): void => {};
  #gate: Gate | undefined;

  write(_log: Log, batch: Batch): Promise<unknown> | undefined {
    if (this.#gate) throw new Error("written to although it pushed back");
    this.batches.push(batch);
    this.told.push(...batch.entries.map(({ seq }) => seq));
    this.onWrite();
    if (!this.slow) return undefined;
    this.#gate = gate();
    return this.#gate.passed;
  }
  again(log: Log, batch: Batch): Promise<unknown> | undefined {
    return this.write(log, batch);
  }
  gap(_log: Log, after: Position, from: Position): void {
    this.told.push(`gap ${after.seq} ${from.seq}`);
  }
  rest(): void {
    this.rests++;
  }
  fail(error: unknown): void {
    this.errors.push(error);
  }

  /** The peer has read everything. */
  drain(): void {
    const held = this.#gate;
    this.#gate = undefined;
    held?.open();
  }
}

export const logOf = (source: LogSource, head = 0): Log => {
  const log = new Log("events", "c", source);
  log.reach(EPOCH, head);
  return log;
};

export function follow(log: Log, sink: Sink, cursor = 0, floor = cursor): Follower {
  const follower: Follower = {
    sink,
    device: null,
    cursor,
    floor,
    start: cursor,
    joined: 0,
    gapAfter: null,
    stopped: false,
  };
  log.follow(follower);
  return follower;
}

/** Readers that all follow from one place. */
export const readers = (log: Log, count: number, cursor = 0): Reader[] =>
  Array.from({ length: count }, () => {
    const reader = new Reader();
    follow(log, reader, cursor);
    return reader;
  });

export const sizes = ({ batches }: Reader): number[] =>
  batches.map((batch) => batch.entries.reduce((sum, { text }) => sum + text.length, 0));
