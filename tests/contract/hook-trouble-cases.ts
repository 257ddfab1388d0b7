/**
 * What a hook is told about events that did not go well: devices that failed, and events that are over.
 */
import { describe, expect, test } from "bun:test";
import { ask, give, push } from "../support/harness.ts";
import { NOBODY } from "./fleet.ts";
import { begin, type Call, heldClock, hook, list, put, Receiver, SECOND, type World } from "./hook-world.ts";

/** The event and the state of each receipt in these calls. */
const said = (calls: readonly Call[]): string[] =>
  calls.flatMap(({ body }) =>
    (body.data.receipts as Record<string, unknown>[]).map(
      ({ device, status, late }) => `${device} ${status}${late ? " late" : ""}`,
    ),
  );

export function hookTroubleCases(name: string, makeWorld: () => World): void {
  describe(`${name}: a hook for trouble`, () => {
    test("is called for settled and failed only if it asks for them", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      expect((await put(pere.url, { url: receiver.url })).body.on).toEqual(["receipt", "complete", "missing"]);
      const on = ["failed", "settled", "complete"];
      expect((await put(pere.url, { url: receiver.url, on })).body.on).toEqual(["complete", "settled", "failed"]);
      expect((await list(pere.url))[0].on).toEqual(["complete", "settled", "failed"]);
      const refused = await put(pere.url, { url: receiver.url, on: ["lost"] });
      expect([refused.status, refused.body.detail]).toEqual([
        400,
        "on: must be a list of receipt, complete, missing, settled, failed",
      ]);
    });

    test("has each failure that is final, also a late one, and no other", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now });
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["failed"] });
      const event = await push(pere.url, "c", 1, "?to=a,b,d,e&deadline=60&attempts=3");
      const fail = (device: string, more: object) =>
        ask(`${pere.url}/feedback/c`, { body: { event, device, status: "failed", detail: "jam", ...more } });
      await fail("a", {}); // It has attempts left.
      await give(pere.url, "c", event, "b", "done");
      await fail("d", { retry: false });
      await receiver.have(1);
      clock.at += 61 * SECOND;
      await fail("e", { retry: false }); // Past the deadline.
      await receiver.have(2);
      expect(said(receiver.calls)).toEqual(["d failed", "e failed late"]);
      for (const { body } of receiver.calls) expect([body.type, body.data.channel]).toEqual(["pere.failed", "c"]);
      const [receipt] = receiver.calls[0]!.body.data.receipts;
      expect(receipt).toMatchObject({ event, device: "d", detail: "jam", late: false, round: 1, attempt: 1 });
    });

    test("lists at most 100 failures at once, and a hook for receipts has them too", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["receipt", "failed"] });
      const devices = Array.from({ length: 230 }, (_, n) => `d${n}`);
      const event = await push(pere.url, "c", 1, `?to=${devices.join(",")}`);
      await ask(`${pere.url}/feedback/c`, { body: devices.map((device) => ({ event, device, status: "failed" })) });
      await receiver.have(6);
      for (const type of ["pere.receipt", "pere.failed"]) {
        const calls = receiver.calls.filter(({ body }) => body.type === type);
        expect(said(calls).toSorted()).toEqual(devices.map((device) => `${device} failed`).toSorted());
        for (const { body } of calls) expect(body.data.receipts.length).toBeLessThanOrEqual(100);
      }
      expect(new Set(receiver.calls.map(({ id }) => id)).size).toBe(receiver.calls.length);
    });

    test("says once that an event with a deadline is over, with its state, and nothing of one without", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now });
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["settled"] });
      const free = await push(pere.url, "c", 0, "?to=a");
      await give(pere.url, "c", free, "a", "done");
      const quick = await push(pere.url, "c", 1, "?to=a&deadline=60");
      await give(pere.url, "c", quick, "a", "failed");
      await receiver.have(1);
      const slow = await push(pere.url, "c", 2, "?to=a,b&deadline=60");
      await give(pere.url, "c", slow, "a", "done");
      clock.at += 61 * SECOND;
      await receiver.have(2);
      await give(pere.url, "c", slow, "b", "done"); // Late: it completes the event, which is over already.
      const withdrawn = await push(pere.url, "c", 3, "?to=a&deadline=60");
      await ask(`${pere.url}/events/c/${withdrawn}`, { method: "DELETE" });
      await receiver.have(3);
      const bodies = receiver.calls.map(({ body }) => body);
      expect(bodies.map(({ type, data }) => `${type} ${data.id}`)).toEqual(
        [quick, slow, withdrawn].map((id) => `pere.settled ${id}`),
      );
      expect(bodies.map(({ data }) => [data.complete, data.settled])).toEqual([
        [true, true],
        [false, true],
        [true, true],
      ]);
      expect(bodies[1].data.receipts).toEqual({ ...NOBODY, done: 1, missing: 1 });
    });
  });
}
