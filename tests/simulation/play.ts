/**
 * Plays seeds, and makes a failure short: steps are left out, by halves and then one by one, as long as the same promise is broken.
 */
import { rmSync } from "node:fs";
import { chance } from "../support/chance.ts";
import { type Plan, planOf, type Step } from "./plan.ts";
import { RealRedis } from "./real-redis.ts";
import { World } from "./world.ts";

export interface Play {
  readonly first: number;
  readonly count: number;
  /** Of the seeds, how many on Redis. */
  readonly redisShare: number;
  readonly trace: boolean;
  readonly all: boolean;
  readonly hash: boolean;
  /** Loses the first word of each world that an event is complete. */
  readonly sabotage: boolean;
  readonly now: () => number;
}

interface Outcome {
  readonly wrong: readonly string[];
  readonly trace: bigint;
  readonly lines: readonly string[];
}

/** Plays with which a failure is made short, at most. */
const TRIES_MAX = 400;

let redis: { real: RealRedis; end(): void } | null = null;

/** A server for all worlds of this process, one after the other. */
async function openRedis(): Promise<RealRedis> {
  if (redis) return redis.real;
  const path = `/tmp/pere-simulation-${process.pid}.sock`;
  const settings = ["--save", "", "--appendonly", "no", "--enable-debug-command", "no"];
  const child = Bun.spawn(["redis-server", "--port", "0", "--unixsocket", path, ...settings], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "ignore",
  });
  const real = await connected(path);
  redis = {
    real,
    end() {
      real.end();
      child.kill("SIGKILL");
      rmSync(path, { force: true });
    },
  };
  return real;
}

async function connected(path: string): Promise<RealRedis> {
  for (;;)
    try {
      return await RealRedis.connect(path);
    } catch {
      Bun.spawnSync(["sleep", "0.02"]);
    }
}

async function play(plan: Plan, sabotage: boolean, withLines = false): Promise<Outcome> {
  const real = plan.store === "redis" ? await openRedis() : null;
  await real?.ask(["FLUSHALL"], ["SCRIPT", "FLUSH"]);
  const world = new World(plan, real, sabotage);
  if (withLines) world.clock.lines = [];
  await world.play();
  world.end();
  return { wrong: world.witness.wrong, trace: world.clock.trace, lines: world.clock.lines ?? [] };
}

const promiseOf = (wrong: string): string => wrong.split(":", 1)[0]!;

/** The shortest plan that was found in which the same promise is broken. */
async function shorten(plan: Plan, sabotage: boolean, promise: string): Promise<Plan> {
  let shortest = plan;
  let tries = 0;
  const breaks = async (candidate: Plan): Promise<boolean> => {
    tries++;
    const { wrong } = await play(candidate, sabotage);
    return wrong.some((one) => promiseOf(one) === promise);
  };
  for (const weather of [
    { lost: 0, cut: 0, slow: 0 },
    { ...plan.weather, lost: 0 },
    { ...plan.weather, slow: 0 },
  ]) {
    const candidate = { ...shortest, weather };
    if (await breaks(candidate)) {
      shortest = candidate;
      break;
    }
  }
  for (const part of ["followers", "devices"] as const)
    for (let at = shortest[part].length - 1; at >= 0; at--) {
      const kept = shortest[part].filter((_, n) => n !== at);
      const names = new Set<string>(
        (part === "devices" ? (kept as Plan["devices"]) : shortest.devices).map(({ name }) => name),
      );
      const steps = shortest.steps.filter(
        (step) => !("device" in step) || names.has(step.device) || step.device === "e0",
      );
      const candidate = { ...shortest, [part]: kept, steps };
      if (await breaks(candidate)) shortest = candidate;
    }
  for (
    let size = Math.ceil(shortest.steps.length / 2);
    size >= 1 && tries < TRIES_MAX;
    size = size === 1 ? 0 : Math.ceil(size / 2)
  )
    for (let at = 0; at < shortest.steps.length && tries < TRIES_MAX;) {
      const steps = shortest.steps.filter((_, n) => n < at || n >= at + size);
      const candidate = { ...shortest, steps };
      if (await breaks(candidate)) shortest = candidate;
      else at += size;
    }
  return shortest;
}

const stepText = ({ at, kind, ...rest }: Step): string =>
  `  ${(at / 1000).toFixed(3)} s  ${kind} ${JSON.stringify(rest)}`;

async function report(plan: Plan, sabotage: boolean, outcome: Outcome): Promise<void> {
  console.log(`seed ${plan.seed} on ${plan.store} breaks a promise:`);
  for (const one of outcome.wrong.slice(0, 5)) console.log(`  ${one}`);
  const promise = promiseOf(outcome.wrong[0]!);
  const short = await shorten(plan, sabotage, promise);
  const { wrong, lines } = await play(short, sabotage, true);
  console.log(
    `shortest history found, ${short.steps.length} of ${plan.steps.length} steps, lines ${JSON.stringify(short.weather)}:`,
  );
  for (const device of short.devices) console.log(`  device ${JSON.stringify(device)}`);
  for (const follower of short.followers) console.log(`  follower ${JSON.stringify(follower)}`);
  for (const step of short.steps) console.log(stepText(step));
  for (const one of wrong.slice(0, 3)) console.log(`  → ${one}`);
  if (lines.length <= 120) for (const line of lines) console.log(`    ${line.slice(0, 200)}`);
}

/** @returns how many seeds failed */
export async function playSeeds({ first, count, redisShare, trace, all, hash, sabotage, now }: Play): Promise<number> {
  const startedAt = now();
  let failed = 0;
  let played = 0;
  let onRedis = 0;
  for (let seed = first; played < count; seed++) {
    const isRedis = chance(seed ^ 0x1b873593)() < redisShare;
    const plan = planOf(seed, isRedis ? "redis" : "sqlite");
    const outcome = await play(plan, sabotage, trace);
    played++;
    if (isRedis) onRedis++;
    if (trace) for (const line of outcome.lines) console.log(line);
    if (hash) console.log(`${seed} ${outcome.trace.toString(16)}`);
    if (outcome.wrong.length === 0) continue;
    failed++;
    if (all) console.log(`seed ${seed} on ${plan.store}: ${outcome.wrong.slice(0, 2).join(" | ").slice(0, 400)}`);
    else {
      await report(plan, sabotage, outcome);
      break;
    }
  }
  redis?.end();
  const seconds = (now() - startedAt) / 1000;
  console.log(
    `${played} seeds from ${first}, ${onRedis} of them on Redis, ${failed} failed, in ${seconds.toFixed(1)} s`,
  );
  return failed;
}
