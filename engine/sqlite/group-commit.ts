/**
 * Group commit: changes that come together share a sync.
 *
 * A sync costs the same however much it covers, so changes are gathered. Each change is a small function in a queue. As soon as a turn of the event
 * loop adds no more changes, a *round* writes all of them, in a transaction or in several short ones with turns between them, and syncs them together.
 * Changes that arrive meanwhile go into the next round. A single change waits for one sync; a thousand changes share one. On a slow disk a change need
 * not wait for the end of a sync that began before it came: some rounds may sync at a time. They end in their order.
 *
 * Never resolves a change before the sync of its round and of all rounds before it.
 */
import type { PereError } from "../model.ts";
import { SYNCS_MAX } from "./write-ahead-log.ts";

/** Turns of the event loop that a round waits for more changes, as long as each turn brings some. */
const GATHER_TURNS = 8;
/** The same limit in milliseconds, for long turns such as those of a fan-out: waiting longer than a sync saves nothing. */
const GATHER_MS = 1;
/** Minimum time between the beginnings of two syncs that run at a time. Beside a fast sync, another saves nothing. */
const FAST_MS = 1;
/** Transactions per round, so that the first of them is answered soon. */
const SLICES_MAX = 8;

export interface Change {
  readonly run: () => unknown;
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
}

/** How a change ended, unless the sync fails. */
export interface Outcome {
  readonly change: Change;
  readonly value?: unknown;
  readonly error?: PereError;
}

/** What is synced together. */
export interface Round {
  readonly outcomes: Outcome[];
  /** Called when it is durable, before any caller is answered. */
  readonly tell: (() => void)[];
}

/** Writes and syncs. */
interface Writer {
  /**
   * Runs the first of these changes in one transaction.
   * @param round receives how each of them ended
   * @returns how many changes are settled; 0: it was rolled back, and each must be tried alone
   */
  transact(changes: readonly Change[], round: Round): number;
  /** Rows changed so far. */
  rows(): number;
  /** Makes all transactions so far durable; null: they are. */
  sync(): Promise<void> | null;
  /** A round is durable, after so many milliseconds. @returns why its callers can't be told so, or null */
  durable(round: Round, ms: number): PereError | null;
  /** A sync failed. @returns the error for the callers */
  lost(error: unknown): PereError;
}

export class GroupCommit {
  readonly #writer: Writer;
  #queue: Change[] = [];
  /** The last round that is not durable yet; false: its sync failed. */
  #durable: Promise<boolean> | null = null;
  #isWriting = false;
  /** Running syncs, and when the last of them began. */
  #syncs = 0;
  #syncedFrom = 0;
  #syncMs = 0;
  /** Runs until another sync may begin beside the running ones. */
  #slow: Timer | undefined;
  #isPaused = false;
  /** The next turn looks at the queue. */
  #isGathering = false;
  /** Queue length at the end of the last turn, turns waited so far, and the time limit for waiting. */
  #gathered = 0;
  #turns = 0;
  #gatherUntil = 0;

  constructor(writer: Writer) {
    this.#writer = writer;
  }

  /** Changes that wait for a round. */
  get length(): number {
    return this.#queue.length;
  }

  /** Resolves when everything that is written so far is durable; false: a sync failed. Null: it is. */
  get durable(): Promise<boolean> | null {
    return this.#durable;
  }

  /** How long the last sync took. */
  get syncMs(): number {
    return this.#syncMs;
  }

