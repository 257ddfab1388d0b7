/**
 * A fault of PERE's own, somewhere in work that nobody waits for, ends what it happened to and is told; the next turn, the other readers and the
 * log itself go on. And nothing that a device can make long is ever handed to one call.
 */
import { describe, expect, test } from "bun:test";
import { Engine, type EngineOptions } from "../engine/engine.ts";
import { OWN, type Wire } from "../engine/feeds/feed.ts";
import { type EventDraft, PereError } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { DeviceState, Store } from "../engine/store.ts";
import {
  type Batch,
  type Entry,
  type Follower,
  Log,
  type Sink,
  SKIP_ENTRIES_MAX,
  type LogSource,
} from "../engine/feeds/log.ts";
import { reads } from "./contract/calls.ts";
import { until } from "./support/harness.ts";

const entry = (seq: number): Entry => ({
  seq,
  id: `e-${seq}`,
  text: `{"seq":${seq}}`,
  note: null,
  receipt: null,
  type: null,
  to: null,
  audience: null,
  expires: null,
  event: null,
  control: null,
  withdrawnBy: 0,
});

/** The state of a device that has answered. */
const DONE: DeviceState = { state: "done", round: 1, due: null };

class Reader implements Sink {
  blocked: Promise<unknown> | undefined;
  readonly told: number[] = [];
  readonly errors: unknown[] = [];
  onWrite = (): void => {};
  write(_log: Log, { entries }: Batch): undefined {
    this.onWrite();
    this.told.push(...entries.map(({ seq }) => seq));
  }
  again(log: Log, batch: Batch): undefined {
    this.write(log, batch);
  }
  gap(): void {}
  rest(): void {}
  fail(error: unknown): void {
    this.errors.push(error);
  }
}

/** A log of so many entries, of which a device answered those that `answered` holds. */
function longLog(head: number, answered: ReadonlySet<number>, more: Partial<LogSource> = {}) {
  const faults: unknown[] = [];
  const log = new Log("events", "c", {
    now: () => 0,
    report: (fault) => faults.push(fault),
    read: async (after, limit) =>
      Array.from({ length: Math.min(limit, log.head - after) }, (_, n) => entry(after + n + 1)),
    states: async (_, after, upTo) => {
      const found = new Map<number, DeviceState>();
      for (let seq = after + 1; seq <= upTo; seq++) if (answered.has(seq)) found.set(seq, DONE);
      return found;
    },
    ...more,
  });
  log.reach("e", head);
  return { log, faults };
}

function follow(log: Log, sink: Sink, cursor: number, device: string | null = "d"): Follower {
  const follower: Follower = {
    sink,
    device,
    cursor,
    floor: 0,
    start: cursor,
    joined: 0,
    gapAfter: null,
    stopped: false,
  };
  log.follow(follower);
  return follower;
}

describe("a device that answers on another connection while its feed is stalled", () => {
  test("is still served, however many events it answered, and what is remembered of them is bounded", async () => {
    const answered = new Set<number>();
    const { log } = longLog(300_000, answered);
    const reader = new Reader();
    const { promise: drained, resolve: drain } = Promise.withResolvers<void>();
    reader.blocked = drained;
    const follower = follow(log, reader, 0);
    for (let seq = 1; seq <= 300_000; seq++) {
      if (seq === 299_999) continue;
      answered.add(seq);
      log.settle(follower, seq);
    }
    expect(follower.skip!.size).toBeLessThanOrEqual(SKIP_ENTRIES_MAX);
    reader.blocked = undefined;
    drain();
    log.announce([entry(300_001)]);
    await until(() => reader.told.includes(300_001), "the event after those");
    expect(reader.told).toEqual([299_999, 300_001]);
    log.announce([entry(300_002)]);
    await until(() => reader.told.includes(300_002), "the next one");
    expect(log.live).toBe(1);
  });

  test("does not get what it answers while the page is read, also after a gap", async () => {
    const { log } = longLog(20_000, new Set(), {
      read: async (after, limit) =>
        Array.from({ length: Math.min(limit, 20_000 - Math.max(after, 19_990)) }, (_, n) =>
          entry(Math.max(after, 19_990) + n + 1),
        ),
      states: async () => {
        log.settle(follower, 19_995);
        return new Map();
      },
    });
    const reader = new Reader();
    const follower = follow(log, reader, 0);
    await until(() => reader.told.includes(20_000), "the last event");
    expect(reader.told).not.toContain(19_995);
  });

  test("does not get an event that it answered before the event was announced here", async () => {
    const { log } = longLog(0, new Set());
    const reader = new Reader();
    const follower = follow(log, reader, 0);
    await until(() => log.live === 1);
    log.settle(follower, 1);
    log.announce([entry(1), entry(2)]);
    await until(() => reader.told.includes(2));
    expect(reader.told).toEqual([2]);
  });
});

