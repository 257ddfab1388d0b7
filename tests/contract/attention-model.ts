/**
 * What needs attention, counted anew from the model, and compared with what a store says.
 */
import { expect } from "bun:test";
import { type TroubledEvent, troubleSum, worstDevice, worstEvent } from "../../engine/attention.ts";
import type { Store } from "../../engine/store.ts";
import { reads } from "./calls.ts";
import type { ModelChannel } from "./model.ts";

/** Has all that is older than an hour become overdue. @returns when there is something to do next */
export async function ageAll(store: Store, now: number): Promise<number | null> {
  for (let calls = 1; ; calls++) {
    const next = await store.recordOverdue(now);
    if (next === null || next > now) return next;
    if (calls === 10_000) throw new Error("recordOverdue never ends");
  }
}

/** Counts a channel's trouble anew. @param agedAt when it was last looked for what is overdue */
function countAnew(model: ModelChannel, agedAt: number) {
  const devices = new Map<string, { failed: number; missing: number; overdue: number; since: number }>();
  const events: Omit<TroubledEvent, "tally">[] = [];
  for (const entry of model.kept) {
    const own = { failed: 0, missing: 0, overdue: 0 };
    for (const device of entry.audience) {
      const kind = model.trouble(entry, device, agedAt);
      if (kind === null) continue;
      own[kind]++;
      let counts = devices.get(device);
      if (!counts) devices.set(device, (counts = { failed: 0, missing: 0, overdue: 0, since: entry.event.at }));
      counts[kind]++;
    }
    const { seq, at, type, deadline } = entry.event;
    if (troubleSum(own) > 0) events.push({ channel: model.name, epoch: model.epoch, seq, at, type, deadline, ...own });
  }
  const sum = (kind: "failed" | "missing" | "overdue"): number => events.reduce((n, event) => n + event[kind], 0);
  return {
    channel: {
      channel: model.name,
      devices: devices.size,
      failed: sum("failed"),
      missing: sum("missing"),
      overdue: sum("overdue"),
      since: Math.min(...events.map(({ at }) => at)),
    },
    devices: [...devices]
      .map(([device, counts]) => ({ channel: model.name, device, ...counts, seenAt: null }))
      .sort(worstDevice)
      .map(({ seenAt: _, ...device }) => device),
    events: events
      .map((event) => ({ ...event, tally: null as never }))
      .sort(worstEvent)
      .map(({ tally: _, ...event }) => event),
  };
}

/** Compares what a store says of a channel with what is counted anew. */
export async function compareAttention(store: Store, model: ModelChannel, agedAt: number): Promise<void> {
  const expected = countAnew(model, agedAt);
  const listed = (await store.troubledChannels()).find(({ channel }) => channel === model.name);
  const { revision: _, ...channel } = listed ?? { ...expected.channel, revision: 0 };
  if (!listed) expect(expected.events).toEqual([]);
  expect(channel).toEqual(expected.channel);
  const found = await store.troubles(model.name, 1_000);
  expect(found.devices.map(({ seenAt: _, ...device }) => device)).toEqual(expected.devices);
  expect(found.events.map(({ tally: _, ...event }) => event)).toEqual(expected.events);
  const tallies = await reads.tallies(store, model.name, 1, model.head);
  for (const { seq, tally } of found.events) expect(tally).toEqual(tallies.get(seq)!);
  for (const limit of [1, 2]) {
    const short = await store.troubles(model.name, limit);
    expect(short.devices).toEqual(found.devices.slice(0, limit));
    expect(short.events).toEqual(found.events.slice(0, limit));
  }
}
