/**
 * A push that may have gone wrong says so, and an event is pushed again to those who did not do it.
 */
import { describe, expect, test } from "bun:test";
import { FeedReader, WAYS } from "../support/feed-readers.ts";
import { type Answer, ask, until } from "../support/harness.ts";
import { type Fleet, NOBODY, type Open } from "./fleet.ts";

const pushTo = (fleet: Fleet, query = "", init: Parameters<typeof ask>[1] = {}, channel = "c"): Promise<Answer> =>
  ask(`${fleet.here.url}/push/${channel}${query}`, { body: "1", ...init });

const again = (fleet: Fleet, id: string, query = "", headers: Record<string, string> = {}): Promise<Answer> =>
  ask(`${fleet.here.url}/events/c/${id}/again${query}`, { method: "POST", headers });

/** Those who have a row of an event. */
const addressed = async (fleet: Fleet, id: string): Promise<string[]> => Object.keys(await fleet.rows("c", id)).sort();

/** An event that `a` did, `b` failed, `d` and `e` are missing on. */
async function mixed(fleet: Fleet, query = "?deadline=60&type=order.created"): Promise<string> {
  await fleet.enrol("c", "a", "b", "d", "e");
  const { id } = (await pushTo(fleet, query, { body: '{"n":12345678901234567890}' })).body;
  await fleet.give("c", id, "a", "done");
  await fleet.give("c", id, "b", "failed");
  fleet.now += 61_000;
  await until(async () => (await fleet.missing("c")).length === 2);
  return id;
}

