/**
 * The model that the store's suite compares every store with: plain arrays and maps, every audience a list of names, every count counted
 * anew; and the random histories that are played to both.
 */
import { expect } from "bun:test";
import fc from "fast-check";
import {
  type Event,
  type EventDraft,
  FINAL,
  KEY_MEMORY_MS,
  type Outcome,
  type Receipt,
  type ReceiptDraft,
  type Row,
  rank,
  remindedUntil,
  STATES,
  type Status,
  tallyCounts,
} from "../../engine/model.ts";
import type { Appended, Heads, Joined, Reminder, Store, Verdict } from "../../engine/store.ts";
import {
  all,
  bySeq,
  codeOf,
  countRows,
  followAll,
  hear,
  heardAll,
  missAll,
  reads,
  rowsOf,
  SECOND,
  sorted,
  T,
  trimAll,
  word,
  type Told,
} from "./calls.ts";

// ------------------------------------------------------------------------------------------------------------- the model

const CHANNELS = ["a", "b"] as const;
const DEVICES = ["d1", "d2", "d3", "d4"] as const;

/** One call, as chance makes it. Events are named by how far they are behind the head, so that most names hit. */
type Step = { readonly channel: string } & (
  | {
      readonly do: "append";
      readonly drafts: readonly EventDraft[];
      readonly key: { readonly key: string; readonly digest: string } | null;
    }
  | {
      readonly do: "record";
      readonly words: readonly { back: number; device: string; status: Status; stranger: boolean }[];
    }
  | { readonly do: "enrol" | "retire" | "join" | "seen"; readonly device: string }
  | { readonly do: "trim"; readonly count: number; readonly age: number }
  | { readonly do: "miss" }
  | { readonly do: "wait"; readonly ms: number }
);

/** Most calls go to one channel; the other is there to be left alone. */
const CHANNEL = fc.constantFrom(CHANNELS[0], CHANNELS[0], CHANNELS[0], CHANNELS[1]);
const DEVICE = fc.constantFrom(...DEVICES);
const DRAFT: fc.Arbitrary<EventDraft> = fc.record({
  type: fc.constantFrom(null, "t"),
  data: fc.constantFrom("1", '"ü"', "{}"),
  to: fc.option(fc.uniqueArray(DEVICE, { minLength: 1, maxLength: 3 }), { freq: 3 }),
  ttl: fc.option(fc.constantFrom(0.7, 5), { freq: 3 }),
  deadline: fc.option(fc.constantFrom(0.3, 1.5, 5), { freq: 2 }),
  remind: fc.option(fc.constantFrom(1, 2.5), { freq: 3 }),
});
const STEP: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("append" as const),
      channel: CHANNEL,
      drafts: fc.array(DRAFT, { minLength: 1, maxLength: 3 }),
      key: fc.option(fc.record({ key: fc.constantFrom("k1", "k2"), digest: fc.constantFrom("x", "x", "y") }), {
        freq: 3,
      }),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant("record" as const),
      channel: CHANNEL,
      words: fc.array(
        fc.record({
          back: fc.integer({ min: -1, max: 6 }),
          device: DEVICE,
          status: fc.constantFrom<Status>("received", "working", "done", "failed"),
          stranger: fc.constantFrom(false, false, false, false, true),
        }),
        { minLength: 1, maxLength: 4 },
      ),
    }),
  },
  {
    weight: 7,
    arbitrary: fc.record({
      do: fc.constantFrom(
        "enrol" as const,
        "enrol" as const,
        "retire" as const,
        "join" as const,
        "join" as const,
        "seen" as const,
      ),
      channel: CHANNEL,
      device: DEVICE,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("trim" as const),
      channel: CHANNEL,
      count: fc.integer({ min: 0, max: 8 }),
      age: fc.constantFrom(3 * SECOND, 10 * KEY_MEMORY_MS),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("miss" as const), channel: CHANNEL }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("wait" as const),
      channel: CHANNEL,
      ms: fc.constantFrom(1, 300, 300, 2 * SECOND, KEY_MEMORY_MS + 1),
    }),
  },
);
/** Turns, each of calls that are made without waiting for one another. */
export const HISTORY = fc.array(fc.array(STEP, { minLength: 1, maxLength: 4, size: "max" }), {
  minLength: 1,
  maxLength: 24,
  size: "max",
});

/** Why a device is missing whose event went before its deadline. */
const EXPIRED = '{"reason":"expired"}';

