/**
 * Pushing an event again: to whom. The devices that failed it, are missing on it, or had it withdrawn are read page by page, and the new event names
 * them, so that its audience is frozen as that of any push.
 */
import { type Event, id, PAGE_MAX, PereError, type State, TARGETS_MAX } from "./model.ts";
import type { Store } from "./store.ts";
import { yieldToEventLoop } from "./yield.ts";

const STATES: readonly State[] = ["failed", "missing", "withdrawn"];

/**
 * The devices that an event is pushed to again. One that failed it and is not enrolled has been retired, and is left out; one that is missing was named,
 * and may enrol yet: a retired device is missing on nothing.
 * @throws PereError refused: there are none, or too many; unknown: the event is no longer kept
 */
export async function devicesLeft(
  store: Store,
  channel: string,
  epoch: string,
  event: Pick<Event, "seq">,
  now: number,
): Promise<string[]> {
  const found: string[] = [];
  const name = id(epoch, event.seq);
  for (let after: string | null = ""; after !== null;) {
    await yieldToEventLoop("read", PAGE_MAX);
    const page = await store.rows(channel, epoch, event.seq, STATES, after, PAGE_MAX, now);
    if (!page) throw new PereError("unknown", `event ${name} is no longer kept`);
    const failed = page.items.filter(({ status }) => status === "failed").map(({ device }) => device);
    const enrolled = new Set(failed.length === 0 ? [] : await store.enrolled(channel, failed));
    for (const { device, status } of page.items) if (status !== "failed" || enrolled.has(device)) found.push(device);
    if (found.length > TARGETS_MAX)
      throw new PereError(
        "refused",
        `more than ${TARGETS_MAX} devices failed event ${name}, are missing on it or had it withdrawn, which is too many to name; push it to all devices instead`,
      );
    after = page.next;
  }
  if (found.length > 0) return found;
  throw new PereError(
    "refused",
    `event ${name} can't be pushed again: no device failed it, is missing on it or had it withdrawn, apart from retired ones`,
  );
}
