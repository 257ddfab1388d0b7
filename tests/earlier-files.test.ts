/**
 * Files of every earlier version of the schema: what they have is read as it was, and from then on its events can be withdrawn and deferred.
 */
import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { join } from "node:path";
import { freshTally } from "../engine/model.ts";
import { SCHEMA } from "../engine/sqlite/schema.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import {
  draft,
  expectTalliesToEqualRows,
  missAll,
  noteOf,
  reads,
  results,
  rowsOf,
  SECOND,
  T,
  tallyOf,
  word,
} from "./contract/calls.ts";
import { temporary } from "./support/harness.ts";

/** A file as that version would have left it: event 1 is done, on event 2 one device works, event 3 is past its deadline if there were deadlines. */
function earlier(version: number): string {
  const path = join(temporary(), "pere.db");
  const file = new Database(path, { create: true });
  for (const step of SCHEMA.steps.slice(0, version)) file.run(step);
  file.run(`PRAGMA application_id = ${SCHEMA.applicationId}`);
  file.run(`PRAGMA user_version = ${version}`);
  const insert = (table: string, ...rows: Record<string, string | number | null>[]): void => {
    for (const row of rows) {
      const names = Object.keys(row).map((name) => `"${name}"`);
      file.run(`INSERT INTO ${table} (${names.join()}) VALUES (${names.map(() => "?").join()})`, Object.values(row));
    }
  };
  const hasDeadlines = version >= 2;
  const channel = 1;
  insert("channels", {
    ...{ id: channel, name: "orders", epoch: "epoch", head: 3, floor: 0, swept: 0 },
    ...{ receiptsHead: 0, receiptsFloor: 0, audience: 2 },
  });
  insert("devices", ...["kiosk", "till"].map((device) => ({ channel, device, joined: 0, enrolledAt: T, settled: 0 })));
  for (const seq of [1, 2, 3]) {
    const deadline = hasDeadlines && seq === 3 ? { deadline: T + SECOND } : {};
    insert("events", { channel, seq, at: T, targeted: 0, data: `${seq}`, ...deadline });
  }
  if (hasDeadlines) insert("deadlines", { at: T + SECOND, channel, event: 3, after: "" });
  insert(
    "tallies",
    ...[
      { channel, event: 1, addressed: 2, done: 1, failed: 1 },
      { channel, event: 2, addressed: 2, working: 1 },
      { channel, event: 3, addressed: 2 },
    ],
  );
  const completes = hasDeadlines ? { done: 1, failed: 1 } : {};
  insert(
    "receipts",
    { channel, seq: 1, event: 1, device: "till", status: 4, at: T, late: 0, detail: '"x"' },
    { channel, seq: 2, event: 1, device: "kiosk", status: 5, at: T, late: 0, ...completes },
    { channel, seq: 3, event: 2, device: "till", status: 2, at: T, late: 0 },
  );
  insert(
    "latest",
    { channel, event: 1, device: "till", status: 4, receipt: 1 },
    { channel, event: 1, device: "kiosk", status: 5, receipt: 2 },
    { channel, event: 2, device: "till", status: 2, receipt: 3 },
  );
  file.close();
  return path;
}

test.each(SCHEMA.steps.map((_, index) => index + 1))("a file of version %d", async (version) => {
  const path = earlier(version);
  let store = new SqliteStore({ path });
  const epoch = "epoch";
  const [one, two] = [...(await rowsOf(store, "orders", 1)), ...(await rowsOf(store, "orders", 2, "working"))];
  expect(one).toMatchObject({ device: "kiosk", status: "failed", round: 1, attempt: 1, late: false });
  expect(two).toMatchObject({ device: "till", status: "done", round: 1, attempt: 0 });
  expect((await reads.receipts(store, "orders", 0, 10)).map(noteOf)).toEqual([
    null,
    version >= 2 ? { done: 1, failed: 1 } : null,
    null,
  ]);
  await expectTalliesToEqualRows(store, "orders");

  // What was missing at once, before the deadline is processed, is missing.
  const later = T + 2 * SECOND;
  const words = [
    word(epoch, 2, "till", "deferred", { after: 1 }),
    word(epoch, 1, "till", "failed"),
    word(epoch, 3, "till", "done"),
  ];
  const verdicts = await store.record("orders", words, later);
  expect(results(verdicts)).toEqual(["recorded", "duplicate", "recorded"]);
  expect(verdicts[2]!.late).toBe(version >= 2 ? "missing" : null);
  await missAll(store, later);
  expect(await store.withdraw("orders", { epoch, seq: 1 }, null, later)).toBe("complete");
  expect(await store.withdraw("orders", { epoch, seq: 3 }, "no", later)).toBe("withdrawn");
  expect(await store.append("orders", [draft(4, { key: "k" })], later)).toMatchObject({ first: 5 });
  expect(await store.append("orders", [draft(5, { key: "k" })], later)).toMatchObject({ first: 6 });
  await store.close();

  store = new SqliteStore({ path });
  expect((await store.heads("orders"))!.events).toEqual({ head: 7, floor: 0, controls: 2 });
  expect(await tallyOf(store, "orders", 2)).toEqual({ ...freshTally(2), deferred: 1 });
  expect(await tallyOf(store, "orders", 3)).toEqual({
    ...{ ...freshTally(2), done: 1, isOver: true },
    ...(version >= 2 ? { missing: 1 } : { withdrawn: 1 }),
  });
  expect(await reads.rounds(store, "orders", "till", 0, 7, 10, later + SECOND)).toEqual([{ event: 2, round: 2 }]);
  expect(await reads.events(store, "orders", 3, 10)).toMatchObject([
    { withdraws: 3, reason: "withdrawn", note: "no" },
    { seq: 5, key: "k", withdrawn: { seq: 7, reason: "superseded", by: 6 } },
    { seq: 6, key: "k", withdrawn: null },
    { withdraws: 5 },
  ]);
  await expectTalliesToEqualRows(store, "orders");
  await store.close();
});
