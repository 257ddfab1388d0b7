/**
 * What is going to happen in a world: who takes part, how bad the lines are, and a list of steps. All of it follows from the seed; leaving steps
 * out makes a smaller world of the same kind, which is how a failure is made short.
 */
import { chance } from "../support/chance.ts";
import type { Weather } from "./line.ts";

export type Way = "sse" | "websocket" | "poll" | "any";

export interface DevicePlan {
  readonly name: string;
  readonly channels: readonly string[];
  readonly way: Way;
  readonly workMs: number;
  readonly failed: number;
  readonly concurrency: number;
}

export interface FollowerPlan {
  readonly name: string;
  readonly channel: string;
  readonly way: Way;
  /** The instance that it goes to; null: any. */
  readonly pinned: number | null;
}

export interface PushOptions {
  readonly to?: readonly string[];
  readonly ttl?: number;
  readonly deadline?: number;
  readonly remind?: number;
  readonly wait?: number;
}

export type Step = { readonly at: number } & (
  | {
      readonly kind: "push";
      readonly channel: string;
      /** What the event, or the first of so many at once, is known by. */
      readonly marker: number;
      readonly count: number;
      readonly options: PushOptions;
    }
  | {
      readonly kind: "say";
      readonly channel: string;
      readonly device: string;
      readonly status: string;
      readonly back: number;
    }
  | { readonly kind: "look"; readonly channel: string; readonly back: number }
  | { readonly kind: "enrol" | "retire"; readonly channel: string; readonly device: string }
  | { readonly kind: "hook"; readonly channel: string }
  | { readonly kind: "start" | "kill" | "end"; readonly device: string }
  | { readonly kind: "set clock"; readonly device: string; readonly ms: number }
  | { readonly kind: "follow again"; readonly follower: string }
  | { readonly kind: "cut"; readonly client: string }
  | { readonly kind: "stall"; readonly client: string; readonly ms: number }
  | { readonly kind: "crash" | "restart"; readonly instance: number; readonly ms: number }
  | { readonly kind: "leap"; readonly instance: number; readonly ms: number }
  | { readonly kind: "trip"; readonly instance: number }
  | { readonly kind: "redis down" | "redis stall"; readonly ms: number }
  | { readonly kind: "redis drop" | "flush" | "save" | "put back" }
);

export interface Plan {
  readonly seed: number;
  readonly store: "sqlite" | "redis";
  readonly instances: number;
  readonly channels: readonly string[];
  readonly devices: readonly DevicePlan[];
  readonly followers: readonly FollowerPlan[];
  readonly weather: Weather;
  /** Of each batch of commands to Redis: that the connection breaks with it. */
  readonly redisCut: number;
  readonly keptEvents: number;
  readonly trimMs: number;
  readonly steps: readonly Step[];
}

/** Until then there is trouble, milliseconds; afterwards all is well, and what was promised must come true. */
export const TROUBLE_MS = 40_000;

const WAYS: readonly Way[] = ["sse", "sse", "websocket", "poll", "any"];

const OPERATORS = ["flush", "put back"] as const;
/** How far a device's clock may be off: it has no battery, or is set wrong. */
const CLOCKS_MS = [-56 * 365 * 86_400_000, -3_600_000, 5_000, 86_400_000];
/** Many at once have markers of their own. */
const MANY_MARKERS = 1_000;

