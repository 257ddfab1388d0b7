/**
 * Takes a store and its model through one history, and compares after each turn everything that can be read from the store.
 */
import { expect } from "bun:test";
import { isControl, type LogEntry, type Receipt, STATES, tallyCounts } from "../../engine/model.ts";
import type { Store } from "../../engine/store.ts";
import type { TagChange } from "../../engine/tags.ts";
import {
  all,
  bySeq,
  codeOf,
  countRows,
  followAll,
  hear,
  heardAll,
  latestOf,
  missAll,
  reads,
  rowsOf,
  sorted,
  T,
  type Told,
  trimAll,
  word,
} from "./calls.ts";
import { ageAll, compareAttention } from "./attention-model.ts";
import { CHANNELS, DEVICES, type Step } from "./histories.ts";
import { historyOf } from "./history.ts";
import { ModelChannel } from "./model.ts";
import type { ModelEvent } from "./model-types.ts";

/** Gives a history to the store and to the model, and compares all that they say. */
export async function compare(store: Store, history: readonly (readonly Step[])[]): Promise<void> {
  const models = new Map<string, ModelChannel>(CHANNELS.map((name) => [name, new ModelChannel(name)]));
  const wakes: Told[] = [];
  hear(store, (told) => wakes.push(told));
  await followAll(store, CHANNELS);
  let now = T;
  let agedAt = T;
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
          const { head } = model;
          const words = step.words.map(({ back, device, status, stranger, ...more }, n) =>
            word(stranger ? "stranger" : epoch, head - back, device, status, {
              ...more,
              detail: n % 2 ? null : `${n}`,
              deviceAt: n % 2 ? now - n : null,
            }),
          );
          const expected = words.map((given) => model.record(given, now));
          answer(
            store.record(name, words, now, () => 0.5),
            (verdicts) => expect(verdicts).toEqual(expected),
          );
          break;
        }
        case "withdraw": {
          const seq = model.head - step.back;
          const expected = model.withdraw(seq, step.note, now);
          answer(store.withdraw(name, { epoch, seq }, step.note, now), (found) => expect(found).toBe(expected));
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
          const { lostSeq, ...expected } = model.join(step.device, now);
          const given = step.tags && new Map(step.tags as [string, string][]);
          if (given) model.tags.set(step.device, given);
          const { returned } = model.devices.get(step.device)!;
          const hasDeferred = model.hasDeferred(step.device, now);
          answer(store.join(name, step.device, now, given), (joined) => {
            expect(joined).toMatchObject(expected);
            if (hasDeferred) expect(joined.hasDeferred).toBe(true);
            if (!returned) expect(joined.lostSeq).toBe(lostSeq);
          });
          break;
        }
        case "tag": {
          const { device, isAll, enrols } = step;
          const change: TagChange = { isAll, tags: new Map(step.tags) };
          const expected = model.tag(device, change, enrols, now);
          answer(store.tag(name, device, change, enrols, now), (tagged) => expect(tagged).toEqual(expected));
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
          const missed = model.trim(step.count, before, now);
          await trimAll(store, name, { count: step.count, before }, now);
          // Some left the log with their events at once; whoever follows it has heard of them.
          await heardAll(store, [name], wakes);
          noteAll(model, receiptsIn(wakes, name), missed, now);
          model.floor = model.trimmedTo;
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
            noteAll(
              each,
              await reads.receipts(store, each.name, each.receipts.length, 1_000),
              each.due(now).map((entry) => ({ entry, detail: null })),
              now,
            );
          const owed = [...models.values()].flatMap((model) => model.ahead(now));
          expect(next ?? Number.POSITIVE_INFINITY).toBeLessThanOrEqual(Math.min(...owed));
          break;
        }
        case "age":
          await Promise.all(answers);
          answers = [];
          await ageAll(store, now);
          agedAt = now;
          break;
        case "wait":
          now += step.ms;
      }
    }
    await Promise.all(answers);
    for (const model of models.values()) {
      await compareAll(store, model, now);
      // What a withdrawn event is no longer owed leaves the counts of its devices in slices.
      await ageAll(store, agedAt);
      await compareAttention(store, model, agedAt);
    }
  }
  await heardAll(store, CHANNELS, wakes);
  for (const { name, entries, receipts } of models.values()) {
    const told = wakes.filter(({ channel }) => channel === name);
    // An event is told before it is withdrawn. A control entry may lack the names of those who were released.
    const plain = (entry: LogEntry): LogEntry => (isControl(entry) ? { ...entry, to: entry.to && [] } : sorted(entry));
    expect(told.flatMap((wake) => (wake.kind === "events" ? wake.entries : [])).map(plain)).toEqual(
      entries.map((entry) => plain("audience" in entry ? entry.event : entry)),
    );
    expect(receiptsIn(wakes, name)).toEqual(receipts);
    expect(told.every(({ entries }) => entries.length > 0)).toBe(true);
  }
}

/** What was told of a channel's receipts log. */
const receiptsIn = (wakes: readonly Told[], name: string): Receipt[] =>
  wakes.flatMap((wake) => (wake.kind === "receipts" && wake.channel === name ? wake.entries : []));

/**
 * Compares the newest entries of a log with what the model expects: for some events, whoever owes a word is missing, in whatever order, and then each
 * of them is settled. Lets the model have them in the log's order.
 */
