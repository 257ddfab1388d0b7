/**
 * Lets other work run during long loops.
 *
 * Code that never leaves the current turn of the event loop (file reads, rows that are already in memory) would delay every request behind it;
 * `await` alone continues in the same turn.
 */

/** How long one loop may block the event loop. */
const TURN_MS = 5;

export class Turn {
  #at = performance.now() + TURN_MS;

  /** Returns at once until the time slice is used up, then lets other work run. */
  async yieldToEventLoop(): Promise<void> {
    if (performance.now() < this.#at) return;
    await new Promise((resolve) => setImmediate(resolve));
    this.#at = performance.now() + TURN_MS;
  }
}

/** The same for many loops that run concurrently: together they block the event loop no longer than one of them. */
export class SharedTurn {
  #until = 0;
  #next: Promise<void> | undefined;

  /** Returns when there is time left in the shared slice. */
  async yieldToEventLoop(): Promise<void> {
    while (performance.now() >= this.#until) {
      this.#next ??= new Promise((resolve) =>
        setImmediate(() => {
          this.#next = undefined;
          this.#until = performance.now() + TURN_MS;
          resolve();
        }),
      );
      await this.#next;
    }
  }
}
