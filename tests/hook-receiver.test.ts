/**
 * What a hook does for the sake of its receiver, on SQLite and on Redis: it stays away for as long as it was asked to, and it signs with the
 * secret before the present one for as long as somebody may know only that.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Webhook } from "standardwebhooks";
import { makeSecret, readRetryAfter } from "../engine/hooks/call.ts";
import type { EngineOptions } from "../engine/engine.ts";
import type { Service } from "../index.ts";
import { ask, start, startOn, temporary, until } from "./support/harness.ts";
import {
  type Call,
  failing,
  heldClock,
  hook,
  hookUrl,
  listed,
  LOOPBACK,
  Receiver,
  receive,
  services,
  tidyUp,
  well,
} from "./contract/hook-world.ts";
import { outcome } from "./support/hook-receivers.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const SECOND = 1_000;
const HOUR = 3600 * SECOND;
const DAY = 24 * HOUR;

let redis: RedisServer;
beforeAll(async () => {
  if (noRedis === null) redis = await startRedis();
});
afterAll(() => redis?.end());
afterEach(tidyUp);

const later =
  (retryAfter: string, status = 429) =>
  (): Response =>
    new Response("", { status, headers: { "Retry-After": retryAfter } });

describe("Retry-After", () => {
  const now = Date.UTC(2026, 10, 22, 10);
  test.each([
    ["120", 120 * SECOND],
    [" 120 ", 120 * SECOND],
    ["0", 0],
    ["007", 7 * SECOND],
    ["86401", DAY],
    ["99999999999999999999999", DAY],
    ["Sun, 22 Nov 2026 10:02:00 GMT", 120 * SECOND],
    ["Sunday, 22-Nov-26 10:02:00 GMT", 120 * SECOND],
    ["Sun Nov 22 10:02:00 2026", 120 * SECOND],
    ["Sun, 22 Nov 2026 09:00:00 GMT", 0],
    ["Fri, 31 Dec 9999 23:59:59 GMT", DAY],
  ])("%p is parsed to milliseconds, at most a day", (text, ms) => {
    expect(readRetryAfter(text, now)).toBe(ms);
  });

  test.each(["", "-5", "1.5", "1e3", "0x10", "²", "120 seconds", "soon", "Sun", "Sun, 99 Foo 2026 10:00:00 GMT"])(
    "%p is ignored",
    (text) => {
      expect(readRetryAfter(text, now)).toBeNull();
    },
  );

  test("counts with 4xx and 5xx only", async () => {
    const call = { id: "msg_1", secret: makeSecret(), body: "{}", at: Date.now() };
    for (const status of [200, 202, 301, 307, 400, 413, 429, 500, 503, 504]) {
      const receiver = new Receiver(later("120", status), call.secret);
      const answer = await outcome({ ...call, url: receiver.url }, LOOPBACK);
      expect(answer).toEqual({ status, error: null, ...(status >= 400 ? { quietMs: 120 * SECOND } : {}) });
    }
  });
});

for (const store of ["SQLite", "Redis"])
  describe.skipIf(store === "Redis" && noRedis !== null)(`a hook, on ${store},`, () => {
    let path: string;
    const begin = async (options: EngineOptions): Promise<Service> => {
      const all = { hooksAllowed: LOOPBACK, random: () => 0.5, ...options };
      const service = store === "SQLite" ? await start(all, path) : await startOn(redis.url, all);
      services.push(service);
      return service;
    };
    const end = async (service: Service): Promise<void> => {
      services.splice(services.indexOf(service), 1);
      await service.stop();
    };
    const fresh = async (clock: ReturnType<typeof heldClock>): Promise<Service> => {
      path = join(temporary(), "pere.db");
      if (store === "Redis") await redis.ask("FLUSHALL");
      return begin({ now: clock.now });
    };
    /** Waits until so many deliveries are kept, and gives them. */
    const waiting = (pere: Service, count: number): Promise<any[]> =>
      until(async () => {
        const { retrying } = await listed(pere.url);
        return retrying.length === count && (retrying as any[]);
      }, `${count} deliveries that wait`);

    test("pauses as long as its receiver asks, also for new calls; then all of them are made", async () => {
      const clock = heldClock();
      const pere = await fresh(clock);
      const receiver = new Receiver(later("3600", 503));
      const other = new Receiver(failing);
      await hook(pere.url, receiver, { on: ["receipt"] });
      await hook(pere.url, other, { on: ["receipt"] }, "other");
      await receive(pere.url, ["a"]);
      const nextAt = new Date(clock.at + HOUR).toISOString();
      expect(await waiting(pere, 1)).toMatchObject([{ attempts: 1, nextAt, status: 503 }]);
      await receive(pere.url, ["b"]);
      const both = (await waiting(pere, 2)).toSorted((a, b) => a.attempts - b.attempts);
      expect(both).toMatchObject([
        { attempts: 0, nextAt, status: null },
        { attempts: 1, nextAt },
      ]);
      receiver.behaviour = well;
      const before = other.calls.length;
      clock.at += HOUR - 1;
      await other.have(before + 2); // All hooks are looked at in one turn.
      expect(receiver.calls).toHaveLength(1);
      clock.at += 1;
      await receiver.hear(["a received", "b received"]);
      await receive(pere.url, ["c"]);
      await receiver.hear(["c received"]);
      expect(receiver.calls).toHaveLength(4);
    });

    test("is never called sooner than by its schedule, and at once when it is retried by request", async () => {
      const clock = heldClock();
      const pere = await fresh(clock);
      const receiver = new Receiver(later("1"));
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["a"]);
      const [{ nextAt }] = await waiting(pere, 1);
      expect(Date.parse(nextAt) - clock.at).toBe(5 * SECOND);
      receiver.behaviour = later(new Date(clock.at + 9 * DAY).toUTCString());
      clock.at += 5 * SECOND;
      await receiver.have(2);
      await until(async () => (await waiting(pere, 1))[0].attempts === 2, "the second try");
      expect(await waiting(pere, 1)).toMatchObject([{ nextAt: new Date(clock.at + DAY).toISOString() }]);
      receiver.behaviour = well;
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).body).toEqual({ retried: 1 });
      await receiver.have(3);
    });

    test("signs calls from before a change with both secrets, however late they are retried, and all others for a day", async () => {
      const clock = heldClock();
      const pere = await fresh(clock);
      const [first, second, third] = [makeSecret(), makeSecret(), makeSecret()] as const;
      const receiver = new Receiver(failing, first);
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["a"]);
      await waiting(pere, 1);
      expect(receiver.calls[0]!.signatures).toHaveLength(1);

      /** The secrets that a call was signed with, in their order. */
      const signers = ({ id, at, text, signatures }: Call): string[] =>
        signatures.map((signature) =>
          [first, second, third].find((secret) => new Webhook(secret).sign(id, new Date(at), text) === signature)!,
        );
      clock.at += SECOND;
      await hook(pere.url, receiver, { secret: second, on: ["receipt"] });
      clock.at += SECOND;
      await hook(pere.url, receiver, { secret: third, on: ["receipt"] });
      await hook(pere.url, receiver, { secret: third, on: ["receipt"] });
      clock.at += 5 * SECOND;
      await receiver.have(2);
      expect(signers(receiver.calls[1]!)).toEqual([third, second, first]);
      expect((await listed(pere.url)).url).toBe(receiver.url);
      expect(JSON.stringify(await listed(pere.url))).not.toContain("whsec_");

      // Another instance goes on, or this one after a restart, days later.
      await until(async () => (await waiting(pere, 1))[0].attempts === 2, "its second failure to be kept");
      await end(pere);
      receiver.behaviour = well;
      clock.at += 3 * DAY;
      const again = await begin({ now: clock.now });
      await receiver.have(3);
      expect(signers(receiver.calls[2]!)).toEqual([third, second, first]);
      receiver.wrong.length = 0;
      await receive(again.url, ["b"]);
      await receiver.have(4);
      expect(signers(receiver.calls[3]!)).toEqual([third]);
      receiver.wrong.length = 0; // That receiver knows the first secret alone.
    });

    test("signs new calls with both secrets for a day, so that the receiver can change at any time", async () => {
      const clock = heldClock();
      const pere = await fresh(clock);
      const old = makeSecret();
      const receiver = new Receiver(well, old);
      await hook(pere.url, receiver, { on: ["receipt"] });
      await hook(pere.url, receiver, { secret: makeSecret(), on: ["receipt"] });
      clock.at += DAY - 1;
      await receive(pere.url, ["a"]);
      await receiver.have(1);
      expect(receiver.calls[0]!.signatures).toHaveLength(2);
      expect(receiver.wrong).toEqual([]);
    });
  });
