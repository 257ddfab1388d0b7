/**
 * What a caller may do in a minute, and who he is: counted here and on a real Redis, which may stall or die without anybody waiting for it.
 */
import { afterEach, describe, expect, jest, setSystemTime, test } from "bun:test";
import { heapStats } from "bun:jsc";
import { join } from "node:path";
import fc from "fast-check";
import { addressOf, readRanges } from "../engine/addresses.ts";
import { PereError } from "../engine/model.ts";
import { RATES, rateHeaders, type RateLimits, RateLimiter, TooMany, type RateKind } from "../engine/http/rate-limit.ts";
import { until } from "./support/harness.ts";
import { PATIENCE_MS } from "./support/limits.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  jest.useRealTimers();
  setSystemTime();
  for (const close of closing.splice(0).reverse()) await close();
});

const FEW: RateLimits = { push: 3, receipt: 100, feed: 2 };
const openRates = (
  limits: RateLimits,
  redis: readonly string[] | null = null,
  warn?: (message: string, cause: unknown) => void,
): RateLimiter => {
  const rates = new RateLimiter(limits, redis, warn);
  closing.push(() => rates.close());
  return rates;
};

/** Takes, in memory or in Redis; null when it may, else why not. */
const refusal = async (
  rates: RateLimiter,
  work: RateKind,
  caller: string,
  points?: number,
): Promise<TooMany | null> => {
  try {
    await rates.take(work, caller, points);
    return null;
  } catch (error) {
    if (error instanceof TooMany) return error;
    throw error;
  }
};
/** How often he may before he is refused. */
const timesUntilRefused = async (rates: RateLimiter, work: RateKind, caller: string): Promise<number> => {
  for (let times = 0; ; times++) if (await refusal(rates, work, caller)) return times;
};

