/**
 * What a publisher reads: channels, events with their tallies, a row a device, devices; and what retention does to all of it.
 */
import { afterAll, beforeAll, describe, expect, spyOn, test } from "bun:test";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Service } from "../index.ts";
import { readKeep } from "../engine/retention-rules.ts";
import { ask, give, listen, push, start, until } from "./support/harness.ts";

let pere: Service;
beforeAll(async () => void (pere = await start()));
afterAll(() => pere.stop());

const enrol = (channel: string, device: string, url = pere.url) =>
  ask(`${url}/devices/${channel}/${device}`, { method: "PUT" });
const retire = (channel: string, device: string) =>
  ask(`${pere.url}/devices/${channel}/${device}`, { method: "DELETE" });
const get = (path: string, headers = {}) => ask(`${pere.url}${path}`, { headers });

describe("events", () => {
  test("are listed in pages, oldest first, with tallies that add up and the publisher's bytes", async () => {
    for (const device of ["a", "b"]) await enrol("list", device);
    const ids: string[] = [];
    for (let n = 0; n < 5; n++)
      ids.push(await push(pere.url, "list", { n }, n === 4 ? "?to=a,z&ttl=60&type=last" : ""));
    await give(pere.url, "list", ids[0]!, "a", "done");
    const first = await get("/events/list?limit=2");
    expect(first.body.events.map(({ id }: { id: string }) => id)).toEqual(ids.slice(0, 2));
    expect(first.body.next).toBe(ids[1]);
    expect(first.body.events[0]).toMatchObject({
      data: { n: 0 },
      audience: { addressed: 2, connected: 0 },
      receipts: { pending: 1, done: 1 },
      complete: false,
    });
    const second = await get(`/events/list?limit=3&after=${first.body.next}`);
    expect(second.body.events.map(({ id }: { id: string }) => id)).toEqual(ids.slice(2));
    expect(second.body.next).toBeNull();
    expect(second.body.events[2]).toMatchObject({
      type: "last",
      to: ["a", "z"],
      audience: { addressed: 2 },
      expiresAt: expect.any(String),
    });
  });

  test("are listed newest first on request, in pages of any length, large ones too", async () => {
    const large = "x".repeat(60_000);
    const ids: string[] = [];
    for (let n = 0; n < 150; n++) ids.push(await push(pere.url, "newest", n % 2 === 0 ? n : large));
    const newest = ids.toReversed();
    const idsOf = (body: { events: { id: string }[] }): string[] => body.events.map(({ id }) => id);
    const first = await get("/events/newest?order=desc&limit=2");
    expect([idsOf(first.body), first.body.next]).toEqual([newest.slice(0, 2), newest[1]]);
    for (const limit of [1, 63, 64, 149, 150, 1_000]) {
      const found: string[] = [];
      for (let after = ""; ;) {
        const { body } = await get(`/events/newest?order=desc&limit=${limit}&after=${after}`);
        if (body.next !== null) expect(body.next).toBe(idsOf(body).at(-1));
        found.push(...idsOf(body));
        if (body.next === null) break;
        after = body.next;
      }
      expect(found).toEqual(newest);
    }
    expect(idsOf((await get("/events/newest?order=asc&limit=2")).body)).toEqual(ids.slice(0, 2));
    // A position behind the newest event, and one before the oldest.
    const far = ids[0]!.replace(/1$/, "999");
    expect(idsOf((await get(`/events/newest?order=desc&limit=1&after=${far}`)).body)).toEqual([newest[0]!]);
    const nothing = { events: [], next: null };
    expect((await get(`/events/newest?order=desc&after=${ids[0]}`)).body).toEqual(nothing);
    expect((await get(`/events/newest?order=desc&after=${ids[0]!.replace(/1$/, "0")}`)).body).toEqual(nothing);
    for (const [query, status] of [
      ["order=newest", 400],
      ["order=", 400],
      ["order=DESC", 400],
      ["order=desc&before=x", 400],
      ["order=desc&after=x", 400],
      ["order=desc&after=other-1", 404],
      ["order=desc&limit=0", 422],
    ] as const)
      expect([query, (await get(`/events/newest?${query}`)).status]).toEqual([query, status]);
  });

  test("newest first end where retention has dropped the others", async () => {
    const small = await start({ limits: { keptEvents: 3, trimMs: 10 } });
    const ids: string[] = [];
    for (let n = 0; n < 6; n++) ids.push(await push(small.url, "c", n));
    await until(async () => (await ask(`${small.url}/events/c`)).body.events.length === 3);
    const { body } = await ask(`${small.url}/events/c?order=desc`);
    expect(body.events.map(({ id }: { id: string }) => id)).toEqual(ids.slice(3).reverse());
    expect(body.next).toBeNull();
    await small.stop();
  });

  test("newest first come once each, also if retention drops some meanwhile", async () => {
    const lines = await ask(`${pere.url}/push/dropping`, { type: "application/x-ndjson", body: "1\n".repeat(130) });
    const ids = (lines.body.events as { id: string }[]).map(({ id }) => id);
    const { events } = SqliteStore.prototype;
    const reading = spyOn(SqliteStore.prototype, "events").mockImplementationOnce(function (
      this: SqliteStore,
      ...asked
    ) {
      return events.apply(this, asked);
    });
    reading.mockImplementationOnce(async function (this: SqliteStore, ...asked) {
      while (await this.trim("dropping", { count: 30, before: 0 }, Date.now()));
      return events.apply(this, asked);
    });
    const { body } = await get("/events/dropping?order=desc&limit=130").finally(() => reading.mockRestore());
    expect(body.events.map(({ id }: { id: string }) => id)).toEqual(ids.slice(66).reverse());
  });

  test("that never existed are 404, as is a channel that was never used", async () => {
    const id = await push(pere.url, "one", 1);
    expect((await get(`/events/one/${id}`)).status).toBe(200);
    for (const path of [
      `/events/one/${id.replace("-1", "-2")}`,
      "/events/one/other-1",
      "/events/one/x",
      "/events/never",
      "/events/never/x-1",
      "/events/one/x/receipts",
      "/devices/never",
    ])
      expect((await get(path)).status).toBe(404);
  });

  test.each(["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=1.5", "after=x"])(
    "%s is refused",
    async (query) => {
      await push(pere.url, "one", 1);
      expect([400, 422]).toContain((await get(`/events/one?${query}`)).status);
    },
  );

  test("have the number of connected devices of their audience", async () => {
    const stream = await listen(`${pere.url}/feed/who?device=a`);
    await enrol("who", "b");
    const id = await push(pere.url, "who", 1);
    const later = await listen(`${pere.url}/feed/who?device=c`);
    expect((await get(`/events/who/${id}`)).body.audience).toEqual({ addressed: 2, connected: 1 });
    stream.close();
    later.close();
    await until(async () => (await get(`/events/who/${id}`)).body.audience.connected === 0);
  });
});