export function planOf(seed: number, store: "sqlite" | "redis"): Plan {
  const random = chance(seed);
  const between = (from: number, to: number): number => from + (to - from) * random();
  const whole = (from: number, to: number): number => Math.floor(between(from, to + 1));
  const one = <Item>(items: readonly Item[]): Item => items[Math.floor(random() * items.length)]!;
  const often = (share: number): boolean => random() < share;

  // An operator who puts a store back, or flushes it, is trouble enough for a world.
  const operator = often(store === "redis" ? 0.4 : 0.08)
    ? one(store === "redis" ? OPERATORS : (["put back"] as const))
    : null;
  const isCalm = operator !== null || often(0.15);
  const instances = store === "redis" ? whole(1, 2) : 1;
  const channels = often(0.3) ? ["a", "b"] : ["a"];
  const devices = Array.from({ length: whole(1, 4) }, (_, n) => ({
    name: `d${n}`,
    channels: often(0.3) ? channels : [one(channels)],
    way: one(WAYS),
    workMs: one([0, 0, 50, 1_000, 2_000]),
    failed: one([0, 0.2]),
    concurrency: one([1, 1, 3]),
  }));
  const followers = channels.flatMap((channel) =>
    Array.from({ length: operator ? instances : whole(1, 2) }, (_, n) => ({
      name: `f${channel}${n}`,
      channel,
      way: one(WAYS),
      pinned: operator ? n : null,
    })),
  );
  const names = devices.map(({ name }) => name);
  const clients = [...names, ...followers.map(({ name }) => name), "p0"];
  const steps: Step[] = devices.map(({ name }) => ({
    at: often(0.7) ? 0 : between(0, 10_000),
    kind: "start",
    device: name,
  }));

  const options = (): PushOptions => ({
    ...(often(0.15) ? { to: names.filter(() => often(0.6)).slice(0, 3) } : {}),
    ...(often(0.05) ? { ttl: whole(1, 10) } : {}),
    ...(often(0.3) ? { deadline: whole(1, 12) } : {}),
    ...(often(0.2) ? { remind: whole(1, 3) } : {}),
    ...(often(0.3) ? { wait: whole(1, 20) } : {}),
  });
  const pushes = whole(3, 18);
  for (let marker = 1; marker <= pushes; marker++) {
    const chosen = options();
    const { to, ...rest } = chosen;
    steps.push({
      at: between(0, TROUBLE_MS - 5_000),
      kind: "push",
      channel: one(channels),
      marker: marker * MANY_MARKERS,
      count: often(0.08) ? whole(2, 12) : 1,
      options: to && to.length === 0 ? rest : chosen,
    });
  }
  const some = (count: number, make: (at: number) => Step): void => {
    for (let n = 0; n < count; n++) steps.push(make(between(500, TROUBLE_MS - 2_000)));
  };
  const STATUSES = ["received", "working", "done", "failed"];
  const instance = (): number => whole(0, instances - 1);
  some(whole(0, 8), (at) => ({
    at,
    kind: "say",
    channel: one(channels),
    device: one(names),
    status: one(STATUSES),
    back: whole(0, 4),
  }));
  some(whole(0, 6), (at) => ({ at, kind: "look", channel: one(channels), back: whole(0, 6) }));
  if (often(0.4))
    some(whole(1, 3), (at) => ({ at, kind: "enrol", channel: one(channels), device: often(0.8) ? one(names) : "e0" }));
  if (often(0.3)) some(whole(1, 2), (at) => ({ at, kind: "hook", channel: one(channels) }));
  if (often(0.25)) some(whole(1, 2), (at) => ({ at, kind: "retire", channel: one(channels), device: one(names) }));
  if (often(0.2)) some(whole(1, 2), (at) => ({ at, kind: "set clock", device: one(names), ms: one(CLOCKS_MS) }));
  if (often(0.3)) some(whole(1, 3), (at) => ({ at, kind: "follow again", follower: one(followers).name }));
  if (!isCalm) {
    if (often(0.4)) some(whole(1, 3), (at) => ({ at, kind: one(["kill", "end"] as const), device: one(names) }));
    some(whole(0, 6), (at) => ({ at, kind: "cut", client: one(clients) }));
    some(whole(0, 4), (at) => ({ at, kind: "stall", client: one(clients), ms: between(500, 12_000) }));
    if (often(0.5))
      some(whole(1, 3), (at) => ({
        at,
        kind: one(["crash", "crash", "restart"] as const),
        instance: instance(),
        ms: between(50, 6_000),
      }));
    if (often(0.3))
      some(whole(1, 3), (at) => ({
        at,
        kind: "leap",
        instance: instance(),
        ms: Math.round(between(-1, 1) * one([2_000, 60_000, 3_600_000, 8 * 86_400_000])),
      }));
    if (often(0.2)) some(whole(1, 2), (at) => ({ at, kind: "trip", instance: instance() }));
    if (store === "redis") {
      if (often(0.3))
        some(whole(1, 2), (at) => ({ at, kind: one(["redis down", "redis stall"] as const), ms: between(100, 8_000) }));
      if (often(0.4)) some(whole(1, 3), (at) => ({ at, kind: "redis drop" }));
    }
  }
  if (operator === "flush") some(1, (at) => ({ at, kind: "flush" }));
  if (operator === "put back") {
    const at = between(3_000, TROUBLE_MS / 2);
    const back = at + between(1_000, 12_000);
    steps.push({ at, kind: "save" }, { at: back, kind: "put back" });
    // The first to come is not to be given what was given before.
    for (let marker = 91; marker <= 93; marker++)
      steps.push({
        at: back + between(-200, 300),
        kind: "push",
        channel: one(channels),
        marker: marker * MANY_MARKERS,
        count: 1,
        options: {},
      });
  }
  steps.sort((a, b) => a.at - b.at);
  return {
    seed,
    store,
    instances,
    channels,
    devices,
    followers,
    weather: isCalm
      ? { lost: 0, cut: 0, slow: 0.02 }
      : { lost: one([0, 0.05, 0.2]), cut: one([0, 0.02, 0.1]), slow: one([0.01, 0.1]) },
    redisCut: isCalm ? 0 : one([0, 0, 0.005]),
    keptEvents: operator === null && often(0.2) ? whole(3, 15) : 10_000,
    trimMs: one([5_000, 30_000]),
    steps,
  };
}
