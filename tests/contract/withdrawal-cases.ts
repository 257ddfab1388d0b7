/**
 * A publisher takes an event back, or pushes a newer one with its key: who is told, and who never gets it.
 */
import { describe, expect, test } from "bun:test";
import { iso } from "../../engine/model.ts";
import { FeedReader, WAYS } from "../support/feed-readers.ts";
import { type Answer, ask, push, until } from "../support/harness.ts";
import { type Fleet, NOBODY, type Open, poll, T } from "./fleet.ts";

/** The server's own entries of a receipts feed, in log order. */
const notesOf = async (fleet: Fleet): Promise<Record<string, unknown>[]> => {
  const { complete = [], settled = [], withdrawn = [] } = await fleet.told("c");
  const seq = ({ id }: Record<string, unknown>): number => Number(String(id).split("-")[1]);
  return [
    ...complete.map((body: object) => ({ kind: "complete", ...body })),
    ...settled.map((body: object) => ({ kind: "settled", ...body })),
    ...withdrawn.map((body: object) => ({ kind: "withdrawn", ...body })),
  ].sort((a, b) => seq(a) - seq(b));
};

const withdraw = (fleet: Fleet, id: string, query = ""): Promise<Answer> =>
  ask(`${fleet.here.url}/events/c/${id}${query}`, { method: "DELETE" });

/** The id of the entry so many further. */
const behind = (id: string, by = 1): string => id.replace(/\d+$/, (seq) => String(Number(seq) + by));

