/**
 * Rate limits per caller and minute, so that one faulty caller (a device that opens its feed in a loop, a publisher that retries endlessly) does not
 * block all others. A caller is the subject of a token, or an address where there is no token.
 *
 * `rate-limiter-flexible` counts. Each caller has its own minute, which begins with its first request, so refused callers do not return all at once.
 * Refused requests count too. A batch larger than the limit costs one minute's limit: it passes as the first request of a minute, instead of never.
 *
 * Instances that share one Redis share the counts. But no request waits long for a rate limit: when Redis does not answer soon, it is not asked for a
 * while, and each instance counts by itself, as it does with a Redis Cluster or without Redis. In memory the number of callers is bounded; beyond it,
 * new callers pass uncounted.
 *
 * This file has no timer that keeps a process alive, and never asks Redis about a caller that is known to be over its limit.
 */
import { RateLimiterMemory, RateLimiterRedis, RateLimiterRes } from "rate-limiter-flexible";
import { PereError } from "../model.ts";
import type { Client, RedisLink } from "../redis/connection.ts";

/** What is counted, separately: events pushed, receipts given, and feeds opened, which count once per channel. */
export type RateKind = "push" | "receipt" | "feed";

/** The limits per caller and minute; 0: no limit. */
export interface RateLimits {
  readonly push: number;
  readonly receipt: number;
  readonly feed: number;
}

/** The defaults beyond loopback. Normal use stays far below them; above is a loop, or a load test, which can raise them. */
export const RATES: RateLimits = {
  /** A hundred events per second from one publisher, or six full batches of lines. */
  push: 6_000,
  /** A thousand per second: the receipts of ten devices behind one address for a hundred events per second; or sixty full outboxes. */
  receipt: 60_000,
  /** 1,200 devices behind one address, each with one channel, that reconnect within a minute. A browser that can't stay connected tries twenty times per minute. */
  feed: 1_200,
};

/** The period of the limits: short enough that refused callers don't give up, long enough for a burst. */
const WINDOW_SECONDS = 60;
/** New callers per minute, over all kinds, that are counted in memory. At 650 bytes each and for two minutes at most, that is 130 MB. */
const CALLERS_MAX = 100_000;
/** How long a request waits for Redis, which normally answers within a few milliseconds. */
const REDIS_MS = 100;
/** How long Redis is not asked after it failed to answer. */
const REST_MS = 1_000;
/** The prefix of these keys in Redis, after the prefix of the store. */
const PREFIX = "rate:";

/** A caller is over its limit. `limit` is what it may do in `WINDOW_SECONDS`. */
export class TooMany extends PereError {
  readonly work: RateKind;
  readonly limit: number;
  readonly retryAfterSeconds: number;

  constructor(work: RateKind, limit: number, retryAfterMs: number) {
    const seconds = Math.max(1, Math.ceil(retryAfterMs / 1000));
    super("tooMany", `more than ${limit} ${PLURAL[work]} in ${WINDOW_SECONDS} s; try again in ${seconds} s`);
    this.work = work;
    this.limit = limit;
    this.retryAfterSeconds = seconds;
  }
}

const PLURAL: Record<RateKind, string> = {
  push: "events pushed",
  receipt: "receipts",
  feed: "channels of feeds opened",
};

/**
 * The headers of an answer to this error: `Retry-After` (RFC 9110, 10.2.3), and the state of the limit (draft-ietf-httpapi-ratelimit-headers-11,
 * 3 and 4); none for any other error.
 */
export function rateHeaders(error: PereError): Record<string, string> {
  if (!(error instanceof TooMany)) return {};
  const { work, limit, retryAfterSeconds } = error;
  return {
    "Retry-After": String(retryAfterSeconds),
    RateLimit: `"${work}";r=0;t=${retryAfterSeconds}`,
    "RateLimit-Policy": `"${work}";q=${limit};w=${WINDOW_SECONDS}`,
  };
}

// --------------------------------------------------------------------------------------------------------------- counting

const each = <Value>(make: (work: RateKind) => Value): Record<RateKind, Value> => ({
  push: make("push"),
  receipt: make("receipt"),
  feed: make("feed"),
});