describe("rate limits in memory", () => {
  test("apply per caller and kind of work, and are checked at once", () => {
    const rates = openRates(FEW);
    for (const caller of ["shop", "till-7"]) {
      for (let n = 0; n < 3; n++) expect(rates.take("push", caller)).toBeUndefined();
      for (let n = 0; n < 2; n++) expect(() => rates.take("push", caller)).toThrow(TooMany);
      for (let n = 0; n < 2; n++) rates.take("feed", caller);
      expect(() => rates.take("feed", caller)).toThrow(TooMany);
    }
  });

  test("are reset a minute after the first request, and not before", () => {
    setSystemTime(1_000_000_000_000);
    const rates = openRates(FEW);
    rates.take("push", "shop");
    setSystemTime(1_000_000_050_000);
    rates.take("push", "shop", 2);
    rates.take("push", "late", 3);
    expect(() => rates.take("push", "shop")).toThrow("try again in 10 s");
    setSystemTime(1_000_000_059_999);
    expect(() => rates.take("push", "shop")).toThrow("try again in 1 s");
    setSystemTime(1_000_000_060_000);
    rates.take("push", "shop", 3);
    expect(() => rates.take("push", "late")).toThrow("try again in 50 s");
  });

  test("count each item of a batch; a batch larger than the limit takes a whole minute's limit", async () => {
    setSystemTime(1_000_000_000_000);
    const rates = openRates(FEW);
    rates.take("receipt", "till-7", 60);
    rates.take("receipt", "till-7", 40);
    expect(await refusal(rates, "receipt", "till-7")).not.toBeNull();

    rates.take("receipt", "outbox", 1_000);
    expect(await refusal(rates, "receipt", "outbox")).not.toBeNull();
    setSystemTime(1_000_000_060_000);
    rates.take("receipt", "outbox", 1);
    const refused = await refusal(rates, "receipt", "outbox", 1_000);
    expect(refused!.retryAfterSeconds).toBe(60);
    setSystemTime(1_000_000_120_000);
    rates.take("receipt", "outbox", 1_000);
  });

  test("do not apply if the limit is 0", () => {
    const rates = openRates({ push: 0, receipt: 0, feed: 0 });
    for (let n = 0; n < 100_000; n++) rates.take("push", "shop", 1_000);
  });

  test("are by default above normal use, and below a loop", () => {
    const rates = openRates(RATES);
    for (let n = 0; n < 60; n++) rates.take("receipt", "till-7", 1_000);
    expect(() => rates.take("receipt", "till-7", 1_000)).toThrow(TooMany);
    for (let n = 0; n < 1_200; n++) rates.take("feed", "192.0.2.1");
    expect(() => rates.take("feed", "192.0.2.1")).toThrow(TooMany);
  });

  test("hold for known callers, however many others there are, in bounded memory", () => {
    setSystemTime(1_000_000_000_000);
    const rates = openRates(FEW);
    rates.take("push", "shop", 2);
    Bun.gc(true);
    const before = process.memoryUsage.rss();
    for (let n = 0; n < 1_000_000; n++) rates.take("push", `stranger ${n}`);
    Bun.gc(true);
    expect(process.memoryUsage.rss() - before).toBeLessThan(250e6);
    rates.take("push", "shop");
    expect(() => rates.take("push", "shop")).toThrow(TooMany);
    // A minute later there is room again.
    setSystemTime(1_000_000_060_000);
    rates.take("push", "stranger 999999", 3);
    expect(() => rates.take("push", "stranger 999999")).toThrow(TooMany);
  });

  test("are forgotten when their minute is over", () => {
    jest.useFakeTimers();
    const CALLERS = 50_000;
    const rates = openRates(FEW);
    const objects = (): number => {
      Bun.gc(true);
      return heapStats().objectCount;
    };
    const before = objects();
    for (let n = 0; n < CALLERS; n++) rates.take("push", `caller ${n}`);
    expect(objects() - before).toBeGreaterThan(CALLERS);
    jest.advanceTimersByTime(60_000);
    expect(objects() - before).toBeLessThan(CALLERS / 10);
    rates.take("push", "caller 0", 3);
  });

  test("keep no process alive", async () => {
    const file = join(import.meta.dir, "../engine/http/rate-limit.ts");
    const text = `import { RateLimiter, RATES } from ${JSON.stringify(file)}; new RateLimiter(RATES, null).take("push", "shop");`;
    const child = Bun.spawn([process.execPath, "-e", text], {
      env: process.env,
      stdin: "ignore",
      stdout: "ignore",
      stderr: "inherit",
    });
    const timer = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
    expect(await child.exited).toBe(0);
    clearTimeout(timer);
  });
});

