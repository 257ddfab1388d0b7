/**
 * POST /push: one event or many, stored whole or not at all, and every refusal with its status and a sentence.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { connect as dial } from "node:net";
import type { Service } from "../index.ts";
import { ask, listen, push, start, until } from "./support/harness.ts";

let pere: Service;
beforeAll(async () => void (pere = await start()));
afterAll(() => pere.stop());

let count = 0;
const fresh = (): string => `push-${++count}`;
const stored = async (channel: string): Promise<number> => {
  const answer = await ask(`${pere.url}/events/${channel}`);
  return answer.status === 404 ? 0 : answer.body.events.length;
};

describe("one event", () => {
  test("is answered with its id, seq, time and audience, and a Location", async () => {
    const channel = fresh();
    await ask(`${pere.url}/devices/${channel}/till`, { method: "PUT" });
    const answer = await ask(`${pere.url}/push/${channel}`, { body: "{}" });
    expect(answer.status).toBe(201);
    expect(Object.keys(answer.body)).toEqual(["id", "channel", "seq", "at", "audience"]);
    expect(answer.body).toMatchObject({ channel, seq: 1, audience: { addressed: 1, connected: 0 } });
    expect(answer.body.id).toMatch(/^[0-9a-z]+-1$/);
    expect(answer.body.at).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
    const read = await ask(`${pere.url}${answer.headers.get("location")}`);
    expect(read.body).toMatchObject({ id: answer.body.id, data: {}, complete: false });
  });

  test("increments the channel's seq by exactly one, in the same epoch", async () => {
    const channel = fresh();
    const ids = [await push(pere.url, channel, 1), await push(pere.url, channel, 2), await push(pere.url, channel, 3)];
    const [epoch] = ids[0]!.split("-");
    expect(ids).toEqual([1, 2, 3].map((seq) => `${epoch}-${seq}`));
    expect((await push(pere.url, fresh(), 1)).startsWith(`${epoch}-`)).toBeFalse();
  });

  test("may be sent in chunks, without Content-Length", async () => {
    const channel = fresh();
    const { port } = new URL(pere.url);
    const socket = dial(Number(port), "127.0.0.1");
    let said = "";
    socket.on("data", (bytes) => (said += bytes.toString()));
    socket.write(
      `POST /push/${channel} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n`,
    );
    socket.write(`5\r\n": 1}\r\n0\r\n\r\n`);
    await until(() => said.includes('"seq":1'));
    socket.write(
      `POST /push/${channel} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n`,
    );
    const part = `8000\r\n${"1".repeat(0x8000)}\r\n`;
    socket.write(`${part}${part}${part}0\r\n\r\n`);
    await until(() => said.includes("HTTP/1.1 413"));
    socket.destroy();
    expect(await stored(channel)).toBe(1);
  });
});

describe("many events", () => {
  const ndjson = (channel: string, body: string, headers = {}) =>
    ask(`${pere.url}/push/${channel}`, { body, type: "application/x-ndjson", headers });

  test("are stored together, in order, with the options of the query", async () => {
    const channel = fresh();
    const stream = await listen(`${pere.url}/feed/${channel}?device=a`);
    const answer = await ask(`${pere.url}/push/${channel}?type=t`, {
      body: '{"n": 1}\r\n\n"two"\n3',
      type: "application/x-ndjson; charset=utf-8",
    });
    expect(answer.status).toBe(201);
    expect(answer.body.audience).toEqual({ addressed: 1, connected: 1 });
    expect(answer.body.events.map(({ seq }: { seq: number }) => seq)).toEqual([1, 2, 3]);
    const events = await stream.have(3);
    expect(events.map(({ id, event }) => [id, event])).toEqual(
      answer.body.events.map(({ id }: { id: string }) => [id, "t"]),
    );
    expect(events.map(({ data }) => (JSON.parse(data) as { data: unknown }).data)).toEqual([{ n: 1 }, "two", 3]);
    stream.close();
  });

  test("are refused together if one line is invalid, and each invalid line is listed", async () => {
    const channel = fresh();
    const answer = await ndjson(channel, "1\n{\n3\nx");
    expect(answer.status).toBe(400);
    expect(answer.body.errors.map(({ path }: { path: string }) => path)).toEqual(["line 2", "line 4"]);
    expect(await stored(channel)).toBe(0);
  });

  test("may be at most 1,000", async () => {
    const channel = fresh();
    const lines = Array.from({ length: 1000 }, (_, n) => n);
    expect((await ndjson(channel, `${lines.join("\n")}\n`)).body.events).toHaveLength(1000);
    expect((await ndjson(channel, [...lines, 0].join("\n"))).status).toBe(413);
  });

  test("to many devices each are refused if they are too much for one commit", async () => {
    const channel = fresh();
    const names = Array.from({ length: 1000 }, (_, n) => `d${n}`).join(",");
    const send = (lines: number) =>
      ask(`${pere.url}/push/${channel}?to=${names}`, { body: "1\n".repeat(lines), type: "application/x-ndjson" });
    expect((await send(20)).body.audience.addressed).toBe(1000);
    expect((await send(21)).status).toBe(413);
    expect((await ask(`${pere.url}/push/${channel}?to=${names},more`, { body: "1" })).status).toBe(422);
    expect(await stored(channel)).toBe(20);
  });

  test("an empty batch is refused", async () => {
    expect((await ndjson(fresh(), "\n\n")).status).toBe(400);
  });
});

describe("an Idempotency-Key", () => {
  const keyed = (channel: string, key: string, body: string, type = "application/json") =>
    ask(`${pere.url}/push/${channel}`, { body, type, headers: { "Idempotency-Key": key } });

  test("with the same body returns the first event again, and stores nothing", async () => {
    const channel = fresh();
    const first = await keyed(channel, "k", '{"a":1}');
    const again = await keyed(channel, "k", '{"a":1}');
    expect(first.status).toBe(201);
    expect(first.headers.get("idempotent-replayed")).toBeNull();
    expect(again.status).toBe(200);
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(again.body).toEqual(first.body);
    expect(await stored(channel)).toBe(1);
  });

  test("with another body is 422, in another channel independent", async () => {
    const channel = fresh();
    await keyed(channel, "k", "1");
    expect((await keyed(channel, "k", "1 ")).status).toBe(422);
    expect((await keyed(channel, "k", "1", "application/x-ndjson")).status).toBe(422);
    expect((await keyed(fresh(), "k", "2")).status).toBe(201);
    expect(await stored(channel)).toBe(1);
  });

  test("holds for a batch as a whole", async () => {
    const channel = fresh();
    const first = await keyed(channel, "k", "1\n2", "application/x-ndjson");
    const again = await keyed(channel, "k", "1\n2", "application/x-ndjson");
    expect(again.status).toBe(200);
    expect(again.body).toEqual(first.body);
    expect(await stored(channel)).toBe(2);
  });

  test("sent many times concurrently stores one event", async () => {
    const channel = fresh();
    const answers = await Promise.all(Array.from({ length: 50 }, () => keyed(channel, "k", "1")));
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(1);
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(1);
    expect(await stored(channel)).toBe(1);
  });

  test("is remembered for 24 hours, then forgotten", async () => {
    let now = Date.now();
    const held = await start({ now: () => now });
    const send = () => ask(`${held.url}/push/c`, { body: "1", headers: { "Idempotency-Key": "k" } });
    const first = await send();
    now += 24 * 3600_000 - 1;
    expect((await send()).body).toEqual(first.body);
    now += 1;
    expect((await send()).body.seq).toBe(2);
    await held.stop();
  });

  test("may be 255 characters long", async () => {
    expect((await keyed(fresh(), "x".repeat(255), "1")).status).toBe(201);
    expect((await keyed(fresh(), "x".repeat(256), "1")).status).toBe(400);
  });
});

describe("what is refused", () => {
  test.each([
    ["?type=a%20b", 400],
    ["?type=", 400],
    [`?type=${"x".repeat(65)}`, 400],
    ["?type=pere.ready", 422],
    ["?to=", 400],
    ["?to=a,,b", 400],
    ["?to=a%2Fb", 400],
    ["?ttl=soon", 400],
    ["?ttl=0", 422],
    ["?ttl=-1", 422],
    ["?ttl=1e9", 422],
    ["?tll=5", 400],
    ["?ttl=1&ttl=2", 400],
  ])("%s", async (query, status) => {
    const channel = fresh();
    const answer = await ask(`${pere.url}/push/${channel}${query}`, { body: "1" });
    expect(answer.status).toBe(status);
    expect(answer.headers.get("content-type")).toBe("application/problem+json");
    expect(answer.body).toMatchObject({
      type: expect.any(String),
      title: expect.any(String),
      status,
      detail: expect.any(String),
    });
    expect(await stored(channel)).toBe(0);
  });

  test.each(["a".repeat(129), "-a", ".a", "a%20b", "a%2Fb", "..%2f", "%00", "%0d%0aX:y", "é", "a,b", "%zz", "a%"])(
    "the channel %s",
    async (channel) => {
      expect((await ask(`${pere.url}/push/${channel}`, { body: "1" })).status).toBe(400);
    },
  );

  test.each([
    ["", 400],
    ["{", 400],
    ["01", 400],
    ["NaN", 400],
    ["1 2", 400],
    ["\ufeff1", 400],
    [new Uint8Array([0x22, 0xff, 0x22]), 400],
    [`${"[".repeat(65)}${"]".repeat(65)}`, 422],
    [`"${"x".repeat(65_535)}"`, 413],
    [`"${"é".repeat(32_768)}"`, 413],
  ])("the body %#", async (body, status) => {
    const channel = fresh();
    const answer = await ask(`${pere.url}/push/${channel}`, { body });
    expect(answer.status).toBe(status);
    expect(answer.body.status).toBe(status);
    expect(await stored(channel)).toBe(0);
  });

  test("but not what is within the limits", async () => {
    const channel = fresh();
    for (const body of [`${"[".repeat(64)}${"]".repeat(64)}`, `"${"x".repeat(65_534)}"`, '"[[[{{{\\"[["'])
      expect(
        (await ask(`${pere.url}/push/${channel}?ttl=0.5&to=${"d".repeat(128)}&type=${"t".repeat(64)}`, { body }))
          .status,
      ).toBe(201);
    expect((await ask(`${pere.url}/push/${"c".repeat(128)}`, { body: "1" })).status).toBe(201);
  });

  test.each(["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])(
    "the content type %j",
    async (type) => {
      const answer = await ask(`${pere.url}/push/${fresh()}`, {
        body: new TextEncoder().encode("1"),
        ...(type === "" ? { headers: { "Content-Type": "" } } : {}),
        type,
      });
      expect(answer.status).toBe(415);
      expect(answer.body.detail).toContain("application/json");
    },
  );

  test("another method gets the list of allowed ones, an unknown path 404", async () => {
    const answer = await ask(`${pere.url}/push/c`, { method: "PATCH" });
    expect(answer.status).toBe(405);
    expect(answer.headers.get("allow")).toBe("POST");
    expect((await ask(`${pere.url}/pushes/c`)).status).toBe(404);
    expect((await ask(`${pere.url}/push/`, { body: "1" })).status).toBe(404);
    expect((await ask(`${pere.url}/pushes/c`)).body.detail).toContain("/pushes/c");
  });
});