/** Counts for this instance alone, or together with others through Redis. */
export class RateLimiter {
  readonly #limits: RateLimits;
  readonly #here: Readonly<Record<RateKind, RateLimiterMemory>>;
  #shared: Readonly<Record<RateKind, RateLimiterRedis>> | undefined;
  readonly #opening: Promise<RedisLink> | undefined;
  readonly #warn: (message: string, cause: unknown) => void;
  /** Until when Redis is not asked; on the clock of `performance.now`. */
  #restsUntil = 0;
  /** New callers in memory since `#since`, which is less than a minute ago; milliseconds since 1970. */
  #newcomers = 0;
  #since = 0;

  /**
   * @param redisUrls one URL: all instances count there together; several URLs are a Cluster, which is not used
   * @param warn is called each time that Redis does not answer
   * @param prefix of all keys in Redis
   */
  constructor(
    limits: RateLimits,
    redisUrls: readonly string[] | null,
    warn: (message: string, cause: unknown) => void = () => {},
    prefix = "pere:",
  ) {
    this.#limits = limits;
    this.#warn = warn;
    this.#here = each((work) => new RateLimiterMemory({ ...this.#rule(work), keyPrefix: "" }));
    if (redisUrls?.length === 1) this.#opening = this.#share(redisUrls, prefix + PREFIX);
  }

  #rule(work: RateKind): { points: number; duration: number } {
    return { points: this.#limits[work], duration: WINDOW_SECONDS };
  }

  /** The Redis client is loaded only when needed. */
  async #share(urls: readonly string[], prefix: string): Promise<RedisLink> {
    const { RedisLink } = await import("../redis/connection.ts");
    const link = new RedisLink(urls);
    // Until it is connected each instance counts by itself, which is no trouble to warn of.
    await link.start().catch(() => {});
    /** The part of node-redis that the limiter uses. */
    const storeClient = {
      eval: (...script: Parameters<Client["eval"]>) => link.call((client) => client.eval(...script), REDIS_MS),
    };
    this.#shared = each((work) => {
      const rule = this.#rule(work);
      // A caller over its limit is refused from memory until its minute ends.
      const refuse = { inMemoryBlockOnConsumed: rule.points + 1 };
      return new RateLimiterRedis({ ...rule, ...refuse, keyPrefix: prefix + work, storeClient, useRedisPackage: true });
    });
    return link;
  }

  /** Whether there is a limit. */
  counts(work: RateKind): boolean {
    return this.#limits[work] > 0;
  }

  /**
   * Counts `points` events, receipts or feeds of a caller. In memory it returns at once and makes no promise; with Redis it resolves within
   * `REDIS_MS`. @throws TooMany, or rejects with it
   */
  take(work: RateKind, caller: string, points = 1): Promise<void> | void {
    const limit = this.#limits[work];
    if (limit === 0) return;
    const cost = Math.min(points, limit);
    if (!this.#shared || performance.now() < this.#restsUntil) return this.#takeHere(work, caller, cost);
    return this.#takeShared(this.#shared[work], work, caller, cost);
  }

  async #takeShared(limiter: RateLimiterRedis, work: RateKind, caller: string, cost: number): Promise<void> {
    try {
      await limiter.consume(caller, cost);
    } catch (error) {
      if (error instanceof RateLimiterRes) throw new TooMany(work, this.#limits[work], error.msBeforeNext);
      this.#restsUntil = performance.now() + REST_MS;
      this.#warn("Redis does not answer, so each instance counts rate limits by itself", error);
      this.#takeHere(work, caller, cost);
    }
  }

  #takeHere(work: RateKind, caller: string, cost: number): void {
    const limiter = this.#here[work];
    if (this.#isCrowded() && Bun.peek(limiter.get(caller)) === null) return;
    const taken = limiter.consume(caller, cost);
    // The limiter in memory returns a settled promise; awaiting it would cost each request a turn of the event loop.
    const { consumedPoints, isFirstInDuration, msBeforeNext } = Bun.peek(taken) as RateLimiterRes;
    if (isFirstInDuration) this.#newcomers++;
    if (consumedPoints <= this.#limits[work]) return;
    taken.catch(() => {}); // Handled here: the rejection must not count as unhandled.
    throw new TooMany(work, this.#limits[work], msBeforeNext);
  }

  /** Whether there are more new callers within the minute than are counted. */
  #isCrowded(): boolean {
    const now = Date.now();
    if (Math.abs(now - this.#since) >= WINDOW_SECONDS * 1000) [this.#since, this.#newcomers] = [now, 0];
    return this.#newcomers >= CALLERS_MAX;
  }

  /** Closes the connection to Redis. */
  async close(): Promise<void> {
    await (await this.#opening)?.close();
  }
}
