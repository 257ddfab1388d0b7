/**
 * What the page remembers of events that are not done: their titles, so that it can say what was withdrawn while it was closed, and when those come back
 * that were put off. It stays in the browser, as far as that allows it; the service decides in any case.
 */
import { signal } from "@preact/signals";

/** Events that are remembered; the oldest go. */
const KEPT_MAX = 200;
/** How long after its time an event that was put off is listed, if the service does not send it. */
const OVERDUE_MS = 60_000;

/** What is remembered of an event. */
export interface Kept {
  readonly title: string;
  /** When it comes back, in milliseconds since 1970; absent: it was not put off. */
  readonly until?: number;
  /** Whether the service knows that it was put off. */
  readonly isSent?: boolean;
}

const isKept = (value: unknown): value is Kept => typeof (value as Kept | null)?.title === "string";

export class KeptEvents {
  /** By the event's id, oldest first. */
  readonly events = signal<ReadonlyMap<string, Kept>>(new Map());
  readonly #name: string;

  /** @param name of the device and its channels */
  constructor(name: string) {
    this.#name = `pere.cards ${name}`;
    try {
      const stored = JSON.parse(localStorage.getItem(this.#name) ?? "[]") as [string, unknown][];
      this.events.value = new Map(stored.filter((one): one is [string, Kept] => isKept(one[1])));
    } catch {
      // Nothing is remembered.
    }
  }

  get = (id: string): Kept | undefined => this.events.peek().get(id);

  set(id: string, kept: Kept): void {
    const events = new Map(this.events.peek());
    events.delete(id);
    events.set(id, kept);
    for (const oldest of events.keys()) {
      if (events.size <= KEPT_MAX) break;
      events.delete(oldest);
    }
    this.#store(events);
  }

  /** @returns what was remembered of it */
  delete(id: string): Kept | undefined {
    const kept = this.get(id);
    if (!kept) return undefined;
    const events = new Map(this.events.peek());
    events.delete(id);
    this.#store(events);
    return kept;
  }

  /** Forgets those that were put off and should have come back: they were done or ended elsewhere. @param now milliseconds since 1970 */
  clean(now: number): void {
    for (const [id, { until }] of this.events.peek())
      if (until !== undefined && until + OVERDUE_MS < now) this.delete(id);
  }

  #store(events: ReadonlyMap<string, Kept>): void {
    this.events.value = events;
    try {
      localStorage.setItem(this.#name, JSON.stringify([...events]));
    } catch {
      // Full, or not allowed: then it is in memory only.
    }
  }
}