describe("rows", () => {
  test("have one line per device, in pages by name, filtered by status, as JSON, CSV and NDJSON", async () => {
    const devices = Array.from({ length: 7 }, (_, n) => `d${n}`);
    for (const device of devices) await enrol("rows", device);
    const id = await push(pere.url, "rows", 1);
    await enrol("rows", "too-late");
    await give(pere.url, "rows", id, "d1", "failed", { detail: 'say "no", twice' });
    await give(pere.url, "rows", id, "d5", "received");
    const path = `/events/rows/${id}/receipts`;
    const pages: string[][] = [];
    for (let after = ""; ;) {
      const { body } = await get(`${path}?limit=3&after=${after}`);
      pages.push(body.receipts.map(({ device }: { device: string }) => device));
      if (body.next === null) break;
      after = body.next;
    }
    expect(pages).toEqual([devices.slice(0, 3), devices.slice(3, 6), devices.slice(6)]);
    const of = async (status: string) =>
      (await get(`${path}?status=${status}`)).body.receipts.map(({ device }: { device: string }) => device);
    expect([await of("failed"), await of("received"), await of("done"), (await of("pending")).length]).toEqual([
      ["d1"],
      ["d5"],
      [],
      5,
    ]);
    expect(await of("failed,received")).toEqual(["d1", "d5"]);
    expect(await of("received,failed,failed")).toEqual(["d1", "d5"]);
    expect((await get(`${path}?status=failed,received&limit=1`)).body).toMatchObject({
      receipts: [{ device: "d1" }],
      next: "d1",
    });
    for (const wrong of ["fine", "", "failed,", ",failed", "failed,fine", "failed, done", "Failed"])
      expect([wrong, (await get(`${path}?status=${wrong}`)).status]).toEqual([wrong, 400]);

    const csv = await get(`${path}?status=failed`, { Accept: "text/csv" });
    expect(csv.headers.get("content-type")).toStartWith("text/csv");
    const at = (await get(`${path}?status=failed`)).body.receipts[0].at;
    expect(csv.text).toBe(
      `device,status,detail,at,deviceAt,late,round,attempt,due,tags\r\nd1,failed,"""say \\""no\\"", twice""",${at},,false,1,1,,\r\n`,
    );
    const lines = (await get(path, { Accept: "application/x-ndjson" })).text.trimEnd().split("\n");
    expect(lines.map((line) => (JSON.parse(line) as { device: string }).device)).toEqual(devices);
  });

  test("an export of more than a page is complete", async () => {
    const names = Array.from({ length: 2500 }, (_, n) => `x${String(n).padStart(4, "0")}`);
    const ids: string[] = [];
    for (let n = 0; n < 3; n++)
      ids.push(await push(pere.url, "export", n, `?to=${names.slice(n * 900, n * 900 + 900).join(",")}`));
    for (let n = 0; n < names.length; n += 100)
      await Promise.all(names.slice(n, n + 100).map((name) => enrol("export", name)));
    const id = await push(pere.url, "export", "all");
    const csv = (await get(`/events/export/${id}/receipts`, { Accept: "text/csv" })).text.trimEnd().split("\r\n");
    expect(csv.slice(1).map((line) => line.split(",")[0])).toEqual(names);
    expect(
      (await get(`/events/export/${ids[0]}/receipts?limit=5`, { Accept: "text/csv" })).text.trimEnd().split("\r\n"),
    ).toHaveLength(6);
  });
});

