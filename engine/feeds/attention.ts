/**
 * What needs attention: put together from what the store keeps of each channel, with what only the instances know: who is connected.
 *
 * The store is asked for the channels with trouble, and for the devices and events of the worst of them, until no other channel can have one that is as
 * bad: no device and no event has more trouble than its channel, or an older one. So the work grows with the length of the answer and the number of channels in
 * trouble, not with channels or devices that are well.
 */
import {
  type Attention,
  type TroubledChannel,
  type TroubledDevice,
  type TroubledEvent,
  type Troubles,
  troubleSum,
  worstChannel,
  worstDevice,
  worstEvent,
  worstHook,
} from "../attention.ts";
import { yieldToEventLoop } from "../yield.ts";
import type { ChannelScope, Store } from "../store.ts";
import type { Presence } from "./presence.ts";

/** Channels that are read at once. */
const READ_CHANNELS = 64;
/** What a channel counts, in rows. */
const CHANNEL_ROWS = 8;

/** A device in trouble, as it is shown. */
export interface ShownDevice extends TroubledDevice {
  readonly connected: boolean;
}

export interface ShownAttention extends Attention {
  readonly devices: readonly ShownDevice[];
}

/** The channels and hooks that are in trouble, in no order. */
export interface Troubled {
  readonly channels: Awaited<ReturnType<Store["troubledChannels"]>>;
  readonly hooks: Awaited<ReturnType<Store["troubledHooks"]>>;
}

/** The totals, and a text that changes with everything that needs attention. */
export interface AttentionMark {
  readonly totals: Attention["totals"];
  readonly mark: string;
}

/** The part of presence that is needed here. */
type Connected = Pick<Presence<unknown>, "isConnected" | "heardAt">;

const covers = (scope: ChannelScope | null, channel: string): boolean =>
  scope === null || scope.names.includes(channel) || scope.prefixes.some((prefix) => channel.startsWith(prefix));

/** Reads who is in trouble in all channels. */
export async function readTroubled(store: Store): Promise<Troubled> {
  const [channels, hooks] = await Promise.all([store.troubledChannels(), store.troubledHooks()]);
  return { channels, hooks };
}

/** Those of a scope. */
const within = ({ channels, hooks }: Troubled, scope: ChannelScope | null) => ({
  channels: channels.filter(({ channel }) => covers(scope, channel)),
  hooks: hooks.filter(({ channel }) => covers(scope, channel)),
});

function totalsOf(channels: readonly TroubledChannel[]): Attention["totals"] {
  const totals = { devices: 0, failed: 0, missing: 0, overdue: 0 };
  for (const { devices, failed, missing, overdue } of channels) {
    totals.devices += devices;
    totals.failed += failed;
    totals.missing += missing;
    totals.overdue += overdue;
  }
  return totals;
}

/** Keeps the worst items. */
function keepWorst<Item>(items: Item[], limit: number, order: (a: Item, b: Item) => number): void {
  items.sort(order);
  if (items.length > limit) items.length = limit;
}

/** Whether an item that has at most `most` trouble, since `since` or later, may come before the last one. */
const mayBeWorse = (
  last: Troubles | undefined,
  lastSince: number | undefined,
  most: number,
  since: number,
): boolean => {
  if (last === undefined || lastSince === undefined) return true;
  const less = troubleSum(last) - most;
  return less < 0 || (less === 0 && since <= lastSince);
};

/** @param scope the channels that the reader may see; null: all. @param limit of each list */
export async function readAttention(
  store: Store,
  presence: Connected,
  scope: ChannelScope | null,
  limit: number,
): Promise<ShownAttention> {
  const { channels, hooks } = within(await readTroubled(store), scope);
  channels.sort(worstChannel);
  const devices: TroubledDevice[] = [];
  const events: TroubledEvent[] = [];
  for (let at = 0; at < channels.length; at += READ_CHANNELS) {
    const some = channels.slice(at, at + READ_CHANNELS).filter((channel) => {
      const [device, event] = [devices[limit - 1], events[limit - 1]];
      const sum = troubleSum(channel);
      // Each of the other devices has some of it.
      const isForDevice = mayBeWorse(device, device?.since, sum - channel.devices + 1, channel.since);
      return isForDevice || mayBeWorse(event, event?.at, sum, channel.since);
    });
    if (some.length === 0) continue;
    await yieldToEventLoop("read", some.length * CHANNEL_ROWS);
    const found = await Promise.all(some.map(({ channel }) => store.troubles(channel, limit)));
    devices.push(...found.flatMap((troubles) => troubles.devices));
    events.push(...found.flatMap((troubles) => troubles.events));
    keepWorst(devices, limit, worstDevice);
    keepWorst(events, limit, worstEvent);
  }
  return {
    totals: totalsOf(channels),
    devices: await withPresence(store, presence, devices),
    events,
    hooks: [...hooks].sort(worstHook).slice(0, limit),
    channels: channels.slice(0, limit).map(({ revision: _, ...channel }) => channel),
  };
}

async function withPresence(store: Store, presence: Connected, devices: readonly TroubledDevice[]) {
  const names = [...new Set(devices.map(({ channel }) => channel))];
  const elsewhere = new Map(
    await Promise.all(names.map(async (channel) => [channel, await store.remotePresence(channel)] as const)),
  );
  return devices.map((device) => ({
    ...device,
    connected: presence.isConnected(device.channel, device.device, elsewhere.get(device.channel)!),
    seenAt: presence.heardAt(device.channel, device.device) ?? device.seenAt,
  }));
}

/** @param scope the channels that the reader may see; null: all */
export function markOf(troubled: Troubled, scope: ChannelScope | null): AttentionMark {
  const { channels, hooks } = within(troubled, scope);
  const totals = totalsOf(channels);
  const revisions = channels.reduce((sum, { revision }) => sum + revision, 0);
  const givenUp = hooks.reduce((sum, hook) => sum + hook.givenUp, 0);
  const disabled = hooks.filter((hook) => hook.disabled !== null).length;
  return { totals, mark: [...Object.values(totals), revisions, hooks.length, givenUp, disabled].join(" ") };
}