const MISSING = rank("missing");

const absence = (event: number, device: string, detail: string | null, at: number): Omit<Receipt, "seq"> => ({
  ...{ event, device, status: "missing", detail, at, deviceAt: null, late: false, completes: null },
});

interface ModelEvent {
  readonly event: Event;
  /** Names; who is released leaves. */
  readonly audience: Set<string>;
  readonly words: Map<string, Receipt>;
}

interface ModelDevice {
  readonly joined: number;
  readonly enrolledAt: number;
  /** It left and came back with no push between: whether its past stays its own is the store's choice. */
  readonly returned: boolean;
  seenAt: number | null;
  lost: number;
  told: number;
}

class ModelChannel {
  readonly name: string;
  epoch = "";
  floor = 0;
  /** All that ever were; `floor` says which are kept. */
  readonly events: ModelEvent[] = [];
  readonly receipts: Receipt[] = [];
  readonly devices = new Map<string, ModelDevice>();
  /** The `joined` of those who left. */
  readonly left = new Map<string, number>();
  readonly keys = new Map<string, { digest: string; answer: Appended; expires: number }>();

  constructor(name: string) {
    this.name = name;
  }

  get heads(): Pick<Heads, "epoch" | "events"> {
    return { epoch: this.epoch, events: { head: this.events.length, floor: this.floor } };
  }
  get kept(): ModelEvent[] {
    return this.events.slice(this.floor);
  }

  isFinal({ words }: ModelEvent, device: string): boolean {
    return rank(words.get(device)?.status ?? "pending") >= FINAL;
  }

  /** The kept, unexpired events that a device owes a final word on. */
  owed(device: string, now: number): number[] {
    return this.kept
      .filter((entry) => entry.audience.has(device) && !this.isFinal(entry, device))
      .filter(({ event }) => event.expires === null || event.expires > now)
      .map(({ event }) => event.seq);
  }

  append(
    drafts: readonly EventDraft[],
    now: number,
    key: { key: string; digest: string } | null,
  ): Appended | "refused" {
    const known = key && this.keys.get(key.key);
    if (known && known.expires > now)
      return known.digest === key.digest ? { ...known.answer, replayed: true } : "refused";
    const first = this.events.length + 1;
    for (const { type, data, to, ...draft } of drafts) {
      const [expires, deadline] = [draft.ttl, draft.deadline].map((s) => (s === null ? null : now + s * SECOND));
      const remind = draft.remind === null ? null : draft.remind * SECOND;
      const seq = this.events.length + 1;
      const event = { seq, at: now, type, data, to, expires: expires!, deadline: deadline!, remind };
      this.events.push({ event, audience: new Set(to ?? this.devices.keys()), words: new Map() });
    }
    const { event, audience } = this.events[first - 1]!;
    const answer: Appended = {
      epoch: this.epoch,
      first,
      count: drafts.length,
      at: now,
      addressed: audience.size,
      type: event.type,
      replayed: false,
    };
    if (key) this.keys.set(key.key, { digest: key.digest, answer, expires: now + KEY_MEMORY_MS });
    return answer;
  }

  record({ event: position, device, status, detail, deviceAt }: ReceiptDraft, now: number): Verdict {
    const entry = this.events[position.seq - 1];
    if (position.epoch !== this.epoch || !entry || position.seq <= this.floor) return "unknown";
    if (!entry.audience.has(device)) return "unaddressed";
    this.judge(entry, device, now);
    const before = entry.words.get(device)?.status ?? "pending";
    if (rank(before) >= FINAL || rank(status) <= rank(before)) return "duplicate";
    const receipt = { event: position.seq, device, status, detail, at: now, deviceAt, late: before === "missing" };
    this.note({ ...receipt, completes: null });
    const known = this.devices.get(device);
    if (known && known.told === known.lost) known.lost = known.told = 0;
    return "recorded";
  }

  /** Past its deadline an event makes missing who owes it a word, before anything else is said of the two. */
  judge(entry: ModelEvent, device: string, now: number): void {
    const { seq, deadline } = entry.event;
    if (deadline === null || deadline > now || rank(entry.words.get(device)?.status ?? "pending") >= MISSING) return;
    this.note(absence(seq, device, null, now));
  }

