/**
 * What needs attention, read from the store, with what only the instances know: who is connected.
 */
import {
  type Attention,
  OVERDUE_MS,
  type TroubledChannel,
  type TroubledDevice,
  type TroubledEvent,
  troubleSum,
  worstChannel,
  worstDevice,
  worstEvent,
} from "../attention.ts";
import { type Event, PAGE_MAX, type Tally } from "../model.ts";
import { yieldToEventLoop } from "../yield.ts";
import type { ChannelScope, Store } from "../store.ts";
import type { Presence } from "./presence.ts";

/** A device in trouble, as it is shown. */
export interface ShownDevice extends TroubledDevice {
  readonly connected: boolean;
}

/** A hook that gave up calls, or is disabled. */
export interface TroubledHook {
  readonly channel: string;
  readonly name: string;
  /** How many calls it gave up. */
  readonly givenUp: number;
  /** Why it is disabled; null: it is not. */
  readonly disabled: string | null;
}

export interface ShownAttention extends Attention {
  readonly devices: readonly ShownDevice[];
  readonly hooks: readonly TroubledHook[];
}

/** The part of presence that is needed here. */
type Connected = Pick<Presence<unknown>, "isConnected" | "heardAt">;

const covers = (scope: ChannelScope | null, channel: string): boolean =>
  scope === null || scope.names.includes(channel) || scope.prefixes.some((prefix) => channel.startsWith(prefix));

/** @param scope the channels that the reader may see; null: all. @param limit of each list */
export async function readAttention(
  store: Store,
  presence: Connected,
  scope: ChannelScope | null,
  limit: number,
  now: number,
): Promise<ShownAttention> {
  const { totals, devices, events, channels } = await countAttention(store, scope, now);
  const shown: ShownDevice[] = [];
  for (const device of devices.slice(0, limit)) {
    const elsewhere = await store.remotePresence(device.channel);
    shown.push({
      ...device,
      connected: presence.isConnected(device.channel, device.device, elsewhere),
      seenAt: presence.heardAt(device.channel, device.device) ?? device.seenAt,
    });
  }
  return {
    totals,
    devices: shown,
    events: events.slice(0, limit),
    channels: channels.slice(0, limit),
    hooks: (await troubledHooks(store, scope)).slice(0, limit),
  };
}

async function troubledHooks(store: Store, scope: ChannelScope | null): Promise<TroubledHook[]> {
  const found: TroubledHook[] = [];
  for (const { channel, name, disabled } of await store.hooks(null)) {
    if (!covers(scope, channel)) continue;
    const givenUp = (await store.deliveries(channel, name)).filter(({ nextAt }) => nextAt === null).length;
    if (givenUp > 0 || disabled !== null) found.push({ channel, name, givenUp, disabled });
  }
  const key = ({ channel, name }: TroubledHook): string => `${channel} ${name}`;
  return found.sort((a, b) => b.givenUp - a.givenUp || (key(a) < key(b) ? -1 : 1));
}

/** Counts everything, in all lists. */
async function countAttention(store: Store, scope: ChannelScope | null, now: number): Promise<Attention> {
  const all = { devices: [] as TroubledDevice[], events: [] as TroubledEvent[], channels: [] as TroubledChannel[] };
  for (let after: string | null = ""; after !== null;) {
    const page: Awaited<ReturnType<Store["channels"]>> = await store.channels(after, PAGE_MAX, scope);
    for (const { channel } of page.items) await countChannel(store, channel, now, all);
    after = page.next;
  }
  const totals = { devices: 0, failed: 0, missing: 0, overdue: 0 };
  for (const { devices, failed, missing, overdue } of all.channels) {
    totals.devices += devices;
    totals.failed += failed;
    totals.missing += missing;
    totals.overdue += overdue;
  }
  return {
    totals,
    devices: all.devices.sort(worstDevice),
    events: all.events.sort(worstEvent),
    channels: all.channels.sort(worstChannel),
  };
}

const isOverdue = ({ at, deadline }: Event, now: number): boolean => deadline === null && at + OVERDUE_MS <= now;

async function countChannel(
  store: Store,
  channel: string,
  now: number,
  all: { devices: TroubledDevice[]; events: TroubledEvent[]; channels: TroubledChannel[] },
): Promise<void> {
  const heads = await store.heads(channel);
  if (!heads) return;
  const { epoch, events } = heads;
  const seen = new Map<string, number | null>();
  for (let after: string | null = ""; after !== null;) {
    const page: Awaited<ReturnType<Store["devices"]>> = await store.devices(channel, after, PAGE_MAX, now);
    for (const { device, seenAt } of page.items) seen.set(device, seenAt);
    after = page.next;
  }
  const devices = new Map<string, { failed: number; missing: number; overdue: number; since: number }>();
  const sum = { failed: 0, missing: 0, overdue: 0 };
  for (let after = events.floor; after < events.head;) {
    await yieldToEventLoop("read", PAGE_MAX);
    const read = (await store.events(channel, epoch, after, PAGE_MAX)) ?? [];
    if (read.length === 0) break;
    const tallies = await store.tallies(channel, epoch, read[0]!.seq, read.at(-1)!.seq);
    for (const event of read) {
      const tally = tallies?.get(event.seq);
      if (!tally || !mayBeTroubled(event, tally, now)) continue;
      const own = { failed: 0, missing: 0, overdue: 0 };
      for (let from: string | null = ""; from !== null;) {
        const page: Awaited<ReturnType<Store["rows"]>> = await store.rows(
          channel,
          epoch,
          event.seq,
          null,
          from,
          PAGE_MAX,
        );
        if (page === null) return;
        for (const { device, status } of page.items) {
          const kind =
            status === "failed" || status === "missing"
              ? status
              : status !== "done" && isOverdue(event, now)
                ? "overdue"
                : null;
          // A retired device stays in the audience of what it failed.
          if (kind === null || (event.to === null && !seen.has(device))) continue;
          own[kind]++;
          let trouble = devices.get(device);
          if (!trouble) devices.set(device, (trouble = { failed: 0, missing: 0, overdue: 0, since: event.at }));
          trouble[kind]++;
        }
        from = page.next;
      }
      if (troubleSum(own) === 0) continue;
      const { seq, at, type, deadline } = event;
      all.events.push({ channel, epoch, seq, at, type, deadline, tally, ...own });
      for (const kind of ["failed", "missing", "overdue"] as const) sum[kind] += own[kind];
    }
    after = read.at(-1)!.seq;
  }
  if (devices.size > 0) all.channels.push({ channel, devices: devices.size, ...sum });
  for (const [device, trouble] of devices)
    all.devices.push({ channel, device, ...trouble, seenAt: seen.get(device) ?? null });
}

const mayBeTroubled = (event: Event, { addressed, done, failed, missing }: Tally, now: number): boolean =>
  failed > 0 || missing > 0 || (isOverdue(event, now) && done < addressed);
