/**
 * What hooks promise on any memory, as cases that take a world: one memory, in which services are started, one after the other or together.
 *
 * Receivers are real ones on loopback, which only the tests' own PERE_HOOKS_ALLOW lets through, and each holds every call to what the
 * reference verifier of Standard Webhooks says. The clock is held where the schedule is walked through.
 */
import { describe, expect, setSystemTime, spyOn, test } from "bun:test";
import { Webhook } from "standardwebhooks";
import type { EngineOptions } from "../../engine/engine.ts";
import { readRanges } from "../../engine/addresses.ts";
import { makeSecret } from "../../engine/hooks/call.ts";
import { PereError } from "../../engine/model.ts";
import type { Service } from "../../index.ts";
import { type Answer, ask, give, type Process, push, spawn, until } from "../support/harness.ts";
import { lastingPort } from "../support/ports.ts";

/** One memory. A service that is started in it finds what was left by the one before. */
export interface World {
  start(options?: EngineOptions): Promise<Service>;
  /** What a process of its own needs to know to find the memory. */
  readonly env: Record<string, string>;
}

export const LOOPBACK = readRanges("127.0.0.0/8");
const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
/** Standard Webhooks' schedule after the first try. */
const WAITS = [5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR];

// --------------------------------------------------------------------------------------------------------------- receivers

/** One call as it came. */
export interface Call {
  readonly id: string;
  readonly at: number;
  readonly text: string;
  readonly signatures: readonly string[];
  /** Looked at field by field; a wrong one fails the test. */
  readonly body: any;
}

type Behaviour = (call: Call, count: number) => Response | Promise<Response>;

export const well: Behaviour = () => new Response("ok");
export const failing: Behaviour = () => new Response("no", { status: 500 });
const never: Behaviour = () => new Promise<Response>(() => {});

/** Where a publisher is called. It verifies whatever comes. */
export class Receiver {
  readonly calls: Call[] = [];
  readonly secret: string;
  readonly url: string;
  behaviour: Behaviour;
  /** What the reference verifier did not take. */
  readonly wrong: string[] = [];
  readonly #server: Bun.Server<undefined>;

  constructor(behaviour: Behaviour = well, secret = makeSecret(), port = 0) {
    this.behaviour = behaviour;
    this.secret = secret;
    this.#server = Bun.serve({
      hostname: "127.0.0.1",
      port,
      idleTimeout: 0,
      fetch: (request) => this.#take(request),
    });
    this.url = `http://127.0.0.1:${this.#server.port}/hook`;
    opened.push(this);
  }

  async #take(request: Request): Promise<Response> {
    const text = await request.text();
    const headers = Object.fromEntries(request.headers);
    const at = Number(headers["webhook-timestamp"]) * SECOND;
    try {
      if (request.method !== "POST" || headers["content-type"] !== "application/json") throw new Error("not its form");
      setSystemTime(new Date(at)); // The verifier refuses what is older than five minutes; the service's clock may be held.
      new Webhook(this.secret).verify(text, headers);
    } catch (error) {
      this.wrong.push(String(error));
    } finally {
      setSystemTime();
    }
    const call = {
      id: headers["webhook-id"]!,
      at,
      text,
      signatures: headers["webhook-signature"]!.split(" "),
      body: JSON.parse(text),
    };
    this.calls.push(call);
    return this.behaviour(call, this.calls.length);
  }

  /** Waits until it was called so often. */
  async have(count: number): Promise<Call[]> {
    await until(
      () => this.calls.length >= count,
      () => `${count} calls; came: ${this.calls.map(({ text }) => text.slice(0, 300)).join("\n")}`,
    );
    return this.calls;
  }

  /** Its receipts as `device status`, in the order in which they came. */
  get receipts(): string[] {
    return this.calls
      .filter(({ body }) => body.type === "pere.receipt" || body.type === "pere.missing")
      .flatMap(
        ({ body }) => body.data.receipts.map((receipt: any) => `${receipt.device} ${receipt.status}`) as string[],
      );
  }

  /** Waits until each of these came at least once. */
  async hear(receipts: readonly string[]): Promise<void> {
    const missing = (): string[] => {
      const heard = new Set(this.receipts);
      return receipts.filter((receipt) => !heard.has(receipt));
    };
    await until(
      () => missing().length === 0,
      () =>
        `${missing().length} receipts, as ${missing()[0]}; came: ${this.receipts.length} in ${this.calls.length} calls`,
    );
  }

  close(): Promise<void> {
    return this.#server.stop(true);
  }
}