describe("a refusal", () => {
  test("has the headers of the limit", () => {
    setSystemTime(1_000_000_000_000);
    const rates = openRates(FEW);
    rates.take("receipt", "till-7", 100);
    setSystemTime(1_000_000_029_500);
    let error: unknown;
    try {
      rates.take("receipt", "till-7");
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(PereError);
    expect((error as PereError).code).toBe("tooMany");
    expect((error as PereError).message).toBe("more than 100 receipts in 60 s; try again in 31 s");
    expect(rateHeaders(error as PereError)).toEqual({
      "Retry-After": "31",
      RateLimit: '"receipt";r=0;t=31',
      "RateLimit-Policy": '"receipt";q=100;w=60',
    });
    expect(rateHeaders(new PereError("away", "away"))).toEqual({});
  });
});

const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;
describe.skipIf(noRedis !== null)(`rate limits on Redis${why}`, () => {
  const openRedis = async (): Promise<RedisServer> => {
    const server = await startRedis();
    closing.push(() => server.end());
    return server;
  };
  /** Waits until Redis counts; until then, and a while after it failed, each instance does. */
  const isShared = (server: RedisServer, rates: RateLimiter): Promise<unknown> => {
    const probe = crypto.randomUUID();
    return until(async () => {
      await refusal(rates, "feed", probe);
      return (await server.ask("EXISTS", `pere:rate:feed:${probe}`)) === ":1";
    }, "Redis to count");
  };

  test("are shared by all instances", async () => {
    const server = await openRedis();
    const [one, other] = [openRates(FEW, [server.url]), openRates(FEW, [server.url])];
    await isShared(server, one);
    await isShared(server, other);
    await one.take("push", "shop");
    await other.take("push", "shop");
    await one.take("push", "shop");
    const refused = await refusal(other, "push", "shop");
    expect(refused!.retryAfterSeconds).toBeGreaterThan(50);
    expect(refused!.retryAfterSeconds).toBeLessThanOrEqual(60);
    expect(await refusal(one, "push", "shop")).not.toBeNull();
    await one.take("push", "till-7");
    await one.take("receipt", "shop", 1_000);
    expect(await refusal(other, "receipt", "shop")).not.toBeNull();
    expect(await server.ask("TTL", "pere:rate:push:shop")).toMatch(/^:(60|5\d)$/);
  });

  test("are counted here until Redis is connected, without a warning", async () => {
    const server = await openRedis();
    const warned: string[] = [];
    const rates = openRates(FEW, [server.url], (message) => void warned.push(message));
    let isOver = false;
    const asked = (async () => {
      for (; !isOver; await new Promise(setImmediate)) await refusal(rates, "feed", "busy");
    })();
    await isShared(server, rates);
    isOver = true;
    await asked;
    expect(warned).toEqual([]);
  });

  test("are not read again from Redis for refused callers", async () => {
    const server = await openRedis();
    const rates = openRates(FEW, [server.url]);
    await isShared(server, rates);
    for (let n = 0; n < 100; n++) await refusal(rates, "push", "shop");
    expect(await server.ask("GET", "pere:rate:push:shop")).toEndWith("\r\n4");
  });

  test("continue in memory while Redis stalls, and are shared again afterwards", async () => {
    const server = await openRedis();
    const warned: string[] = [];
    const rates = openRates(FEW, [server.url], (message) => void warned.push(message));
    await isShared(server, rates);
    warned.length = 0;
    server.pause();
    try {
      for (let wave = 0; wave < 3; wave++) {
        // Where Redis is asked there is a promise; memory answers in its place, and then at once, without one.
        await until(() => rates.take("receipt", crypto.randomUUID()) !== undefined, "Redis to be asked");
        const callers = Array.from({ length: 100 }, (_, n) => `caller ${n}`);
        const takes = await Promise.all(callers.map((caller) => refusal(rates, "push", caller)));
        expect(takes).toEqual(callers.map(() => null));
        for (let n = 0; n < 3; n++) expect(rates.take("push", `wave ${wave}`)).toBeUndefined();
        expect(() => rates.take("push", `wave ${wave}`)).toThrow(TooMany);
      }
      for (let n = 0; n < 100; n++) expect(await refusal(rates, "push", `caller ${n}`)).not.toBeNull();
      expect(warned.length).toBeGreaterThan(0);
      expect(warned[0]).toContain("each instance counts rate limits by itself");
    } finally {
      server.resume();
    }
    await isShared(server, rates);
  });

  test("continue in memory while Redis is gone, from the start or later", async () => {
    const server = await openRedis();
    const early = openRates(FEW, [server.url]);
    await isShared(server, early);
    await server.end();
    const late = openRates(FEW, [server.url]);
    for (const rates of [early, late]) expect(await timesUntilRefused(rates, "push", "shop")).toBe(3);
    await server.restart();
    for (const rates of [early, late]) await isShared(server, rates);
  });

  test("are not read from Redis without a limit", async () => {
    const server = await openRedis();
    const rates = openRates({ ...FEW, push: 0 }, [server.url]);
    await isShared(server, rates);
    expect(rates.take("push", "shop")).toBeUndefined();
  });

  test("are counted by each instance alone with a Cluster", async () => {
    const server = await openRedis();
    const rates = openRates(FEW, [server.url, server.url]);
    await Bun.sleep(100);
    for (let n = 0; n < 3; n++) expect(rates.take("push", "shop")).toBeUndefined();
    expect(await server.ask("DBSIZE")).toBe(":0");
  });
});

describe("the address of a caller", () => {
  const proxies = readRanges("10.0.0.0/8, 2001:db8:ffff::/48");

  test("is the socket's, whatever an untrusted client writes into X-Forwarded-For", () => {
    expect(addressOf("192.0.2.1", null, proxies)).toBe("192.0.2.1");
    expect(addressOf("192.0.2.1", "198.51.100.7", proxies)).toBe("192.0.2.1");
    expect(addressOf("192.0.2.1", "198.51.100.7, 10.0.0.1", proxies)).toBe("192.0.2.1");
    expect(addressOf("10.0.0.1", "198.51.100.7", [])).toBe("10.0.0.1");
  });

  test("is what trusted proxies report, up to the first untrusted one", () => {
    expect(addressOf("10.0.0.1", "198.51.100.7", proxies)).toBe("198.51.100.7");
    expect(addressOf("::ffff:10.0.0.1", "198.51.100.7", proxies)).toBe("198.51.100.7");
    expect(addressOf("2001:db8:ffff::1", "198.51.100.7", proxies)).toBe("198.51.100.7");
    expect(addressOf("10.0.0.1", "6.6.6.6, 198.51.100.7", proxies)).toBe("198.51.100.7");
    expect(addressOf("10.0.0.1", "6.6.6.6,198.51.100.7,10.0.0.3 , 10.0.0.2", proxies)).toBe("198.51.100.7");
    expect(addressOf("10.0.0.1", "10.9.9.9, 10.0.0.2", proxies)).toBe("10.9.9.9");
    expect(addressOf("10.0.0.1", null, proxies)).toBe("10.0.0.1");
  });

  test("may have a port, and is the last proxy's if it can't be parsed", () => {
    expect(addressOf("10.0.0.1", "198.51.100.7:4711", proxies)).toBe("198.51.100.7");
    expect(addressOf("10.0.0.1", "[2001:db8:1:2::3]:4711", proxies)).toBe("2001:db8:1:2::/64");
    expect(addressOf("10.0.0.1", "[2001:db8:1:2::3]", proxies)).toBe("2001:db8:1:2::/64");
    for (const odd of ["", "unknown", "_hidden", "198.51.100.7, ", "1.2.3", "0x7f000001", "300.1.1.1", "[::1", "a:b:c"])
      expect(addressOf("10.0.0.1", odd, proxies)).toBe("10.0.0.1");
    expect(addressOf("10.0.0.1", "198.51.100.7, unknown, 10.0.0.2", proxies)).toBe("10.0.0.2");
  });

  test("is the IPv4 address if that is mapped, and the network if it is IPv6", () => {
    expect(addressOf("::ffff:192.0.2.1", null, [])).toBe("192.0.2.1");
    expect(addressOf("::ffff:c000:201", null, [])).toBe("192.0.2.1");
    expect(addressOf("2001:db8:1:2:3:4:5:6", null, [])).toBe("2001:db8:1:2::/64");
    expect(addressOf("2001:DB8:1:2::", null, [])).toBe("2001:db8:1:2::/64");
    expect(addressOf("2001:db8:1:3::6", null, [])).toBe("2001:db8:1:3::/64");
    expect(addressOf("::1", null, [])).toBe("::/64");
    expect(addressOf("fe80::1%eth0", null, [])).toBe("fe80::/64");
    expect(addressOf("", null, [])).toBe("");
  });

  test("can't be chosen by a client of a trusted proxy", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme", maxLength: 100 }), fc.boolean(), (written, comma) => {
        expect(addressOf("10.0.0.1", `${written}${comma ? "," : ", "}198.51.100.7`, proxies)).toBe("198.51.100.7");
        addressOf("10.0.0.1", written, proxies);
      }),
    );
  });
});
