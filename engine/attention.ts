/**
 * What needs attention: who did not do what was asked, in the whole service. Its data types, its order, and when a receipt is overdue.
 *
 * Trouble is a device's status on a kept event: it failed, it is missing, or it is overdue. Stores keep counts of it; nothing is counted to answer a
 * request. A device that was retired is not in trouble.
 */
import type { Tally } from "./model.ts";

/** An event without a deadline is overdue for the devices that sent no final receipt within this time: longer than a pause, shorter than a shift. */
export const OVERDUE_MS = 3_600_000;

/** Numbers of devices and events: each counts what devices did not do on kept events. */
export interface Troubles {
  readonly failed: number;
  readonly missing: number;
  /** Addressed, without a final receipt, on an event without a deadline that is older than `OVERDUE_MS`. */
  readonly overdue: number;
}

/** A device in trouble. Times in milliseconds since 1970. */
export interface TroubledDevice extends Troubles {
  readonly channel: string;
  readonly device: string;
  /** When the oldest of these events was pushed. */
  readonly since: number;
  /** The last stored sign of life; null: none, or it is not enrolled. */
  readonly seenAt: number | null;
}

/** An event that devices failed, missed, or owe for too long. Times in milliseconds since 1970. */
export interface TroubledEvent extends Troubles {
  readonly channel: string;
  readonly epoch: string;
  readonly seq: number;
  readonly at: number;
  readonly type: string | null;
  readonly deadline: number | null;
  readonly tally: Tally;
}

/** A channel with trouble, and how many of its devices are in it. */
export interface TroubledChannel extends Troubles {
  readonly channel: string;
  readonly devices: number;
  /** When the oldest of its events with trouble was pushed, milliseconds since 1970; 0: not known yet. */
  readonly since: number;
}

/** A hook that gave up calls, or is disabled. */
export interface TroubledHook {
  readonly channel: string;
  readonly name: string;
  /** How many calls it gave up. */
  readonly givenUp: number;
  /** Why it is disabled, in a sentence; null: it is not. */
  readonly disabled: string | null;
}

/** What needs attention in some channels, each list worst first. */
export interface Attention {
  /** Of all of these channels, not only of those in the lists. */
  readonly totals: Troubles & { readonly devices: number };
  readonly devices: readonly TroubledDevice[];
  readonly events: readonly TroubledEvent[];
  readonly hooks: readonly TroubledHook[];
  readonly channels: readonly TroubledChannel[];
}

export const troubleSum = ({ failed, missing, overdue }: Troubles): number => failed + missing + overdue;

const byText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** Most trouble first, then the oldest, then by name. */
export const worstDevice = (a: TroubledDevice, b: TroubledDevice): number =>
  troubleSum(b) - troubleSum(a) || a.since - b.since || byText(a.device, b.device) || byText(a.channel, b.channel);
export const worstEvent = (a: TroubledEvent, b: TroubledEvent): number =>
  troubleSum(b) - troubleSum(a) || a.at - b.at || byText(a.channel, b.channel) || a.seq - b.seq;
export const worstChannel = (a: TroubledChannel, b: TroubledChannel): number =>
  troubleSum(b) - troubleSum(a) || a.since - b.since || byText(a.channel, b.channel);
export const worstHook = (a: TroubledHook, b: TroubledHook): number =>
  b.givenUp - a.givenUp || byText(a.channel, b.channel) || byText(a.name, b.name);
