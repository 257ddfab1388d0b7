/**
 * Devices have tags, and a publisher pushes to those whose tags fit: who gets it, who owes it, and what is refused.
 */
import { describe, expect, test } from "bun:test";
import { iso } from "../../engine/model.ts";
import { FeedReader, WAYS } from "../support/feed-readers.ts";
import { type Answer, ask, until } from "../support/harness.ts";
import { type Fleet, NOBODY, type Open, poll, T } from "./fleet.ts";

const JSON_TYPE = { "Content-Type": "application/json" };

const put = (fleet: Fleet, device: string, tags: unknown, method = "PUT"): Promise<Answer> =>
  ask(`${fleet.there.url}/devices/c/${device}`, { method, body: JSON.stringify({ tags }), headers: JSON_TYPE });
const listed = async (fleet: Fleet, query = ""): Promise<Record<string, unknown>> => {
  const { devices } = (await ask(`${fleet.here.url}/devices/c${query}`)).body;
  return Object.fromEntries(devices.map(({ device, tags }: { device: string; tags: unknown }) => [device, tags]));
};
const NDJSON = { "Content-Type": "application/x-ndjson" };

export function whereCases(name: string, open: Open): void {
  describe(`${name}: the tags of a device`, () => {
    test("are set with PUT, changed with PATCH, and shown in lists and rows", async () => {
      await using fleet = await open();
      const first = await put(fleet, "a", { site: "rome", beta: "1" });
      expect([first.status, first.body]).toEqual([
        201,
        { channel: "c", device: "a", enrolled: true, tags: { beta: "1", site: "rome" } },
      ]);
      expect((await fleet.enrol("c", "a", "b")).map(({ status, body }) => [status, body.tags])).toEqual([
        [200, undefined],
        [201, undefined],
      ]);
      expect(await listed(fleet)).toEqual({ a: { beta: "1", site: "rome" }, b: {} });
      const patched = await put(fleet, "a", { beta: null, site: "milan", model: "x2" }, "PATCH");
      expect([patched.status, patched.body.tags]).toEqual([200, { model: "x2", site: "milan" }]);
      const id = await fleet.push("c");
      const url = `${fleet.here.url}/events/c/${id}/receipts`;
      expect((await ask(url)).body.receipts.map(({ tags }: { tags: unknown }) => tags)).toEqual([
        { model: "x2", site: "milan" },
        {},
      ]);
      const csv = (await ask(url, { headers: { Accept: "text/csv" } })).text.split("\r\n");
      expect(csv.slice(0, 3)).toEqual([
        "device,status,detail,at,deviceAt,late,round,attempt,due,tags",
        'a,pending,,,,false,1,0,,"model:x2,site:milan"',
        "b,pending,,,,false,1,0,,",
      ]);
      expect((await put(fleet, "a", null, "PATCH")).body.tags).toEqual({});
      expect((await put(fleet, "a", { x: "1" })).body.tags).toEqual({ x: "1" });
      expect((await put(fleet, "a", {})).status).toBe(200);
      expect(await listed(fleet)).toEqual({ a: {}, b: {} });
      const odd = JSON.parse('{"__proto__":"1","constructor":"2"}') as object;
      expect(JSON.stringify((await put(fleet, "b", odd)).body.tags)).toBe('{"__proto__":"1","constructor":"2"}');
    });

    test("are refused with a sentence where they are out of form, and nothing is stored then", async () => {
      await using fleet = await open();
      await put(fleet, "a", { site: "rome" });
      const many = Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`t${n}`, "1"]));
      for (const [tags, status, sentence] of [
        [{ "a b": "1" }, 400, '"a b" is not a tag\'s name'],
        [{ "": "1" }, 400, '"" is not a tag\'s name'],
        [{ site: "" }, 400, '"" is not a value of the tag site'],
        [{ site: 1 }, 400, "1 is not a value of the tag site"],
        [{ site: ["x"] }, 400, '["x"] is not a value of the tag site'],
        [{ site: "a:b" }, 400, '"a:b" is not a value'],
        [{ ["n".repeat(65)]: "1" }, 400, "is not a tag's name"],
        ["site", 400, 'not "site"'],
        [[], 400, "not []"],
        [many, 422, "a device has at most 16 tags, not 1"],
      ] as const)
        for (const method of ["PUT", "PATCH"]) {
          const { status: was, body } = await put(fleet, "a", tags, method);
          expect([was, body.errors?.[0].path, body.detail]).toEqual([
            status,
            "tags",
            expect.stringContaining(sentence),
          ]);
        }
      expect((await put(fleet, "new", many)).status).toBe(422);
      expect((await put(fleet, "a", { beta: null }, "PUT")).status).toBe(400);
      expect((await put(fleet, "new", { x: "1" }, "PATCH")).status).toBe(404);
      for (const [method, body, headers, status] of [
        ["PUT", "{", JSON_TYPE, 400],
        ["PUT", '{"tag":{}}', JSON_TYPE, 400],
        ["PUT", "[]", JSON_TYPE, 400],
        ["PUT", "{}", { "Content-Type": "text/plain" }, 415],
        ["PATCH", "{}", JSON_TYPE, 400],
        ["PATCH", "", JSON_TYPE, 400],
        ["PATCH", '{"tags":{"x":"1"}}', { "Content-Type": "text/plain" }, 415],
        ["PUT", `{"tags":{${" ".repeat(9_000)}}}`, JSON_TYPE, 413],
      ] as const)
        expect([body, (await ask(`${fleet.here.url}/devices/c/a`, { method, body, headers })).status]).toEqual([
          body,
          status,
        ]);
      expect(await listed(fleet)).toEqual({ a: { site: "rome" } });
    });

    test("come with a feed, and replace all others", async () => {
      await using fleet = await open();
      const url = `${fleet.there.url}/feed/c`;
      expect((await poll(`${url}?device=a&tags=site:rome,beta`)).status).toBe(200);
      await until(async () => Object.keys(await listed(fleet)).length === 1);
      expect(await listed(fleet)).toEqual({ a: { beta: "1", site: "rome" } });
      await poll(`${url}?device=a`);
      await poll(`${url}?device=a&tags=model:x2`);
      expect(await listed(fleet)).toEqual({ a: { model: "x2" } });
      await poll(`${url}?device=a&tags=`);
      expect(await listed(fleet)).toEqual({ a: {} });
      const many = Array.from({ length: 17 }, (_, n) => `t${n}`).join();
      for (const [query, status, sentence] of [
        ["device=a&tags=a%20b", 400, '"a b" is not a tag\'s name'],
        ["device=a&tags=a:", 400, '"" is not a value of the tag a'],
        ["device=a&tags=a:b:c", 400, '"b:c" is not a value of the tag a'],
        ["device=a&tags=,", 400, '"" is not a tag\'s name'],
        ["device=a&tags=a,a:2", 400, "the tag a is given twice"],
        [`device=a&tags=${many}`, 422, "a device has at most 16 tags, not 17"],
        ["tags=a", 400, "only a feed with a device can have tags"],
      ] as const) {
        const { status: was, body } = await poll(`${url}?${query}`);
        expect([was, body.detail]).toEqual([status, expect.stringContaining(sentence)]);
      }
      expect((await poll(`${fleet.here.url}/feedback/c?tags=a`)).status).toBe(400);
    });
  });

  describe(`${name}: a push with where`, () => {
    const three = async (fleet: Fleet): Promise<void> => {
      await put(fleet, "a", { site: "rome" });
      await put(fleet, "b", { site: "milan", beta: "1" });
      await put(fleet, "d", { site: "rome", beta: "1" });
    };

    test("counts those whom it is for, and its state shows the where; the list shows the same devices", async () => {
      await using fleet = await open();
      await three(fleet);
      const streams = [await fleet.device("c", "b"), await fleet.device("c", "a")];
      const { status, body } = await ask(`${fleet.here.url}/push/c?where=site:rome|milan,beta&key=k`, { body: "1" });
      expect([status, body.audience.addressed]).toEqual([201, 2]);
      const state = (await ask(`${fleet.here.url}/events/c/${body.id}`)).body;
      expect(state).toMatchObject({
        where: "site:rome|milan,beta",
        receipts: { ...NOBODY, pending: 2 },
        complete: false,
      });
      expect(state.to).toBeUndefined();
      await until(async () => (await ask(`${fleet.here.url}/events/c/${body.id}`)).body.audience.connected === 1);
      expect(Object.keys(await listed(fleet, "?where=site:rome|milan,beta"))).toEqual(["b", "d"]);
      expect(Object.keys(await listed(fleet, "?where=!beta&sort=seen"))).toEqual(["a"]);
      for (const stream of streams) stream.close();
      await put(fleet, "b", {});
      expect(await fleet.rows("c", body.id)).toEqual({ b: "pending", d: "pending" });
      expect(Object.keys(await listed(fleet, "?where=beta&limit=1"))).toEqual(["d"]);
      const nobody = await ask(`${fleet.here.url}/push/c?where=site:oslo`, {
        body: "1",
        headers: { Prefer: "wait=9" },
      });
      expect([nobody.status, nobody.body.audience.addressed, nobody.body.complete]).toEqual([201, 0, true]);
      expect(nobody.body.warnings).toEqual([
        'No device in channel c fits "site:oslo", so the event went to nobody: check the tags, for example with GET /devices/c.',
      ]);
      expect(body.warnings).toBeUndefined();
    });

    test("is refused with a sentence where it is out of form, in lists too, and nothing is stored then", async () => {
      await using fleet = await open();
      await three(fleet);
      const terms = Array.from({ length: 33 }, (_, n) => `t${n}`).join();
      for (const [where, status, sentence] of [
        ["", 400, "is empty"],
        [",", 400, '"" is not a term'],
        ["site:", 400, '"site:" is not a term'],
        ["site:a||b", 400, '"site:a||b" is not a term'],
        ["!!beta", 400, '"!!beta" is not a term'],
        ["a b", 400, '"a b" is not a term'],
        ["site:a:b", 400, '"site:a:b" is not a term'],
        [terms, 422, "has 33 terms; at most 32 are allowed"],
      ] as const)
        for (const [path, init] of [
          ["/push/c", { body: "1" }],
          ["/push/c?at=2027-01-01T00:00:00Z", { body: "1" }],
          ["/devices/c", {}],
        ] as const) {
          const url = `${fleet.here.url}${path}${path.includes("?") ? "&" : "?"}where=${encodeURIComponent(where)}`;
          const { status: was, body } = await ask(url, init);
          expect([was, body.errors[0].path, body.detail]).toEqual([status, "where", expect.stringContaining(sentence)]);
        }
      const both = await ask(`${fleet.here.url}/push/c?where=beta&to=a`, { body: "1" });
      expect([both.status, both.body.detail]).toEqual([
        422,
        'where: "beta" can\'t be given together with to; leave one of them out',
      ]);
      expect((await ask(`${fleet.here.url}/events/c`)).body.events).toEqual([]);
      expect((await ask(`${fleet.here.url}/scheduled/c`)).body.scheduled).toEqual([]);
    });

    test("is one with its Idempotency-Key, goes with many lines, with attempts and with a time", async () => {
      await using fleet = await open();
      await three(fleet);
      const url = `${fleet.here.url}/push/c`;
      const headers = { "Idempotency-Key": "x" };
      const first = await ask(`${url}?where=beta`, { body: "1", headers });
      const again = await ask(`${url}?where=beta`, { body: "1", headers });
      expect([again.status, again.body.id]).toEqual([200, first.body.id]);
      expect((await ask(`${url}?where=!beta`, { body: "1", headers })).status).toBe(422);
      const lines = await ask(`${url}?where=site:rome&attempts=2`, { body: "1\n2", headers: NDJSON });
      expect([lines.status, lines.body.audience.addressed]).toEqual([201, 2]);
      for (const { id } of lines.body.events) expect(await fleet.rows("c", id)).toEqual({ a: "pending", d: "pending" });
      const later = await ask(`${url}?where=beta&at=${iso(T + 5_000)}`, { body: "1" });
      expect(later.status).toBe(202);
      await put(fleet, "d", {});
      fleet.now += 6_000;
      const { body } = await until(async () => {
        const answer = await ask(`${fleet.here.url}/scheduled/c/${later.body.id}`);
        return answer.body.last && answer;
      });
      expect(await fleet.rows("c", body.last)).toEqual({ b: "pending" });
      expect(body.options).toEqual({ where: "beta" });
    });
  });

  describe.each(WAYS)(`${name}: an event with where on %s`, (way) => {
    const feed = (fleet: Fleet, query: string): Promise<FeedReader> =>
      FeedReader.open(way, `${fleet.there.url}/feed/c`, query);

    test("comes live to those whom it is for, in order with the others, and its withdrawal too", async () => {
      await using fleet = await open();
      await put(fleet, "a", { site: "rome" });
      await put(fleet, "b", { site: "milan" });
      await using a = await feed(fleet, "device=a");
      await using b = await feed(fleet, "device=b");
      await using anybody = await feed(fleet, "since=now");
      const one = await fleet.push("c", "?where=site:rome");
      const all = await fleet.push("c");
      const two = await fleet.push("c", "?where=!site:rome");
      const last = await fleet.push("c", "?where=site");
      await a.has([one, all, last]);
      await b.has([all, two, last]);
      await anybody.has([all]);
      await ask(`${fleet.here.url}/events/c/${one}`, { method: "DELETE" });
      await a.has([one, all, last, `-${one}`]);
      const end = await fleet.push("c");
      await b.has([all, two, last, end]);
      await anybody.has([all, end]);
    });

    test("comes to a device that catches up, wherever it starts, by the tags that it had at the push", async () => {
      await using fleet = await open();
      await put(fleet, "a", { site: "rome" });
      await put(fleet, "b", { site: "milan" });
      const first = await fleet.push("c");
      const one = await fleet.push("c", "?where=site:rome");
      const two = await fleet.push("c", "?where=site:milan");
      const gone = await fleet.push("c", "?where=site:rome");
      await put(fleet, "a", { site: "milan" });
      await put(fleet, "b", { site: "rome" });
      await fleet.give("c", gone, "a", "working");
      await ask(`${fleet.here.url}/events/c/${gone}`, { method: "DELETE" });
      const three = await fleet.push("c", "?where=site:rome");
      await using owing = await feed(fleet, "device=a");
      await owing.has([first, one, `-${gone}`]);
      await using resumed = await feed(fleet, `device=a&last-event-id=${first}`);
      await resumed.has([one, `-${gone}`]);
      await using other = await feed(fleet, `device=b&last-event-id=${first}`);
      await other.has([two, three]);
      await using anybody = await feed(fleet, "since=earliest");
      await anybody.has([first]);
      await fleet.give("c", two, "b", "done");
      await using settled = await feed(fleet, "device=b");
      await settled.has([first, three]);
      const rejected = await fleet.give("c", one, "b", "done");
      expect([rejected.status, rejected.body.rejected.length]).toEqual([422, 1]);
    });

    test("is reminded of only where it is owed", async () => {
      await using fleet = await open();
      await put(fleet, "a", { site: "rome" });
      await put(fleet, "b", { site: "milan" });
      const id = await fleet.push("c", "?where=site:rome&remind=1&deadline=9999");
      await using a = await feed(fleet, "device=a");
      await using b = await feed(fleet, "device=b");
      await a.has([id]);
      await until(() => {
        fleet.now += 100;
        return a.now.filter((told) => told === id).length >= 2;
      });
      await fleet.give("c", id, "a", "done");
      fleet.now += 9_999_000;
      const last = await fleet.push("c");
      await b.has([last]);
      expect(await fleet.missing("c")).toEqual([]);
    });
  });
}
