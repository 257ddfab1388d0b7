/**
 * A push that waits for its outcome: when it is answered, with what, and what it costs.
 */
import { describe, expect, test } from "bun:test";
import { once } from "node:events";
import { connect as dial } from "node:net";
import { iso } from "../../engine/model.ts";
import { type Answer, ask, connect, until } from "../support/harness.ts";
import { NOBODY, type Open, T } from "./fleet.ts";

const EMPTY = { feeds: 0, logs: 0, live: 0, present: 0, spokes: 0 };

const waitingRequest = (host: string, path: string): string =>
  `POST ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\nPrefer: wait=120\r\n` +
  "Content-Type: application/json\r\nContent-Length: 1\r\n\r\n1";

/** A push that waits, on a connection of its own: `fetch` opens only 256 at once. */
function pushAlone(url: string, path: string): Promise<Answer["body"]> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    let answer = "";
    const socket = dial(Number(port), hostname, () => socket.write(waitingRequest(hostname, path)));
    socket.on("data", (chunk) => void (answer += chunk.toString()));
    socket.on("error", reject);
    socket.on("close", () => {
      const status = Number(answer.slice(9, 12));
      if (status === 201) resolve(JSON.parse(answer.slice(answer.indexOf("\r\n\r\n"))));
      else reject(new Error(answer === "" ? "no answer" : answer));
    });
  });
}