describe("an export", () => {
  test("does not block other work", async () => {
    for (let n = 0; n < 6_000; n += 500)
      await Promise.all(Array.from({ length: 500 }, (_, k) => enrol("turns", `d${n + k}`)));
    const id = await push(pere.url, "turns", 1);
    let turn = 0;
    const count = (): void => void (turn++, turn > 0 && setImmediate(count));
    count();
    const turns: number[] = [];
    const { rows } = pere.engine;
    const spy = spyOn(pere.engine, "rows").mockImplementation((...asked) => {
      turns.push(turn);
      return rows.apply(pere.engine, asked);
    });
    const { text } = await get(`/events/turns/${id}/receipts`, { Accept: "application/x-ndjson" });
    spy.mockRestore();
    turn = Number.NEGATIVE_INFINITY;
    expect(text.trimEnd().split("\n")).toHaveLength(6_000);
    expect(new Set(turns).size).toBeGreaterThan(2);
  });

  test("of an event that is dropped meanwhile breaks off, and does not look complete", async () => {
    let now = Date.UTC(2026, 10, 22);
    await using held = await disposable(start({ now: () => now, limits: { trimMs: 20, keptMs: 60_000 } }));
    const names = Array.from({ length: 1_000 }, (_, n) => `d${n}`);
    await Promise.all(names.map((name) => enrol("going", name, held.url)));
    const id = await push(held.url, "going", 1);
    const { rows } = held.engine;
    const spy = spyOn(held.engine, "rows").mockImplementation(async (...asked) => {
      if (asked[3] !== "") {
        now += 120_000;
        await until(async () => (await ask(`${held.url}/events/going/${id}`)).status === 404);
      }
      return rows.apply(held.engine, asked);
    });
    const path = `${held.url}/events/going/${id}/receipts`;
    const cut = ask(path, { headers: { Accept: "text/csv" } }).catch(() => "cut");
    expect(await cut).toBe("cut");
    spy.mockRestore();
    expect((await ask(`${held.url}/health`)).status).toBe(200);
    expect((await ask(path, { headers: { Accept: "text/csv" } })).status).toBe(404);
  });
});