/** A door that calls wait at. */
export function door() {
  const { promise, resolve } = Promise.withResolvers<Response>();
  return {
    behaviour: (() => promise.then((response) => response.clone())) as Behaviour,
    open: (response = new Response("ok")) => resolve(response),
  };
}

const opened: Receiver[] = [];
export const services: { stop(): Promise<unknown> }[] = [];
/** After each test: closes what it opened, and holds that every call was signed. */
export async function tidyUp(): Promise<void> {
  const wrong = opened.flatMap((receiver) => receiver.wrong);
  await Promise.all(opened.splice(0).map((receiver) => receiver.close()));
  await Promise.all(services.splice(0).map((service) => service.stop()));
  expect(wrong).toEqual([]);
}

// ------------------------------------------------------------------------------------------------------------------ asking

export const hookUrl = (url: string, name = "h", channel = "c"): string => `${url}/hooks/${channel}/${name}`;

const put = (url: string, body: unknown, name = "h", channel = "c"): Promise<Answer> =>
  ask(hookUrl(url, name, channel), { method: "PUT", body });

/** Has a receiver called. */
export async function hook(
  url: string,
  receiver: Receiver,
  more: object = {},
  name = "h",
  channel = "c",
): Promise<void> {
  const answer = await put(url, { url: receiver.url, secret: receiver.secret, ...more }, name, channel);
  if (answer.status !== 201 && answer.status !== 200) throw new Error(`put: ${answer.status} ${answer.text}`);
}

const list = async (url: string, channel = "c"): Promise<any[]> => (await ask(`${url}/hooks/${channel}`)).body.hooks;
/** The hook `h`, as listed. */
export const listed = async (url: string): Promise<any> => (await list(url)).find(({ name }) => name === "h");
/** Waits until the hook is through with so many entries of the receipts log. */
export const reached = (url: string, seq: number): Promise<unknown> =>
  until(
    async () => (await listed(url)).position.endsWith(`-${seq}`),
    () => `position ${seq}`,
  );

export const names = (count: number, from = 0): string[] => Array.from({ length: count }, (_, n) => `d${from + n}`);

/** One event to many devices, who all give one receipt, in one request. Gives what they said. */
export async function receive(
  url: string,
  devices: readonly string[],
  status = "received",
  channel = "c",
): Promise<string[]> {
  const event = await push(url, channel, 1, `?to=${devices.join(",")}`);
  const answer = await ask(`${url}/feedback/${channel}`, {
    body: devices.map((device) => ({ event, device, status })),
  });
  if (answer.body.recorded !== devices.length) throw new Error(`feedback: ${answer.status} ${answer.text}`);
  return devices.map((device) => `${device} ${status}`);
}

/** A clock that stands still until it is moved. */
export function heldClock() {
  const clock = { at: Date.UTC(2026, 10, 22, 10), now: () => clock.at };
  return clock;
}

// ------------------------------------------------------------------------------------------------------------------- cases