describe("a log", () => {
  test("serves all others, now and later, after a fault at one reader", async () => {
    const { log, faults } = longLog(0, new Set());
    const readers = Array.from({ length: 300 }, () => new Reader());
    for (const reader of readers) follow(log, reader, 0, null);
    await until(() => log.live === 300);
    const broken = readers[7]!;
    broken.onWrite = () => {
      throw new RangeError("too much");
    };
    broken.fail = () => {
      throw new TypeError("and it can't be ended");
    };
    log.announce([entry(1)]);
    await until(() => readers.at(-1)!.told.length === 1, "the last reader");
    log.announce([entry(2)]);
    await until(() => readers.at(-1)!.told.length === 2, "the second entry");
    for (const reader of readers) expect(reader.told).toEqual(reader === broken ? [] : [1, 2]);
    expect(faults.map((fault) => (fault as Error).message)).toEqual(["too much", "and it can't be ended"]);
    expect(log.followers).toBe(299);
  });

  test("ends a reader that is behind if a fault happens, and tells it", async () => {
    const { log, faults } = longLog(5, new Set());
    const reader = new Reader();
    reader.onWrite = () => {
      throw new TypeError("no such thing");
    };
    follow(log, reader, 0, null);
    await until(() => reader.errors.length === 1);
    expect(faults.map(String)).toEqual(["TypeError: no such thing"]);
  });
});

const draft = (data: unknown, more: Partial<EventDraft> = {}): EventDraft => ({
  type: null,
  data: JSON.stringify(data),
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  key: null,
  attempts: null,
  where: null,
  ...more,
});

/** A store of which one method fails as often as is said, by a mistake in the program. */
function failing(store: Store, left: Partial<Record<keyof Store, number>>, error?: Error): Store {
  return new Proxy(store, {
    get(target, name: keyof Store) {
      const method = target[name] as (...values: unknown[]) => unknown;
      return (...values: unknown[]) => {
        if ((left[name] ?? 0) > 0) {
          left[name]!--;
          throw error ?? new TypeError(`a mistake in ${name}`);
        }
        return method.apply(target, values);
      };
    },
  });
}

async function withEngine(
  left: Partial<Record<keyof Store, number>>,
  run: (engine: Engine, store: Store, faults: string[]) => Promise<void>,
  options: EngineOptions = {},
  error?: Error,
): Promise<void> {
  const store = new SqliteStore({ path: ":memory:" });
  const faults: string[] = [];
  const engine = new Engine(failing(store, left, error), { report: (fault) => faults.push(String(fault)), ...options });
  try {
    await run(engine, store, faults);
  } finally {
    await engine.drain();
    await engine.close();
  }
}

/** A reader's end of a feed. */
function wire(more: Partial<Wire> = {}): Wire & { readonly texts: string[]; readonly said: string[] } {
  const [texts, said]: [string[], string[]] = [[], []];
  return {
    texts,
    said,
    ready: () => void said.push("ready"),
    write: (_, { entries }) => void texts.push(...entries.map(({ text }) => text)),
    gap() {},
    rest() {},
    beat: () => void said.push("beat"),
    remind() {
      return undefined;
    },
    bye: (reason) => void said.push(reason),
    ...more,
  };
}

const feedOf = (device: string) =>
  ({ ...OWN, caller: "c", kind: "events", channels: ["orders"], device, last: null, since: "now" }) as const;

