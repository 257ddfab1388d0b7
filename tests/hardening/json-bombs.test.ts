/**
 * JSON that is meant to hurt: depth, huge numbers, keys that change objects, many small things.
 */
import { describe, expect, test } from "bun:test";
import { JSON_DEPTH_MAX } from "../../engine/model.ts";
import { readData, readReceipt, readReceiptsJson } from "../../engine/parsing.ts";
import { ask, connect, push, until } from "../support/harness.ts";
import { LINES, pere, POLL, putUnderAttack, tried, unharmed } from "./attack.ts";

putUnderAttack();

describe("hostile JSON", () => {
  const deep = (depth: number, inside = ""): string => "[".repeat(depth) + inside + "]".repeat(depth);
  const deepObjects = (depth: number): string => '{"a":'.repeat(depth) + "1" + "}".repeat(depth);

  test("100,000 levels are refused wherever JSON is accepted", async () => {
    const event = await push(pere.url, "deep", 1, "?to=d");
    const feed = await connect(`${pere.url}/feed/deep?device=d`);
    for (const [depth, status] of [
      [JSON_DEPTH_MAX + 1, 422],
      [30_000, 422],
      [100_000, 413],
    ] as const) {
      expect((await tried("/push/deep", { body: deep(depth) })).status).toBe(status);
      expect((await tried("/push/deep", { body: deep(depth), type: LINES })).status).toBe(status);
    }
    for (const text of [deep(100_000), deepObjects(100_000), "[".repeat(100_000), '{"a":'.repeat(100_000)]) {
      expect(
        (await tried("/feedback/deep", { body: `{"event":"${event}","device":"d","status":"done","detail":${text}}` }))
          .status,
      ).toBe(422);
      expect((await tried("/feedback/deep", { body: text })).status).toBe(422);
      expect((await tried("/hooks/deep/one", { method: "PUT", body: text })).status).toBe(413);
      const { length } = feed.messages;
      feed.socket.send(`{"event":"${event}","status":"done","detail":${text}}`);
      await until(() => feed.messages.length > length);
      expect(feed.messages.at(-1)!.detail).toContain("nests deeper");
    }
    expect((await tried("/hooks/deep/one", { method: "PUT", body: deep(1_000) })).status).toBe(422);
    feed.socket.close();
    expect((await ask(`${pere.url}/events/deep/${event}`)).body.receipts.pending).toBe(1);
  });

  test("huge numbers stay unchanged, in events and in receipts", async () => {
    const numbers = `[1e400,-1e400,1e-400,-0,${"9".repeat(2_000)},0.${"1".repeat(1_000)},1E+2,12345678901234567890]`;
    const event = await push(pere.url, "numbers", 1, "?to=d");
    const answer = await tried("/push/numbers", { body: numbers });
    expect((await tried(`/events/numbers/${answer.body.id}`)).text).toContain(`"data":${numbers}}`);
    await tried("/feedback/numbers", { body: `{"event":"${event}","device":"d","status":"done","detail":${numbers}}` });
    expect((await tried(`/events/numbers/${event}/receipts`)).text).toContain(`"detail":${numbers},`);
    for (const option of ["ttl", "deadline", "remind"])
      for (const number of ["1e400", "9".repeat(400), "NaN", "Infinity", "0x10", "1_0", "٣"])
        expect([400, 422]).toContain(
          (await tried(`/push/numbers?${option}=${encodeURIComponent(number)}`, { body: "1" })).status,
        );
  });

  test("__proto__, constructor and duplicate keys are data, and change no object", async () => {
    const data = '{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}},"a":1,"a":2}';
    const event = await push(pere.url, "proto", 1, "?to=d,e,polluted");
    const pushed = await tried("/push/proto?to=d", { body: data });
    expect((await tried(`/events/proto/${pushed.body.id}`)).text).toContain(`"data":${data}}`);
    const receipt = `{"event":"${event}","status":"done","detail":{"__proto__":{"polluted":true},"a":1}`;
    expect(
      (await tried("/feedback/proto", { body: `${receipt},"device":"d","__proto__":{"device":"e"}}` })).body.recorded,
    ).toBe(1);
    expect((await tried(`/events/proto/${event}/receipts?status=done`)).text).toContain(
      '"detail":{"__proto__":{"polluted":true},"a":1}',
    );
    // A receipt is its own members: nothing is inherited from what it brings as its prototype.
    const inherits = `{"__proto__":{"event":"${event}","device":"e","status":"done"}}`;
    expect((await tried("/feedback/proto", { body: inherits })).status).toBe(422);
    const twice = `{"event":"${event}","device":"d","device":"e","status":"failed","status":"done"}`;
    expect((await tried("/feedback/proto", { body: twice })).body.recorded).toBe(1);
    expect((await tried(`/events/proto/${event}`)).body.receipts.done).toBe(2);
    const hook = '{"__proto__":{"url":"http://127.0.0.1:9/"},"constructor":{"prototype":{"polluted":true}}}';
    expect((await tried("/hooks/proto/one", { method: "PUT", body: hook })).status).toBe(400);
    const names = await tried("/feed/constructor,toString,hasOwnProperty,valueOf?device=constructor", {
      headers: POLL,
    });
    expect(names.status).toBe(200);
    expect((await tried("/ready")).text).not.toContain("polluted");
    expect((await tried("/events/__proto__")).status).toBe(400);
    // The same in this process, where it can be seen.
    readReceipt(readReceiptsJson(`${receipt},"device":"d"}`), null);
    readData(data);
    expect(({} as { polluted?: boolean }).polluted).toBeUndefined();
  });

  test("many small values in one text are parsed in linear time", async () => {
    expect((await tried("/push/many", { body: `[${"0,".repeat(32_000)}0]` })).status).toBe(201);
    expect(
      (await tried("/push/many", { body: `{${Array.from({ length: 6_000 }, (_, n) => `"${n}":0`).join(",")}}` }))
        .status,
    ).toBe(201);
    expect((await tried("/push/many", { body: `"${"\\u0000".repeat(10_000)}"` })).status).toBe(201);
    expect((await tried("/push/many", { body: `${" ".repeat(65_535)}1` })).status).toBe(201);
    expect((await tried("/feedback/many", { body: `[${"[],".repeat(999)}[]]` })).status).toBe(422);
    expect((await tried("/feedback/many", { body: `[${"0,".repeat(2_000_000)}0]` })).status).toBe(413);
  });

  test("leaves nothing behind", unharmed, 20_000);
});
