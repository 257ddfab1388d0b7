/**
 * Long work, and others who have their turn in between.
 *
 * What never leaves the event loop's turn (reads of a file, rows that are already there) would otherwise hold up every request behind it,
 * for `await` alone goes on in the same turn.
 */

/** How long one piece of work may keep the rest waiting. */
const BREATH_MS = 5;

export class Breath {
  #at = performance.now() + BREATH_MS;

  /** Returns at once, until it is time for others. */
  async take(): Promise<void> {
    if (performance.now() < this.#at) return;
    await new Promise((resolve) => setImmediate(resolve));
    this.#at = performance.now() + BREATH_MS;
  }
}
