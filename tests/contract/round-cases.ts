/**
 * A device that says "not now", or fails and may try again, gets the event again: when, on which feeds, and which of its words count.
 */
import { describe, expect, test } from "bun:test";
import { iso } from "../../engine/model.ts";
import { FeedReader, type Way, WAYS } from "../support/feed-readers.ts";
import { type Answer, ask, listen, until } from "../support/harness.ts";
import { type Fleet, NOBODY, type Open, T } from "./fleet.ts";

const SECOND = 1_000;

/** Gives a receipt with all that it may say. */
const say = (fleet: Fleet, event: string, device: string, status: string, more: object = {}): Promise<Answer> =>
  ask(`${fleet.there.url}/feedback/c`, { body: { event, device, status, ...more } });

const rowsOf = async (fleet: Fleet, event: string) =>
  (await ask(`${fleet.here.url}/events/c/${event}/receipts?limit=1000`)).body.receipts as Record<string, unknown>[];

/** What a receipt came to. */
const came = ({ body }: Answer): string =>
  body.recorded === 1 ? "recorded" : body.duplicate === 1 ? "duplicate" : body.rejected[0].reason;

const EARLY = "round: the event was not sent to this device that often; give the round that the event came with";

export function roundCases(name: string, open: Open): void {
  describe.each(WAYS)(`${name}: an event that was deferred, on %s`, (way: Way) => {
    const feed = (fleet: Fleet, query: string): Promise<FeedReader> =>
      FeedReader.open(way, `${fleet.there.url}/feed/c`, query);

    test("comes again when its time has come, to its device alone, once on a feed, and until a word of that round", async () => {
      await using fleet = await open();
      await using a = await feed(fleet, "device=a");
      await using b = await feed(fleet, "device=b");
      const id = await fleet.push("c");
      await a.has([id]);
      await b.has([id]);
      expect(came(await say(fleet, id, "a", "received"))).toBe("recorded");
      expect(came(await say(fleet, id, "a", "deferred", { after: 600, detail: "paper jam" }))).toBe("recorded");
      fleet.now += 599 * SECOND;
      const next = await fleet.push("c");
      await a.has([id, next]);
      // Until then no feed of the device brings it.
      await using waiting = await feed(fleet, "device=a");
      await waiting.has([next]);
      fleet.now += SECOND;
      if (way === "poll") await a.hasLast(`${id} #2`);
      else {
        await a.has([id, next, `${id} #2`]);
        await waiting.has([next, `${id} #2`]);
      }
      await b.has([id, next]);
      // A new feed has it too, before anything else where it starts behind the event.
      await using owing = await feed(fleet, "device=a");
      await until(() => owing.now.includes(`${id} #2`));
      const last = await fleet.push("c");
      await using behind = await feed(fleet, `device=a&last-event-id=${next}`);
      await until(() => behind.now.includes(last));
      expect(behind.now[0]).toBe(`${id} #2`);
      expect(came(await say(fleet, id, "a", "working", { round: 2 }))).toBe("recorded");
      await using after = await feed(fleet, `device=a&last-event-id=${next}`);
      await after.has([last]);
      await b.has([id, next, last]);
    });

    test("may be deferred again, and ends with a final word, before its time or after it", async () => {
      await using fleet = await open();
      await using a = await feed(fleet, "device=a");
      const id = await fleet.push("c");
      await a.has([id]);
      await say(fleet, id, "a", "deferred", { after: 10 });
      fleet.now += 10 * SECOND;
      await until(() => a.now.includes(`${id} #2`));
      await say(fleet, id, "a", "deferred", { after: 10, round: 2 });
      fleet.now += 10 * SECOND;
      await until(() => a.now.includes(`${id} #3`));
      await say(fleet, id, "a", "deferred", { after: 10, round: 3 });
      expect(came(await say(fleet, id, "a", "done", { round: 3 }))).toBe("recorded");
      fleet.now += 10 * SECOND;
      const next = await fleet.push("c");
      await a.hasLast(next);
      await until(async () => (await fleet.there.engine.held).live > 0);
      fleet.now += SECOND;
      const last = await fleet.push("c");
      await a.hasLast(last);
      expect(a.now).not.toContain(`${id} #4`);
      expect(await rowsOf(fleet, id)).toMatchObject([{ device: "a", status: "done", round: 3, attempt: 0 }]);
    });

    test("does not come again where it was withdrawn, is past its deadline or has expired", async () => {
      await using fleet = await open();
      await using a = await feed(fleet, "device=a");
      const queries = ["?key=k", "?deadline=5", "?ttl=5"];
      const ids: string[] = [];
      for (const query of queries) ids.push(await fleet.push("c", query));
      await a.has(ids);
      for (const id of ids) await say(fleet, id, "a", "deferred", { after: 10 });
      const kept = await fleet.push("c");
      await say(fleet, kept, "a", "deferred", { after: 10 });
      await ask(`${fleet.here.url}/events/c/${ids[0]}`, { method: "DELETE" });
      fleet.now += 10 * SECOND;
      await until(() => a.now.includes(`${kept} #2`));
      await using fresh = await feed(fleet, `device=a&last-event-id=${kept}`);
      await until(() => fresh.now.includes(`${kept} #2`));
      for (const reader of [a, fresh])
        expect(reader.now.filter((told) => / #2$/.test(told) && told !== `${kept} #2`)).toEqual([]);
      await until(async () => (await fleet.missing("c")).length === 1);
      expect((await fleet.state("c", ids[0]!)).receipts).toEqual({ ...NOBODY, withdrawn: 1 });
      expect((await fleet.state("c", ids[1]!)).receipts).toEqual({ ...NOBODY, missing: 1 });
      expect((await fleet.state("c", ids[2]!)).receipts).toEqual({ ...NOBODY, deferred: 1 });
    });
  });

  describe(`${name}: a round`, () => {
    test("on an event stream has no id, so the position stays", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      const [one] = [await fleet.push("c", "?type=t", { n: 1 }), await fleet.push("c")];
      await stream.have(2);
      await say(fleet, one, "a", "deferred", { after: 1 });
      fleet.now += SECOND;
      const [, , again] = await stream.have(3);
      const { data } = again!;
      expect(stream.raw.endsWith(`\n\nevent: t\ndata: ${data}\n\n`)).toBe(true);
      expect(JSON.parse(data)).toMatchObject({ id: one, type: "t", round: 2, data: { n: 1 } });
      expect(again!.id).toBeUndefined();
      stream.close();
    });

    test("decides which words count", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c");
      const words: [string, object, string][] = [
        ["received", { round: 2 }, EARLY],
        ["received", { round: 1 }, "recorded"],
        ["deferred", { after: 5 }, "recorded"],
        // Until its time only a final word counts.
        ["received", {}, "duplicate"],
        ["working", { round: 1 }, "duplicate"],
        ["deferred", { after: 60 }, "duplicate"],
        ["done", { round: 2 }, EARLY],
      ];
      for (const [status, more, expected] of words)
        expect([status, more, came(await say(fleet, id, "a", status, more))]).toEqual([status, more, expected]);
      expect(await rowsOf(fleet, id)).toMatchObject([{ status: "deferred", round: 1 }]);
      fleet.now += 5 * SECOND;
      // It has begun, sent or not.
      expect(await rowsOf(fleet, id)).toMatchObject([{ status: "deferred", round: 2, at: iso(T) }]);
      expect((await fleet.state("c", id)).receipts).toEqual({ ...NOBODY, deferred: 1 });
      const later: [string, object, string][] = [
        ["done", { round: 1 }, "duplicate"],
        ["received", {}, "recorded"],
        ["received", { round: 2 }, "duplicate"],
        ["working", { round: 3 }, EARLY],
        ["failed", { round: 2 }, "recorded"],
        ["done", {}, "duplicate"],
      ];
      for (const [status, more, expected] of later)
        expect([status, more, came(await say(fleet, id, "a", status, more))]).toEqual([status, more, expected]);
      expect(await rowsOf(fleet, id)).toMatchObject([{ status: "failed", round: 2, attempt: 1 }]);
    });

    test("is named on the receipts feed, and in exports", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c");
      await say(fleet, id, "a", "deferred", { after: 1, detail: { why: "busy" } });
      fleet.now += SECOND;
      await say(fleet, id, "a", "done");
      const { events } = await fleet.told("c");
      expect(events).toMatchObject([
        { device: "a", status: "deferred", detail: { why: "busy" }, round: 1, attempt: 0, late: false },
        { device: "a", status: "done", detail: null, round: 2, attempt: 0, late: false },
      ]);
      const csv = await ask(`${fleet.here.url}/events/c/${id}/receipts`, { headers: { Accept: "text/csv" } });
      expect(csv.text.split("\r\n")).toEqual([
        "device,status,detail,at,deviceAt,late,round,attempt,due,tags",
        `a,done,,${iso(fleet.now)},,false,2,0,,`,
        "",
      ]);
    });

    test.each([
      [{ status: "deferred", after: 0.5 }, "after: must be a number of seconds from 1 to 86400"],
      [{ status: "deferred", after: 86_401 }, "after: must be a number of seconds from 1 to 86400"],
      [{ status: "deferred", after: "60" }, "after: must be a number of seconds from 1 to 86400"],
      [{ status: "done", after: 60 }, "after: only a receipt that is deferred or failed can have it"],
      [
        { status: "done", round: 0 },
        "round: must be a whole number from 1, as the event has it; an event without round is in round 1",
      ],
      [
        { status: "done", round: 1.5 },
        "round: must be a whole number from 1, as the event has it; an event without round is in round 1",
      ],
      [{ status: "failed", retry: 1 }, "retry: must be true or false"],
      [{ status: "done", retry: false }, "retry: only a receipt that is failed can have false"],
      [{ status: "later" }, "status: must be received, working, deferred, done or failed"],
    ])("%j is rejected with a sentence", async (word, reason) => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const event = await fleet.push("c");
      const { status, body } = await ask(`${fleet.there.url}/feedback/c`, { body: { event, device: "a", ...word } });
      expect([status, body.rejected]).toEqual([422, [{ index: 0, event, reason }]]);
      expect((await fleet.state("c", event)).receipts).toEqual({ ...NOBODY, pending: 1 });
    });

    test("is kept over a restart: the device gets the event at its time, on the feed that it has then", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const [id, other] = [await fleet.push("c"), await fleet.push("c")];
      await say(fleet, id, "a", "deferred", { after: 10 });
      await say(fleet, other, "a", "done");
      await fleet.stop();
      await fleet.start();
      const before = await fleet.device("c", "a", { "Last-Event-ID": other });
      fleet.now += 10 * SECOND;
      await before.have(1);
      await fleet.stop();
      await fleet.start();
      const after = await fleet.device("c", "a", { "Last-Event-ID": other });
      for (const stream of [before, after])
        expect(JSON.parse((await stream.have(1))[0]!.data)).toMatchObject({ id, round: 2 });
      after.close();
    });

    test("is not sent by reminders before its time", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      const id = await fleet.push("c", "?remind=1");
      await stream.have(1);
      await say(fleet, id, "a", "deferred", { after: 30 });
      for (let n = 0; n < 3; n++) {
        fleet.now += 2 * SECOND;
        const next = await fleet.push("c");
        await until(() => stream.ids.includes(next));
      }
      expect(stream.events.filter(({ data }) => JSON.parse(data).id === id).length).toBe(1);
      stream.close();
    });
  });

  describe(`${name}: an event with attempts`, () => {
    test("is sent again after a failure, later each time, until it has failed that often", async () => {
      await using fleet = await open({ random: () => 0.5 });
      const stream = await fleet.device("c", "a");
      const id = await fleet.push("c", "?attempts=3");
      await stream.have(1);
      for (const [attempt, seconds] of [
        [1, 30],
        [2, 60],
      ] as const) {
        expect(came(await say(fleet, id, "a", "failed", { detail: `no ${attempt}` }))).toBe("recorded");
        expect(await rowsOf(fleet, id)).toMatchObject([
          { status: "deferred", detail: `no ${attempt}`, attempt, round: attempt },
        ]);
        expect(came(await say(fleet, id, "a", "failed"))).toBe(attempt === 2 ? "recorded" : "duplicate");
        if (attempt === 2) break;
        fleet.now += seconds * SECOND - 1;
        expect(await rowsOf(fleet, id)).toMatchObject([{ round: attempt }]);
        fleet.now += 1;
        await stream.have(attempt + 1);
      }
      // The third one came before its time, and is final.
      expect(await rowsOf(fleet, id)).toMatchObject([{ status: "failed", attempt: 3, round: 2 }]);
      const { events } = await fleet.told("c");
      expect(events.map(({ status, attempt, round }: Record<string, unknown>) => [status, attempt, round])).toEqual([
        ["deferred", 1, 1],
        ["deferred", 2, 2],
        ["failed", 3, 2],
      ]);
      stream.close();
    });

    test("takes the receipt's own time, and `retry: false` ends it; a deferral uses up no attempt", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const id = await fleet.push("c", "?attempts=2");
      await say(fleet, id, "a", "deferred", { after: 1 });
      fleet.now += SECOND;
      await say(fleet, id, "a", "failed", { after: 5, round: 2 });
      fleet.now += 5 * SECOND - 1;
      expect(await rowsOf(fleet, id)).toMatchObject([{ status: "deferred", round: 2, attempt: 1 }, {}]);
      fleet.now += 1;
      expect(await rowsOf(fleet, id)).toMatchObject([{ status: "deferred", round: 3, attempt: 1 }, {}]);
      await say(fleet, id, "a", "failed");
      await say(fleet, id, "b", "failed", { retry: false });
      expect(await rowsOf(fleet, id)).toMatchObject([
        { status: "failed", round: 3, attempt: 2 },
        { status: "failed", round: 1, attempt: 1 },
      ]);
    });

    test("ends with its deadline: what failed then is final, and late", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const id = await fleet.push("c", "?attempts=3&deadline=60");
      await say(fleet, id, "a", "failed", { after: 50 });
      await say(fleet, id, "b", "failed", { after: 70 });
      fleet.now += 61 * SECOND;
      const late = [{ index: 0, event: id, reason: "missing" }];
      expect((await say(fleet, id, "a", "failed", { round: 2 })).body).toMatchObject({ recorded: 1, late });
      expect(came(await say(fleet, id, "b", "failed", { round: 2 }))).toBe(EARLY);
      expect((await say(fleet, id, "b", "failed", { round: 1 })).body).toMatchObject({ recorded: 1, late });
      expect(await rowsOf(fleet, id)).toMatchObject([
        { status: "failed", round: 2, attempt: 2, late: true },
        { status: "failed", round: 1, attempt: 2, late: true },
      ]);
    });

    test.each([
      ["1", 422, "attempts: must be from 2 to 20"],
      ["21", 422, "attempts: must be from 2 to 20"],
      ["2.5", 400, "attempts: must be a whole number"],
      ["many", 400, "attempts: must be a whole number"],
    ])("%s is refused, and nothing is stored", async (attempts, status, detail) => {
      await using fleet = await open();
      const answer = await ask(`${fleet.here.url}/push/c?attempts=${attempts}`, { body: 1 });
      expect([answer.status, answer.body.detail]).toEqual([status, detail]);
      expect((await ask(`${fleet.here.url}/events/c`)).status).toBe(404);
    });
  });

  test(`${name}: on a socket a deferral is given and answered like any receipt`, async () => {
    await using fleet = await open();
    await fleet.enrol("c", "a");
    const id = await fleet.push("c", "?deadline=1");
    const publisher = await listen(`${fleet.here.url}/feedback/c`);
    await using a = await FeedReader.open("websocket", `${fleet.there.url}/feed/c`, "device=a");
    await a.has([id]);
    const answers = await a.send([{ event: id, status: "deferred", after: 5 }]);
    expect(answers).toEqual({ pere: "receipts", recorded: 1, duplicate: 0, rejected: [] });
    fleet.now += 2 * SECOND;
    expect(await a.send({ event: id, status: "done" })).toEqual({
      ...{ pere: "receipts", recorded: 1, duplicate: 0, rejected: [] },
      late: [{ index: 0, event: id, reason: "missing" }],
    });
    publisher.close();
  });
}
