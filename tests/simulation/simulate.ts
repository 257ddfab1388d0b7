/**
 * `bun run simulate`: plays worlds, one seed after the other, until one of them breaks a promise. Then it prints the seed, what was broken, and the
 * shortest list of steps with which it still is.
 *
 *     bun run simulate --seeds 1000           so many, from a random one; without it: until it is ended
 *     bun run simulate --seed 42 [--trace]    one; with everything that happens in it
 *     --from 1  --store sqlite|redis|both  --redis-share 0.1  --all (goes on after a failure)  --hash (one line for each seed's history)
 *     --sabotage                              loses the first word that an event is complete: the simulation must find that
 */
import { parseArgs } from "node:util";
import { plugin } from "bun";
import { install, realNow } from "./clock.ts";

const { values } = parseArgs({
  options: {
    seeds: { type: "string" },
    seed: { type: "string" },
    from: { type: "string" },
    store: { type: "string", default: "both" },
    "redis-share": { type: "string", default: "0.1" },
    trace: { type: "boolean", default: false },
    all: { type: "boolean", default: false },
    hash: { type: "boolean", default: false },
    sabotage: { type: "boolean", default: false },
  },
});

const random = Math.random;
install();
const { createClient } = await import("./redis.ts");
plugin({
  name: "redis",
  setup: (build) => void build.module("redis", () => ({ exports: { createClient }, loader: "object" })),
});
const { playSeeds } = await import("./play.ts");

const isOne = values.seed !== undefined;
const first = Number(values.seed ?? values.from ?? Math.floor(random() * 2 ** 31));
const failed = await playSeeds({
  first,
  count: isOne ? 1 : Number(values.seeds ?? Number.POSITIVE_INFINITY),
  redisShare: values.store === "redis" ? 1 : values.store === "sqlite" ? 0 : Number(values["redis-share"]),
  trace: values.trace,
  all: values.all,
  hash: values.hash,
  sabotage: values.sabotage,
  now: realNow,
});
process.exit(failed === 0 ? 0 : 1);