function noteAll(
  model: ModelChannel,
  log: readonly Receipt[],
  missed: readonly { readonly entry: ModelEvent; readonly detail: string | null }[],
  now: number,
): void {
  const news = log.filter(({ seq }) => seq > model.receipts.length);
  const expected = missed.flatMap(({ entry, detail }) => model.absent(entry, detail, now));
  const named = (words: readonly Pick<Receipt, "event" | "device" | "detail">[]) =>
    words.map(({ event, device, detail }) => `${event} ${device} ${detail}`).sort();
  expect(named(news.filter(({ note }) => note === null))).toEqual(named(expected));
  for (const { seq, event, detail, at, device, status, note } of news) {
    const entry = model.at(event)!;
    if (note === null) {
      expect([status, at]).toEqual(["missing", now]);
      model.note(model.absent(entry, detail, now).find((word) => word.device === device)!);
    } else {
      expect([note.kind, model.absent(entry, null, now).length]).toEqual(["settled", 0]);
      model.settle(entry, "", now);
    }
    expect(model.receipts.length).toBe(seq);
  }
  expect(missed.filter(({ entry }) => !entry.isSettled)).toEqual([]);
}

/** Everything that can be read of a channel. */
async function compareAll(store: Store, model: ModelChannel, now: number): Promise<void> {
  const { name, kept, floor, head, receipts } = model;
  const heads = await store.heads(name);
  // A channel without an event, a device or a hook may be dropped.
  if (heads === null) return void expect([head, receipts.length, model.devices.size]).toEqual([0, 0, 0]);
  expect(heads).toMatchObject(model.heads);
  // Whether `to` still has the names of those who were released is the store's choice.
  const stillNamed = (entry: LogEntry): LogEntry => {
    const audience = model.at(isControl(entry) ? entry.withdraws : entry.seq)?.audience ?? new Set();
    return sorted({ ...entry, to: entry.to && entry.to.filter((device) => audience.has(device)) });
  };
  expect((await reads.events(store, name, 0, 1_000)).map(stillNamed)).toEqual(
    model.entries.slice(floor).map((entry) => stillNamed(model.read(entry))),
  );

  // The receipts log: without holes, with all that belongs to kept events.
  expect(heads.receipts.head).toBe(receipts.length);
  expect(await reads.receipts(store, name, 0, 1_000)).toEqual(receipts.slice(heads.receipts.floor));
  expect(receipts.slice(0, heads.receipts.floor).every(({ event }) => event <= floor)).toBe(true);

  const tallies = await reads.tallies(store, name, 1, head);
  expect(tallies.size).toBe(kept.length);
  for (const entry of kept) {
    const { seq } = entry.event;
    const rows = model.rows(entry, now);
    expect(await rowsOf(store, name, seq, null, now)).toEqual(rows);
    expect(tallies.get(seq)).toEqual(model.tally(entry));
    expect(tallyCounts(tallies.get(seq)!)).toEqual(countRows(rows));
    const state = STATES[seq % STATES.length]!;
    expect(await rowsOf(store, name, seq, state, now)).toEqual(rows.filter(({ status }) => status === state));
    const two = [state, STATES[(seq + 1) % STATES.length]!];
    expect(await rowsOf(store, name, seq, two, now)).toEqual(rows.filter(({ status }) => two.includes(status)));
    const silent = DEVICES.filter(
      (device) => entry.audience.has(device) && !entry.words.has(device) && entry.withdrawal === null,
    );
    expect((await reads.addressed(store, name, seq, DEVICES)).sort()).toEqual(
      DEVICES.filter((device) => entry.audience.has(device) && model.isSeated(entry, device)),
    );
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
  expect(await store.tags(name, DEVICES)).toEqual(
    new Map([...model.tags].filter(([, tags]) => tags.size > 0).sort(([a], [b]) => (a < b ? -1 : 1))),
  );
  for (const device of DEVICES) {
    const states = await reads.states(store, name, device, floor, head, now);
    for (const entry of kept)
      if (entry.audience.has(device))
        expect(states.get(entry.event.seq) ?? null).toEqual(model.deviceState(entry, device, now));
    expect(await reads.rounds(store, name, device, floor, head, 1_000, now)).toEqual(model.begunRounds(device, now));
  }
  const { rounds } = await store.roundsDue({ at: Number.NEGATIVE_INFINITY, place: "" }, now, 10_000);
  const begun = rounds
    .filter(({ channel }) => channel === name)
    .map(({ event, device, round }) => `${event} ${device} ${round}`);
  for (const device of model.devices.keys())
    for (const { event, round } of model.begunRounds(device, now))
      expect(begun).toContain(`${event} ${device} ${round}`);
  for (const device of [null, ...model.devices.keys()]) {
    const reader = { device, joined: device === null ? 0 : model.devices.get(device)!.joined };
    const latest = await latestOf(store, name, reader, now);
    expect(latest.map(({ seq }) => seq)).toEqual(model.latestOfKeys(device, now));
    for (const event of latest) expect(stillNamed(event)).toEqual(stillNamed(model.read(model.at(event.seq)!)));
  }
  expect(await store.owing(name, names, now)).toEqual(enrolments);
  for (const device of DEVICES) {
    const its = kept.flatMap((entry) =>
      model
        .rows(entry, now)
        .filter((row) => row.device === device)
        .map(({ device: _, ...row }) => {
          const { seq, type, at, deadline } = entry.event;
          return { ...row, seq, type, pushedAt: at, deadline };
        }),
    );
    expect(await historyOf(store, name, device, 4, now)).toEqual(its.reverse());
  }
  const listed = (await store.channels("", 10)).items.find(({ channel }) => channel === name)!;
  expect(listed).toEqual({ ...heads, channel: name, devices: names.length, isUnused: expect.any(Boolean) });
}
