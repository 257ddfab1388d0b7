/**
 * The simulation keeps the promises of the contract over many seeds, and is worth believing: a seed is the same history each time, and a
 * promise that is broken on purpose is found and made short. `bun run simulate` goes on from here.
 */
import { expect, test } from "bun:test";
import { noRedis } from "./support/redis-server.ts";

const PROGRAM = `${import.meta.dir}/simulation/simulate.ts`;
/** Seeds in all, by two processes at once; the first of them can be chosen. */
const SEEDS = 2_000;
const FIRST = Number(process.env.SEED ?? 1);

async function simulate(...flags: string[]): Promise<{ code: number; said: string }> {
  const stores = noRedis === null ? [] : ["--store", "sqlite"];
  const child = Bun.spawn([process.execPath, PROGRAM, ...flags, ...stores], { stdout: "pipe", stderr: "inherit" });
  const said = await new Response(child.stdout).text();
  return { code: await child.exited, said };
}

test(`the contract's promises hold in ${SEEDS} worlds from seed ${FIRST} on, on both stores, under faults`, async () => {
  const half = SEEDS / 2;
  const runs = await Promise.all(
    [FIRST, FIRST + half].map((from) => simulate("--from", String(from), "--seeds", String(half))),
  );
  for (const { code, said } of runs) expect(`${said}exit code ${code}`).toEndWith("exit code 0");
}, 1_200_000);

test("a seed gives the same history each time, whatever ran before it", async () => {
  const histories = async (from: number, seeds: number): Promise<Map<string, string>> => {
    const { said } = await simulate(
      "--from",
      String(from),
      "--seeds",
      String(seeds),
      "--hash",
      "--all",
      "--redis-share",
      "0.3",
    );
    return new Map([...said.matchAll(/^(\d+) ([0-9a-f]+)$/gm)].map(([, seed, history]) => [seed!, history!]));
  };
  const [all, later] = await Promise.all([histories(FIRST, 20), histories(FIRST + 10, 10)]);
  expect(all.size).toBe(20);
  expect(later.size).toBe(10);
  for (const [seed, history] of later) expect(`${seed} ${all.get(seed)}`).toBe(`${seed} ${history}`);
}, 300_000);

test("a receipt that is lost on purpose is found, and the history that shows it is short", async () => {
  const { code, said } = await simulate("--from", String(FIRST), "--seeds", "50", "--store", "sqlite", "--sabotage");
  expect(code).toBe(1);
  expect(said).toMatch(/^seed \d+ on sqlite breaks a promise:\n {2}follower: \w+ was never told that \S+ is complete/);
  const [, steps] = /shortest history found, (\d+) of \d+ steps/.exec(said)!;
  expect(Number(steps)).toBeLessThanOrEqual(6);
}, 300_000);
