/**
 * Deadlines: when one passes, whoever owes a final receipt is recorded as missing.
 *
 * The store knows the deadlines and records each device once, however often and by how many instances it is asked, so nothing here must be
 * remembered: a process that comes up after a deadline finds it, and where one dies the others go on. A word that comes past a deadline is judged by
 * the store, so nothing depends on when it is looked at here but how soon the missing are told.
 *
 * The clock is looked at twice a second at least, so it may jump: what has passed by then is recorded then.
 */
import { onConsole, type Report, unexpected } from "../faults.ts";
import type { Store } from "../store.ts";

/** How often the store is asked at least: what another instance left undone is found within two of these. */
const LOOK_MS = 500;

export class Deadlines {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #report: Report;
  #timer: Timer | undefined;
  /** When the store is to be asked next, by the clock. */
  #at = Number.POSITIVE_INFINITY;
  /** The look that is under way. */
  #looking: Promise<void> | undefined;
  #stopped = false;

  constructor(store: Store, now: () => number, report: Report = onConsole) {
    this.#store = store;
    this.#report = report;
    this.#now = now;
    this.ahead(now());
  }

  /** An event was pushed with this deadline, milliseconds since 1970. */
  ahead(deadline: number): void {
    if (deadline >= this.#at || this.#stopped) return;
    this.#at = deadline;
    if (!this.#looking) this.#set();
  }

  #set(): void {
    clearTimeout(this.#timer);
    if (this.#stopped) return;
    const ms = Math.max(0, Math.min(this.#at - this.#now(), LOOK_MS));
    this.#timer = setTimeout(() => {
      this.#looking = this.#look().finally(() => {
        this.#looking = undefined;
        this.#set();
      });
    }, ms);
    this.#timer.unref();
  }

  async #look(): Promise<void> {
    this.#at = Number.POSITIVE_INFINITY; // What is pushed from here on is told by `ahead`.
    try {
      let next: number | null;
      do next = await this.#store.recordMissing(this.#now());
      while (!this.#stopped && next !== null && next <= this.#now());
      this.ahead(next ?? Number.POSITIVE_INFINITY);
    } catch (error) {
      unexpected(this.#report, error); // Where the store is away, the timer looks again.
      this.ahead(this.#now() + LOOK_MS);
    }
  }

  /** Looks no more. @returns when the look that is under way has ended */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#looking;
  }
}
