/**
 * Deadlines: when one passes, devices that owe a final receipt are recorded as missing.
 *
 * The store knows the deadlines and records each device once, however often and by however many instances it is asked. So nothing needs to be
 * remembered here: a process that starts after a deadline finds it, and if one instance dies, the others continue. The store also judges receipts
 * that arrive after a deadline. The timing here only affects how soon missing devices are reported.
 *
 * Events without a deadline become overdue after an hour in the same way.
 *
 * The clock is checked at least twice a second, so it may jump: whatever has passed by then is recorded then.
 */
import { onConsole, type Report, unexpected } from "../faults.ts";

/** Maximum interval between two queries: work that another instance left undone is found within two of these. */
const LOOK_MS = 500;

export class Deadlines {
  readonly #record: (now: number) => Promise<number | null>;
  readonly #now: () => number;
  readonly #report: Report;
  #timer: Timer | undefined;
  /** The time of the next query. */
  #at = Number.POSITIVE_INFINITY;
  /** The running query. */
  #looking: Promise<void> | undefined;
  #stopped = false;

  /** @param record records what is due, in a slice; returns when to call it again (`now` or earlier: at once), or null */
  constructor(record: (now: number) => Promise<number | null>, now: () => number, report: Report = onConsole) {
    this.#record = record;
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
    this.#at = Number.POSITIVE_INFINITY; // Events pushed from here on call `ahead`.
    try {
      let next: number | null;
      do next = await this.#record(this.#now());
      while (!this.#stopped && next !== null && next <= this.#now());
      this.ahead(next ?? Number.POSITIVE_INFINITY);
    } catch (error) {
      unexpected(this.#report, error); // The store is away; the timer tries again.
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
