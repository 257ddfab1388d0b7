/**
 * One budget of work per turn of the event loop, shared by everything that can take long.
 *
 * Code that never leaves the current turn (file reads, rows that are already in memory) would delay every request behind it; `await` alone continues
 * in the same turn. So long work is done in steps, and asks before each of them. As long as the turn has budget left and nobody waits, a step begins
 * at once. Otherwise it waits for a later turn. Each turn serves the kinds of work in rotation, and within a kind whoever waits longest. So ten
 * thousand readers together hold up a request no longer than one of them does.
 *
 * A budget is counted in rows: an entry that is read, encoded or written, a row that is looked at. A limit in milliseconds ends a turn whose rows
 * cost more than usual.
 */

/** Kinds of work that take turns. */
export type WorkKind =
  "open" | "deliver" | "catch-up" | "read" | "watch" | "wait" | "hooks" | "remind" | "beat" | "count";

/** Rows per turn: some milliseconds. */
export const TURN_ROWS = 2_048;
/** How long the work of one turn may take. */
const TURN_MS = 5;
/** A write to a connection counts as much as this many rows. */
export const WRITE_ROWS = 16;
/** Opening a feed counts so much twice: until its device is enrolled, and after that. */
export const OPEN_ROWS = 64;

/** Work that waits for a turn. Returns how many rows it took. `isFirst`: nothing else was done in this turn. */
type Step = (isFirst: boolean) => number;

/** The budget of one event loop. */
export class EventLoopBudget {
  /** Waiting steps, by kind, in the order in which the kinds are served. */
  readonly #waiting = new Map<WorkKind, Step[]>();
  #count = 0;
  /** What is left of the running turn's budget. */
  #rowsLeft = 0;
  #until = 0;
  /** The next turn renews the budget. */
  #isArmed = false;

  #arm(): void {
    this.#rowsLeft = TURN_ROWS;
    this.#until = performance.now() + TURN_MS;
    this.#isArmed = true;
    setImmediate(this.#turn);
  }

  get #isSpent(): boolean {
    return this.#rowsLeft <= 0 || performance.now() >= this.#until;
  }

  readonly #turn = (): void => {
    this.#isArmed = false;
    if (this.#count === 0) return;
    this.#arm();
    for (let isFirst = true; this.#count > 0 && (isFirst || !this.#isSpent); isFirst = false) {
      const [kind, steps] = this.#waiting.entries().next().value!;
      this.#waiting.delete(kind);
      const step = steps.shift()!;
      if (steps.length > 0) this.#waiting.set(kind, steps); // Behind the other kinds.
      this.#count--;
      this.#rowsLeft -= step(isFirst);
    }
  };

  #enqueue(kind: WorkKind, step: Step, isAgain: boolean): void {
    const steps = this.#waiting.get(kind);
    if (!steps) this.#waiting.set(kind, [step]);
    else if (isAgain) steps.unshift(step);
    else steps.push(step);
    this.#count++;
    if (!this.#isArmed) this.#arm();
  }

  /** See `inLaterTurn`. */
  later(kind: WorkKind, step: Step): void {
    this.#enqueue(kind, step, false);
  }

  /** See `yieldToEventLoop`. */
  async yield(kind: WorkKind, rows: number): Promise<void> {
    if (!this.#isArmed) this.#arm();
    if (this.#count === 0 && !this.#isSpent) {
      this.#rowsLeft -= rows;
      return;
    }
    for (let isAgain = false; ; isAgain = true) {
      const isFirst = await new Promise<boolean>((resolve) => {
        const step: Step = (first) => {
          resolve(first);
          return rows;
        };
        this.#enqueue(kind, step, isAgain);
      });
      // Several steps were let in together. Those before this one may have used up the turn.
      if (isFirst || performance.now() < this.#until) return;
    }
  }
}

const own = new EventLoopBudget();
let budget = (): EventLoopBudget => own;

/** Sets how the caller's budget is found, for a process that plays several machines with an event loop each. */
export function findBudgetBy(find: () => EventLoopBudget): void {
  budget = find;
}

/** Runs a step in a later turn. @param step must not throw; returns how many rows it took */
export const inLaterTurn = (kind: WorkKind, step: Step): void => budget().later(kind, step);

/** Returns at once while the turn has budget left and nobody waits; otherwise in a later turn. @param rows what the next step takes, at most */
export const yieldToEventLoop = (kind: WorkKind, rows: number): Promise<void> => budget().yield(kind, rows);
