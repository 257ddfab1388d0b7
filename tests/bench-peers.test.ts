/**
 * The brokers that `bun run bench --peers` compares PERE with: each that is installed starts with its durable settings, is asked in its own protocol,
 * and syncs before it answers.
 *
 * None of them is installed by a test, and CI has none: this suite tests PERE, and they are only what somebody may compare it with on his machine.
 * So a missing one is skipped with CI=true too.
 */
import { expect, test } from "bun:test";
import { chmodSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { durablePeers } from "./bench/durable-peers.ts";
import type { Compared } from "./bench/peers.ts";
import { DELAY_MS, syncsOf } from "./bench/syncs.ts";
import { temporary } from "./support/harness.ts";
import { noStrace } from "./support/strace.ts";

const BENCH = join(import.meta.dir, "bench", "bench.ts");
const PEERS = durablePeers();
/** Redis is a part of every test machine, so PERE on Redis is no reason to start anything here. */
const FOUND = PEERS.filter(({ name, start }) => start && name !== "PERE on Redis").map(({ name }) => name);

async function bench(path: string, ...flags: string[]): Promise<{ code: number; compared: Compared }> {
  const run = Bun.spawn([process.execPath, BENCH, "--peers", "--rounds", "1", "--json", ...flags], {
    env: { ...process.env, PATH: path },
    stdout: "pipe",
    stderr: "inherit",
  });
  const compared = JSON.parse(await new Response(run.stdout).text()) as Compared;
  return { code: await run.exited, compared };
}

test.skipIf(FOUND.length === 0)(
  `a row runs on each broker: ${FOUND.join(", ") || "skipped, no Centrifugo, NATS or Mercure is on the PATH"}`,
  async () => {
    const small = ["--only", "fan-out-16", "--devices", "20", "--events", "100"];
    const { code, compared } = await bench(process.env.PATH!, "--servers", FOUND.join(), ...small);
    const [row] = compared.rows;
    expect(row!.errors).toEqual({});
    expect(Object.keys(row!.measures[0]!.servers)).toEqual(["PERE", ...FOUND]);
    for (const { middle } of Object.values(row!.measures[0]!.servers)) expect(middle).toBeGreaterThan(0);
    expect(code).toBe(0);
  },
  120_000,
);

for (const peer of PEERS) {
  const reason = noStrace ?? (peer.start ? null : `${peer.missing} is not on the PATH`);
  test.skipIf(reason !== null)(
    `a push is answered after a sync: ${peer.name}${reason === null ? "" : ` (skipped: ${reason})`}`,
    async () => {
      const { perPush, answerMs } = await syncsOf(peer, temporary());
      expect(perPush).toBeGreaterThanOrEqual(1);
      expect(answerMs).toBeGreaterThanOrEqual(DELAY_MS);
    },
    60_000,
  );
}

test("brokers that are not on the PATH are named and left out", async () => {
  const brokers = ["--servers", "Centrifugo,NATS,NATS consumers,Mercure", "--only", "quiet", "--quiet", "10"];
  const folder = temporary();
  // The bench itself asks a shell for the limit of open files.
  symlinkSync(Bun.which("sh")!, join(folder, "sh"));
  const { code, compared } = await bench(folder, ...brokers);
  expect(compared.missing).toEqual(["centrifugo", "nats-server", "mercure"]);
  expect(Object.keys(compared.settings)).toEqual(["PERE"]);
  expect(compared.rows[0]!.errors).toEqual({});
  expect(code).toBe(0);
}, 60_000);

test("a server that does not start is an error of its own, and the others are measured", async () => {
  const folder = temporary();
  const broken = join(folder, "nats-server");
  writeFileSync(broken, "#!/bin/sh\necho no such option >&2\nexit 1\n");
  chmodSync(broken, 0o755);
  const path = `${folder}:${process.env.PATH}`;
  const { code, compared } = await bench(path, "--servers", "NATS", "--only", "quiet", "--quiet", "10");
  const [row] = compared.rows;
  expect(row!.errors).toEqual({ NATS: "nats-server did not start: no such option\n" });
  expect(Object.keys(row!.measures[0]!.servers)).toEqual(["PERE"]);
  expect(code).toBe(1);
}, 60_000);

test("a server that nobody knows is refused", async () => {
  const run = Bun.spawnSync([process.execPath, BENCH, "--peers", "--servers", "NATS,Pushy"]);
  expect(run.stderr.toString()).toContain('bench: there is no server "Pushy"; there are PERE, nchan, C, floor, ');
  expect(run.exitCode).toBe(2);
});