/** Registers the cases, in a file that calls `tidyUp` after each test. */
export function hookCases(name: string, makeWorld: () => World): void {
  const begin = async (world: World, options: EngineOptions = {}): Promise<Service> => {
    const service = await world.start({ hooksAllowed: LOOPBACK, ...options });
    services.push(service);
    return service;
  };
  const end = async (service: Service): Promise<void> => {
    services.splice(services.indexOf(service), 1);
    await service.stop();
  };

  describe(`${name}: a hook`, () => {
    test("is stored, listed, changed and removed", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      const first = await put(pere.url, { url: receiver.url });
      expect(first.status).toBe(201);
      const { secret, ...shown } = first.body;
      expect(secret).toMatch(/^whsec_/);
      expect(shown).toEqual({
        ...{ channel: "c", name: "h", url: receiver.url, on: ["receipt", "complete", "missing"] },
        ...{ createdAt: expect.stringMatching(/^\d{4}-.*Z$/), disabled: null },
      });
      const again = await put(pere.url, { url: `${receiver.url}?new`, on: ["missing", "receipt", "missing"] });
      expect(again.status).toBe(200);
      expect(again.body).toEqual({ ...shown, url: `${receiver.url}?new`, on: ["receipt", "missing"] });
      expect(await list(pere.url)).toEqual([
        { ...again.body, position: expect.stringMatching(/^[0-9a-z]+-0$/), retrying: [], failed: [] },
      ]);
      expect((await ask(hookUrl(pere.url), { method: "DELETE" })).status).toBe(204);
      expect(await list(pere.url)).toEqual([]);
      expect((await ask(hookUrl(pere.url), { method: "DELETE" })).status).toBe(404);
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).status).toBe(404);
    });

    test("has a secret that is shown once, when it was made here, and never again", async () => {
      const pere = await begin(makeWorld());
      const made = (await put(pere.url, { url: "http://127.0.0.1:1/" })).body.secret as string;
      const own = makeSecret();
      const texts = [
        (await put(pere.url, { url: "http://127.0.0.1:1/" })).text,
        (await put(pere.url, { url: "http://127.0.0.1:1/", secret: own }, "own")).text,
        (await put(pere.url, { url: "http://127.0.0.1:1/", secret: null }, "own")).text,
        (await ask(`${pere.url}/hooks/c`)).text,
      ].join();
      expect(texts).toContain('"name":"own"');
      expect(texts).not.toContain("whsec_");
      expect(texts).not.toContain(made.slice(6));
      expect(texts).not.toContain(own.slice(6));

      // A hook that is stored again without a secret keeps its own: the receiver verifies with the first.
      const receiver = new Receiver(well, made);
      await put(pere.url, { url: receiver.url });
      await receive(pere.url, ["d"]);
      expect((await receiver.have(1))[0]!.body.type).toBe("pere.receipt");
    });

    const fine = { url: "http://127.0.0.1:1/" };
    test.each([
      [{ body: "{" }, 400, "body"],
      [{ body: "[]" }, 400, "body"],
      [{ body: "null" }, 400, "body"],
      [{ body: {} }, 400, "url"],
      [{ body: { url: "ftp://shop.example/" } }, 400, "url"],
      [{ body: { url: "/hook" } }, 400, "url"],
      [{ body: { url: 1 } }, 400, "url"],
      [{ body: { ...fine, on: [] } }, 400, "on"],
      [{ body: { ...fine, on: "receipt" } }, 400, "on"],
      [{ body: { ...fine, on: ["receipts"] } }, 400, "on"],
      [{ body: { ...fine, secret: "password" } }, 400, "secret"],
      [{ body: { ...fine, secret: 1 } }, 400, "secret"],
      [{ body: { ...fine, events: ["receipt"] } }, 400, "events"],
      [{ body: fine, name: "-x" }, 400, "name"],
      [{ body: fine, channel: "-x" }, 400, "channel"],
      [{ body: new Uint8Array([0x22, 0xff, 0x22]) }, 400, "body"],
      [{ body: { url: `http://127.0.0.1/${"x".repeat(2_048)}` } }, 422, "url"],
      [{ body: { url: "http://user:password@127.0.0.1/" } }, 422, "url"],
      [{ body: { ...fine, secret: "x".repeat(9_000) } }, 413, null],
      [{ body: fine, type: "text/plain" }, 415, null],
    ] as const)("%j is answered %d, naming %s", async (asked, status, path) => {
      const pere = await begin(makeWorld());
      const { body, name: named = "h", channel = "c", type } = asked as Record<string, any>;
      const answer = await ask(hookUrl(pere.url, named, channel), { method: "PUT", body, ...(type ? { type } : {}) });
      expect(`${answer.status} ${answer.text}`).toStartWith(`${status} `);
      expect(answer.headers.get("content-type")).toBe("application/problem+json");
      expect(answer.body.errors?.[0].path ?? null).toBe(path);
      expect(await list(pere.url)).toEqual([]);
    });

    test("may call no private address, however it is written, unless the operator allowed it", async () => {
      const pere = await begin(makeWorld(), {
        hooksAllowed: [],
        hookCall: { resolve: async (host) => (host === "inside.example" ? ["93.184.216.34", "10.0.0.1"] : []) },
      });
      for (const host of [
        ...[
          "127.0.0.1",
          "localhost",
          "localhost.",
          "pere.localhost",
          "2130706433",
          "0x7f000001",
          "0177.0.0.1",
          "127.1",
        ],
        ...["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255"],
        ...["[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]"],
        ...["[2002:7f00:1::]", "[::127.0.0.1]", "inside.example", "nowhere.example"],
      ]) {
        const answer = await put(pere.url, { url: `http://${host}:${new URL(pere.url).port}/hooks/c` });
        expect(`${host} ${answer.status} ${answer.body.errors?.[0].path}`).toBe(`${host} 422 url`);
      }
      expect(await list(pere.url)).toEqual([]);
    });

    test("is one of at most 16 of its channel", async () => {
      const pere = await begin(makeWorld());
      for (let n = 0; n < 16; n++) expect((await put(pere.url, fine, `h${n}`)).status).toBe(201);
      const answer = await put(pere.url, fine, "h16");
      expect([answer.status, answer.body.type]).toEqual([422, "urn:pere:refused"]);
      expect((await put(pere.url, fine, "h7")).status).toBe(200);
      expect((await put(pere.url, fine, "h16", "other")).status).toBe(201);
      expect((await list(pere.url)).map((known) => known.name)).toEqual(
        Array.from({ length: 16 }, (_, n) => `h${n}`).sort(),
      );
    });
  });

  describe(`${name}: a call`, () => {
    test("says what devices said, as the feed of receipts has it", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now });
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      const event = await push(pere.url, "c", { order: 1 }, "?to=till-7,till-8");
      await give(pere.url, "c", event, "till-7", "done", { detail: { printed: 1e400 }, at: "2026-11-22T09:59:58Z" });
      const [call] = await receiver.have(1);
      const feed = await ask(`${pere.url}/feedback/c?since=earliest`, { headers: { Accept: "application/json" } });
      const at = new Date(clock.at).toISOString();
      expect(call!.body).toEqual({
        type: "pere.receipt",
        timestamp: at,
        data: { channel: "c", receipts: feed.body.events },
      });
      expect(call!.id).toMatch(/^msg_[A-Za-z0-9_-]{27}$/);
      expect(call!.at).toBe(clock.at);
    });

    test("holds at most 100 receipts, in order, and each comes once", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      const said = await receive(pere.url, names(950));
      await receiver.hear(said);
      await reached(pere.url, 950);
      expect(receiver.receipts).toEqual(said);
      expect(Math.max(...receiver.calls.map(({ body }) => body.data.receipts.length))).toBe(100);
      expect(new Set(receiver.calls.map(({ id }) => id)).size).toBe(receiver.calls.length);
    });

    test("is not larger for long details", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      const devices = names(200);
      const event = await push(pere.url, "c", 1, `?to=${devices.join(",")}`);
      const detail = "x".repeat(4_000);
      await ask(`${pere.url}/feedback/c`, {
        body: devices.map((device) => ({ event, device, status: "working", detail })),
      });
      await receiver.hear(devices.map((device) => `${device} working`));
      for (const { text } of receiver.calls) expect(text.length).toBeLessThan(70_000);
    });

    test("goes to every hook of the channel that asked for it, and to no other", async () => {
      const pere = await begin(makeWorld());
      const [receipts, complete, missing, elsewhere] = [new Receiver(), new Receiver(), new Receiver(), new Receiver()];
      await hook(pere.url, receipts, { on: ["receipt"] }, "a");
      await hook(pere.url, complete, { on: ["complete"] }, "b");
      await hook(pere.url, missing, { on: ["missing"] }, "h");
      await hook(pere.url, elsewhere, {}, "h", "other");
      const event = await push(pere.url, "c", 1, "?to=d");
      for (const status of ["received", "working", "done"]) await give(pere.url, "c", event, "d", status);
      await receive(pere.url, ["e"], "done", "other");
      await receipts.hear(["d done"]);
      await complete.have(1);
      await elsewhere.have(2);
      await reached(pere.url, 4);
      expect(receipts.receipts).toEqual(["d received", "d working", "d done"]);
      expect(new Set(receipts.calls.map(({ body }) => body.type))).toEqual(new Set(["pere.receipt"]));
      expect(complete.calls.map(({ body }) => body.type)).toEqual(["pere.complete"]);
      expect(missing.calls).toEqual([]);
      expect(elsewhere.calls.map(({ body }) => body.type)).toEqual(["pere.receipt", "pere.complete"]);
      expect(elsewhere.receipts).toEqual(["e done"]);
    });

    test("is made for what comes after the hook was stored", async () => {
      const pere = await begin(makeWorld());
      await receive(pere.url, ["before"]);
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      await receive(pere.url, ["after"]);
      await receiver.have(1);
      expect(receiver.receipts).toEqual(["after received"]);
    });

    test("says that an event is complete, with its state", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["complete"] });
      const event = await push(pere.url, "c", { order: 1 }, "?to=a,b&type=order.created");
      await give(pere.url, "c", event, "a", "done");
      await give(pere.url, "c", event, "b", "failed");
      const [call] = await receiver.have(1);
      const { body: state } = await ask(`${pere.url}/events/c/${event}`);
      expect(state).toMatchObject({ complete: true, receipts: { done: 1, failed: 1 } });
      expect(call!.body).toEqual({ type: "pere.complete", timestamp: expect.any(String), data: state });
    });

    test("says so with what is left to say, when the event is no longer kept", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["complete"] });
      const event = await push(pere.url, "c", 1, "?to=d");
      // Retention took it between its receipt and the look at its state.
      const read = spyOn(pere.engine, "event").mockRejectedValueOnce(new PereError("unknown", "no longer kept"));
      await give(pere.url, "c", event, "d", "done");
      const [call] = await receiver.have(1);
      read.mockRestore();
      const receipts = { pending: 0, received: 0, working: 0, done: 1, failed: 0, missing: 0 };
      const { timestamp } = call!.body;
      expect(call!.body.data).toEqual({ event, channel: "c", at: timestamp, receipts, complete: true });
    });

    test("says so too when the last who owed a word was retired, and calls that no receipt", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      await ask(`${pere.url}/devices/c/d`, { method: "PUT" });
      const event = await push(pere.url, "c", 1);
      await ask(`${pere.url}/devices/c/d`, { method: "DELETE" });
      await receiver.have(1);
      await receive(pere.url, ["e"], "working");
      await receiver.hear(["e working"]);
      expect(receiver.calls.map(({ body }) => body.type)).toEqual(["pere.complete", "pere.receipt"]);
      expect(receiver.calls[0]!.body.data).toMatchObject({ id: event, complete: true });
      expect(receiver.receipts).toEqual(["e working"]);
    });

    test("names who is missing, at most 100 at once", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now });
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["missing"] });
      const devices = names(230);
      const event = await push(pere.url, "c", 1, `?to=${devices.join(",")}&deadline=60`);
      await give(pere.url, "c", event, "d7", "done");
      clock.at += 61 * SECOND;
      const missing = devices.filter((device) => device !== "d7").map((device) => `${device} missing`);
      await receiver.hear(missing);
      expect(receiver.receipts.toSorted()).toEqual(missing.toSorted());
      for (const { body } of receiver.calls) {
        expect(body.type).toBe("pere.missing");
        expect(body.data.channel).toBe("c");
        expect(body.data.receipts.length).toBeLessThanOrEqual(100);
      }
    });
  });

  describe(`${name}: a call that fails`, () => {
    test("is made again by the schedule, the same each time, and then given up; it can be sent again", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now, random: () => 0.5 });
      const receiver = new Receiver(failing);
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["d"]);
      const begun = clock.at;
      const createdAt = new Date(begun).toISOString();
      for (const [tries, wait] of WAITS.entries()) {
        const { retrying, failed } = await until(
          async () => {
            const known = await listed(pere.url);
            return known.retrying[0]?.attempts === tries + 1 && known;
          },
          `try ${tries + 1}`,
        );
        const nextAt = new Date(clock.at + wait).toISOString();
        const id = receiver.calls[0]!.id;
        expect(retrying).toEqual([{ id, createdAt, attempts: tries + 1, nextAt, status: 500, error: "HTTP 500" }]);
        expect(failed).toEqual([]);
        clock.at += wait;
        await receiver.have(tries + 2);
      }
      const known = await until(async () => {
        const { retrying, failed } = await listed(pere.url);
        return retrying.length === 0 && failed;
      }, "the end");
      const [{ id, text }] = receiver.calls as [Call];
      expect(known).toEqual([{ id, createdAt, attempts: 7, nextAt: null, status: 500, error: "HTTP 500" }]);
      expect(receiver.calls.map((call) => call.id)).toEqual(Array.from({ length: 7 }, () => id));
      expect(receiver.calls.map((call) => call.text)).toEqual(Array.from({ length: 7 }, () => text));
      const ends = WAITS.map((_, index) => WAITS.slice(0, index + 1).reduce((sum, wait) => sum + wait, 0));
      expect(receiver.calls.map(({ at }) => at - begun)).toEqual([0, ...ends]);

      // Sent again it begins anew, with the first try; and is done when it went.
      const retried = await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" });
      expect([retried.status, retried.body]).toEqual([200, { retried: 1 }]);
      await receiver.have(8);
      await until(async () => (await listed(pere.url)).retrying[0]?.attempts === 1, "its first try");
      receiver.behaviour = well;
      clock.at += WAITS[0]!;
      await receiver.have(9);
      await until(async () => (await listed(pere.url)).retrying.length === 0, "an empty list");
      expect(await listed(pere.url)).toMatchObject({ retrying: [], failed: [], disabled: null });
      expect(receiver.calls[8]).toMatchObject({ id, text });
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).body).toEqual({ retried: 0 });
    });

    test("is not made before its time, which is give or take a tenth", async () => {
      const clock = heldClock();
      let chance = 0.999;
      const pere = await begin(makeWorld(), { now: clock.now, random: () => (chance = 0.999 - chance) });
      for (const hookName of ["a", "b"]) await hook(pere.url, new Receiver(failing), { on: ["receipt"] }, hookName);
      await receive(pere.url, ["d"]);
      const waits = async () =>
        (await list(pere.url)).map(({ retrying: [delivery] }) => ({
          ms: delivery ? Date.parse(delivery.nextAt) - clock.at : null,
          attempts: delivery?.attempts as number,
        }));
      const first = await until(async () => {
        const known = await waits();
        return known.every(({ ms }) => ms !== null) && known;
      }, "both to fail");
      expect(first.map(({ ms }) => ms).sort()).toEqual([4_500, 5_499]);
      const early = first.findIndex(({ ms }) => ms === 4_500);
      const tries = async (which: number): Promise<number> => (await waits())[which]!.attempts;
      // Both are looked at in one turn: when one was tried again, the other was looked at as well.
      clock.at += 4_500;
      await until(async () => (await tries(early)) === 2, "the second try of one");
      expect(await tries(1 - early)).toBe(1);
      clock.at += 999;
      await until(async () => (await tries(1 - early)) === 2, "the second try of the other");
    });

    test("holds up only itself", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver((call) => (call.text.includes('"bad"') ? failing(call, 0) : well(call, 0)));
      const other = new Receiver();
      await hook(pere.url, receiver);
      await hook(pere.url, other, {}, "other");
      for (const device of ["a", "bad", "b", "c"]) await receive(pere.url, [device]);
      await receiver.hear(["b received", "c received"]);
      await other.hear(["bad received", "c received"]);
      await reached(pere.url, 4);
      expect((await listed(pere.url)).retrying).toHaveLength(1);
      expect((await list(pere.url)).find((known) => known.name === "other")!.retrying).toEqual([]);
    });

    test("is listed with what it was answered, or why there was no answer; a redirect is a failure, and not followed", async () => {
      const pere = await begin(makeWorld(), { hookCall: { timeoutMs: 2_000 } });
      const target = new Receiver();
      const cases: [Receiver, number | null, string][] = [
        [new Receiver(() => Response.redirect(target.url, 307)), 307, "HTTP 307"],
        [new Receiver(() => new Response("", { status: 404 })), 404, "HTTP 404"],
        [new Receiver(never), null, "there was no answer within 2 seconds"],
      ];
      const gone = new Receiver(well, makeSecret(), lastingPort());
      await gone.close();
      cases.push([gone, null, "the connection was refused"]);
      for (const [n, [receiver]] of cases.entries()) await hook(pere.url, receiver, {}, `h${n}`);
      await receive(pere.url, ["d"]);
      const hooks = await until(async () => {
        const known = await list(pere.url);
        return known.every(({ retrying }) => retrying.length > 0) && known;
      }, "all to fail");
      expect(hooks.map(({ retrying }) => [retrying[0].status, retrying[0].error])).toEqual(
        cases.map(([, status, error]) => [status, error]),
      );
      expect(target.calls).toEqual([]);
    });

    test("counts as delivered when its answer is good and then drips without end", async () => {
      const pere = await begin(makeWorld(), { hookCall: { timeoutMs: 2_000 } });
      const receiver = new Receiver(
        () =>
          new Response(
            (async function* () {
              for (;;) {
                yield "x";
                await Bun.sleep(10);
              }
            })() as unknown as BodyInit,
          ),
      );
      await hook(pere.url, receiver);
      await receive(pere.url, ["d"]);
      await reached(pere.url, 1);
      expect((await listed(pere.url)).retrying).toEqual([]);
    });

    test("ends the hook when it is answered 410, until the hook is stored or retried; nothing is lost by it", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver(() => new Response("", { status: 410 }));
      const witness = new Receiver();
      await hook(pere.url, receiver);
      await hook(pere.url, witness, {}, "witness");
      for (const enable of [
        () => hook(pere.url, receiver),
        () => ask(`${hookUrl(pere.url)}/retry`, { method: "POST" }),
      ]) {
        receiver.behaviour = () => new Response("", { status: 410 });
        receiver.calls.length = witness.calls.length = 0;
        await receive(pere.url, ["a"]);
        await until(async () => (await listed(pere.url)).disabled, "its end");
        expect((await listed(pere.url)).disabled).toBe("the receiver answered 410 Gone");
        await receive(pere.url, ["b"]);
        await witness.hear(["a received", "b received"]);
        expect(receiver.calls).toHaveLength(1);
        receiver.behaviour = well;
        receiver.calls.length = 0;
        await enable();
        await receiver.hear(["a received", "b received"]);
        expect((await listed(pere.url)).disabled).toBeNull();
      }
    });

    test("is one of 100 that wait at most; the hook reads no further then, and loses nothing", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver(failing);
      await hook(pere.url, receiver, { on: ["receipt"] });
      const said: string[] = [];
      // Each is called for alone: it is waited for.
      for (let n = 0; n < 100; n++) {
        said.push(...(await receive(pere.url, [`d${n}`])));
        await receiver.have(n + 1);
      }
      await reached(pere.url, 100);
      for (let n = 100; n < 110; n++) said.push(...(await receive(pere.url, [`d${n}`])));
      const known = await listed(pere.url);
      expect([known.retrying.length, known.position.split("-")[1]]).toEqual([100, "100"]);
      receiver.behaviour = well;
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).body).toEqual({ retried: 100 });
      await receiver.hear(said);
      await reached(pere.url, 110);
      await until(async () => (await listed(pere.url)).retrying.length === 0, "nothing that waits");
    }, 30_000);
  });

  describe(`${name}: nothing is lost`, () => {
    test("where a receiver is slow, and what comes meanwhile waits in the log", async () => {
      const pere = await begin(makeWorld());
      const slow = door();
      const receiver = new Receiver(slow.behaviour);
      await hook(pere.url, receiver);
      const said: string[] = [];
      for (let n = 0; n < 10; n++) said.push(...(await receive(pere.url, names(1_000, n * 1_000))));
      expect(receiver.calls).toHaveLength(1);
      slow.open();
      await receiver.hear(said);
      expect(receiver.receipts).toEqual(said);
    }, 30_000);

    test("where a receiver is slower than retention: what waits is in the log, not in memory, and the hook is told what went", async () => {
      const pere = await begin(makeWorld(), { limits: { keptEvents: 2, trimMs: 20 } });
      const slow = door();
      const receiver = new Receiver(slow.behaviour);
      await hook(pere.url, receiver);
      let last: string[] = [];
      for (let n = 0; n < 10; n++) last = await receive(pere.url, names(1_000, n * 1_000));
      await until(async () => (await ask(`${pere.url}/channels`)).body.channels[0].events <= 2, "retention");
      slow.open();
      await receiver.hear(last);
      // Retention may go on while the hook reads: each hole is told, and nothing is both in a hole and told.
      const seqOf = (text: string): number => Number(text.split("-")[1]);
      const covered = receiver.calls.flatMap(({ body: { type, data } }) => {
        if (type !== "pere.gap") return data.receipts?.map(({ id }: { id: string }) => seqOf(id)) ?? [];
        const [after, from] = [seqOf(data.after), seqOf(data.from)];
        return Array.from({ length: from - after - 1 }, (_, n) => after + 1 + n);
      });
      expect(covered.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 10_000 }, (_, n) => n + 1));
      expect(receiver.receipts.length).toBeLessThan(6_000);
    }, 30_000);

    test("where retention overtook the hook: it is told what it did not hear", async () => {
      const pere = await begin(makeWorld(), { limits: { keptEvents: 2, trimMs: 20 } });
      const receiver = new Receiver(() => new Response("", { status: 410 }));
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["a"]);
      await until(async () => (await listed(pere.url)).disabled, "its end");
      for (const device of ["b", "c", "d"]) await receive(pere.url, [device]);
      const log = async (): Promise<any> =>
        (await ask(`${pere.url}/feedback/c?since=earliest`, { headers: { Accept: "application/json" } })).body;
      await until(async () => (await log()).events.length === 2, "retention");
      receiver.calls.length = 0;
      receiver.behaviour = well;
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receiver.hear(["c received", "d received"]);
      const [gap, ...rest] = receiver.calls;
      const from = (await log()).events[0].id as string;
      expect(gap!.body).toEqual({
        type: "pere.gap",
        timestamp: expect.any(String),
        data: { channel: "c", after: from.replace(/\d+$/, "0"), from },
      });
      expect(rest.every(({ body }) => body.type === "pere.receipt")).toBe(true);
      expect(receiver.receipts).toEqual(["c received", "d received"]);
    });

    test("and nothing repeated where a service stops with a call in flight, and another goes on", async () => {
      const world = makeWorld();
      const first = await begin(world);
      const slow = door();
      const receiver = new Receiver(slow.behaviour);
      await hook(first.url, receiver);
      // The last receipt completes the event: a second call is due after the one in flight.
      await receive(first.url, ["a"], "done");
      await receiver.have(1);
      const stopped = end(first);
      receiver.behaviour = well;
      setTimeout(slow.open, 700); // Who does not wait for it is gone by then.
      await stopped;
      const second = await begin(world);
      await receive(second.url, ["b"], "working");
      await receiver.hear(["b working"]);
      await until(() => receiver.calls.some(({ body }) => body.type === "pere.complete"), "the second call");
      expect(receiver.receipts).toEqual(["a done", "b working"]);
      expect(receiver.calls).toHaveLength(3);
    });

    test("where a service does not wait for a receiver that hangs: what it was called for is called for again", async () => {
      const world = makeWorld();
      // Who waits for it is still waiting when this test's time is up.
      const first = await begin(world, { hookCall: { timeoutMs: 60_000 } });
      const receiver = new Receiver(never);
      await hook(first.url, receiver);
      await receive(first.url, ["a"]);
      await receiver.have(1);
      await end(first);
      receiver.behaviour = well;
      await begin(world);
      const [before, after] = await receiver.have(2);
      expect(after).toMatchObject({ id: before!.id, text: before!.text });
    }, 20_000);

    test("where a process is killed between receipts and calls", async () => {
      const world = makeWorld();
      const env = { ...world.env, PERE_HOOKS_ALLOW: "127.0.0.0/8" };
      const spawned = async (): Promise<Process> => {
        const pere = await spawn(env);
        services.push({ stop: () => pere.end("SIGKILL") });
        return pere;
      };
      const first = await spawned();
      const receiver = new Receiver(never);
      await hook(first.url, receiver, { on: ["receipt"] });
      const said = await receive(first.url, names(500));
      await receiver.have(1);
      await first.end("SIGKILL");

      // What was kept for another try survives as well, with its id and its body.
      receiver.behaviour = (call, count) => (count <= 3 ? failing(call, count) : well(call, count));
      receiver.calls.length = 0;
      const second = await spawned();
      await until(async () => (await listed(second.url)).retrying.length === 3, "three failures");
      await receiver.hear(said);
      await reached(second.url, 500);
      const failed = receiver.calls.slice(0, 3);
      await second.end("SIGKILL");

      receiver.calls.length = 0;
      const third = await spawned();
      expect((await ask(`${hookUrl(third.url)}/retry`, { method: "POST" })).body).toEqual({ retried: 3 });
      const again = await receiver.have(3);
      const sorted = (calls: readonly Call[]) => calls.map(({ id, text }) => `${id} ${text}`).sort();
      expect(sorted(again)).toEqual(sorted(failed));
      await receive(third.url, ["e"]);
      await receiver.hear(["e received"]);
      expect(receiver.calls).toHaveLength(4);
    }, 30_000);
  });

  describe(`${name}: with a call in flight`, () => {
    test("a hook that is stored anew goes on where that call leaves it, at its new place", async () => {
      const pere = await begin(makeWorld());
      const slow = door();
      const [before, after] = [new Receiver(slow.behaviour), new Receiver()];
      await hook(pere.url, before, { on: ["receipt"] });
      await receive(pere.url, ["a"]);
      await before.have(1);
      await receive(pere.url, ["b"]);
      await hook(pere.url, after, { on: ["receipt"] });
      slow.open(new Response("", { status: 500 }));
      await after.hear(["b received"]);
      // What failed at the old place is retried at the new one: the same call.
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).body.retried).toBeLessThanOrEqual(1);
      await after.hear(["a received"]);
      await until(async () => (await listed(pere.url)).retrying.length === 0, "nothing that waits");
      expect(after.receipts.toSorted()).toEqual(["a received", "b received"]);
      const { id, text } = before.calls[0]!;
      expect(after.calls).toContainEqual(expect.objectContaining({ id, text }));
      expect(before.calls).toHaveLength(1);
    });

    test("a hook that is stored anew is not ended by what its old place answers", async () => {
      const pere = await begin(makeWorld());
      const slow = door();
      const [before, after] = [new Receiver(slow.behaviour), new Receiver()];
      await hook(pere.url, before);
      await receive(pere.url, ["a"]);
      await before.have(1);
      await hook(pere.url, after);
      slow.open(new Response("", { status: 410 }));
      await until(async () => (await listed(pere.url)).retrying.length === 1, "the failure");
      expect(await listed(pere.url)).toMatchObject({ disabled: null, retrying: [{ status: 410 }] });
      await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" });
      await after.hear(["a received"]);
    });

    test("a hook that is removed leaves nothing behind for the next of its name", async () => {
      const pere = await begin(makeWorld());
      const slow = door();
      const [before, after] = [new Receiver(slow.behaviour), new Receiver()];
      await hook(pere.url, before);
      await receive(pere.url, ["a"]);
      await before.have(1);
      await ask(hookUrl(pere.url), { method: "DELETE" });
      await receive(pere.url, ["b"]);
      await hook(pere.url, after);
      slow.open(new Response("", { status: 500 }));
      await receive(pere.url, ["c"]);
      await after.hear(["c received"]);
      expect(after.receipts).toEqual(["c received"]);
      expect(await listed(pere.url)).toMatchObject({ retrying: [], failed: [] });
      expect(before.calls).toHaveLength(1);
    });
  });
}
