/**
 * Time, timers and chance of a whole world in one process. Nothing waits: when everything that can run has run, the clock goes to the next timer.
 *
 * `install` puts it in the place of the globals, so the code under test reads it without knowing; this happens in the simulation's own process,
 * before that code is loaded. Each timer belongs to the machine whose code set it (async context tells), and dies with it: that is what a
 * crash is. Each machine has its own wall clock, which may leap; the monotonic one is everybody's.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { drainMicrotasks } from "bun:jsc";
import { EventLoopBudget, findBudgetBy } from "../../engine/yield.ts";
import { chance } from "../support/chance.ts";

/** When each world begins, milliseconds since 1970. */
export const START_MS = Date.UTC(2026, 10, 22, 10);
/** Events in one turn of the real event loop: signals and Redis are heard in between. */
const TURN_EVENTS = 2_000;

/** What crashes as a whole, and has a wall clock of its own. */
export class Machine {
  readonly name: string;
  isAlive = true;
  /** How far its wall clock is off. */
  skewMs = 0;
  /** Of its own event loop; it dies with it. */
  readonly budget = new EventLoopBudget();

  constructor(name: string) {
    this.name = name;
  }
}

class Timer {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
  readonly owner: Machine | undefined;
  isOver = false;
  /** The timer that an interval set for its next time. */
  next: Timer | undefined;

  constructor(at: number, order: number, run: () => void, owner: Machine | undefined) {
    this.at = at;
    this.order = order;
    this.run = run;
    this.owner = owner;
  }
  ref(): this {
    return this;
  }
  unref(): this {
    return this;
  }
  hasRef(): boolean {
    return true;
  }
  refresh(): this {
    return this;
  }
}

const isBefore = (a: Timer, b: Timer): boolean => a.at < b.at || (a.at === b.at && a.order < b.order);

const real = { setImmediate: globalThis.setImmediate, now: performance.now.bind(performance) };
const context = new AsyncLocalStorage<Machine | undefined>();

/** The real monotonic clock, for reports. */
export const realNow = real.now;

export class Clock {
  /** Milliseconds since the world began. */
  now = 0;
  /** Something real is waited for; nothing happens meanwhile. */
  held = 0;
  /** What happened, as one number, and line by line where somebody wants to read it. */
  trace = 0n;
  lines: string[] | null = null;
  /** Of code that runs on no machine. */
  readonly budget = new EventLoopBudget();
  /** What was thrown where nobody caught it. */
  readonly uncaught: unknown[] = [];
  #heap: Timer[] = [];
  #order = 0;
  #chance: () => number;
  #resume: (() => void) | undefined;

  constructor(seed: number) {
    this.#chance = chance(seed);
  }

  /** From 0 up to 1, for code that asks the globals. */
  readonly random = (): number => this.#chance();

  /** The machine whose code runs now. */
  here(): Machine | undefined {
    return context.getStore();
  }

  /** The wall clock of whoever asks, milliseconds since 1970. */
  wall(machine = context.getStore()): number {
    return START_MS + Math.floor(this.now) + (machine?.skewMs ?? 0);
  }

  note(line: string): void {
    this.trace = BigInt(Bun.hash(line, this.trace));
    this.lines?.push(`${(this.now / 1000).toFixed(3).padStart(9)}  ${line}`);
  }

  // ---------------------------------------------------------------------------------------------------------------- timers