  /** A word, as it enters the log; behind it an entry that says that the event is complete, if it is so now. `pending`: its device left. */
  note(word: Omit<Receipt, "seq">): void {
    const entry = this.events[word.event - 1]!;
    const { event, device, status, at } = word;
    if (status !== "pending") {
      const receipt = { ...word, seq: this.receipts.length + 1 };
      entry.words.set(device, receipt);
      this.receipts.push(receipt);
      if (rank(status) < FINAL) return;
    }
    const completes = this.outcome(entry);
    const nothing = { status: "pending", detail: null, deviceAt: null, late: false } as const;
    if (completes) this.receipts.push({ seq: this.receipts.length + 1, event, device, ...nothing, at, completes });
  }

  /** What all said, or null: somebody owes a final word. */
  outcome(entry: ModelEvent): Outcome | null {
    const said = [...entry.audience].map((device) => entry.words.get(device)?.status);
    const [done, failed] = (["done", "failed"] as const).map((final) => said.filter((s) => s === final).length);
    return done! + failed! === said.length ? { done: done!, failed: failed! } : null;
  }

  /** Who owes a final word on an event and is not missing yet, as the log would have it; and in what order is the store's choice. */
  absent({ event: { seq }, audience, words }: ModelEvent, detail: string | null, now: number): Omit<Receipt, "seq">[] {
    return [...audience]
      .filter((device) => rank(words.get(device)?.status ?? "pending") < rank("missing"))
      .map((device) => absence(seq, device, detail, now));
  }

  /** Who is missing now, for deadlines that have passed. */
  due(now: number): Omit<Receipt, "seq">[] {
    return this.kept
      .filter(({ event: { deadline } }) => deadline !== null && deadline <= now)
      .flatMap((entry) => this.absent(entry, null, now));
  }

  /** Deadlines ahead, of kept events, at which somebody would be missing as things stand. */
  ahead(now: number): number[] {
    return this.kept
      .filter((entry) => this.absent(entry, null, now).length > 0)
      .map(({ event }) => event.deadline ?? 0)
      .filter((deadline) => deadline > now);
  }

  reminders(now: number): Reminder[] {
    return this.kept.flatMap(({ event }) => {
      const { seq, at, remind } = event;
      const until = remindedUntil(event);
      return remind === null || (until !== null && until <= now)
        ? []
        : [{ epoch: this.epoch, seq, at, every: remind, until }];
    });
  }

  enrol(device: string, now: number): boolean {
    if (this.devices.has(device)) return false;
    const joined = this.events.length;
    const returned = this.left.get(device) === joined;
    this.devices.set(device, { joined, enrolledAt: now, returned, seenAt: null, lost: 0, told: 0 });
    return true;
  }

  retire(device: string, now: number): boolean {
    const known = this.devices.get(device);
    if (!known) return false;
    this.devices.delete(device);
    this.left.set(device, known.joined);
    for (const entry of this.kept)
      if (!this.isFinal(entry, device) && entry.audience.has(device)) {
        this.judge(entry, device, now);
        entry.audience.delete(device);
        const nothing = { status: "pending", detail: null, deviceAt: null, late: false, completes: null } as const;
        this.note({ event: entry.event.seq, device, at: now, ...nothing });
      }
    return true;
  }

  join(device: string, now: number): Omit<Joined, "receipts"> {
    const enrolled = !this.enrol(device, now);
    const known = this.devices.get(device)!;
    known.told = known.lost;
    const settled = (this.owed(device, now)[0] ?? this.events.length + 1) - 1;
    return { ...this.heads, enrolled, joined: known.joined, settled, lost: known.lost };
  }

  /** @returns who is missing before the events go */
  trim(count: number, before: number, now: number): Omit<Receipt, "seq">[] {
    const missing: Omit<Receipt, "seq">[] = [];
    for (const entry of this.kept) {
      const { seq, at, expires, deadline } = entry.event;
      if (seq > this.events.length - count && at >= before) break;
      if (deadline !== null) missing.push(...this.absent(entry, deadline > now ? EXPIRED : null, now));
      for (const [device, known] of this.devices)
        if (entry.audience.has(device) && !this.isFinal(entry, device) && (expires === null || expires > now))
          known.lost = seq;
      this.floor = seq;
    }
    return missing;
  }

  rows({ audience, words }: ModelEvent): Row[] {
    return [...audience].sort().map((device) => {
      const said = words.get(device);
      return {
        device,
        status: said?.status ?? "pending",
        detail: said?.detail ?? null,
        at: said?.at ?? null,
        deviceAt: said?.deviceAt ?? null,
        late: said?.late ?? false,
      };
    });
  }
}

