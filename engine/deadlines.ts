/**
 * Deadlines: when one passes, whoever owes a final receipt is recorded as missing.
 *
 * The store knows the deadlines and records each device once, however often it is asked, so nothing here must be remembered: a process that comes
 * up after a deadline finds it. Of many instances one looks at a time, by a lease; a second one would only do needless work.
 *
 * The clock is looked at every second at least, so it may jump: what has passed by then is recorded then.
 */
import { onConsole, type Report, unexpected } from "./faults.ts";
import type { Store } from "./store.ts";

/** How often the store is asked at least. */
const LOOK_MS = 1_000;
/** So long an instance that died is waited for. */
const LEASE_MS = 5_000;

export class Deadlines {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #report: Report;
  readonly #holder = crypto.randomUUID();
  #timer: Timer | undefined;
  /** When the timer looks next, by the clock. */
  #at = Number.POSITIVE_INFINITY;
  #looking = false;
  #isHolder = false;
  #stopped = false;

  constructor(store: Store, now: () => number, report: Report = onConsole) {
    this.#store = store;
    this.#report = report;
    this.#now = now;
    this.#lookAt(now());
  }

  /** An event was pushed with this deadline, milliseconds since 1970. */
  ahead(deadline: number): void {
    if (deadline < this.#at && !this.#looking) this.#lookAt(deadline);
  }

  #lookAt(at: number): void {
    clearTimeout(this.#timer);
    if (this.#stopped) return;
    this.#at = at;
    this.#timer = setTimeout(() => void this.#look(), Math.max(0, Math.min(at - this.#now(), LOOK_MS)));
    this.#timer.unref();
  }

  async #look(): Promise<void> {
    this.#looking = true;
    let next: number | null = null;
    try {
      this.#isHolder = (await this.#store.lease("deadlines", this.#holder, LEASE_MS)) !== null;
      if (this.#isHolder)
        do next = await this.#store.miss(this.#now());
        while (!this.#stopped && next !== null && next <= this.#now());
    } catch (error) {
      unexpected(this.#report, error); // Where the store is away, the timer looks again.
    } finally {
      this.#looking = false;
      this.#lookAt(next ?? this.#now() + LOOK_MS);
    }
  }

  /** Looks no more, and leaves it to others at once. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    if (this.#isHolder) await this.#store.lease("deadlines", this.#holder, 0).catch(() => {});
  }
}