/** A service that ends with its block. */
const disposable = async (service: Promise<Service>) =>
  Object.assign(await service, { [Symbol.asyncDispose]: async () => (await service).stop() });

describe("devices", () => {
  test("are enrolled once, listed with what they owe, and retired", async () => {
    expect((await enrol("dev", "b")).status).toBe(201);
    expect((await enrol("dev", "b")).status).toBe(200);
    const stream = await listen(`${pere.url}/feed/dev?device=a`);
    const id = await push(pere.url, "dev", 1);
    await push(pere.url, "dev", 2);
    await give(pere.url, "dev", id, "b", "done");
    const { body } = await get("/devices/dev");
    expect(body.next).toBeNull();
    expect(body.devices).toMatchObject([
      { device: "a", connected: true, pending: 2, enrolledAt: expect.any(String), seenAt: expect.any(String) },
      { device: "b", connected: false, pending: 1 },
    ]);
    expect((await get("/devices/dev?limit=1")).body).toMatchObject({ devices: [{ device: "a" }], next: "a" });
    expect((await get("/devices/dev?after=a")).body.devices).toMatchObject([{ device: "b" }]);

    expect((await retire("dev", "b")).status).toBe(204);
    expect((await retire("dev", "b")).status).toBe(404);
    expect((await get("/devices/dev")).body.devices).toHaveLength(1);
    // What it said stays, what it owed is owed no more.
    expect((await get(`/events/dev/${id}`)).body).toMatchObject({
      audience: { addressed: 2 },
      receipts: { pending: 1, done: 1 },
    });
    expect((await give(pere.url, "dev", id.replace("-1", "-2"), "b", "done")).status).toBe(422);
    expect((await get(`/events/dev/${id.replace("-1", "-2")}`)).body.audience.addressed).toBe(1);
    stream.close();
  });

  test("an invalid name is refused", async () => {
    for (const name of ["a%20b", "x".repeat(129), "%2F", "é"]) expect((await enrol("dev", name)).status).toBe(400);
  });
});

describe("channels", () => {
  test("are listed by name with their numbers", async () => {
    await push(pere.url, "zz-1", 1);
    const id = await push(pere.url, "zz-2", 1);
    await enrol("zz-2", "a");
    const { body } = await get("/channels?after=zz-1");
    expect(body.channels).toEqual([{ channel: "zz-2", events: 1, devices: 1, connected: 0, last: id }]);
    expect((await get("/channels?limit=1")).body.next).toBeString();
  });

  test("are all listed if no page was requested", async () => {
    const many = await start();
    await Promise.all(Array.from({ length: 1_200 }, (_, n) => push(many.url, `c${n}`, n)));
    const { body } = await ask(`${many.url}/channels`);
    expect(body.channels).toHaveLength(1_200);
    expect(body.next).toBeNull();
    await many.stop();
  });
});

describe("health", () => {
  test("reports that the process is alive, and what the store guarantees", async () => {
    expect((await get("/health")).body).toEqual({ status: "ok" });
    expect((await get("/ready")).body).toMatchObject({ status: "ready", store: "sqlite", durability: "memory" });
  });
});