/** Gives a history to the store and to the model, and compares all that they say. */
export async function compare(store: Store, history: readonly (readonly Step[])[]): Promise<void> {
  const models = new Map<string, ModelChannel>(CHANNELS.map((name) => [name, new ModelChannel(name)]));
  const wakes: Told[] = [];
  hear(store, (told) => wakes.push(told));
  await followAll(store, CHANNELS);
  let now = T;
  for (const model of models.values()) {
    model.epoch = (await store.open(model.name)).epoch;
    // Somebody is there from the start, or most events would be nobody's.
    model.enrol(DEVICES[0], now);
    await store.enrol(model.name, DEVICES[0], now);
  }
  for (const turn of history) {
    let answers: Promise<void>[] = [];
    /** Notes what the model says now, and compares when the store has answered. */
    const answer = <Value>(call: Promise<Value>, check: (value: Value) => void): void =>
      void answers.push(call.then(check));
    for (const step of turn) {
      const model = models.get(step.channel)!;
      const { name, epoch } = model;
      switch (step.do) {
        case "append": {
          const expected = model.append(step.drafts, now, step.key);
          const call = store.append(name, step.drafts, now, step.key ?? undefined);
          if (expected === "refused") answer(codeOf(call), (code) => expect(code).toBe("refused"));
          else answer(call, (appended) => expect(appended).toMatchObject({ ...expected }));
          break;
        }
        case "record": {
          const head = model.events.length;
          const words = step.words.map(({ back, device, status, stranger }, n) =>
            word(stranger ? "stranger" : epoch, head - back, device, status, {
              detail: n % 2 ? null : `${n}`,
              deviceAt: n % 2 ? now - n : null,
            }),
          );
          const expected = words.map((given) => model.record(given, now));
          answer(store.record(name, words, now), (verdicts) => expect(verdicts).toEqual(expected));
          break;
        }
        case "enrol": {
          const expected = model.enrol(step.device, now);
          answer(store.enrol(name, step.device, now), (enrolled) => expect(enrolled).toBe(expected));
          break;
        }
        case "retire": {
          const expected = model.retire(step.device, now);
          answer(store.retire(name, step.device, now), (retired) => expect(retired).toBe(expected));
          break;
        }
        case "join": {
          const { lost, ...expected } = model.join(step.device, now);
          const { returned } = model.devices.get(step.device)!;
          answer(store.join(name, step.device, now), (joined) => {
            expect(joined).toMatchObject(expected);
            if (!returned) expect(joined.lost).toBe(lost);
          });
          break;
        }
        case "seen": {
          const known = model.devices.get(step.device);
          if (known) known.seenAt = now;
          answer(store.seen(name, new Map([[step.device, now]])), () => {});
          break;
        }
        case "trim": {
          // Slice by slice: what else was asked for comes before.
          await Promise.all(answers);
          answers = [];
          const before = now - step.age;
          const missing = model.trim(step.count, before, now);
          await trimAll(store, name, { count: step.count, before }, now);
          // Some left the log with their events at once; whoever follows it has heard of them.
          await heardAll(store, [name], wakes);
          noteAll(model, receiptsIn(wakes, name), missing);
          await trimAll(store, null, { count: step.count, before }, now);
          const [oldest] = await reads.receipts(store, name, 0, 1);
          if (oldest) expect(oldest.event).toBeGreaterThan(model.floor);
          break;
        }
        case "miss": {
          await Promise.all(answers);
          answers = [];
          const next = await missAll(store, now);
          for (const each of models.values())
            noteAll(each, await reads.receipts(store, each.name, each.receipts.length, 1_000), each.due(now));
          const owed = [...models.values()].flatMap((model) => model.ahead(now));
          expect(next ?? Number.POSITIVE_INFINITY).toBeLessThanOrEqual(Math.min(...owed));
          break;
        }
        case "wait":
          now += step.ms;
      }
    }
    await Promise.all(answers);
    for (const model of models.values()) await compareAll(store, model, now);
  }
  await heardAll(store, CHANNELS, wakes);
  for (const { name, events, receipts } of models.values()) {
    const told = wakes.filter(({ channel }) => channel === name);
    expect(told.flatMap((wake) => (wake.kind === "events" ? wake.entries : [])).map(sorted)).toEqual(
      events.map(({ event }) => sorted(event)),
    );
    expect(receiptsIn(wakes, name)).toEqual(receipts);
    expect(told.every(({ entries }) => entries.length > 0)).toBe(true);
  }
}

