/**
 * Short words for what the store's suite calls and compares again and again.
 */
import { expect } from "bun:test";
import {
  type Event,
  type EventDraft,
  type Code,
  PereError,
  type Receipt,
  type ReceiptDraft,
  type Row,
  type State,
  type Status,
  type Tally,
  tallyCounts,
} from "../../engine/model.ts";
import type { Page, Store, Wake } from "../../engine/store.ts";
import { until } from "../support/harness.ts";

export const T = Date.UTC(2026, 0, 1);
export const SECOND = 1000;
/** Retention that drops nothing. */
export const EVERYTHING = { count: Number.MAX_SAFE_INTEGER, before: 0 };

export const draft = (data: unknown, more: Partial<EventDraft> = {}): EventDraft => ({
  type: null,
  data: JSON.stringify(data),
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  ...more,
});

export const word = (
  epoch: string,
  seq: number,
  device: string,
  status: Status,
  more: Partial<ReceiptDraft> = {},
): ReceiptDraft => ({ event: { epoch, seq }, device, status, detail: null, deviceAt: null, ...more });

/** Reads the life of its log that a channel has now; a channel that there is not has none. */
async function inLife<Found>(
  store: Store,
  channel: string,
  none: Found,
  look: (epoch: string) => Promise<Found | null>,
) {
  const heads = await store.heads(channel);
  return (heads && (await look(heads.epoch))) ?? none;
}

/** What is read by `seq`, where it needs no saying of which life of the log. */
export const reads = {
  events: (store: Store, channel: string, after: number, limit: number, bytesMax?: number) =>
    inLife<Event[]>(store, channel, [], (epoch) => store.events(channel, epoch, after, limit, bytesMax)),
  receipts: (store: Store, channel: string, after: number, limit: number) =>
    inLife<Receipt[]>(store, channel, [], (epoch) => store.receipts(channel, epoch, after, limit)),
  settled: (store: Store, channel: string, device: string, after: number, upTo: number) =>
    inLife<ReadonlySet<number>>(store, channel, new Set(), (epoch) =>
      store.finalized(channel, epoch, device, after, upTo),
    ),
  tallies: (store: Store, channel: string, from: number, upTo: number) =>
    inLife<ReadonlyMap<number, Tally>>(store, channel, new Map(), (epoch) => store.tallies(channel, epoch, from, upTo)),
  silent: (store: Store, channel: string, event: number, devices: readonly string[]) =>
    inLife<string[]>(store, channel, [], (epoch) => store.unanswered(channel, epoch, event, devices)),
  rows: (
    store: Store,
    channel: string,
    event: number,
    status: State | readonly State[] | null,
    after: string,
    limit: number,
  ) =>
    inLife<Page<Row, string>>(store, channel, { items: [], next: null }, (epoch) =>
      store.rows(channel, epoch, event, typeof status === "string" ? [status] : status, after, limit),
    ),
} as const;

/** Reads all pages. */
export async function all<Item>(read: (after: string) => Promise<Page<Item, string>>): Promise<Item[]> {
  const items: Item[] = [];
  for (let after: string | null = ""; after !== null;) {
    const page: Page<Item, string> = await read(after);
    items.push(...page.items);
    after = page.next;
  }
  return items;
}

export const rowsOf = (
  store: Store,
  channel: string,
  event: number,
  status: State | readonly State[] | null = null,
): Promise<Row[]> => all((after) => reads.rows(store, channel, event, status, after, 1_000));

export const tallyOf = async (store: Store, channel: string, event: number): Promise<Tally | undefined> =>
  (await reads.tallies(store, channel, event, event)).get(event);

export const countRows = (rows: readonly Row[]): Record<State, number> => {
  const counts = { pending: 0, received: 0, working: 0, missing: 0, done: 0, failed: 0 };
  for (const { status } of rows) counts[status]++;
  return counts;
};

/** Every kept event's tally adds up, and says what the rows say. */
export async function expectTalliesToEqualRows(store: Store, channel: string): Promise<void> {
  const { events } = (await store.heads(channel))!;
  const tallies = await reads.tallies(store, channel, 1, events.head);
  expect([...tallies.keys()].sort((a, b) => a - b)).toEqual(
    Array.from({ length: events.head - events.floor }, (_, n) => events.floor + 1 + n),
  );
  for (const [event, tally] of tallies) {
    const rows = await rowsOf(store, channel, event);
    expect(tally.addressed).toBe(rows.length);
    expect(tallyCounts(tally)).toEqual(countRows(rows));
  }
}

/** Trims until there is no more to do, and counts the calls. */
export async function trimAll(
  store: Store,
  channel: string | null,
  retention: { count: number; before: number },
  now: number,
): Promise<number> {
  for (let calls = 1; ; calls++) {
    if (!(await store.trim(channel, retention, now))) return calls;
    if (calls === 10_000) throw new Error("trim never ends");
  }
}

/**
 * Has the deadlines that have passed dealt with, to the end.
 * @param between what else is done before each further call
 * @returns when there is something to do next
 */
export async function missAll(
  store: Store,
  now: number,
  between: (calls: number) => Promise<unknown> | void = () => {},
): Promise<number | null> {
  for (let calls = 1; ; calls++) {
    const next = await store.recordMissing(now);
    if (next === null || next > now) return next;
    if (calls === 10_000) throw new Error("miss never ends");
    await between(calls);
  }
}

/** In the order of a log. */
export const bySeq = (a: { readonly seq: number }, b: { readonly seq: number }): number => a.seq - b.seq;

/** The code that a call was refused with. */
export const codeOf = (call: Promise<unknown>): Promise<Code | "accepted" | "not a PereError"> =>
  call.then(
    () => "accepted",
    (error: unknown) => (error instanceof PereError ? error.code : "not a PereError"),
  );

/** `to` is a set of names: a store may give them back in any order. */
export const sorted = (event: Event): Event => ({ ...event, to: event.to && [...event.to].sort() });

/** What a watcher is told of entries. */
export type Told = Exclude<Wake, { kind: "retired" }>;

/** Watches the entries alone. */
export function hear(store: Store, listener: (told: Told) => void): void {
  store.watch((wake) => {
    if (wake.kind !== "retired") listener(wake);
  });
}

/** Waits until a watcher has heard of all that is stored in these channels: where others tell it, that may be after the answer. */
export async function heardAll(store: Store, channels: readonly string[], wakes: readonly Told[]): Promise<void> {
  for (const channel of channels)
    for (const kind of ["events", "receipts"] as const) {
      const head = (await store.heads(channel))?.[kind].head ?? 0;
      const newest = (): number =>
        wakes.findLast((wake) => wake.channel === channel && wake.kind === kind)?.entries.at(-1)?.seq ?? 0;
      await until(
        () => newest() >= head,
        () => `${kind} ${head} of ${channel}; heard ${newest()}`,
      );
    }
}

/** Follows both logs of these channels. */
export async function followAll(store: Store, channels: readonly string[]): Promise<void> {
  await Promise.all(
    channels.flatMap((channel) => [store.follow("events", channel), store.follow("receipts", channel)]),
  );
}
