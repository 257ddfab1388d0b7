/**
 * What becomes of an event, and how its publisher knows: pushes that wait, deadlines, reminders, and the word that an event is complete.
 *
 * The services are real, and all is asked and heard over the wires. The clock is held: a test sets it forward and waits for what has to come of
 * that. What must not come is shown by something that comes after it. The cases don't know what the services keep their memory in: they are
 * given a way to start one, and where there are two the publisher is at one of them and the devices at the other.
 */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { once } from "node:events";
import { connect as dial } from "node:net";
import { EventSource } from "eventsource";
import type { EngineOptions } from "../../engine/engine.ts";
import { OWN, type Wire } from "../../engine/feeds/feed.ts";
import { iso } from "../../engine/model.ts";
import type { Service } from "../../index.ts";
import { chance, seed } from "../support/chance.ts";
import { type Answer, ask, connect, give, listen, push, type Stream, until } from "../support/harness.ts";

const T = Date.UTC(2026, 10, 22, 10);
const EMPTY = { feeds: 0, logs: 0, live: 0, present: 0, spokes: 0 };
const NOBODY = { pending: 0, received: 0, working: 0, done: 0, failed: 0, missing: 0 };
setDefaultTimeout(30_000);

/** How a service is started on the memory of one test. */
type Start = (options: EngineOptions) => Promise<Service>;

/** The services of one test, on one memory and by one clock. */
class Fleet implements AsyncDisposable {
  now = T;
  readonly #start: Start;
  readonly #count: number;
  readonly #options: EngineOptions;
  #services: Service[] = [];

  constructor(start: Start, count: number, options: EngineOptions) {
    this.#start = start;
    this.#count = count;
    this.#options = options;
  }