  set(run: () => void, ms: number, owner = context.getStore()): Timer {
    const timer = new Timer(this.now + Math.max(0, ms || 0), this.#order++, run, owner);
    const heap = this.#heap;
    let at = heap.push(timer) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(timer, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = timer;
    return timer;
  }

  every(run: () => void, ms: number, owner = context.getStore()): Timer {
    const interval = new Timer(0, 0, run, owner);
    const arm = (): void => {
      interval.next = this.set(
        () => {
          if (interval.isOver) return;
          arm();
          run();
        },
        Math.max(1, ms),
        owner,
      );
    };
    arm();
    return interval;
  }

  clear(timer: unknown): void {
    if (!(timer instanceof Timer)) return;
    timer.isOver = true;
    if (timer.next) timer.next.isOver = true;
  }

  #pop(): Timer | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (!first || !last || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }

  // ----------------------------------------------------------------------------------------------------------------- events

  /** Runs something as a machine does it. */
  as<Result>(machine: Machine | undefined, run: () => Result): Result {
    return context.run(machine, run);
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.set(resolve, ms));
  }

  /** Whoever holds the clock lets it go: called from outside of the world, where nothing of it runs. */
  release(): void {
    if (--this.held === 0) this.#resume?.();
  }

  /** Lets everything happen until `done`, or until this time. Resolves in the real event loop. */
  run(untilMs: number, done: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const turn = (): void => {
        for (let events = 0; events < TURN_EVENTS; events++) {
          if (this.held > 0) return;
          const next = this.#heap[0];
          if (!next || next.at > untilMs || done()) {
            this.#resume = undefined;
            return resolve();
          }
          this.#pop();
          const { owner } = next;
          if (next.isOver || owner?.isAlive === false) continue;
          this.now = Math.max(this.now, next.at);
          next.isOver = true;
          try {
            context.run(owner, next.run);
          } catch (error) {
            this.uncaught.push(error);
          }
          drainMicrotasks();
        }
        real.setImmediate(turn);
      };
      this.#resume = turn;
      real.setImmediate(turn);
    });
  }
}

/** The clock of the world that runs now. */
let clock = new Clock(0);

/** Begins another world. */
export function begin(seed: number): Clock {
  clock = new Clock(seed);
  return clock;
}

/** An answer, as this world has it: text, bytes, or an open stream, all of it at once and without the real event loop. */
export class PlainResponse {
  readonly status: number;
  readonly headers: Headers;
  readonly content: unknown;

  constructor(content: unknown = null, init: { status?: number; headers?: HeadersInit } = {}) {
    this.content = content;
    this.status = init.status ?? 200;
    this.headers = new Headers(init.headers);
  }
  get ok(): boolean {
    return this.status >= 200 && this.status < 300;
  }
  async text(): Promise<string> {
    return this.content === null ? "" : String(this.content);
  }
}

/** A stream as it is given to a `Response`: only its source matters. */
export class PlainStream {
  readonly source: unknown;
  constructor(source: unknown) {
    this.source = source;
  }
}

/** Takes the place of time, timers, chance and answers in this process. */
export function install(): void {
  const random = (): number => clock.random();
  const byte = (): number => Math.floor(random() * 256);
  const fill = <Array extends ArrayBufferView>(array: Array): Array => {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    for (let at = 0; at < bytes.length; at++) bytes[at] = byte();
    return array;
  };
  Object.assign(globalThis, {
    setTimeout: (run: (...values: unknown[]) => void, ms = 0, ...values: unknown[]) =>
      clock.set(values.length === 0 ? run : () => run(...values), ms),
    setInterval: (run: () => void, ms = 0) => clock.every(run, ms),
    setImmediate: (run: () => void) => clock.set(run, 0),
    clearTimeout: (timer: unknown) => clock.clear(timer),
    clearInterval: (timer: unknown) => clock.clear(timer),
    clearImmediate: (timer: unknown) => clock.clear(timer),
    Response: PlainResponse,
    ReadableStream: PlainStream,
  });
  Object.assign(Bun, { sleep: (ms: number) => clock.sleep(ms) });
  Object.assign(Math, { random });
  findBudgetBy(() => (clock.here() ?? clock).budget);
  Date.now = () => clock.wall();
  performance.now = () => clock.now;
  crypto.getRandomValues = fill as typeof crypto.getRandomValues;
  crypto.randomUUID = () => {
    const hex = Buffer.from(fill(new Uint8Array(16))).toString("hex");
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
  };
}