/** What was told of a channel's receipts log. */
const receiptsIn = (wakes: readonly Told[], name: string): Receipt[] =>
  wakes.flatMap((wake) => (wake.kind === "receipts" && wake.channel === name ? wake.entries : []));

/** Compares the newest entries of a log with what the model expects of them, whatever their order, and lets the model have them in that order. */
function noteAll(model: ModelChannel, log: readonly Receipt[], expected: readonly Omit<Receipt, "seq">[]): void {
  const entries = log.filter(({ seq }) => seq > model.receipts.length);
  const named = (words: readonly Omit<Receipt, "seq">[]) =>
    new Map(words.map((word) => [`${word.event} ${word.device}`, { ...word, seq: 0 }]));
  expect(entries.length).toBe(expected.length);
  expect(named(entries)).toEqual(named(expected));
  for (const { seq, ...entry } of entries) {
    model.note(entry);
    expect(model.receipts.length).toBe(seq);
  }
}

/** Everything that can be read of a channel. */
async function compareAll(store: Store, model: ModelChannel, now: number): Promise<void> {
  const { name, kept, floor, events, receipts } = model;
  const head = events.length;
  const heads = await store.heads(name);
  // A channel without an event, a device or a hook may be dropped.
  if (heads === null) return void expect([head, receipts.length, model.devices.size]).toEqual([0, 0, 0]);
  expect(heads).toMatchObject(model.heads);
  // Whether `to` still has the names of those who were released is the store's choice.
  const stillNamed = (event: Event): Event => {
    const { audience } = events[event.seq - 1]!;
    return sorted({ ...event, to: event.to && event.to.filter((device) => audience.has(device)) });
  };
  expect((await reads.events(store, name, 0, 1_000)).map(stillNamed)).toEqual(
    kept.map(({ event }) => stillNamed(event)),
  );

  // The receipts log: without holes, with all that belongs to kept events.
  expect(heads.receipts.head).toBe(receipts.length);
  expect(await reads.receipts(store, name, 0, 1_000)).toEqual(receipts.slice(heads.receipts.floor));
  expect(receipts.slice(0, heads.receipts.floor).every(({ event }) => event <= floor)).toBe(true);

  const tallies = await reads.tallies(store, name, 1, head);
  expect(tallies.size).toBe(kept.length);
  for (const entry of kept) {
    const { seq } = entry.event;
    const rows = model.rows(entry);
    expect(await rowsOf(store, name, seq)).toEqual(rows);
    expect(tallies.get(seq)!.addressed).toBe(rows.length);
    expect(tallyCounts(tallies.get(seq)!)).toEqual(countRows(rows));
    const state = STATES[seq % STATES.length]!;
    expect(await rowsOf(store, name, seq, state)).toEqual(rows.filter(({ status }) => status === state));
    const silent = DEVICES.filter((device) => entry.audience.has(device) && !entry.words.has(device));
    expect((await reads.silent(store, name, seq, DEVICES)).sort()).toEqual(silent);
  }
  expect([...(await store.reminders(name, now))].sort(bySeq)).toEqual(model.reminders(now));

  const names = [...model.devices.keys()].sort();
  const enrolments = await all((after) => store.devices(name, after, 3, now));
  expect(enrolments.map(({ device }) => device)).toEqual(names);
  for (const { device, enrolledAt, seenAt, pending } of enrolments) {
    const known = model.devices.get(device)!;
    expect([device, enrolledAt, pending]).toEqual([device, known.enrolledAt, model.owed(device, now).length]);
    if (!known.returned) expect(seenAt).toBe(known.seenAt);
  }
  for (const device of DEVICES) {
    // An event that names others may be among them.
    const settled = await reads.settled(store, name, device, floor, head);
    const isOthers = ({ event, audience }: (typeof kept)[number]) => event.to !== null && !audience.has(device);
    expect([...settled].sort((a, b) => a - b)).toEqual(
      kept
        .filter((entry) => model.isFinal(entry, device) || (isOthers(entry) && settled.has(entry.event.seq)))
        .map(({ event }) => event.seq),
    );
  }
  const listed = (await store.channels("", 10)).items.find(({ channel }) => channel === name)!;
  expect(listed).toEqual({ ...heads, channel: name, devices: names.length, isUnused: expect.any(Boolean) });
}
