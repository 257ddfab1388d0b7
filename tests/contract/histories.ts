/**
 * Histories that a store and its model are taken through: random calls, several in a turn, by fast-check.
 */
import fc from "fast-check";
import { type EventDraft, KEY_MEMORY_MS, type ReceiptDraft, STATUSES, type Status } from "../../engine/model.ts";
import { OVERDUE_MS } from "../../engine/attention.ts";
import { SECOND } from "./calls.ts";

export const CHANNELS = ["a", "b"] as const;

export const DEVICES = ["d1", "d2", "d3", "d4"] as const;

/** One call, as chance makes it. Events are named by how far they are behind the head, so that most names hit. */
export type Step = { readonly channel: string } & (
  | {
      readonly do: "append";
      readonly drafts: readonly EventDraft[];
      readonly key: { readonly key: string; readonly digest: string } | null;
    }
  | {
      readonly do: "record";
      readonly words: readonly ({ back: number; device: string; status: Status; stranger: boolean } & Pick<
        ReceiptDraft,
        "after" | "round" | "retry"
      >)[];
    }
  | { readonly do: "withdraw"; readonly back: number; readonly note: string | null }
  | { readonly do: "enrol" | "retire" | "join" | "seen"; readonly device: string }
  | { readonly do: "trim"; readonly count: number; readonly age: number }
  | { readonly do: "miss" | "age" }
  | { readonly do: "wait"; readonly ms: number }
);

/** Most calls go to one channel; the other is there to be left alone. */
const CHANNEL = fc.constantFrom(CHANNELS[0], CHANNELS[0], CHANNELS[0], CHANNELS[1]);

const DEVICE = fc.constantFrom(...DEVICES);

const DRAFT: fc.Arbitrary<EventDraft> = fc.record({
  type: fc.constantFrom(null, "t"),
  data: fc.constantFrom("1", '"ü"', "{}"),
  to: fc.option(fc.uniqueArray(DEVICE, { minLength: 1, maxLength: 3 }), { freq: 3 }),
  ttl: fc.option(fc.constantFrom(0.7, 5), { freq: 3 }),
  deadline: fc.option(fc.constantFrom(0.3, 1.5, 5), { freq: 2 }),
  remind: fc.option(fc.constantFrom(1, 2.5), { freq: 3 }),
  key: fc.constant(null),
  attempts: fc.option(fc.constantFrom(2, 3), { freq: 2 }),
});

/** One event with a key. */
const KEYED = fc.tuple(DRAFT, fc.constantFrom("x", "x", "y")).map(([draft, key]) => [{ ...draft, key }]);

const STEP: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("append" as const),
      channel: CHANNEL,
      drafts: fc.oneof(
        { weight: 2, arbitrary: fc.array(DRAFT, { minLength: 1, maxLength: 3 }) },
        { weight: 1, arbitrary: KEYED },
      ),
      key: fc.option(fc.record({ key: fc.constantFrom("k1", "k2"), digest: fc.constantFrom("x", "x", "y") }), {
        freq: 3,
      }),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant("record" as const),
      channel: CHANNEL,
      words: fc.array(
        fc.record({
          back: fc.integer({ min: -1, max: 6 }),
          device: DEVICE,
          status: fc.constantFrom(...STATUSES),
          after: fc.constantFrom(null, 1, 2),
          round: fc.constantFrom(null, null, null, 1, 2, 3),
          retry: fc.constantFrom(true, true, true, false),
          stranger: fc.constantFrom(false, false, false, false, true),
        }),
        { minLength: 1, maxLength: 4 },
      ),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("withdraw" as const),
      channel: CHANNEL,
      back: fc.integer({ min: -1, max: 4 }),
      note: fc.constantFrom(null, "printed twice"),
    }),
  },
  {
    weight: 7,
    arbitrary: fc.record({
      do: fc.constantFrom(
        "enrol" as const,
        "enrol" as const,
        "retire" as const,
        "join" as const,
        "join" as const,
        "seen" as const,
      ),
      channel: CHANNEL,
      device: DEVICE,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("trim" as const),
      channel: CHANNEL,
      count: fc.integer({ min: 0, max: 8 }),
      age: fc.constantFrom(3 * SECOND, 10 * KEY_MEMORY_MS),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("miss" as const), channel: CHANNEL }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("age" as const), channel: CHANNEL }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("wait" as const),
      channel: CHANNEL,
      ms: fc.constantFrom(1, 300, 300, 1_000, 2 * SECOND, 45 * SECOND, OVERDUE_MS, OVERDUE_MS, KEY_MEMORY_MS + 1),
    }),
  },
);

/** Turns, each of calls that are made without waiting for one another. */
export const HISTORY = fc.array(fc.array(STEP, { minLength: 1, maxLength: 4, size: "max" }), {
  minLength: 1,
  maxLength: 24,
  size: "max",
});
