/**
 * Power cuts. A library in front of the C library (`support/disk.c`) keeps what the disk surely has, and what was written since. After a kill, the
 * disk may have any part of that, sector by sector, in any order. Whatever it has, the file opens, is whole, and has everything that was
 * acknowledged.
 */
import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { chance } from "./support/chance.ts";
import { diskLibrary, hasDisk } from "./support/disk.ts";
import { type Answer, ask, give, spawn, temporary } from "./support/harness.ts";

/** What a disk writes at once. */
const SECTOR_BYTES = 512;
/** Kills, and states of the disk after each. */
const KILLS = 6;
const STATES_A_KILL = 20;
/** More than those whose events never go through the journal. */
const CHANNELS = ["orders", "a", "b", "c", "d", "e", "f"];

const skipped = hasDisk || process.env.CI === "true" ? "" : " (skipped: it needs Linux and a C compiler)";

const seqOf = (id: string): number => Number(id.split("-")[1]);

/** Writes since the last sync: a part of the file, or the length that it was cut to. */
type Write = { readonly offset: number; readonly bytes: Buffer | null };

function* writesOf(file: string): Generator<Write> {
  const records = readFileSync(file);
  for (let at = 0; at + 16 <= records.length;) {
    const offset = Number(records.readBigInt64LE(at));
    const length = Number(records.readBigInt64LE(at + 8));
    at += 16;
    if (length < 0) yield { offset, bytes: null };
    else if (at + length > records.length) return;
    else yield { offset, bytes: records.subarray(at, at + length) };
    at += Math.max(0, length);
  }
}

/**
 * A file as a power cut may leave it.
 * @param survives whether a sector of the n-th of so many writes that were not synced is on the disk
 */
function afterCut(synced: string, pending: string, survives: (n: number, count: number) => boolean): Buffer {
  const writes = [...writesOf(pending)];
  const before = readFileSync(synced);
  const file = Buffer.alloc(
    Math.max(before.length, ...writes.map(({ offset, bytes }) => offset + (bytes?.length ?? 0))),
  );
  before.copy(file);
  let length = before.length;
  for (const [n, { offset, bytes }] of writes.entries()) {
    if (bytes === null && survives(n, writes.length)) {
      file.fill(0, Math.min(offset, length));
      length = offset;
    }
    for (let at = 0; bytes !== null && at < bytes.length;) {
      const end = Math.min(bytes.length, at + SECTOR_BYTES - ((offset + at) % SECTOR_BYTES));
      if (survives(n, writes.length)) {
        bytes.copy(file, offset + at, at, end);
        length = Math.max(length, offset + end);
      }
      at = end;
    }
  }
  return file.subarray(0, length);
}

