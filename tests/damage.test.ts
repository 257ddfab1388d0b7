/**
 * A file with a damaged page: what is on it can't be read, however often that is tried. So whoever asks is told at once, with a line in the log that
 * has the reason, and everything else goes on.
 */
import { afterEach, expect, test } from "bun:test";
import { closeSync, openSync, readFileSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { ask, connect, logOf, openStream, type Process, push, spawn, temporary, until } from "./support/harness.ts";

const PAGE = 4096;
const started: Process[] = [];
afterEach(async () => {
  for (const { child } of started.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
});

/** A service on a file of which the pages with these words are damaged. */
async function damaged(words: string): Promise<Process> {
  const db = join(temporary(), "pere.db");
  const store = new SqliteStore({ path: db });
  const draft = {
    type: null,
    to: null,
    ttl: null,
    deadline: null,
    remind: null,
    key: null,
    attempts: null,
    where: null,
  };
  await store.enrol("orders", "till", Date.now());
  for (const data of ["a", words, "b"])
    await store.append(
      "orders",
      Array.from({ length: 40 }, () => ({ ...draft, data: JSON.stringify(data.repeat(2_000)) })),
      Date.now(),
    );
  await store.close();
  const bytes = readFileSync(db);
  const file = openSync(db, "r+");
  // Leaves of the events alone: the others lead there.
  for (let at = PAGE; at < statSync(db).size; at += PAGE)
    if (bytes[at] === 0x0a && bytes.subarray(at, at + PAGE).includes(words))
      writeSync(file, Buffer.alloc(PAGE, 0xee), 0, PAGE, at);
  closeSync(file);
  const service = await spawn({ PERE_DB: db });
  started.push(service);
  return service;
}

test("data on it is answered with an incident on all transports and to all readers, and everything else continues", async () => {
  const service = await damaged("zz");
  const { url } = service;
  const log = logOf(service);
  const id = (await ask(`${url}/channels`)).body.channels[0].last as string;
  const epoch = id.split("-")[0]!;

  const poll = await ask(`${url}/feed/orders?since=earliest&wait=60`, { headers: { Accept: "application/json" } });
  expect([poll.status, poll.body.detail]).toEqual([503, expect.any(String)]);
  const receipts = await ask(`${url}/feedback/orders?since=earliest`, { headers: { Accept: "application/json" } });
  expect(receipts.status).toBe(200);
  const stream = await openStream(`${url}/feed/orders?since=earliest`);
  expect(await stream.own("bye")).toEqual({ reason: "busy" });
  const { messages, closed } = await connect(`${url}/feed/orders?since=earliest`);
  expect((await closed).code).toBe(1013);
  expect(messages.at(-1)).toEqual({ pere: "bye", reason: "busy" });

  const incidents = new Set<string>();
  for (const path of [`/events/orders/${epoch}-60`, `/events/orders?after=${epoch}-40&limit=40`]) {
    const { status, body } = await ask(url + path);
    expect([path, status]).toEqual([path, 500]);
    incidents.add(/the log has it as ([0-9a-f-]{36})$/.exec(body.detail as string)![1]!);
  }
  expect((await ask(`${url}/events/orders?limit=10`)).status).toBe(200);
  expect((await ask(`${url}/health`)).status).toBe(200);
  expect((await ask(`${url}/ready`)).body.advice.join()).toMatch(/pere\.db is damaged: .*restore/);
  await push(url, "others", 1);

  await until(
    () => [...incidents].every((incident) => log.lines.some((line) => line.includes(incident))),
    "the incidents in the log",
  );
  const told = log.lines
    .map((line) => JSON.parse(line) as { incident?: string; error?: string })
    .filter(({ incident }) => incident);
  for (const incident of incidents) expect(told.map((line) => line.incident)).toContain(incident);
  expect(told[0]!.error).toContain("SQLITE_CORRUPT");
  // Each line is a new reason, and not one more who asked.
  expect(new Set(told.map(({ error }) => error)).size).toBe(told.length);
});

test("a device that owes an event on it is told at each reconnect, and is served again when that event need not be read", async () => {
  const { url } = await damaged("zz");
  for (const wait of [0, 5]) {
    const answer = await ask(`${url}/feed/orders?device=till&wait=${wait}`, {
      headers: { Accept: "application/json" },
    });
    expect(answer.status).toBe(503);
  }
  const feed = await openStream(`${url}/feed/orders?since=now`);
  await feed.own("ready");
  await until(() => feed.messages.length > 0, "a feed that begins behind it");
  expect(feed.ended).toBeFalse();
});

test("a service does not start on a file whose journal is damaged, because events in it would be forgotten", async () => {
  const db = join(temporary(), "pere.db");
  const store = new SqliteStore({ path: db });
  const draft = {
    type: null,
    to: null,
    ttl: null,
    deadline: null,
    remind: null,
    key: null,
    attempts: null,
    where: null,
  };
  for (let n = 0; n < 200; n++) await store.append(`c${n % 20}`, [{ ...draft, data: '"in the journal"' }], Date.now());
  await store.close();
  const found = readFileSync(db).lastIndexOf(String.raw`\"in the journal`); // As a part of a JSON text, on the newest page.
  // The page is whole, and the text on it is not; then the page is not.
  for (const [text, at] of [
    ["} no JSON {", found + 1],
    ["\xee".repeat(PAGE), Math.floor(found / PAGE) * PAGE],
  ] as const) {
    const file = openSync(db, "r+");
    writeSync(file, Buffer.from(text, "latin1"), 0, text.length, at);
    closeSync(file);
    await expect(spawn({ PERE_DB: db })).rejects.toThrow(/pere\.db is damaged: .*restore/);
  }
});
