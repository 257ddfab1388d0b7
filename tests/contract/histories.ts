/**
 * Histories that a store and its model are taken through: random calls, several in a turn, by fast-check.
 */
import fc from "fast-check";
import { type EventDraft, KEY_MEMORY_MS, type ReceiptDraft, STATUSES, type Status } from "../../engine/model.ts";
import { OVERDUE_MS } from "../../engine/attention.ts";
import { SECOND } from "./calls.ts";

export const CHANNELS = ["a", "b"] as const;

export const DEVICES = ["d1", "d2", "d3", "d4"] as const;

/** Tags by name; null: the tag is removed. */
export type TagList = readonly (readonly [string, string | null])[];

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
  | { readonly do: "enrol" | "retire" | "seen"; readonly device: string }
  | { readonly do: "join"; readonly device: string; readonly tags: TagList | null }
  | {
      readonly do: "tag";
      readonly device: string;
      readonly tags: TagList;
      readonly isAll: boolean;
      readonly enrols: boolean;
    }
  | { readonly do: "trim"; readonly count: number; readonly age: number }
  | { readonly do: "miss" | "age" }
  | { readonly do: "wait"; readonly ms: number }
);

/** Most calls go to one channel; the other is there to be left alone. */
const CHANNEL = fc.constantFrom(CHANNELS[0], CHANNELS[0], CHANNELS[0], CHANNELS[1]);

const DEVICE = fc.constantFrom(...DEVICES);

const TAG_NAMES = fc.constantFrom("site", "beta", "__proto__");
const TAG_VALUES = fc.constantFrom("rome", "milan", "1");

/** What a device's tags become: all of them, or some; null removes one. */
const TAGS = fc.dictionary(TAG_NAMES, TAG_VALUES, { maxKeys: 3 }).map((tags) => Object.entries(tags));
const TAG_CHANGES = fc.uniqueArray(fc.tuple(TAG_NAMES, fc.option(TAG_VALUES, { freq: 2 })), {
  minLength: 1,
  maxLength: 2,
  selector: ([name]) => name,
});

const TERM = fc
  .tuple(fc.constantFrom("", "", "!"), TAG_NAMES, fc.array(TAG_VALUES, { maxLength: 2 }))
  .map(([not, name, values]) => not + name + (values.length === 0 ? "" : `:${values.join("|")}`));
const WHERE = fc.array(TERM, { minLength: 1, maxLength: 3 }).map((terms) => terms.join());

const DRAFT: fc.Arbitrary<EventDraft> = fc
  .record({
    type: fc.constantFrom(null, "t"),
    data: fc.constantFrom("1", '"ü"', "{}"),
    to: fc.option(fc.uniqueArray(DEVICE, { minLength: 1, maxLength: 3 }), { freq: 3 }),
    ttl: fc.option(fc.constantFrom(0.7, 5), { freq: 3 }),
    deadline: fc.option(fc.constantFrom(0.3, 1.5, 5), { freq: 2 }),
    remind: fc.option(fc.constantFrom(1, 2.5), { freq: 3 }),
    key: fc.constant(null),
    attempts: fc.option(fc.constantFrom(2, 3), { freq: 2 }),
    where: fc.constant(null),
  })
  .chain((plain) =>
    plain.to === null
      ? fc.option(WHERE, { freq: 2 }).map((where) => ({ ...plain, where }))
      : fc.constant(plain as EventDraft),
  );

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
    weight: 5,
    arbitrary: fc.record({
      do: fc.constantFrom("enrol" as const, "enrol" as const, "retire" as const, "seen" as const),
      channel: CHANNEL,
      device: DEVICE,
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("join" as const),
      channel: CHANNEL,
      device: DEVICE,
      tags: fc.option(TAGS, { freq: 1 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.oneof(
      fc.record({
        do: fc.constant("tag" as const),
        channel: CHANNEL,
        device: DEVICE,
        tags: TAGS,
        isAll: fc.constant(true),
        enrols: fc.boolean(),
      }),
      fc.record({
        do: fc.constant("tag" as const),
        channel: CHANNEL,
        device: DEVICE,
        tags: TAG_CHANGES,
        isAll: fc.constant(false),
        enrols: fc.constant(false),
      }),
    ),
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