describe("an engine", () => {
  test("releases a feed whose connection can't be written to, not even to end it", async () => {
    await withEngine({}, async (engine, _, faults) => {
      const fails = (): never => {
        throw new TypeError("the connection is gone");
      };
      const [broken, whole] = [wire({ write: fails, bye: fails }), wire()];
      engine.follow(feedOf("a"), broken);
      engine.follow(feedOf("b"), whole);
      await until(() => engine.held.live === 2);
      await engine.push("orders", [draft(1)]);
      await until(() => whole.texts.length === 1);
      await engine.push("orders", [draft(2)]);
      await until(() => whole.texts.length === 2);
      expect(engine.held.feeds).toBe(1);
      expect(faults.length).toBe(2);
    });
  });

  test("writes nothing more to a feed of several channels after a failed write: a later position would lose the entry", async () => {
    await withEngine({}, async (engine) => {
      await engine.push("orders", [draft(1)]);
      await engine.push("stock", [draft(2)]);
      const channels: string[] = [];
      const broken = wire({
        write(channel) {
          channels.push(channel);
          throw new TypeError("the connection is gone");
        },
      });
      engine.follow({ ...feedOf("a"), channels: ["orders", "stock"], device: null, since: "earliest" }, broken);
      await until(() => engine.held.feeds === 0);
      await Bun.sleep(0);
      expect(channels).toHaveLength(1);
      expect(broken.said).toEqual(["ready", "busy"]);
    });
  });

  test("sends every other feed its keep-alive if one fails", async () => {
    await withEngine(
      {},
      async (engine, _, faults) => {
        const broken = wire({
          beat() {
            throw new TypeError("the connection is gone");
          },
        });
        const others = [wire(), wire()];
        engine.follow(feedOf("a"), others[0]!);
        engine.follow(feedOf("b"), broken);
        engine.follow(feedOf("c"), others[1]!);
        await until(() => others.every(({ said }) => said.filter((word) => word === "beat").length >= 3));
        expect(broken.said).toEqual(["ready", "busy"]);
        expect(faults).toEqual(["TypeError: the connection is gone"]);
      },
      { limits: { beatMs: 60 } },
    );
  });

  test("reports a feed that could not be opened, and opens the next one", async () => {
    await withEngine({ join: 1 }, async (engine, _, faults) => {
      const [first, second] = [wire(), wire()];
      engine.follow(feedOf("a"), first);
      await until(() => first.said.includes("busy"));
      expect(faults).toEqual(["TypeError: a mistake in join"]);
      engine.follow(feedOf("a"), second);
      await until(() => second.said.includes("ready"));
    });
  });

  test("records missing devices after a fault at a deadline", async () => {
    await withEngine({ recordMissing: 1 }, async (engine, store, faults) => {
      await store.enrol("orders", "a", Date.now());
      const { first } = await engine.push("orders", [draft(1, { deadline: 1 })]);
      await until(async () => (await reads.tallies(store, "orders", first, first)).get(first)?.missing === 1);
      expect(faults).toEqual(["TypeError: a mistake in recordMissing"]);
    });
  });

  test("stores signs of life after a fault", async () => {
    await withEngine(
      { seen: 1 },
      async (engine, store, faults) => {
        engine.follow(feedOf("a"), wire());
        await until(() => faults.includes("TypeError: a mistake in seen"));
        engine.follow(feedOf("b"), wire());
        const seenAt = async () => (await store.devices("orders", "a", 1, Date.now())).items[0]?.seenAt;
        await until(seenAt, "the second device's sign of life");
      },
      { limits: { seenMs: 20 } },
    );
  });

  test("reminds again after a fault", async () => {
    await withEngine({ reminders: 0, unanswered: 1 }, async (engine, _, faults) => {
      let reminded = 0;
      engine.follow(feedOf("a"), wire({ remind: () => void reminded++ }));
      await until(() => engine.held.live === 1);
      await engine.push("orders", [draft(1, { remind: 1 })]);
      await until(() => reminded > 0, "a reminder");
      expect(faults).toEqual(["TypeError: a mistake in unanswered"]);
    });
  });

  test("looks for hooks again after a fault", async () => {
    await withEngine({ hooks: 1 }, async (_, __, faults) => {
      await until(() => faults.includes("TypeError: a mistake in hooks"));
    });
  });

  test("reports a bug that looks like an absent store, and retries", async () => {
    const left = { open: 1 };
    const mistake = new PereError("away", "the store can't be read now", [], new TypeError("a mistake in reading"));
    await withEngine(
      left,
      async (engine, _, faults) => {
        const [first, second] = [wire(), wire()];
        const request = {
          ...OWN,
          kind: "receipts",
          channels: ["orders"],
          device: null,
          last: null,
          since: "now",
        } as const;
        engine.follow(request, first);
        await until(() => first.said.includes("busy"));
        expect(faults).toEqual(["TypeError: a mistake in reading"]);
        engine.follow(request, second);
        await until(() => second.said.includes("ready"));
      },
      {},
      mistake,
    );
  });
});