  change<Result>(run: () => Result): Promise<Result> {
    return new Promise<Result>((resolve, reject) => {
      if (this.#queue.push({ run, resolve: resolve as Change["resolve"], reject }) === 1) this.#gather();
    });
  }

  /** Refuses all changes that wait for a round. */
  refuse(error: PereError): void {
    for (const { reject } of this.#queue.splice(0)) reject(error);
  }

  /** Begins no more rounds until `resume`. @returns whether all rounds so far are durable */
  async pause(): Promise<boolean> {
    this.#isPaused = true;
    while (this.#durable !== null) if (!(await this.#durable)) return false;
    return true;
  }

  resume(): void {
    this.#isPaused = false;
    this.#gather();
  }

  /** Writes the rest of the queue, and waits until all of it is durable. No change may come after this call. */
  async end(): Promise<void> {
    this.#isPaused = true;
    while (this.#queue.length > 0 || this.#durable !== null) await (this.#durable ?? this.#commit());
  }

  /** Begins the next round as soon as it may. */
  readonly #gather = (): void => {
    if (this.#isGathering || this.#isPaused || this.#isWriting || this.#queue.length === 0) return;
    if (this.#syncs >= SYNCS_MAX) return;
    const apartMs = Math.max(FAST_MS, this.#syncMs / SYNCS_MAX);
    const waitMs = this.#syncs === 0 ? 0 : this.#syncedFrom + apartMs - performance.now();
    if (waitMs > 0) {
      this.#slow ??= setTimeout(() => {
        this.#slow = undefined;
        this.#gather();
      }, waitMs);
      return;
    }
    this.#isGathering = true;
    this.#gathered = this.#queue.length;
    this.#turns = 0;
    this.#gatherUntil = performance.now() + GATHER_MS;
    setImmediate(this.#turn);
  };

  readonly #turn = (): void => {
    const { length } = this.#queue;
    if (this.#isPaused || length === 0) return void (this.#isGathering = false);
    const isLate = ++this.#turns === GATHER_TURNS || performance.now() >= this.#gatherUntil;
    if (isLate || length === this.#gathered) {
      this.#isGathering = false;
      return void this.#commit();
    }
    this.#gathered = length;
    setImmediate(this.#turn);
  };

  /** Writes what is in the queue, in a few transactions with a turn of the event loop between them, and syncs all of it together. */
  async #commit(): Promise<void> {
    const startedAt = performance.now();
    const before = this.#durable;
    const { promise, resolve } = Promise.withResolvers<boolean>();
    this.#durable = promise;
    const round: Round = { outcomes: [], tell: [] };
    const rows = this.#writer.rows();
    this.#isWriting = true;
    for (let slices = 1; ; slices++) {
      const queue = this.#queue;
      let stored = this.#writer.transact(queue, round);
      // If one of them can't be stored, each runs in its own transaction, so that only that one fails.
      if (stored === 0) for (const change of queue) stored += this.#writer.transact([change], round);
      this.#queue = queue.slice(stored);
      if (this.#queue.length === 0 || slices === SLICES_MAX) break;
      await new Promise((next) => setImmediate(next));
    }
    this.#isWriting = false;
    let isDurable = true;
    try {
      if (this.#writer.rows() > rows) await this.#sync();
      // Rounds end in their order. One without a change of its own may rest on an earlier one whose sync is running.
      if (before !== null && !(await before)) throw new Error("an earlier sync failed");
    } catch (error) {
      isDurable = false;
      const lost = this.#writer.lost(error);
      for (const { change } of round.outcomes) change.reject(lost);
    }
    try {
      if (isDurable) this.#end(round, startedAt);
    } finally {
      resolve(isDurable);
      if (this.#durable === promise) this.#durable = null;
      this.#gather();
    }
  }

  async #sync(): Promise<void> {
    const startedAt = performance.now();
    const synced = this.#writer.sync();
    if (synced === null) return;
    this.#syncedFrom = startedAt;
    this.#syncs++;
    this.#gather();
    await synced.finally(() => this.#syncs--);
    this.#syncMs = performance.now() - startedAt;
  }

  #end(round: Round, startedAt: number): void {
    const lost = this.#writer.durable(round, performance.now() - startedAt);
    try {
      for (const tell of round.tell) tell();
    } finally {
      for (const { change, value, error } of round.outcomes)
        if (lost ?? error) change.reject(lost ?? error);
        else change.resolve(value as never);
    }
  }
}
