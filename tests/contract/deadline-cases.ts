/**
 * A deadline: who is missing when it passes, and how often that is told.
 */
import { describe, expect, test } from "bun:test";
import { iso } from "../../engine/model.ts";
import { type Answer, ask, connect, listen, until } from "../support/harness.ts";
import { NOBODY, type Open, poll, T } from "./fleet.ts";

export function deadlineCases(name: string, open: Open): void {
  describe(`${name}: a deadline`, () => {
    test("is in the event that devices get, and in what its publisher reads", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      const id = await fleet.push("c", "?deadline=1.5&remind=60");
      const [event] = await stream.have(1);
      expect(JSON.parse(event!.data)).toMatchObject({ id, deadline: iso(T + 1_500) });
      expect(event!.data).not.toContain("remind");
      expect(await fleet.state("c", id)).toMatchObject({ deadline: iso(T + 1_500), remind: 60 });
      const plain = await fleet.push("c");
      expect((await stream.have(2))[1]!.data).not.toContain("deadline");
      expect(await fleet.state("c", plain)).not.toHaveProperty("deadline");
      stream.close();
    });

    test("records as missing the devices that owe a final receipt when it passes, once, and no others", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "done", "failed", "received", "retired", "silent", "working");
      const id = await fleet.push("c", "?deadline=10");
      await fleet.enrol("c", "after");
      for (const word of ["done", "failed", "received", "working"]) await fleet.give("c", id, word, word);
      await fleet.retire("c", "retired");
      fleet.now += 10_000;
      await until(async () => (await fleet.missing("c")).length === 3);
      // By the time that another one has passed, nothing more has come.
      await fleet.push("d", "?deadline=1&to=a");
      fleet.now += 1_000;
      await until(async () => (await fleet.missing("d")).length === 1);
      expect(await fleet.missing("c")).toEqual(["received", "silent", "working"]);
      expect(await fleet.rows("c", id)).toEqual({
        ...{ done: "done", failed: "failed" },
        ...{ received: "missing", silent: "missing", working: "missing" },
      });
      const { receipts, complete } = await fleet.state("c", id);
      expect([receipts, complete]).toEqual([{ ...NOBODY, done: 1, failed: 1, missing: 3 }, false]);
    });

    test("that has not passed records nothing", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      await fleet.push("c", "?deadline=10");
      fleet.now += 9_998;
      await fleet.push("d", "?deadline=0.001&to=a");
      fleet.now += 1;
      await until(async () => (await fleet.missing("d")).length === 1);
      expect(await fleet.missing("c")).toEqual([]);
      fleet.now += 1;
      await until(async () => (await fleet.missing("c")).length === 1);
    });

    test("is reported on an event stream, on a socket and to a long-poll, each device with its own id", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const url = `${fleet.here.url}/feedback/c`;
      const [stream, socket] = [await listen(url), await connect(url)];
      const id = await fleet.push("c", "?deadline=10");
      const polled = poll(`${url}?wait=60`);
      await fleet.waiting(3);
      fleet.now += 10_000;
      const entries = (await stream.have(2)).map(({ data }) => JSON.parse(data));
      const word = { event: id, channel: "c", status: "missing", detail: null, at: iso(fleet.now), deviceAt: null };
      expect(entries).toEqual(
        ["a", "b"].map((device, n) => ({ id: stream.ids[n], device, ...word, late: false, round: 1, attempt: 0 })),
      );
      expect(new Set(stream.ids).size).toBe(2);
      await until(() => socket.messages.length === 4);
      expect(socket.messages.slice(1, 3)).toEqual(entries);
      expect((await polled).body.events).toEqual(entries);
      stream.close();
      socket.socket.close();
    });

    test("that passed makes a later final receipt late; other receipts are duplicates", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b", "c");
      const id = await fleet.push("c", "?deadline=10");
      await fleet.give("c", id, "a", "done");
      fleet.now += 10_000;
      await until(async () => (await fleet.missing("c")).length === 2);
      expect((await fleet.give("c", id, "b", "received")).body).toMatchObject({ recorded: 0, duplicate: 1 });
      expect((await fleet.give("c", id, "b", "done")).body).toMatchObject({ recorded: 1 });
      expect((await fleet.give("c", id, "c", "failed")).body).toMatchObject({ recorded: 1 });
      const { events, complete } = await fleet.told("c");
      expect(events.map(({ device, status, late }: Record<string, unknown>) => [device, status, late])).toEqual([
        ["a", "done", false],
        ["b", "missing", false],
        ["c", "missing", false],
        ["b", "done", true],
        ["c", "failed", true],
      ]);
      expect(complete).toMatchObject([{ event: id, receipts: { ...NOBODY, done: 2, failed: 1 } }]);
      expect(await fleet.state("c", id)).toMatchObject({ complete: true, receipts: { missing: 0 } });
    });

    test("that passes while nothing runs is recorded at the next start, exactly once", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const id = await fleet.push("c", "?deadline=10");
      await fleet.give("c", id, "b", "done");
      await fleet.stop();
      fleet.now += 3_600_000;
      await fleet.start();
      await until(async () => (await fleet.missing("c")).length > 0);
      await fleet.stop();
      fleet.now += 3_600_000;
      await fleet.start();
      // Another one has passed: all that were due have been looked at.
      await fleet.push("d", "?deadline=1&to=a");
      fleet.now += 1_000;
      await until(async () => (await fleet.missing("d")).length === 1);
      const { events } = await fleet.told("c");
      expect(events.map(({ device, status, at }: Record<string, unknown>) => [device, status, at])).toEqual([
        ["b", "done", iso(T)],
        ["a", "missing", iso(T + 3_600_000)],
      ]);
    });

    test("takes effect before the next regular check if the clock moves on", async () => {
      await using fleet = await open({ now: Date.now });
      /** How long after its deadline an event's device is missing. */
      const lateMs = async (): Promise<number> => {
        const id = await fleet.push("c", "?deadline=0.05&to=a");
        const { at } = await until(async () => {
          const { events } = await fleet.told("c");
          return events.find(({ event }: { event: string }) => event === id);
        });
        const { deadline } = (await fleet.state("c", id)) as unknown as { deadline: string };
        return Date.parse(at) - Date.parse(deadline);
      };
      await lateMs(); // If that was a regular look, the next one is a second away.
      let least = Number.POSITIVE_INFINITY;
      // A busy machine may hold anybody up; not each time.
      for (let n = 0; n < 5 && least >= 500; n++) least = await lateMs();
      expect(least).toBeWithin(0, 500);
    });

    test("is kept through jumps of the clock, forward and back", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      await fleet.push("c", "?deadline=10", "before");
      fleet.now += 24 * 3_600_000;
      await until(async () => (await fleet.missing("c")).length === 1);
      fleet.now = T;
      await fleet.push("c", "?deadline=10", "after");
      fleet.now = T - 3_600_000;
      await fleet.push("c", "?deadline=10", "further back");
      fleet.now += 10_000;
      await until(async () => (await fleet.missing("c")).length === 2);
      expect((await fleet.told("c")).events.map(({ event }: { event: string }) => event.split("-")[1])).toEqual([
        "1",
        "3",
      ]);
      fleet.now = T + 10_000;
      await until(async () => (await fleet.missing("c")).length === 3);
    });

    test("of an event to a thousand devices records each of them once, also for many events", async () => {
      await using fleet = await open();
      const devices = Array.from({ length: 1_000 }, (_, n) => `d${n}`);
      const body = "1\n2\n3\n";
      const query = `?deadline=10&to=${devices.join(",")}`;
      await ask(`${fleet.here.url}/push/c${query}`, { body, type: "application/x-ndjson" });
      fleet.now += 10_000;
      const events = await until(async () => {
        const found = (await ask(`${fleet.here.url}/events/c`)).body.events;
        return found.every(({ receipts }: Answer["body"]) => receipts.missing === 1_000) && found;
      });
      for (const { receipts } of events) expect(receipts).toEqual({ ...NOBODY, missing: 1_000 });
      const stream = await listen(`${fleet.here.url}/feedback/c?since=earliest`);
      await stream.have(3_000);
      const pairs = stream.events.map(({ data }) => JSON.parse(data)).map(({ event, device }) => `${event} ${device}`);
      expect([pairs.length, new Set(pairs).size]).toEqual([3_000, 3_000]);
      stream.close();
    });

    test("and a reminder interval must be numbers within bounds", async () => {
      await using fleet = await open();
      for (const query of [
        "deadline=0",
        "deadline=-1",
        "deadline=99999999",
        "remind=0",
        "remind=0.9",
        "remind=99999999",
      ])
        expect(`${query} ${(await ask(`${fleet.here.url}/push/c?${query}`, { body: "1" })).status}`).toBe(
          `${query} 422`,
        );
      for (const query of ["deadline=", "deadline=soon", "remind=x", "remind=2&remind=3", "deadlines=5"])
        expect(`${query} ${(await ask(`${fleet.here.url}/push/c?${query}`, { body: "1" })).status}`).toBe(
          `${query} 400`,
        );
      expect((await ask(`${fleet.here.url}/events/c`)).status).toBe(404);
      await fleet.push("c", "?deadline=0.001&remind=1");
    });
  });
}