describe("retention", () => {
  test("by count: the oldest are dropped, and a feed that asks for them is told of a gap", async () => {
    const small = await start({ limits: { keptEvents: 3 } });
    await enrol("c", "owes", small.url);
    await enrol("c", "answers", small.url);
    const ids: string[] = [];
    for (let n = 0; n < 5; n++) {
      ids.push(await push(small.url, "c", n));
      await give(small.url, "c", ids[n]!, "answers", "done");
    }
    await until(async () => (await ask(`${small.url}/events/c`)).body.events.length === 3);
    expect((await ask(`${small.url}/events/c/${ids[1]}`)).status).toBe(404);
    expect((await ask(`${small.url}/events/c/${ids[1]}`)).body.detail).toContain("no longer kept");

    const resumed = await listen(`${small.url}/feed/c`, { "Last-Event-ID": ids[0]! });
    expect(await resumed.own("gap")).toEqual({ channel: "c", after: ids[0], from: ids[2] });
    await resumed.have(3);
    expect(resumed.ids).toEqual(ids.slice(2));
    // Between the gap and its first event the feed already stands behind the gap.
    expect(resumed.messages.find(({ event }) => event === "pere.gap")!.id).toBe(ids[1]);

    // A device that remembers nothing is told what it lost unanswered; one that answered everything lost nothing.
    const owes = await listen(`${small.url}/feed/c?device=owes`);
    expect(await owes.own("gap")).toMatchObject({ channel: "c", from: ids[2] });
    await owes.have(3);
    for (const id of ids.slice(2)) await give(small.url, "c", id, "owes", "done");
    const answers = await listen(`${small.url}/feed/c?device=answers`);
    const next = await push(small.url, "c", "next");
    await answers.have(1);
    expect(answers.messages.map(({ event }) => event)).toEqual(["pere.ready", undefined]);
    // Told, and heard from since: it is not told again.
    owes.close();
    const again = await listen(`${small.url}/feed/c?device=owes`);
    expect((await again.have(1))[0]!.id).toBe(next);
    expect(again.messages.some(({ event }) => event === "pere.gap")).toBeFalse();
    for (const stream of [resumed, answers, again]) stream.close();
    await small.stop();
  });

  test("by the first rule that matches a channel; values that it omits are the general ones", async () => {
    let now = Date.now();
    const keep = readKeep("brief.till:events=4;brief.*:events=2;young:seconds=60");
    const ruled = await start({ now: () => now, limits: { keep, keptEvents: 5, keptMs: 600_000, trimMs: 10 } });
    const kept = async (channel: string): Promise<number> =>
      (await ask(`${ruled.url}/events/${channel}`)).body.events.length;
    const all = async (): Promise<number[]> =>
      Promise.all(["brief.till", "brief.kiosk", "brief", "young"].map((channel) => kept(channel)));
    for (const channel of ["brief.till", "brief.kiosk", "brief", "young"])
      for (let n = 0; n < 8; n++) await push(ruled.url, channel, n);
    await until(async () => (await all()).join() === "4,2,5,5");
    now += 60_001;
    await until(async () => (await all()).join() === "4,2,5,0");
    now += 540_000;
    await until(async () => (await all()).join() === "0,0,0,0");
    await ruled.stop();
  });

  test("by a channel's own rule before that of a prefix", () => {
    expect(readKeep("shop.:events=1;shop.*:events=2").map(({ pattern }) => pattern)).toEqual(["shop.", "shop.*"]);
  });

  test("by age, also if nothing is pushed any more", async () => {
    let now = Date.now();
    const old = await start({ now: () => now, limits: { keptMs: 60_000, trimMs: 10 } });
    await enrol("c", "a", old.url);
    const first = await push(old.url, "c", 1);
    await give(old.url, "c", first, "a", "received");
    const receipts = await ask(`${old.url}/feedback/c?since=earliest`, { headers: { Accept: "application/json" } });
    expect(receipts.body.events).toHaveLength(1);
    now += 60_001;
    await until(async () => (await ask(`${old.url}/events/c`)).body.events.length === 0);
    const polled = await ask(`${old.url}/feed/c?last-event-id=${first.replace("-1", "-0")}`, {
      headers: { Accept: "application/json" },
    });
    expect(polled.body).toMatchObject({
      events: [],
      gaps: [{ channel: "c", after: first.replace("-1", "-0"), from: first.replace("-1", "-2") }],
      last: first,
    });
    // Its receipts went with it, and that is told as well.
    await until(async () => {
      const { body } = await ask(`${old.url}/feedback/c?last-event-id=${first.replace("-1", "-0")}`, {
        headers: { Accept: "application/json" },
      });
      return body.gaps?.length === 1 && body.events.length === 0;
    });
    await old.stop();
  });
});