export function withdrawalCases(name: string, open: Open): void {
  describe(`${name}: an event that is withdrawn`, () => {
    test("has a state that says so, with its tally; withdrawing it again, or a complete one, changes nothing", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b", "d");
      const id = await fleet.push("c", "?deadline=60");
      await fleet.give("c", id, "a", "done");
      await fleet.give("c", id, "b", "working");
      fleet.now += 1_000;
      const { status, body } = await withdraw(fleet, id, "?note=printed%20twice");
      expect(status).toBe(200);
      expect(body).toMatchObject({
        id,
        withdrawn: { at: iso(T + 1_000), reason: "withdrawn", note: "printed twice" },
        receipts: { ...NOBODY, done: 1, withdrawn: 2 },
        ...{ complete: true, settled: true },
      });
      expect(await fleet.rows("c", id)).toEqual({ a: "done", b: "withdrawn", d: "withdrawn" });
      fleet.now += 1_000;
      const again = await withdraw(fleet, id, "?note=other");
      expect([again.status, again.body]).toEqual([200, body]);
      const alone = await fleet.push("c", "?to=a");
      await fleet.give("c", alone, "a", "done");
      const done = await withdraw(fleet, alone);
      expect([done.status, done.body.withdrawn, done.body.receipts.done]).toEqual([200, undefined, 1]);
    });

    test("is told once on the receipts feed: withdrawn, complete, and settled if it has a deadline", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const [first, second] = [await fleet.push("c"), await fleet.push("c", "?deadline=60")];
      await fleet.give("c", first, "a", "done");
      for (const id of [first, second, second]) await withdraw(fleet, id, "?note=no");
      fleet.now += 61_000;
      await fleet.give("c", second, "a", "done");
      await fleet.give("c", second, "b", "failed");
      const notes = await notesOf(fleet);
      expect(notes.map(({ kind, event, receipts }) => [kind, event, receipts])).toEqual([
        ["withdrawn", first, { ...NOBODY, done: 1, withdrawn: 1 }],
        ["complete", first, { ...NOBODY, done: 1, withdrawn: 1 }],
        ["withdrawn", second, { ...NOBODY, withdrawn: 2 }],
        ["complete", second, { ...NOBODY, withdrawn: 2 }],
        ["settled", second, { ...NOBODY, withdrawn: 2 }],
      ]);
      expect(notes[0]).toMatchObject({ channel: "c", at: iso(T), reason: "withdrawn", note: "no" });
      // Who resumes between them is told the rest.
      const rest = await fleet.told("c", `?last-event-id=${String(notes[3]!.id)}`);
      expect([rest.complete, rest.withdrawn, rest.settled.length]).toEqual([undefined, undefined, 1]);
    });

    test("is not listed, and its control entry is no event", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c");
      await withdraw(fleet, id);
      const control = behind(id);
      const { events } = (await ask(`${fleet.here.url}/events/c`)).body;
      expect(events.map((event: { id: string }) => event.id)).toEqual([id]);
      expect((await ask(`${fleet.here.url}/events/c/${control}`)).status).toBe(404);
      expect((await ask(`${fleet.here.url}/events/c/${control}/receipts`)).body.receipts).toEqual([]);
      const { status, body } = await withdraw(fleet, control);
      expect([status, body.detail]).toEqual([
        422,
        `${control} is not an event: it tells that an event was withdrawn; withdraw that event's id`,
      ]);
      expect((await withdraw(fleet, behind(id, 7))).status).toBe(404);
      expect((await withdraw(fleet, "x")).status).toBe(404);
      const rejected = await fleet.give("c", control, "a", "done");
      expect([rejected.status, rejected.body.rejected.length]).toEqual([422, 1]);
      expect((await ask(`${fleet.here.url}/channels`)).body.channels).toMatchObject([{ channel: "c", events: 1 }]);
      expect((await ask(`${fleet.here.url}/devices/c`)).body.devices).toMatchObject([{ device: "a", pending: 0 }]);
    });

    test("takes late words, which are told apart from others, also when they are repeated", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b", "d");
      const id = await fleet.push("c", "?deadline=1");
      fleet.now += 1_500;
      await until(async () => (await fleet.missing("c")).length === 3);
      const other = await fleet.push("c", "?key=k");
      await withdraw(fleet, id);
      await fleet.push("c", "?key=k");
      const late = [{ index: 0, event: id, reason: "missing" }];
      for (const [recorded, duplicate] of [
        [1, 0],
        [0, 1],
      ])
        expect((await fleet.give("c", id, "a", "done")).body).toEqual({ recorded, duplicate, rejected: [], late });
      const both = [
        { event: other, device: "b", status: "received" },
        { event: other, device: "b", status: "failed" },
      ];
      expect((await ask(`${fleet.there.url}/feedback/c`, { body: both })).body).toEqual({
        ...{ recorded: 1, duplicate: 1, rejected: [] },
        late: [{ index: 1, event: other, reason: "superseded" }],
      });
      expect((await fleet.state("c", id)).receipts).toEqual({ ...NOBODY, done: 1, missing: 2 });
      expect((await fleet.state("c", other)).receipts).toEqual({ ...NOBODY, failed: 1, withdrawn: 2 });
      const { receipts } = (await ask(`${fleet.here.url}/events/c/${other}/receipts?status=failed`)).body;
      expect(receipts).toMatchObject([{ device: "b", late: true }]);
    });

    test("answers a push that waits, and calls hooks with the event's state", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const waiting = fleet.wait("c", "wait=60");
      await fleet.waiting();
      const [{ id }] = (await ask(`${fleet.here.url}/events/c`)).body.events;
      await withdraw(fleet, id);
      const { status, body } = await waiting;
      expect([status, body.receipts, body.complete]).toEqual([201, { ...NOBODY, withdrawn: 2 }, true]);
    });

    test("is withdrawn with 3,000 devices at once, and a retired device leaves it", async () => {
      await using fleet = await open();
      const names = Array.from({ length: 3_000 }, (_, n) => `d${n}`);
      for (let n = 0; n < names.length; n += 500) await fleet.enrol("c", ...names.slice(n, n + 500));
      const id = await fleet.push("c");
      await fleet.give("c", id, "d1", "received");
      expect((await withdraw(fleet, id)).body.receipts).toEqual({ ...NOBODY, withdrawn: 3_000 });
      await fleet.retire("c", "d1");
      await fleet.retire("c", "d2");
      expect((await fleet.state("c", id)).receipts).toEqual({ ...NOBODY, withdrawn: 2_998 });
      expect((await notesOf(fleet)).length).toBe(2);
    });
  });

  describe.each(WAYS)(`${name}: a withdrawal on %s`, (way) => {
    const feed = (fleet: Fleet, query: string): Promise<FeedReader> =>
      FeedReader.open(way, `${fleet.there.url}/feed/c`, query);

    test("is told to feeds that got the event, at their place in the log", async () => {
      await using fleet = await open();
      await using device = await feed(fleet, "device=a");
      await using anybody = await feed(fleet, "since=now");
      await using named = await feed(fleet, "device=b");
      const [one, two] = [await fleet.push("c"), await fleet.push("c", "?to=a")];
      await device.has([one, two]);
      await anybody.has([one]);
      fleet.now += 5;
      await withdraw(fleet, two);
      await withdraw(fleet, one, "?note=%22quoted%22%0Aand%20long");
      const last = await fleet.push("c", "?to=a,b");
      await device.has([one, two, `-${two}`, `-${one}`, last]);
      await named.has([one, `-${one}`, last]);
      await anybody.has([one, `-${one}`]);
      expect(device.withdrawn[1]).toEqual({
        ...{ id: behind(two, 2), channel: "c", seq: Number(behind(two, 2).split("-")[1]), at: iso(T + 5) },
        ...{ withdrawn: one, reason: "withdrawn", note: '"quoted"\nand long' },
      });
    });

    test("is told to no feed that starts before the event and was not given it, unless its device gave a word", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const before = await fleet.push("c");
      const [one, two] = [await fleet.push("c"), await fleet.push("c")];
      await fleet.give("c", two, "a", "working");
      await withdraw(fleet, one);
      await withdraw(fleet, two);
      const last = await fleet.push("c");
      await using a = await feed(fleet, `device=a&last-event-id=${before}`);
      await a.has([`-${two}`, last]);
      await using b = await feed(fleet, `device=b&last-event-id=${before}`);
      await b.has([last]);
      await using owing = await feed(fleet, "device=b");
      await owing.has([before, last]);
      await using anybody = await feed(fleet, "since=earliest");
      await anybody.has([before, last]);
      // It may have got the event before it broke off.
      await using resumed = await feed(fleet, `device=b&last-event-id=${one}`);
      await resumed.has([`-${one}`, last]);
      await using stranger = await feed(fleet, `device=new&last-event-id=${one}`);
      const newest = await fleet.push("c");
      await stranger.has([newest]);
    });

    test("of an event that had expired is told to nobody who was not given it", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      await using early = await feed(fleet, "device=a");
      const old = await fleet.push("c", "?ttl=1&key=k");
      await early.has([old]);
      const lasts = await fleet.push("c");
      fleet.now += 2_000;
      await using late = await feed(fleet, "since=earliest");
      await late.has([lasts]);
      const next = await fleet.push("c", "?key=k");
      // Each poll is a new feed, which starts behind the event.
      await late.has(way === "poll" ? [lasts, next, `-${old}`] : [lasts, next]);
      await early.has([old, lasts, next, `-${old}`]);
    });

    test("of a key: a newer event supersedes the older ones, and the control entries are right behind it", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      await using device = await feed(fleet, "device=a");
      const one = await fleet.push("c", "?key=menu");
      const other = await fleet.push("c", "?key=hours");
      await device.has([one, other]);
      const two = await fleet.push("c", "?key=menu&to=a", { v: 2 });
      await device.has([one, other, two, `-${one}`]);
      expect(device.withdrawn).toMatchObject([{ id: behind(two), reason: "superseded", by: two, withdrawn: one }]);
      for (const name of ["a", "b"]) await fleet.give("c", two, name, "done");
      const three = await fleet.push("c", "?key=menu");
      await device.has([one, other, two, `-${one}`, three]);
      const state = (await ask(`${fleet.here.url}/events/c/${one}`)).body;
      expect(state).toMatchObject({ key: "menu", withdrawn: { reason: "superseded", by: two } });
      expect((await ask(`${fleet.here.url}/events/c/${two}`)).body.withdrawn).toBeUndefined();
      // Whoever comes now gets only what counts.
      await using late = await feed(fleet, "since=earliest");
      await late.has([other, three]);
    });
  });

  describe.each(WAYS)(`${name}: since=latest on %s`, (way) => {
    const feed = (fleet: Fleet, query: string): Promise<FeedReader> =>
      FeedReader.open(way, `${fleet.there.url}/feed/c`, query);

    test("gives the newest event of each key that is addressed to the reader, answered or not, and goes on live", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      await fleet.push("c");
      await fleet.push("c", "?key=menu");
      const hours = await fleet.push("c", "?key=hours");
      await fleet.push("c", "?key=gone&ttl=1");
      const back = await fleet.push("c", "?key=back");
      await withdraw(fleet, back);
      const menu = await fleet.push("c", "?key=menu");
      for (const device of ["a", "b"]) await fleet.give("c", menu, device, "done");
      const mine = await fleet.push("c", "?key=menu&to=b");
      fleet.now += 2_000;
      await using a = await feed(fleet, "device=a&since=latest");
      await using b = await feed(fleet, "device=b&since=latest");
      await using anybody = await feed(fleet, "since=latest");
      const live = await fleet.push("c");
      await a.has([hours, menu, live]);
      await b.has([hours, mine, live]);
      await anybody.has([hours, menu, live]);
      // What was given and what was not given is told alike: it starts behind both.
      await withdraw(fleet, hours);
      await a.has([hours, menu, live, `-${hours}`]);
    });

    test("begins with what is live if no event has a key, and a position takes precedence", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const one = await fleet.push("c");
      await using nothing = await feed(fleet, "device=a&since=latest");
      const two = await fleet.push("c", "?key=k");
      await nothing.has([two]);
      await using resumed = await feed(fleet, `device=a&since=latest&last-event-id=${one}`);
      await resumed.has([two]);
    });
  });

  test(`${name}: since=latest is for events only`, async () => {
    await using fleet = await open();
    expect((await poll(`${fleet.here.url}/feedback/c?since=latest`)).status).toBe(400);
  });

  test(`${name}: a push with a key is stored alone, and replayed with its idempotency key`, async () => {
    await using fleet = await open();
    await fleet.enrol("c", "a");
    const headers = { "Idempotency-Key": "x" };
    const url = `${fleet.here.url}/push/c?key=k`;
    const first = await ask(url, { body: 1, headers });
    await push(fleet.here.url, "c", 2, "?key=k");
    const again = await ask(url, { body: 1, headers });
    expect([again.status, again.body.id]).toEqual([200, first.body.id]);
    expect((await ask(`${fleet.here.url}/events/c`)).body.events.length).toBe(2);
    const many = await ask(url, { body: "1\n2", headers: { "Content-Type": "application/x-ndjson" } });
    expect([many.status, many.body.errors]).toEqual([422, [{ path: "key", message: "not with application/x-ndjson" }]]);
    for (const bad of ["key=", "key=a%20b", `key=${"k".repeat(129)}`])
      expect((await ask(`${fleet.here.url}/push/c?${bad}`, { body: 1 })).status).toBe(400);
    expect((await ask(`${fleet.here.url}/events/c`)).body.events.length).toBe(2);
  });
}
