/**
 * What an instance knows of reminders is a copy, and does not grow with what was pushed. How reminders reach devices is in
 * `contract/outcome-cases.ts`.
 */
import { expect, test } from "bun:test";
import type { Feeds } from "../engine/feeds/feeds.ts";
import type { Event } from "../engine/model.ts";
import { Reminders } from "../engine/feeds/reminders.ts";
import type { Reminder, Store, Wake } from "../engine/store.ts";
import { until } from "./support/harness.ts";

const SECOND = 1_000;

/** Reminders of one channel, of which the store keeps the newest ten and knows no tally any more. */
function knowing() {
  const state = { now: 0, kept: [] as Reminder[], asked: [] as number[], reads: 0 };
  const store = {
    reminders: async () => (state.reads++, state.kept.slice(-10)),
    tallies: async (_channel: string, _epoch: string, seq: number) => (state.asked.push(seq), new Map()),
  } as unknown as Store;
  const reminders = new Reminders(store, {} as Feeds, () => state.now);
  reminders.presenceChanged("c", true);
  const push = (seq: number, at = 0, epoch = "e"): void => {
    state.kept.push({ epoch, seq, at, every: SECOND, until: null });
    const event: Event = {
      seq,
      at,
      type: null,
      data: "1",
      to: null,
      expires: null,
      deadline: null,
      remind: SECOND,
      key: null,
      attempts: null,
      where: null,
      withdrawn: null,
    };
    reminders.woken({ kind: "events", channel: "c", epoch, entries: [event] } satisfies Wake);
  };
  return { state, reminders, push };
}

test("reminders of dropped events are forgotten, long before they are due", async () => {
  const { state, reminders, push } = knowing();
  for (let seq = 1; seq <= 10_000; seq++) {
    push(seq);
    if (seq % 100 === 0) await Promise.resolve();
  }
  state.now = 10 * SECOND;
  await until(() => state.asked.includes(10_000));
  expect(state.asked.length).toBeLessThan(2_000);
  expect(state.reads).toBeLessThan(20);
  reminders.stop();
});

test("an event of a new epoch is repeated by its own time, although its number was another's", async () => {
  const { state, reminders, push } = knowing();
  await Promise.resolve();
  push(1, 0);
  state.now = 100;
  state.kept = [];
  push(1, 100, "another");
  state.now = SECOND + 50; // When the first one was due.
  await Bun.sleep(600);
  expect(state.asked).toEqual([]);
  state.now = SECOND + 100;
  await until(() => state.asked.length === 1);
  reminders.stop();
});