test.skipIf(skipped !== "")(
  `a power cut at any moment leaves a whole file with everything that was acknowledged${skipped}`,
  async () => {
    const seed = Number(process.env.SEED ?? Date.now() % 2 ** 31);
    const random = chance(seed);
    const preload = diskLibrary(temporary());
    const name = (what: string): string => `${what} (SEED=${seed})`;
    let restarts = 0;
    let journaled = 0;
    for (let kill = 0; kill < KILLS; kill++) {
      const folder = temporary();
      const keep = join(folder, "keep");
      mkdirSync(keep);
      const db = join(folder, "pere.db");
      // Half of the power cuts come soon after the log began again, which is the most dangerous moment.
      const cut = `${kill % 2 === 0 ? 2 + Math.floor(random() * 2) : 1_000}:${Math.floor(random() * 60)}`;
      const env = { PERE_DB: db, LD_PRELOAD: preload, DISK_KEEP: keep, DISK_SYNC_US: "1000", DISK_CUT: cut };
      const service = await spawn(env);
      const { url, child } = service;
      for (const channel of CHANNELS) await ask(`${url}/devices/${channel}/till`, { method: "PUT" });
      const acknowledged: { channel: string; seq: number }[] = [];
      const done: { channel: string; seq: number }[] = [];
      let left = kill % 2 === 0 ? Number.POSITIVE_INFINITY : 20 + Math.floor(random() * 60);
      let isKilled = false;
      /** The answer, unless the process ended meanwhile. */
      const unlessDead = async (asked: Promise<Answer>): Promise<Answer | null> => {
        const answer = await asked.catch((error: unknown) => {
          if (isKilled || kill % 2 === 0) return null;
          throw error;
        });
        return isKilled ? null : answer;
      };
      // One of them pushes so much that the log begins again several times.
      const publisher = async (nth: number): Promise<void> => {
        for (let turn = 0; ; turn++) {
          const channel = nth === 0 ? "orders" : CHANNELS[(turn + nth) % CHANNELS.length]!;
          const lines = Array.from({ length: nth === 0 ? 40 : 1 }, () =>
            JSON.stringify("x".repeat(nth === 0 ? 9_000 : 9)),
          );
          const batch = { body: lines.join("\n"), type: "application/x-ndjson" };
          const answer = await unlessDead(ask(`${url}/push/${channel}`, batch));
          if (answer === null) return;
          expect([answer.status, answer.text]).toEqual([201, answer.text]);
          const ids = (answer.body.events as { id: string }[]).map(({ id }) => id);
          acknowledged.push(...ids.map((id) => ({ channel, seq: seqOf(id) })));
          if (nth === 0) continue;
          const receipt = await unlessDead(give(url, channel, ids[0]!, "till", "done"));
          if (receipt === null) return;
          expect([receipt.status, receipt.text]).toEqual([200, receipt.text]);
          done.push({ channel, seq: seqOf(ids[0]!) });
          if (--left > 0) continue;
          isKilled = true;
          child.kill("SIGKILL");
        }
      };
      await Promise.all(Array.from({ length: 4 }, (_, nth) => publisher(nth)));
      await child.exited;

      for (let state = 0; state < STATES_A_KILL; state++) {
        const share = random();
        const survives = [
          () => false,
          () => true,
          () => random() < share,
          (n: number, count: number) => n < share * count, // The first ones.
          (n: number, count: number) => n >= share * count, // The last ones.
        ][state % 5]!;
        const copy = join(folder, `state-${state}.db`);
        for (const end of ["", "-wal"]) {
          const [synced, pending] = ["synced", "pending"].map((what) => join(keep, `pere.db${end}.${what}`)) as [
            string,
            string,
          ];
          if (existsSync(synced)) writeFileSync(copy + end, afterCut(synced, pending, survives));
        }
        const log = readFileSync(`${copy}-wal`);
        if (log.length > 32 && log.readUInt32BE(12) > 0) restarts++;
        const store = new SqliteStore({ path: copy });
        for (const channel of CHANNELS) {
          const { epoch, events } = (await store.heads(channel))!;
          const ofIt = (some: typeof done): number[] =>
            some.filter((one) => one.channel === channel && one.seq > events.floor).map(({ seq }) => seq);
          const found = channel === "orders" ? null : (await store.events(channel, epoch, 0, 100_000))!;
          const seqs = found?.map(({ seq }) => seq) ?? [];
          if (found) expect([name(channel), seqs]).toEqual([name(channel), seqs.map((_, n) => events.floor + n + 1)]);
          const last = found ? (seqs.at(-1) ?? 0) : events.head;
          for (const seq of ofIt(acknowledged))
            expect([name(`${channel} ${seq}`), seq <= last]).toEqual([name(`${channel} ${seq}`), true]);
          const tallies = (await store.tallies(channel, epoch, 1, events.head))!;
          for (const seq of ofIt(done))
            expect([name(`${channel} ${seq}`), tallies.get(seq)?.done]).toEqual([name(`${channel} ${seq}`), 1]);
        }
        await store.close();
        const file = new Database(copy, { readonly: true });
        expect([name("check"), file.query("PRAGMA integrity_check").all()]).toEqual([
          name("check"),
          [{ integrity_check: "ok" }],
        ]);
        journaled += file.query<{ n: number }, []>("SELECT count(*) AS n FROM journal").get()!.n;
        file.close();
        for (const left of readdirSync(folder)) if (left.startsWith("state-")) rmSync(join(folder, left));
      }
    }
    // Otherwise nothing was seen of the dangerous moment, or of the journal.
    expect(restarts).toBeGreaterThan(0);
    expect(journaled).toBeGreaterThan(0);
  },
  300_000,
);
