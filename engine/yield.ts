/**
 * Long work, and others who have their turn in between.
 *
 * What never leaves the event loop's turn (reads of a file, rows that are already there) would otherwise hold up every request behind it,
 * for `await` alone goes on in the same turn.
 */

/** How long one piece of work may keep the rest waiting. */
const BREATH_MS = 5;

export class Turn {
  #at = performance.now() + BREATH_MS;

  /** Returns at once, until it is time for others. */
  async yieldToEventLoop(): Promise<void> {
    if (performance.now() < this.#at) return;
    await new Promise((resolve) => setImmediate(resolve));
    this.#at = performance.now() + BREATH_MS;
  }
}

/** The same for many who work side by side: together they keep the rest waiting no longer than one alone. */
export class SharedTurn {
  #until = 0;
  #next: Promise<void> | undefined;

  /** Returns when it is the turn of somebody of them. */
  async take(): Promise<void> {
    while (performance.now() >= this.#until) {
      this.#next ??= new Promise((resolve) =>
        setImmediate(() => {
          this.#next = undefined;
          this.#until = performance.now() + BREATH_MS;
          resolve();
        }),
      );
      await this.#next;
    }
  }
}