export function waitingPushCases(name: string, open: Open): void {
  describe(`${name}: a push that waits`, () => {
    test("is answered when every addressed device has sent a final receipt, by any transport", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "by-http", "by-form", "by-socket");
      const { socket, messages } = await connect(`${fleet.there.url}/feed/c?device=by-socket`);
      let isAnswered = false;
      const answer = fleet.wait("c", "wait=60").finally(() => (isAnswered = true));
      const { id } = await until(() => messages.find(({ id }) => id));
      await fleet.give("c", id, "by-http", "received");
      await fleet.give("c", id, "by-http", "done");
      await ask(`${fleet.there.url}/feedback/c`, {
        body: `id=${id}&device=by-form&status=rx+ok`,
        type: "application/x-www-form-urlencoded",
      });
      expect(isAnswered).toBeFalse();
      socket.send(JSON.stringify({ event: id, status: "failed" }));
      const { status, body, headers } = await answer;
      expect([status, headers.get("preference-applied")]).toEqual([201, "wait"]);
      expect(headers.get("location")).toBe(`/events/c/${id}`);
      expect(body).toMatchObject({ id, channel: "c", seq: 1, at: iso(T), audience: { addressed: 3 }, complete: true });
      expect(body.receipts).toEqual({ ...NOBODY, done: 2, failed: 1 });
      socket.close();
    });

    test("is answered when the time is up, with the current tally", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b", "silent");
      const from = performance.now();
      const answer = fleet.wait("c", "wait=3");
      const { id } = await until(async () => (await ask(`${fleet.here.url}/events/c`)).body.events?.[0]);
      await fleet.give("c", id, "a", "done");
      await fleet.give("c", id, "b", "working");
      const { status, body } = await answer;
      expect(performance.now() - from).toBeGreaterThanOrEqual(3_000);
      expect([status, body.complete]).toEqual([201, false]);
      expect(body.receipts).toEqual({ ...NOBODY, pending: 1, working: 1, done: 1 });
      await until(() => Bun.deepEquals(fleet.here.engine.held, EMPTY));
    });

    test("of zero seconds is answered at once, with the current tally", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const { body, headers } = await fleet.wait("c", "wait=0");
      expect(headers.get("preference-applied")).toBe("wait");
      expect([body.complete, body.receipts]).toEqual([false, { ...NOBODY, pending: 1 }]);
    });

    test("for no device is answered at once: it is complete", async () => {
      await using fleet = await open();
      const { body } = await fleet.wait("c", "wait=120");
      expect([body.audience.addressed, body.complete, body.receipts]).toEqual([0, true, NOBODY]);
    });

    test.each([
      "respond-async, wait=0",
      "WAIT=0",
      'wait="0"',
      "wait = 0; x=1",
      'x="wait=7, wait=no", wait=0',
      "wait=0, wait=9",
    ])("is also requested by %s", async (prefer) => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const { status, body, headers } = await fleet.wait("c", prefer);
      expect([status, body.complete, headers.get("preference-applied")]).toEqual([201, false, "wait"]);
    });

    test("is not requested by other preferences, which are ignored", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      for (const headers of [{}, { Prefer: 'respond-async, handling=lenient, waiting=5, x="wait=5"' }]) {
        const answer = await ask(`${fleet.here.url}/push/c`, { body: "1", headers: headers as Record<string, string> });
        expect([answer.status, answer.headers.get("preference-applied")]).toEqual([201, null]);
        expect(Object.keys(answer.body)).toEqual(["id", "channel", "seq", "at", "audience"]);
      }
    });

    test("with an invalid or too long time is refused and stores nothing", async () => {
      await using fleet = await open();
      for (const prefer of ["wait=121", "wait=120.5", "wait=-1", "wait=1e1"])
        expect(`${prefer} ${(await fleet.wait("c", prefer)).status}`).toBe(`${prefer} 422`);
      for (const prefer of ["wait", "wait=", "wait=soon", "wait=5s", "respond-async, wait=x"])
        expect(`${prefer} ${(await fleet.wait("c", prefer)).status}`).toBe(`${prefer} 400`);
      expect((await ask(`${fleet.here.url}/events/c`)).status).toBe(404);
    });

    test("is answered when the last device that owes a receipt is retired", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const answer = fleet.wait("c", "wait=60");
      await fleet.waiting();
      const [{ id }] = (await ask(`${fleet.here.url}/events/c`)).body.events;
      await fleet.give("c", id, "a", "done");
      await fleet.retire("c", "b");
      expect((await answer).body).toMatchObject({ complete: true, receipts: { ...NOBODY, done: 1 } });
    });

    test("is not answered by a deadline, but by the late receipts after it", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const answer = fleet.wait("c", "wait=60", { query: "?deadline=5" });
      await fleet.waiting();
      fleet.now += 5_000;
      await until(async () => (await fleet.missing("c")).length === 1);
      const [{ id }] = (await ask(`${fleet.here.url}/events/c`)).body.events;
      await fleet.give("c", id, "a", "done");
      expect((await answer).body).toMatchObject({ complete: true, receipts: { ...NOBODY, done: 1 } });
    });

    test("for many events is answered with the outcome of each, when all are complete", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const lines = { body: "1\n2\n3\n", type: "application/x-ndjson" };
      const partly = fleet.wait("c", "wait=3", lines);
      const second = await until(async () => (await ask(`${fleet.here.url}/events/c`)).body.events?.[1]);
      await fleet.give("c", second.id, "a", "done");
      const { body } = await partly;
      expect(body.events.map(({ seq, complete }: { seq: number; complete: boolean }) => [seq, complete])).toEqual([
        [1, false],
        [2, true],
        [3, false],
      ]);
      expect(body.events[0].receipts).toEqual({ ...NOBODY, pending: 1 });
      const all = fleet.wait("c", "wait=60", lines);
      await fleet.waiting();
      const last = (await ask(`${fleet.here.url}/events/c`)).body.events.slice(3) as { id: string }[];
      for (const [n, { id }] of last.entries()) await fleet.give("c", id, "a", n === 1 ? "failed" : "done");
      const whole = (await all).body.events as { receipts: object; complete: boolean }[];
      expect(whole.map(({ receipts, complete }) => [receipts, complete])).toEqual(
        ["done", "failed", "done"].map((word) => [{ ...NOBODY, [word]: 1 }, true]),
      );
    });

    test("repeated with its key waits for the first call's events, also if some are complete already", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const keyed = { body: "1\n2\n", type: "application/x-ndjson", headers: { "Idempotency-Key": "k" } };
      const [first, second] = (await fleet.wait("c", "wait=0", keyed)).body.events as { id: string }[];
      await fleet.give("c", first!.id, "a", "done");
      const again = fleet.wait("c", "wait=60", keyed);
      await fleet.waiting();
      await fleet.give("c", second!.id, "a", "done");
      for (const answer of [await again, await fleet.wait("c", "wait=60", keyed)]) {
        expect([answer.status, answer.headers.get("idempotent-replayed")]).toEqual([200, "true"]);
        expect(answer.body.events).toMatchObject([
          { id: first!.id, complete: true },
          { id: second!.id, complete: true, receipts: { done: 1 } },
        ]);
      }
    });

    test("whose publisher disconnects at any moment leaves nothing behind", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const hangingUp = Array.from({ length: 60 }, async (_, n) => {
        const abort = new AbortController();
        const answer = fetch(`${fleet.here.url}/push/c`, {
          method: "POST",
          body: "1",
          headers: { "Content-Type": "application/json", Prefer: "wait=120" },
          signal: abort.signal,
        });
        for (let turn = 0; turn < n; turn++) await new Promise((resolve) => setImmediate(resolve));
        abort.abort();
        await answer.catch(() => {});
      });
      await Promise.all(hangingUp);
      // These have said all, and are gone before it was read.
      await Promise.all(
        Array.from({ length: 20 }, async () => {
          const { hostname, port } = new URL(fleet.here.url);
          const socket = dial(Number(port), hostname);
          await once(socket, "connect");
          socket.write(waitingRequest(hostname, "/push/c"));
          socket.destroy();
        }),
      );
      // This one was surely waiting.
      const { url } = fleet.here;
      const abort = new AbortController();
      const headers = { "Content-Type": "application/json", Prefer: "wait=120" };
      const last = fetch(`${url}/push/d?to=a`, { method: "POST", body: "1", headers, signal: abort.signal });
      await until(async () => (await ask(`${url}/events/d`)).status === 200 && fleet.here.engine.held.live > 0);
      abort.abort();
      await last.catch(() => {});
      await until(
        () => Bun.deepEquals(fleet.here.engine.held, EMPTY),
        () => `nothing to be held; held are ${JSON.stringify(fleet.here.engine.held)}`,
      );
      // What was stored stays so.
      expect((await ask(`${url}/events/d`)).body.events).toHaveLength(1);
    });

    test("costs one cursor per channel: a thousand on one channel are all answered by their receipts", async () => {
      await using fleet = await open();
      const answers = Array.from({ length: 1_000 }, () => pushAlone(fleet.here.url, "/push/c?to=a"));
      const events = await until(async () => {
        const page = (await ask(`${fleet.here.url}/events/c?limit=1000`)).body.events as { id: string }[] | undefined;
        return page?.length === 1_000 && page;
      });
      await fleet.waiting();
      expect(fleet.here.engine.held.feeds).toBe(1);
      const receipts = events.map(({ id }) => ({ event: id, device: "a", status: "done" }));
      expect((await ask(`${fleet.there.url}/feedback/c`, { body: receipts })).body.recorded).toBe(1_000);
      const given = await Promise.all(answers);
      expect(given.filter(({ complete, receipts }) => complete && receipts.done === 1)).toHaveLength(1_000);
      expect(new Set(given.map(({ id }) => id))).toEqual(new Set(events.map(({ id }) => id)));
      await until(() => Bun.deepEquals(fleet.here.engine.held, EMPTY));
    });

    test("does not wait for others: a thousand on a thousand channels are each answered by their own receipt", async () => {
      await using fleet = await open();
      const channels = Array.from({ length: 1_000 }, (_, n) => `c${n}`);
      const answers = channels.map((channel) => pushAlone(fleet.here.url, `/push/${channel}?to=a`));
      await fleet.waiting(1_000);
      await Promise.all(
        channels.map(async (channel) => {
          const [{ id }] = (await ask(`${fleet.there.url}/events/${channel}`)).body.events;
          await fleet.give(channel, id, "a", "done");
        }),
      );
      const given = await Promise.all(answers);
      expect(given.map(({ channel }) => channel)).toEqual(channels);
      expect(given.filter(({ complete }) => complete)).toHaveLength(1_000);
      await until(() => Bun.deepEquals(fleet.here.engine.held, EMPTY));
    });

    test("is answered by receipts, at its timeout or by a drain, also at the maximum number of feeds", async () => {
      await using fleet = await open({ limits: { feeds: 0 } });
      await fleet.enrol("c", "a");
      const pushed = (count: number) =>
        until(async () => {
          const found = (await ask(`${fleet.here.url}/events/c`)).body.events as { id: string }[];
          return found.length === count && found;
        });
      const answered = fleet.wait("c", "wait=120");
      await fleet.waiting();
      await fleet.give("c", (await pushed(1))[0]!.id, "a", "done");
      expect((await answered).body).toMatchObject({ complete: true, receipts: { ...NOBODY, done: 1 } });
      const [short, long] = [fleet.wait("c", "wait=3.1"), fleet.wait("c", "wait=120")];
      for (const { id } of await pushed(3)) await fleet.give("c", id, "a", "received");
      const pending = { ...NOBODY, received: 1 };
      expect((await short).body).toMatchObject({ complete: false, receipts: pending });
      const stopped = fleet.stop();
      expect((await long).body).toMatchObject({ complete: false, receipts: pending });
      await stopped;
    });

    test("beyond the maximum number is stored and answered at once, without an outcome", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      // By its key a push waits for the first time's events: a thousand, two hundred times.
      const headers = { "Idempotency-Key": "k" };
      const batch = { body: "1\n".repeat(1_000), type: "application/x-ndjson", headers };
      const waiting: Promise<Answer>[] = [];
      // One after the other: all at once would keep the service from hearing its store.
      for (let n = 0; n < 200; n++) {
        waiting.push(fleet.wait("c", "wait=120", batch));
        await ask(`${fleet.here.url}/channels`);
      }
      const { status, body } = await until(async () => {
        const answer = await fleet.wait("c", "wait=0");
        return answer.status === 201 && !answer.headers.has("preference-applied") && answer;
      });
      expect([status, body.receipts]).toEqual([201, undefined]);
      expect((await fleet.state("c", body.id)).receipts).toEqual({ ...NOBODY, pending: 1 });
      const stopped = fleet.stop();
      for (const answer of waiting) expect((await answer).body.events).toHaveLength(1_000);
      await stopped;
    });

    test("is answered with the current tally when the service drains, also if it arrives at the last moment", async () => {
      const draining = Array.from({ length: 12 }, async (_, turns) => {
        await using fleet = await open();
        await fleet.enrol("c", "a");
        const waiting = fleet.wait("c", "wait=120");
        await fleet.waiting();
        const late = fleet.wait("c", "wait=120");
        for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
        await fleet.here.engine.drain();
        const { status, body } = await waiting;
        expect([status, body.complete, body.receipts]).toEqual([201, false, { ...NOBODY, pending: 1 }]);
        const last = await late;
        expect(last.status === 503 || last.body.complete === false).toBeTrue();
        await until(() => Bun.deepEquals(fleet.here.engine.held, EMPTY));
      });
      await Promise.all(draining);
    });
  });
}
