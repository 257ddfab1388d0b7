/**
 * Short words for what the store's suite calls and compares again and again.
 */
import { expect } from "bun:test";
import {
  type Event,
  type EventDraft,
  type Code,
  isControl,
  isFinal,
  type LogEntry,
  PereError,
  type Receipt,
  type ReceiptDraft,
  type Row,
  type State,
  type Status,
  type Tally,
  tallyCounts,
} from "../../engine/model.ts";
import type { BegunRound, DeviceState, Page, Result, Store, Verdict, Wake } from "../../engine/store.ts";
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
  key: null,
  attempts: null,
  where: null,
  ...more,
});

/** What a note says in short: the outcome of a complete event, or its kind; null: the entry is a receipt. */
export const noteOf = ({ note }: Pick<Receipt, "note">) =>
  note?.kind === "complete" ? { done: note.tally.done, failed: note.tally.failed } : (note?.kind ?? null);

/** What most receipts do not say. */
export const SAID = { after: null, round: null, retry: true } as const;

/** The results of receipts. */
export const results = (verdicts: readonly Verdict[]): Result[] => verdicts.map(({ result }) => result);

export const word = (
  epoch: string,
  seq: number,
  device: string,
  status: Status,
  more: Partial<ReceiptDraft> = {},
): ReceiptDraft => ({ event: { epoch, seq }, device, status, detail: null, deviceAt: null, ...SAID, ...more });

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

/** The data of events. */
export const dataOf = (entries: readonly LogEntry[]): string[] =>
  entries.flatMap((entry) => (isControl(entry) ? [] : entry.data));

/** What is read by `seq`, where it needs no saying of which life of the log. */
export const reads = {
  events: (store: Store, channel: string, after: number, limit: number, bytesMax?: number) =>
    inLife<LogEntry[]>(store, channel, [], (epoch) => store.events(channel, epoch, after, limit, bytesMax)),
  receipts: (store: Store, channel: string, after: number, limit: number) =>
    inLife<Receipt[]>(store, channel, [], (epoch) => store.receipts(channel, epoch, after, limit)),
  states: (store: Store, channel: string, device: string, after: number, upTo: number, now = T) =>
    inLife<ReadonlyMap<number, DeviceState>>(store, channel, new Map(), (epoch) =>
      store.deviceStates(channel, epoch, device, after, upTo, now),
    ),
  /** The events that a device has a final word on. */
  settled: async (store: Store, channel: string, device: string, after: number, upTo: number) => {
    const states = await reads.states(store, channel, device, after, upTo);
    return new Set([...states].filter(([, { state }]) => isFinal(state)).map(([event]) => event));
  },
  rounds: (store: Store, channel: string, device: string, after: number, upTo: number, limit: number, now: number) =>
    inLife<BegunRound[]>(store, channel, [], (epoch) =>
      store.begunRounds(channel, epoch, device, after, upTo, limit, now),
    ),
  tallies: (store: Store, channel: string, from: number, upTo: number) =>
    inLife<ReadonlyMap<number, Tally>>(store, channel, new Map(), (epoch) => store.tallies(channel, epoch, from, upTo)),
  addressed: (store: Store, channel: string, event: number, devices: readonly string[]) =>
    inLife<string[]>(store, channel, [], (epoch) => store.addressed(channel, epoch, event, devices)),
  silent: (store: Store, channel: string, event: number, devices: readonly string[]) =>
    inLife<string[]>(store, channel, [], (epoch) => store.unanswered(channel, epoch, event, devices)),
  rows: (
    store: Store,
    channel: string,
    event: number,
    status: State | readonly State[] | null,
    after: string,
    limit: number,
    now = T,
  ) =>
    inLife<Page<Row, string>>(store, channel, { items: [], next: null }, (epoch) =>
      store.rows(channel, epoch, event, typeof status === "string" ? [status] : status, after, limit, now),
    ),
};

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
  now = T,
): Promise<Row[]> => all((after) => reads.rows(store, channel, event, status, after, 1_000, now));

/** The newest event of each key for a reader, read to the end in small pages. */
export async function latestOf(
  store: Store,
  channel: string,
  reader: { readonly device: string | null; readonly joined: number },
  now = T,
): Promise<Event[]> {
  const heads = (await store.heads(channel))!;
  const { head } = heads.events;
  const found: Event[] = [];
  for (let after = 0; after < head;) {
    const page = (await store.latestOfKeys(channel, heads.epoch, reader, after, head, 2, now))!;
    if (page.upTo <= after) throw new Error("it does not go on");
    found.push(...page.events);
    after = page.upTo;
  }
  return found;
}

export const tallyOf = async (store: Store, channel: string, event: number): Promise<Tally | undefined> =>
  (await reads.tallies(store, channel, event, event)).get(event);

export const countRows = (rows: readonly Row[]): Record<State, number> => {
  const counts: Record<State, number> = {
    ...{ pending: 0, received: 0, working: 0, deferred: 0 },
    ...{ done: 0, failed: 0, missing: 0, withdrawn: 0 },
  };
  for (const { status } of rows) counts[status]++;
  return counts;
};

/** Every kept event's tally adds up, and says what the rows say. */
export async function expectTalliesToEqualRows(store: Store, channel: string): Promise<void> {
  const { events } = (await store.heads(channel))!;
  const tallies = await reads.tallies(store, channel, 1, events.head);
  const kept = (await reads.events(store, channel, 0, 100_000, Number.POSITIVE_INFINITY)).filter(
    (entry) => !isControl(entry),
  );
  expect(events.head - events.floor - events.controls).toBe(kept.length);
  expect([...tallies.keys()].sort((a, b) => a - b)).toEqual(kept.map(({ seq }) => seq));
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
 * How long an instance may take in tests for what is due in a channel on Redis. The time of these tests stands still, so a store that would leave
 * a channel to another instance when it takes long would leave it there.
 */
export const CLAIM_MS = 60_000;

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
export const sorted = <Entry extends LogEntry>(entry: Entry): Entry => ({
  ...entry,
  to: entry.to && [...entry.to].sort(),
});

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

/** What the log says of a device that is missing, from its first round on. */
export const absence = (event: number, device: string, detail: string | null, at: number): Omit<Receipt, "seq"> => ({
  ...{ event, device, status: "missing", detail, at, deviceAt: null, late: false, round: 1, attempt: 0, note: null },
});