  async start(): Promise<this> {
    for (let n = 0; n < this.#count; n++)
      this.#services.push(await this.#start({ now: () => this.now, ...this.#options }));
    return this;
  }

  async stop(): Promise<void> {
    await Promise.all(this.#services.splice(0).map((service) => service.stop()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /** Where the publisher is. */
  get here(): Service {
    return this.#services[0]!;
  }
  /** Where the devices are. */
  get there(): Service {
    return this.#services.at(-1)!;
  }

  enrol(channel: string, ...devices: string[]): Promise<Answer[]> {
    return Promise.all(
      devices.map((device) => ask(`${this.there.url}/devices/${channel}/${device}`, { method: "PUT" })),
    );
  }
  retire(channel: string, device: string): Promise<Answer> {
    return ask(`${this.there.url}/devices/${channel}/${device}`, { method: "DELETE" });
  }
  push(channel: string, query = "", data: unknown = 1): Promise<string> {
    return push(this.here.url, channel, data, query);
  }
  /** A push that waits. */
  wait(channel: string, prefer: string, more: Parameters<typeof ask>[1] & { query?: string } = {}): Promise<Answer> {
    const { query = "", headers = {}, ...init } = more;
    return ask(`${this.here.url}/push/${channel}${query}`, {
      body: "1",
      ...init,
      headers: { Prefer: prefer, ...headers },
    });
  }
  /** Until so many channels have somebody who waits, or so many feeds are open where the publisher is. */
  async waiting(feeds = 1): Promise<void> {
    await until(() => this.here.engine.held.live === feeds);
  }
  give(channel: string, event: string, device: string, status: string): Promise<Answer> {
    return give(this.there.url, channel, event, device, status);
  }
  async state(channel: string, event: string): Promise<{ receipts: Record<string, number>; complete: boolean }> {
    return (await ask(`${this.here.url}/events/${channel}/${event}`)).body;
  }
  /** Every device's state on an event. */
  async rows(channel: string, event: string): Promise<Record<string, string>> {
    const { receipts } = (await ask(`${this.here.url}/events/${channel}/${event}/receipts?limit=1000`)).body;
    return Object.fromEntries(receipts.map((row: { device: string; status: string }) => [row.device, row.status]));
  }
  /** Everything in a channel's receipts log. */
  async told(channel: string, query = "?since=earliest"): Promise<Answer["body"]> {
    return (await poll(`${this.here.url}/feedback/${channel}${query}`)).body;
  }
  async missing(channel: string): Promise<string[]> {
    const { events } = await this.told(channel);
    return events.filter(({ status }: { status: string }) => status === "missing").map(deviceOf);
  }
  /** Listens for a device, where devices are. */
  device(channel: string, device: string, headers: Record<string, string> = {}): Promise<Stream> {
    return listen(`${this.there.url}/feed/${channel}?device=${device}`, headers);
  }
}

const poll = (url: string): Promise<Answer> => ask(url, { headers: { Accept: "application/json" } });
const deviceOf = ({ device }: { device: string }): string => device;
const dataOf = ({ data }: { data: string }): unknown => (JSON.parse(data) as { data: unknown }).data;
/** What came once more: frames without an id. */
const reminders = (stream: Stream): unknown[] => stream.events.filter(({ id }) => id === undefined).map(dataOf);
/** An id so many entries further. */
const shifted = (id: string, by: number): string => id.replace(/\d+$/, (seq) => String(Number(seq) + by));

/** A device that is reminded of an event of its own: when that has come, whatever else was due has come as well. */
async function control(fleet: Fleet, channel: string, seconds: number) {
  const stream = await fleet.device(channel, "control");
  await fleet.push(channel, `?to=control&remind=${seconds}`, "control");
  await stream.have(1);
  return {
    stream,
    /** Lets one interval pass. */
    async pass(): Promise<void> {
      const before = stream.events.length;
      fleet.now += seconds * 1000;
      await stream.have(before + 1);
    },
  };
}

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

/** All cases. @param count services at once @param fresh a new memory, with a way to start a service on it */
export function outcomes(name: string, count: 1 | 2, fresh: () => Promise<Start>): void {
  const open = async (options: EngineOptions = {}): Promise<Fleet> => new Fleet(await fresh(), count, options).start();

  describe(`${name}: a push that waits`, () => {
    test("is answered when every addressed device has given a final receipt, however that came in", async () => {
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

    test("is answered when the time is up, with what there is until then", async () => {
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

    test("no seconds is answered at once, with the tally as it is", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const { body, headers } = await fleet.wait("c", "wait=0");
      expect(headers.get("preference-applied")).toBe("wait");
      expect([body.complete, body.receipts]).toEqual([false, { ...NOBODY, pending: 1 }]);
    });

    test("for nobody is answered at once: it is complete", async () => {
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
    ])("is asked for by %s as well", async (prefer) => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const { status, body, headers } = await fleet.wait("c", prefer);
      expect([status, body.complete, headers.get("preference-applied")]).toEqual([201, false, "wait"]);
    });

    test("is not asked for by other preferences, which are left alone", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      for (const headers of [{}, { Prefer: 'respond-async, handling=lenient, waiting=5, x="wait=5"' }]) {
        const answer = await ask(`${fleet.here.url}/push/c`, { body: "1", headers: headers as Record<string, string> });
        expect([answer.status, answer.headers.get("preference-applied")]).toEqual([201, null]);
        expect(Object.keys(answer.body)).toEqual(["id", "channel", "seq", "at", "audience"]);
      }
    });

    test("too long, or for what is no time, is refused and stores nothing", async () => {
      await using fleet = await open();
      for (const prefer of ["wait=121", "wait=120.5", "wait=-1", "wait=1e1"])
        expect(`${prefer} ${(await fleet.wait("c", prefer)).status}`).toBe(`${prefer} 422`);
      for (const prefer of ["wait", "wait=", "wait=soon", "wait=5s", "respond-async, wait=x"])
        expect(`${prefer} ${(await fleet.wait("c", prefer)).status}`).toBe(`${prefer} 400`);
      expect((await ask(`${fleet.here.url}/events/c`)).status).toBe(404);
    });

    test("is answered when the last device that owes a word is retired", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const answer = fleet.wait("c", "wait=60");
      await fleet.waiting();
      const [{ id }] = (await ask(`${fleet.here.url}/events/c`)).body.events;
      await fleet.give("c", id, "a", "done");
      await fleet.retire("c", "b");
      expect((await answer).body).toMatchObject({ complete: true, receipts: { ...NOBODY, done: 1 } });
    });

    test("is not answered by a deadline, but by the late words after it", async () => {
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

    test("again, by its key, waits for the first time's events, also where some are complete already", async () => {
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

    test("and whose publisher hangs up, at any moment, leaves nothing behind", async () => {
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

    test("costs one cursor a channel: a thousand on one channel are all answered by their receipts", async () => {
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

    test("is answered by receipts, when the time is up or the service drains, also where there are as many feeds as may be", async () => {
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

    test("is one of so many that wait; one more is stored and answered at once, without an outcome", async () => {
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

    test("is answered with what there is when the service drains, also where it comes at the last moment", async () => {
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

    test("makes missing whoever owes a final word when it passes, once, and nobody else", async () => {
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

    test("that has not passed makes nobody missing", async () => {
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

    test("is told on an event stream, on a socket and to a long-poll, each device with an id of its own", async () => {
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
      expect(entries).toEqual(["a", "b"].map((device, n) => ({ id: stream.ids[n], device, ...word, late: false })));
      expect(new Set(stream.ids).size).toBe(2);
      await until(() => socket.messages.length === 3);
      expect(socket.messages.slice(1)).toEqual(entries);
      expect((await polled).body.events).toEqual(entries);
      stream.close();
      socket.socket.close();
    });

    test("that passed makes a later final word late; other words say nothing new", async () => {
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

    test("is not waited for until the next regular look where the clock runs on", async () => {
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

    test("of an event to a thousand devices makes each of them missing once, and of each of many events", async () => {
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

    test("and a time between reminders must be a time, and within bounds", async () => {
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

  describe(`${name}: a reminder`, () => {
    test("comes at each interval to a device that is connected and has said nothing, and to nobody else", async () => {
      await using fleet = await open();
      const names = ["silent", "received", "working", "done"];
      const streams = await Promise.all(names.map((device) => fleet.device("c", device)));
      const anonymous = await listen(`${fleet.there.url}/feed/c`);
      await fleet.enrol("c", "absent");
      const id = await fleet.push("c", "?remind=10&type=order", "it");
      await Promise.all([...streams, anonymous].map((stream) => stream.have(1)));
      for (const word of names.slice(1)) await fleet.give("c", id, word, word);
      const later = await fleet.device("c", "later");
      const { stream, pass } = await control(fleet, "c", 10);
      for (let n = 0; n < 3; n++) await pass();
      const marker = await fleet.push("c", "", "marker");
      for (const other of [...streams, anonymous, later]) await until(() => other.ids.includes(marker));
      const [silent, ...others] = streams.map(({ events }) => events.map(dataOf));
      expect(silent).toEqual(["it", "it", "it", "it", "marker"]);
      for (const other of others) expect(other).toEqual(["it", "marker"]);
      expect(anonymous.events.map(dataOf)).toEqual(["it", "marker"]);
      expect(later.events.map(dataOf)).toEqual(["marker"]);
      expect(streams[0]!.events[1]).toEqual({ ...streams[0]!.events[0]!, id: undefined });
      for (const each of [...streams, anonymous, later, stream]) each.close();
    });

    test("comes only when the interval is over, and once for several that have passed", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      await fleet.push("c", "?remind=60", "slow");
      const { stream: quick, pass } = await control(fleet, "c", 1);
      fleet.now = T + 58_000;
      await pass();
      expect(reminders(stream)).toEqual([]);
      fleet.now = T + 200_000;
      await until(() => reminders(stream).length === 1);
      await pass();
      expect(reminders(stream)).toEqual(["slow"]);
      fleet.now = T + 240_000;
      await until(() => reminders(stream).length === 2);
      for (const each of [stream, quick]) each.close();
    });

    test("has no id line, and leaves where its reader resumes as it was", async () => {
      await using fleet = await open();
      const source = new EventSource(`${fleet.there.url}/feed/c?device=a`);
      const came: { data: unknown; lastEventId: string }[] = [];
      source.onmessage = ({ data, lastEventId }) => came.push({ data: dataOf({ data }), lastEventId });
      await until(() => source.readyState === EventSource.OPEN);
      const stream = await fleet.device("c", "a");
      const first = await fleet.push("c", "?remind=10", "first");
      const second = await fleet.push("c", "?to=a", "second");
      await until(() => came.length === 2);
      fleet.now += 10_000;
      await until(() => came.length === 3);
      await stream.have(3);
      expect(came).toEqual([
        { data: "first", lastEventId: first },
        { data: "second", lastEventId: second },
        { data: "first", lastEventId: second },
      ]);
      expect(stream.raw).toMatch(/\n\ndata: [^\n]*"first"[^\n]*\n\n$/);
      source.close();
      stream.close();
      const third = await fleet.push("c", "", "third");
      const resumed = await fleet.device("c", "a", { "Last-Event-ID": came[2]!.lastEventId });
      await resumed.have(1);
      expect(resumed.ids).toEqual([third]);
      resumed.close();
    });

    test("comes on a socket as the event itself, and answers a long-poll that waits", async () => {
      await using fleet = await open();
      const { socket, messages } = await connect(`${fleet.there.url}/feed/c?device=a`);
      await fleet.enrol("c", "b");
      const id = await fleet.push("c", "?remind=10");
      const url = `${fleet.there.url}/feed/c?device=b`;
      const first = (await poll(url)).body;
      expect(first.last).toBe(id);
      const polled = poll(`${url}&last-event-id=${first.last}&wait=60`);
      await until(() => fleet.there.engine.held.present === 2);
      fleet.now += 10_000;
      expect((await polled).body).toEqual({ events: first.events, last: id });
      await until(() => messages.length === 3);
      expect(messages.slice(1)).toEqual([first.events[0], first.events[0]]);
      socket.close();
    });

    test("ends with any receipt, with the deadline, with the ttl, with the device's retirement, for that event alone", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      const retired = await fleet.device("c", "retired");
      const heard = await fleet.push("c", "?to=a&remind=10", "receipt");
      await fleet.push("c", "?to=a&remind=10&deadline=20", "deadline");
      await fleet.push("c", "?to=a&remind=10&ttl=20", "ttl");
      await fleet.push("c", "?to=retired&remind=10", "retired");
      await fleet.push("c", "?to=a&remind=10", "on and on");
      await stream.have(4);
      await retired.have(1);
      const { stream: other, pass } = await control(fleet, "c", 10);
      await pass();
      expect(reminders(stream)).toEqual(["receipt", "deadline", "ttl", "on and on"]);
      expect(reminders(retired)).toEqual(["retired"]);
      await fleet.give("c", heard, "a", "received");
      await fleet.retire("c", "retired");
      const back = await fleet.device("c", "retired");
      for (let n = 0; n < 3; n++) await pass();
      expect(reminders(stream).slice(4)).toEqual(["on and on", "on and on", "on and on"]);
      expect(reminders(retired)).toEqual(["retired"]);
      expect(back.events).toEqual([]);
      for (const each of [stream, back, other]) each.close();
    });

    test("goes on after a restart, and by the same clock", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c", "?remind=10", "it");
      await fleet.stop();
      fleet.now += 14_000;
      await fleet.start();
      const stream = await fleet.device("c", "a");
      expect((await stream.have(1)).map((event) => event.id)).toEqual([id]);
      const { stream: other, pass } = await control(fleet, "c", 1);
      for (let n = 0; n < 5; n++) await pass();
      expect(reminders(stream)).toEqual([]);
      await pass();
      expect(reminders(stream)).toEqual(["it"]);
      for (const each of [stream, other]) each.close();
    });

    test("comes also when the clock went back, an interval later at most", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      await fleet.push("c", "?remind=10");
      await stream.have(1);
      fleet.now += 24 * 3_600_000;
      await until(() => reminders(stream).length === 1);
      fleet.now = T + 1_000;
      const other = await fleet.device("d", "b");
      await fleet.push("d", "?remind=1");
      await other.have(1);
      fleet.now += 1_000;
      await until(() => reminders(other).length === 1);
      expect(reminders(stream)).toHaveLength(1);
      fleet.now = T + 10_000;
      await until(() => reminders(stream).length === 2);
      for (const each of [stream, other]) each.close();
    });

    test("of one of many channels on a feed leaves the places in all of them", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c,d", "a");
      await fleet.push("c", "?remind=10", "in c");
      await stream.have(1);
      await fleet.push("d", "", "in d");
      await stream.have(2);
      const place = stream.ids[1]!;
      fleet.now += 10_000;
      await stream.have(3);
      expect(reminders(stream)).toEqual(["in c"]);
      const next = await fleet.push("d", "", "more in d");
      await stream.have(4);
      expect(stream.ids[3]!.split(".").toSorted()).toEqual([...place.split(".").slice(0, 1), next].toSorted());
      stream.close();
      const again = await fleet.device("c,d", "a", { "Last-Event-ID": place });
      await again.have(1);
      expect(again.events.map(dataOf)).toEqual(["more in d"]);
      again.close();
    });

    test("comes on every feed of a device", async () => {
      await using fleet = await open();
      const streams = [await fleet.device("c", "a"), await fleet.device("c", "a"), await fleet.device("c,d", "a")];
      await fleet.push("c", "?remind=10", "it");
      await Promise.all(streams.map((stream) => stream.have(1)));
      fleet.now += 10_000;
      for (const stream of streams) {
        await stream.have(2);
        expect(reminders(stream)).toEqual(["it"]);
        stream.close();
      }
    });

    test("of many events at once lets others have their turn", async () => {
      await using fleet = await open();
      let turn = 0;
      let given = 0;
      const turns: number[] = [];
      const wire: Wire = {
        ready() {},
        write: (_channel, { entries }) => void (given += entries.length),
        remind: () => void turns.push(turn),
        gap() {},
        rest() {},
        beat() {},
        bye() {},
      };
      const request = { kind: "events", channels: ["c"], device: "a", last: null, since: "now" } as const;
      const feed = fleet.there.engine.follow({ ...OWN, ...request }, wire);
      await until(() => fleet.there.engine.held.live === 1);
      for (let n = 0; n < 3; n++)
        await ask(`${fleet.here.url}/push/c?remind=10`, { body: "1\n".repeat(1_000), type: "application/x-ndjson" });
      await until(() => given === 3_000);
      const count = (): void => void (turn++, feed.open && setImmediate(count));
      count();
      fleet.now += 10_000;
      await until(() => turns.length === 3_000);
      expect(new Set(turns).size).toBeGreaterThan(5);
      feed.stop();
    });

    test("does not go to a reader that is behind", async () => {
      await using fleet = await open();
      const told: string[] = [];
      const wire: Wire = {
        ready: () => void told.push("ready"),
        write: () => (told.push("write"), new Promise(() => {})),
        remind: () => void told.push("remind"),
        gap() {},
        rest() {},
        beat() {},
        bye() {},
      };
      const request = { kind: "events", channels: ["c"], device: "slow", last: null, since: "now" } as const;
      const feed = fleet.there.engine.follow({ ...OWN, ...request }, wire);
      await until(() => told.length === 1);
      await fleet.push("c", "?remind=10");
      await until(() => told.length === 2);
      const { stream, pass } = await control(fleet, "c", 10);
      for (let n = 0; n < 3; n++) await pass();
      expect(told).toEqual(["ready", "write"]);
      feed.stop();
      stream.close();
    });
  });

  describe(`${name}: that an event is complete`, () => {
    test("is told on an event stream right after the receipt that made it so, with an id of its own", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const stream = await listen(`${fleet.here.url}/feedback/c`);
      const id = await fleet.push("c");
      const next = await fleet.push("c", "?to=a");
      fleet.now += 1_000;
      await fleet.give("c", id, "a", "failed");
      await fleet.give("c", id, "b", "working");
      await fleet.give("c", id, "b", "done");
      await fleet.give("c", next, "a", "received");
      await stream.have(4);
      expect(stream.messages.map(({ event }) => event)).toEqual([
        "pere.ready",
        undefined,
        undefined,
        undefined,
        "pere.complete",
        undefined,
      ]);
      const { id: own, data } = stream.messages[4]!;
      expect(own).toBe(shifted(stream.messages[3]!.id!, 1));
      expect(JSON.parse(data)).toEqual({
        id: own,
        event: id,
        channel: "c",
        at: iso(fleet.now),
        receipts: { ...NOBODY, done: 1, failed: 1 },
        complete: true,
      });
      expect(stream.raw).toContain(`\n\nid: ${own}\nevent: pere.complete\ndata: ${data}\n\n`);
      stream.close();
    });

    test("is told on a socket, and beside the events of a long-poll; a receipt that completes nothing brings none", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const url = `${fleet.here.url}/feedback/c`;
      const { socket, messages } = await connect(url);
      const id = await fleet.push("c");
      await fleet.give("c", id, "a", "done");
      const half = await fleet.told("c");
      expect(Object.keys(half)).toEqual(["events", "last"]);
      const polled = poll(`${url}?last-event-id=${half.last}&wait=60`);
      await fleet.waiting(2);
      await fleet.give("c", id, "b", "done");
      const { events, complete, last } = (await polled).body;
      expect(events.map(deviceOf)).toEqual(["b"]);
      expect(last).toBe(shifted(events[0].id, 1));
      const said = { id: last, event: id, channel: "c", at: iso(T), receipts: { ...NOBODY, done: 2 }, complete: true };
      expect(complete).toEqual([said]);
      await until(() => messages.length === 4);
      expect(messages[1]).toMatchObject({ device: "a" });
      expect(messages.slice(2)).toEqual([events[0], { pere: "complete", ...said }]);
      socket.close();
    });

    test("is told to who resumes before it, and not again to who resumes after it", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c");
      await fleet.give("c", id, "a", "working");
      await fleet.give("c", id, "a", "done");
      const { events, last } = await fleet.told("c");
      const headers = (place: string) => ({ "Last-Event-ID": place });
      const before = await listen(`${fleet.here.url}/feedback/c`, headers(events[0].id));
      const after = await listen(`${fleet.here.url}/feedback/c`, headers(last));
      expect(await before.own("complete")).toMatchObject({ event: id, receipts: { done: 1 } });
      const next = await fleet.push("c");
      await fleet.give("c", next, "a", "done");
      expect(await after.own("complete")).toMatchObject({ event: next });
      await until(() => before.messages.length === 5);
      const names = (stream: Stream) => stream.messages.map(({ event }) => event);
      expect(names(before)).toEqual(["pere.ready", undefined, "pere.complete", undefined, "pere.complete"]);
      expect(names(after)).toEqual(["pere.ready", undefined, "pere.complete"]);
      for (const stream of [before, after]) stream.close();
    });

    test("is told to who was cut off between the last receipt and it, on every transport and on a feed of several channels", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c");
      await fleet.give("c", id, "a", "done");
      const { events, last } = await fleet.told("c");
      const url = `${fleet.here.url}/feedback`;
      const cut = events[0].id as string;
      const said = { event: id, channel: "c", receipts: { ...NOBODY, done: 1 }, complete: true };
      const stream = await listen(`${url}/c`, { "Last-Event-ID": cut });
      expect(await stream.own("complete")).toMatchObject(said);
      const { channels } = await (await listen(`${url}/d`)).own("ready");
      const both = await listen(`${url}/d,c`, { "Last-Event-ID": `${(channels as { d: string }).d}.${cut}` });
      expect(await both.own("complete")).toMatchObject(said);
      const socket = await connect(`${url}/c?last-event-id=${cut}`);
      const told = await until(() => socket.messages.find(({ pere }) => pere === "complete"));
      expect(told).toMatchObject({ ...said, id: last });
      expect(await fleet.told("c", `?last-event-id=${cut}&wait=50`)).toMatchObject({
        events: [],
        complete: [said],
        last,
      });

      // Where each of them stands now it is not told again: what comes next is the next thing that is said.
      const again = [
        await listen(`${url}/c`, { "Last-Event-ID": stream.messages.at(-1)!.id! }),
        await listen(`${url}/d,c`, { "Last-Event-ID": both.messages.at(-1)!.id! }),
      ];
      const socketAgain = await connect(`${url}/c?last-event-id=${told.id}`);
      expect(await fleet.told("c", `?last-event-id=${last}`)).toEqual({ events: [], last });
      const next = await fleet.push("c");
      await fleet.give("c", next, "a", "working");
      for (const each of again) {
        await each.have(1);
        expect(each.messages.map(({ event }) => event)).toEqual(["pere.ready", undefined]);
      }
      await until(() => socketAgain.messages.length === 2);
      expect(socketAgain.messages[1]).toMatchObject({ event: next, status: "working" });
      for (const each of [stream, both, ...again]) each.close();
      for (const each of [socket, socketAgain]) each.socket.close();
    });

    test("has an entry of its own when the last device that owed a word was retired, with an id to resume after", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const url = `${fleet.here.url}/feedback/c`;
      const [stream, socket] = [await listen(url), await connect(url)];
      const both = await listen(`${fleet.here.url}/feedback/c,d`);
      const id = await fleet.push("c");
      const other = await fleet.push("c", "?to=b,z");
      await fleet.give("c", id, "a", "done");
      await stream.have(1);
      const polled = poll(`${url}?last-event-id=${stream.ids[0]}&wait=60`);
      await fleet.waiting(5);
      await fleet.retire("c", "b");
      const own = shifted(stream.ids[0]!, 1);
      const said = { id: own, event: id, channel: "c", at: iso(T), receipts: { ...NOBODY, done: 1 }, complete: true };
      expect(await stream.own("complete")).toEqual(said);
      expect(stream.messages.at(-1)!.id).toBe(own);
      await both.own("complete");
      expect(both.messages.at(-1)!.id!.split(".")).toContain(own);
      expect((await polled).body).toEqual({ events: [], last: own, complete: [said] });
      await until(() => socket.messages.length === 3);
      expect(socket.messages[2]).toEqual({ pere: "complete", ...said });
      // Who resumes before it is told it again, who resumes after it is not.
      expect((await fleet.told("c", `?last-event-id=${stream.ids[0]}&wait=50`)).complete).toEqual([said]);
      expect(await fleet.told("c", `?last-event-id=${own}`)).toEqual({ events: [], last: own });
      // It is no word of the device's: the event is not its any more, and the other one waits for somebody else.
      expect(await fleet.rows("c", id)).toEqual({ a: "done" });
      expect(await fleet.rows("c", other)).toEqual({ z: "pending" });
      expect((await fleet.state("c", other)).complete).toBeFalse();
      for (const each of [stream, both]) each.close();
      socket.socket.close();
    });
  });

  test(`${name}: the states of the addressed devices add up to them at all times, whatever happens (SEED=${seed})`, async () => {
    await using fleet = await open();
    const random = chance(seed);
    const pick = <Item>(items: readonly Item[]): Item => items[Math.floor(random() * items.length)]!;
    const devices = ["a", "b", "c", "d", "e"];
    const words = ["received", "working", "done", "failed"];
    const ids: string[] = [];
    await fleet.enrol("c", ...devices.slice(0, 3));
    let isOver = false;
    let looks = 0;
    let recorded = 0;
    const look = async (): Promise<void> => {
      const { events = [] } = (await ask(`${fleet.here.url}/events/c?limit=1000`)).body;
      for (const { audience, receipts, complete } of events as Answer["body"][]) {
        const sum = Object.values(receipts as Record<string, number>).reduce((total, number) => total + number, 0);
        expect({ sum, ...receipts }).toEqual({ sum: audience.addressed, ...receipts });
        expect(Math.min(...(Object.values(receipts) as number[]))).toBeGreaterThanOrEqual(0);
        expect(complete).toBe(receipts.done + receipts.failed === audience.addressed);
      }
      looks++;
    };
    const looking = (async () => {
      while (!isOver) await look();
    })();
    // It goes on until enough was said and looked at, whatever the seed and the machine.
    for (let step = 0; step < 400 || recorded < 50 || looks < 10; step++) {
      const dice = random();
      if (ids.length === 0 || dice < 0.1)
        ids.push(await fleet.push("c", `?remind=1${pick(["", "&deadline=2", "&deadline=20", "&to=a,e"])}`));
      else if (dice < 0.75) {
        const receipts = Array.from({ length: 1 + Math.floor(random() * 8) }, () => ({
          event: pick(ids),
          device: pick(devices),
          status: pick(words),
        }));
        recorded += (await ask(`${fleet.there.url}/feedback/c`, { body: receipts })).body.recorded;
      } else if (dice < 0.85) await fleet.enrol("c", pick(devices));
      else if (dice < 0.93) await fleet.retire("c", pick(devices));
      else fleet.now += 1_000;
    }
    fleet.now += 20_000;
    const marker = await fleet.push("c", "?deadline=1&to=marker");
    fleet.now += 1_000;
    await until(async () => (await fleet.state("c", marker)).receipts.missing === 1);
    isOver = true;
    await looking;
    await look();
    // The rows say the same as the tallies, and each device is missing once an event at most.
    for (const id of ids) {
      const { receipts } = await fleet.state("c", id);
      const counted: Record<string, number> = { ...NOBODY };
      for (const state of Object.values(await fleet.rows("c", id))) counted[state]!++;
      expect(receipts).toEqual(counted);
    }
    const { events } = await fleet.told("c");
    const complete = (await fleet.told("c")).complete ?? [];
    const completed = complete.map(({ event }: { event: string }) => event);
    expect(new Set(completed).size).toBe(completed.length);
    for (const id of ids) {
      const { complete: isComplete, receipts } = await fleet.state("c", id);
      if (isComplete && receipts.done! + receipts.failed! > 0) expect(completed).toContain(id);
    }
    expect(events.filter(({ status }: { status: string }) => status !== "missing")).toHaveLength(recorded);
  });
}
