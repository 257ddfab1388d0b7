/**
 * What is to be done at times that the store knows: devices become missing, events become overdue, rounds begin, scheduled pushes are pushed. One
 * timer for all times of a kind.
 *
 * The store does each thing once, however often and by however many instances it is asked. So nothing needs to be remembered here: a process that
 * starts after a time finds it, and if one instance dies, the others continue. The timing here only affects how soon it is done.
 *
 * The clock is checked at least twice a second, so it may jump: whatever has passed by then is done then.
 */
import { onConsole, type Report, unexpected } from "./faults.ts";

/** Maximum interval between two queries: work that another instance left undone is found within two of these. */
const LOOK_MS = 500;

export class DueWork {
  readonly #run: (now: number) => Promise<number | null>;
  readonly #now: () => number;
  readonly #report: Report;
  #timer: Timer | undefined;
  /** The time of the next query. */
  #at = Number.POSITIVE_INFINITY;
  /** The running query. */
  #looking: Promise<void> | undefined;
  #stopped = false;

  /** @param run does what is due, in a slice; returns when to call it again (`now` or earlier: at once), or null */
  constructor(run: (now: number) => Promise<number | null>, now: () => number, report: Report = onConsole) {
    this.#run = run;
    this.#report = report;
    this.#now = now;
    this.ahead(now());
  }

  /** Something is due at this time, milliseconds since 1970. */
  ahead(due: number): void {
    if (due >= this.#at || this.#stopped) return;
    this.#at = due;
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
    this.#at = Number.POSITIVE_INFINITY; // What is stored from here on calls `ahead`.
    try {
      let next: number | null;
      do next = await this.#run(this.#now());
      while (!this.#stopped && next !== null && next <= this.#now());
      this.ahead(next ?? Number.POSITIVE_INFINITY);
    } catch (error) {
      unexpected(this.#report, error); // The store is away, or its disk is full; the timer tries again.
      this.ahead(this.#now() + LOOK_MS);
    }
  }

  /** Stops. @returns when the running query has ended */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#looking;
  }
}
