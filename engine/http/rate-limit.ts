/**
 * How much one caller may do in a minute, so that one who runs wild (a device that opens its feed in a loop, a publisher's endless retry) does not
 * take the service from all others. A caller is a token's subject, or an address where there is no token.
 *
 * The counting is `rate-limiter-flexible`'s: a minute begins with a caller's first work and is over for him alone, so callers who were refused do not
 * come back all at once. What was refused counts, too. Nothing costs more than a whole minute's worth: a batch that is larger than the limit passes as
 * the first thing in a minute, instead of never.
 *
 * Where instances share one Redis they share the counts. But a limit is a courtesy, and no request waits for it: an answer that does not come
 * soon is done without, Redis is left in peace for a while, and each instance counts for itself, as it does with a Cluster or with no Redis at all.
 * In memory, callers are counted up to a number; beyond that no limit by caller holds anybody back, and newcomers pass uncounted.
 *
 * This file has no timer that keeps a process alive, never asks Redis about callers that it knows to be refused, and knows no route.
 */
import { RateLimiterMemory, RateLimiterRedis, RateLimiterRes } from "rate-limiter-flexible";
import { PereError } from "../model.ts";
import type { Client, RedisLink } from "../redis/connection.ts";

/** What is counted, each by itself: events pushed, receipts given, feeds opened, which count once for each of their channels. */
export type RateKind = "push" | "receipt" | "feed";

/** How much of each a caller may do in a minute; 0 is no limit. */
export interface RateLimits {
  readonly push: number;
  readonly receipt: number;
  readonly feed: number;
}

/** Beyond loopback, when nothing else is set. Honest use stays far below: what goes on above is a loop, or a load test that can raise them. */
export const RATES: RateLimits = {
  /** A hundred events a second from one publisher, and six full batches of lines. */
  push: 6_000,
  /** A thousand a second: whatever one publisher's hundred events a second make ten devices say, were they behind one address; sixty full outboxes. */
  receipt: 60_000,
  /** A site of 1,200 devices with a channel each behind one address, all coming back within a minute. A browser that can't stay connected tries twenty times a minute. */
  feed: 1_200,
};

/** The time in which limits count. Short enough that nobody who was refused gives up, and long enough for a burst. */
const WINDOW_SECONDS = 60;
/** Callers that are new within a minute, over all works, and still counted in memory: at 650 bytes each, and two minutes at most, 130 MB. */
const CALLERS_MAX = 100_000;
/** An answer of Redis is there within a few milliseconds; nobody's request waits longer than this for a courtesy. */
const REDIS_MS = 100;
/** So long Redis is not asked after it failed to answer. */
const REST_MS = 1_000;
/** Ahead of a caller's name in Redis, beside the keys of the store. */
const PREFIX = "rate:";

/** A caller did more than he may. `limit` is what he may do in `WINDOW_SECONDS`. */
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
 * The headers that an answer to this error has: `Retry-After` (RFC 9110, 10.2.3), and how the limit stands (draft-ietf-httpapi-ratelimit-headers-11,
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

/** Counts, for one instance or with others. */
export class RateLimiter {
  readonly #limits: RateLimits;
  readonly #here: Readonly<Record<RateKind, RateLimiterMemory>>;
  #shared: Readonly<Record<RateKind, RateLimiterRedis>> | undefined;
  readonly #opening: Promise<RedisLink> | undefined;
  readonly #warn: (message: string, cause: unknown) => void;
  /** Until when Redis is not asked; on the clock of `performance.now`. */
  #restsUntil = 0;
  /** Callers that came new into memory since a time less than a minute ago, milliseconds since 1970. */
  #newcomers = 0;
  #since = 0;

  /**
   * @param redisUrls one address: counted there, for all instances together; several are a Cluster's, and not used
   * @param warn is told each time that Redis was done without
   * @param prefix what all keys in Redis begin with
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

  /** Redis is loaded only when it is asked for. */
  async #share(urls: readonly string[], prefix: string): Promise<RedisLink> {
    const { RedisLink } = await import("../redis/connection.ts");
    const link = new RedisLink(urls);
    /** As much of node-redis as the limiter uses. */
    const storeClient = {
      eval: (...script: Parameters<Client["eval"]>) => link.call((client) => client.eval(...script), REDIS_MS),
    };
    this.#shared = each((work) => {
      const rule = this.#rule(work);
      // Who is over the limit is refused from memory until his minute is over.
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
   * Takes from what a caller may do: `points` events, receipts or feeds. Where it is counted in memory the answer is there at once, and there is no
   * promise; with Redis it is there within `REDIS_MS`. @throws TooMany, or rejects with it
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
      this.#warn("the limits on callers are counted by each instance for itself: Redis can't be asked", error);
      this.#takeHere(work, caller, cost);
    }
  }

  #takeHere(work: RateKind, caller: string, cost: number): void {
    const limiter = this.#here[work];
    if (this.#isCrowded() && Bun.peek(limiter.get(caller)) === null) return;
    const taken = limiter.consume(caller, cost);
    // The limiter in memory settles its promise before it gives it away; waiting for it would be a turn of the loop for each request.
    const { consumedPoints, isFirstInDuration, msBeforeNext } = Bun.peek(taken) as RateLimiterRes;
    if (isFirstInDuration) this.#newcomers++;
    if (consumedPoints <= this.#limits[work]) return;
    taken.catch(() => {}); // It is refused, and we know.
    throw new TooMany(work, this.#limits[work], msBeforeNext);
  }

  /** Whether more callers have come within the minute than are counted. */
  #isCrowded(): boolean {
    const now = Date.now();
    if (Math.abs(now - this.#since) >= WINDOW_SECONDS * 1000) [this.#since, this.#newcomers] = [now, 0];
    return this.#newcomers >= CALLERS_MAX;
  }

  /** Lets go of Redis. */
  async close(): Promise<void> {
    await (await this.#opening)?.close();
  }
}