export function againCases(name: string, open: Open): void {
  describe(`${name}: a push warns`, () => {
    test("of a channel without devices, and says whether it had events", async () => {
      await using fleet = await open();
      const first = await pushTo(fleet);
      expect([first.status, first.body.audience.addressed, first.body.warnings]).toEqual([
        201,
        0,
        [
          "No device is enrolled in channel c, so the event went to nobody. The channel had no events before: check its name.",
        ],
      ]);
      const headers = { "Content-Type": "application/x-ndjson" };
      const many = await pushTo(fleet, "", { body: "1\n2\n", headers });
      expect([many.body.events.length, many.body.warnings]).toEqual([
        2,
        ["No device is enrolled in channel c, so the events went to nobody."],
      ]);
      const waited = await pushTo(fleet, "", { headers: { Prefer: "wait=5" } });
      expect([waited.body.complete, waited.body.warnings.length]).toEqual([true, 1]);
      await fleet.enrol("c", "a");
      expect((await pushTo(fleet)).body).not.toHaveProperty("warnings");
    });

    test("of named devices that are not enrolled, the first ten by name, also when it is repeated", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b", "gone");
      await fleet.retire("c", "gone");
      expect((await pushTo(fleet, "?to=a,b")).body).not.toHaveProperty("warnings");
      const one = await pushTo(fleet, "?to=a,typo");
      expect([one.status, one.body.audience.addressed, one.body.warnings]).toEqual([
        201,
        2,
        ["Device typo is not enrolled in channel c: check its name. It gets the event if it opens a feed in time."],
      ]);
      const strangers = ["gone", ...Array.from({ length: 11 }, (_, n) => `s${n}`)];
      const query = `?to=b,${strangers.join(",")}`;
      const headers = { "Idempotency-Key": "k" };
      const warnings = [
        `12 of the named devices are not enrolled in channel c: ${strangers.slice(0, 10).join(", ")} and 2 more. Check their names. They get the event if they open a feed in time.`,
      ];
      for (const status of [201, 200]) {
        const many = await pushTo(fleet, query, { headers });
        expect([many.status, many.body.warnings]).toEqual([status, warnings]);
      }
      const lines = await pushTo(fleet, "?to=typo", {
        body: "1\n2\n",
        headers: { "Content-Type": "application/x-ndjson" },
      });
      expect(lines.body.warnings).toEqual([
        "Device typo is not enrolled in channel c: check its name. It gets the events if it opens a feed in time.",
      ]);
    });
  });

  describe(`${name}: an event that is pushed again`, () => {
    test("goes to those who failed it or are missing, with its data and type, on every transport", async () => {
      await using fleet = await open();
      const id = await mixed(fleet);
      const url = `${fleet.there.url}/feed/c`;
      const readers = await Promise.all(
        WAYS.map((way, n) => FeedReader.open(way, url, `device=${["b", "d", "e"][n]!}&since=now`)),
      );
      const stream = await fleet.device("c", "b");
      const idle = await fleet.device("c", "a");
      const { status, headers, body } = await again(fleet, id);
      expect(status).toBe(201);
      expect(headers.get("location")).toBe(`/events/c/${body.id}`);
      expect(body).toMatchObject({ channel: "c", type: "order.created", audience: { addressed: 3 } });
      expect(body).not.toHaveProperty("warnings");
      expect(await addressed(fleet, body.id)).toEqual(["b", "d", "e"]);
      const state = await ask(`${fleet.here.url}/events/c/${body.id}`);
      expect(state.body).toMatchObject({ again: id, receipts: { ...NOBODY, pending: 3 } });
      expect(state.body).not.toHaveProperty("deadline");
      expect(state.body.to.sort()).toEqual(["b", "d", "e"]);
      expect(state.text).toContain('"data":{"n":12345678901234567890}');
      for (const reader of readers) await reader.hasLast(body.id);
      const frame = await until(() => stream.messages.find(({ data }) => data.includes(`"id":"${body.id}"`)));
      expect(frame.event).toBe("order.created");
      expect(frame.data).toContain(`"again":"${id}"`);
      expect(frame.data).toEndWith('"data":{"n":12345678901234567890}}');
      // What comes after it shows that `a` did not get it.
      const next = await fleet.push("c", "?to=a");
      await until(() => idle.messages.some(({ data }) => data.includes(`"id":"${next}"`)));
      expect(idle.messages.some(({ data }) => data.includes(`"id":"${body.id}"`))).toBe(false);
      stream.close();
      idle.close();
      for (const reader of readers) await reader[Symbol.asyncDispose]();
    });

    test("leaves out retired devices; a named one that never came is named again, and the answer says so", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b", "d");
      const id = await fleet.push("c", "?to=a,b,d,typo");
      for (const device of ["a", "b"]) await fleet.give("c", id, device, "failed");
      await fleet.retire("c", "b");
      await ask(`${fleet.here.url}/events/c/${id}`, { method: "DELETE" });
      const { status, body } = await again(fleet, id);
      expect(status).toBe(201);
      expect(await addressed(fleet, body.id)).toEqual(["a", "d", "typo"]);
      expect(body.warnings).toEqual([
        "Device typo is not enrolled in channel c: check its name. It gets the event if it opens a feed in time.",
      ]);
    });

    test("goes to devices that it was withdrawn from, with options of its own", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const id = await fleet.push("c", "?deadline=60&key=k&attempts=3");
      await fleet.give("c", id, "a", "done");
      await ask(`${fleet.here.url}/events/c/${id}`, { method: "DELETE" });
      const { body } = await again(fleet, id, "?ttl=3600&deadline=30&remind=5&attempts=2&key=other");
      expect(await addressed(fleet, body.id)).toEqual(["b"]);
      const state = (await ask(`${fleet.here.url}/events/c/${body.id}`)).body;
      expect(state).toMatchObject({ again: id, key: "other", attempts: 2, remind: 5, deadline: expect.any(String) });
      const plain = (await again(fleet, id)).body;
      const bare = (await ask(`${fleet.here.url}/events/c/${plain.id}`)).body;
      for (const option of ["key", "attempts", "remind", "deadline", "expiresAt", "type"])
        expect(bare).not.toHaveProperty(option);
    });

    test("is answered as a push, with `Prefer: wait`, and once per key, also when nobody is left by then", async () => {
      await using fleet = await open();
      const id = await mixed(fleet);
      const headers = { "Idempotency-Key": "k" };
      const first = await again(fleet, id, "?ttl=600", headers);
      for (const device of ["b", "d", "e"]) {
        await fleet.give("c", id, device, "done");
        await fleet.give("c", first.body.id, device, "done");
      }
      const repeated = await again(fleet, id, "?ttl=600", headers);
      expect([repeated.status, repeated.headers.get("idempotent-replayed")]).toEqual([200, "true"]);
      expect(repeated.body).toEqual(first.body);
      for (const other of [again(fleet, id, "?ttl=601", headers), again(fleet, first.body.id, "?ttl=600", headers)])
        expect([(await other).status, (await other).body.detail]).toEqual([
          422,
          "Idempotency-Key: it came with another body or other options before",
        ]);
      expect((await pushTo(fleet, "?ttl=600", { headers })).status).toBe(422);
      const third = await fleet.push("c", "?to=d");
      await fleet.give("c", third, "d", "failed");
      const together = await Promise.all([1, 2, 3].map(() => again(fleet, third, "", { "Idempotency-Key": "l" })));
      expect(together.map(({ status }) => status).toSorted()).toEqual([200, 200, 201]);
      expect(new Set(together.map(({ body }) => body.id)).size).toBe(1);
      const failed = await fleet.push("c", "?to=d");
      await fleet.give("c", failed, "d", "failed");
      const waiting = again(fleet, failed, "", { Prefer: "wait=30" });
      await fleet.waiting();
      const { events } = (await ask(`${fleet.here.url}/events/c?order=desc&limit=1`)).body;
      await fleet.give("c", events[0].id, "d", "done");
      const waited = await waiting;
      expect(waited.headers.get("preference-applied")).toBe("wait");
      expect(waited.body).toMatchObject({ id: events[0].id, receipts: { ...NOBODY, done: 1 }, complete: true });
    });

    test("may be pushed again in its turn", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const ids = [await fleet.push("c")];
      for (let nth = 0; nth < 3; nth++) {
        await fleet.give("c", ids.at(-1)!, "a", "failed");
        ids.push((await again(fleet, ids.at(-1)!)).body.id);
      }
      const { events } = (await ask(`${fleet.here.url}/events/c`)).body;
      expect(events.map((event: { again?: string }) => event.again)).toEqual([undefined, ids[0], ids[1], ids[2]]);
    });

    test("is refused with a sentence, and nothing is stored", async () => {
      await using fleet = await open();
      expect((await again(fleet, "x-1")).body.detail).toBe("channel c has never been used");
      await fleet.enrol("c", "a", "b");
      const id = await fleet.push("c", "?deadline=60");
      await fleet.give("c", id, "a", "done");
      const left = "the devices are those that failed the event, are missing on it or had it withdrawn; leave it out";
      const cases: readonly (readonly [number, string, Promise<Answer>])[] = [
        [
          422,
          `event ${id} can't be pushed again: no device failed it, is missing on it or had it withdrawn, apart from retired ones`,
          again(fleet, id),
        ],
        [422, `to: ${left}`, again(fleet, id, "?to=a")],
        [422, `where: ${left}`, again(fleet, id, "?where=site:rome")],
        [422, "type: the event is pushed again with its own type; leave it out", again(fleet, id, "?ttl=5&type=x")],
        [422, "ask: the event is pushed again with its own question; leave it out", again(fleet, id, "?ask=a,b")],
        [422, "at: an event is pushed again now; leave it out", again(fleet, id, "?at=2026-12-01T10:00:00Z")],
        [422, "every: an event is pushed again now; leave it out", again(fleet, id, "?every=*%20*%20*%20*%20*")],
        [400, "wait: unknown option; this URL takes ttl, deadline, remind, key, attempts", again(fleet, id, "?wait=5")],
        [422, "ttl: must be from 0.001 to 31622400 seconds, with at most 6 decimals", again(fleet, id, "?ttl=0")],
        [400, "attempts: must be a whole number", again(fleet, id, "?attempts=many")],
        [404, "channel c has no event x", again(fleet, "x")],
        [404, `channel c has no event ${id.replace(/\d+$/, "9")}`, again(fleet, id.replace(/\d+$/, "9"))],
        [
          400,
          "Idempotency-Key: must be 1 to 255 printable ASCII characters",
          again(fleet, id, "", { "Idempotency-Key": "x".repeat(256) }),
        ],
        [400, "Prefer: wait: must be a number of seconds", again(fleet, id, "", { Prefer: "wait=long" })],
      ];
      for (const [status, detail, answer] of cases)
        expect([(await answer).status, (await answer).body.detail]).toEqual([status, detail]);
      const withdrawn = await fleet.push("c", "?to=b");
      await ask(`${fleet.here.url}/events/c/${withdrawn}`, { method: "DELETE" });
      const control = withdrawn.replace(/\d+$/, (seq) => String(Number(seq) + 1));
      const refused = await again(fleet, control);
      expect([refused.status, refused.body.detail]).toEqual([
        422,
        `${control} is not an event: it tells that event ${withdrawn} was withdrawn; push that one again`,
      ]);
      const { events } = (await ask(`${fleet.here.url}/events/c`)).body;
      expect(events.length).toBe(2);
    });

    test("may have more devices than a push can name, which its state leaves out", async () => {
      await using fleet = await open();
      const devices = Array.from({ length: 2_300 }, (_, n) => `d${String(n).padStart(4, "0")}`);
      for (let from = 0; from < devices.length; from += 500) await fleet.enrol("c", ...devices.slice(from, from + 500));
      const id = await fleet.push("c");
      await fleet.give("c", id, "d0007", "done");
      await fleet.give("c", id, "d0008", "failed");
      await ask(`${fleet.here.url}/events/c/${id}`, { method: "DELETE" });
      const streams = await Promise.all(["d0007", "d0008", "d2299"].map((device) => fleet.device("c", device)));
      const { status, body } = await again(fleet, id);
      expect([status, body.audience.addressed, body.warnings]).toEqual([201, 2_299, undefined]);
      const state = (await ask(`${fleet.here.url}/events/c/${body.id}`)).body;
      expect([state.again, state.to, state.receipts.pending]).toEqual([id, undefined, 2_299]);
      const last = await fleet.push("c");
      for (const stream of streams)
        await until(() => stream.messages.some(({ data }) => data.includes(`"id":"${last}"`)));
      expect(streams.map(({ messages }) => messages.some(({ data }) => data.includes(`"id":"${body.id}"`)))).toEqual([
        false,
        true,
        true,
      ]);
      await fleet.give("c", body.id, "d2299", "done");
      expect((await fleet.state("c", body.id)).receipts).toEqual({ ...NOBODY, pending: 2_298, done: 1 });
      for (const stream of streams) stream.close();
    });
  });
}
