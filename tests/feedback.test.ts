/**
 * POST /feedback and GET /feedback: receipts in, in every form they may come, and out to publishers, in order and resumable.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { Service } from "../index.ts";
import { ask, connect, give, listen, push, start, until } from "./support/harness.ts";

let pere: Service;
beforeAll(async () => void (pere = await start()));
afterAll(() => pere.stop());

let count = 0;
/** A channel of its own with the devices a, b and c and one event. */
async function channelWithEvent(): Promise<{ channel: string; event: string; url: string }> {
  const channel = `feedback-${++count}`;
  for (const device of ["a", "b", "c"]) await ask(`${pere.url}/devices/${channel}/${device}`, { method: "PUT" });
  return { channel, event: await push(pere.url, channel, 1), url: `${pere.url}/feedback/${channel}` };
}
const stateOf = async (channel: string, event: string) => (await ask(`${pere.url}/events/${channel}/${event}`)).body;
const rowOf = async (channel: string, event: string, device: string) =>
  (await ask(`${pere.url}/events/${channel}/${event}/receipts`)).body.receipts.find(
    (row: { device: string }) => row.device === device,
  );

describe("a receipt", () => {
  test("only moves forward: earlier and equal statuses are duplicates, the first final one stands", async () => {
    const { channel, event } = await channelWithEvent();
    const words = ["received", "received", "working", "received", "failed", "done", "failed", "working"];
    const answers = [];
    for (const word of words) answers.push((await give(pere.url, channel, event, "a", word)).body);
    expect(answers.map(({ recorded, duplicate }) => [recorded, duplicate])).toEqual([
      [1, 0],
      [0, 1],
      [1, 0],
      [0, 1],
      [1, 0],
      [0, 1],
      [0, 1],
      [0, 1],
    ]);
    expect(await rowOf(channel, event, "a")).toMatchObject({ status: "failed" });
    expect((await stateOf(channel, event)).receipts).toEqual({
      pending: 2,
      received: 0,
      working: 0,
      done: 0,
      failed: 1,
      missing: 0,
      deferred: 0,
      withdrawn: 0,
    });
  });

  test("keeps its detail and the device's own clock beside the server's", async () => {
    const { channel, event } = await channelWithEvent();
    await give(pere.url, channel, event, "a", "done", { detail: { n: [1, "é"] }, at: "2026-01-02T03:04:05+01:00" });
    const row = await rowOf(channel, event, "a");
    expect(row).toMatchObject({ detail: { n: [1, "é"] }, deviceAt: "2026-01-02T02:04:05.000Z", late: false });
    expect(Math.abs(Date.parse(row.at) - Date.now())).toBeLessThan(60_000);
  });

  test("keeps the numbers in its detail as they were written", async () => {
    const { channel, event, url } = await channelWithEvent();
    const detail = '{"n":12345678901234567890,"big":1e400,"z":-0,"f":12.50}';
    await ask(url, { body: `{"event":"${event}","device":"a","status":"done","detail":${detail}}` });
    expect((await ask(`${pere.url}/events/${channel}/${event}/receipts`)).text).toContain(`"detail":${detail},`);
  });

  test("may write the numbers of a deferral as JSON allows", async () => {
    const { channel, event, url } = await channelWithEvent();
    const body = `{"event":"${event}","device":"a","status":"deferred","after":6.0e2,"round":1.0,"detail":1}`;
    expect((await ask(url, { body })).body).toEqual({ recorded: 1, duplicate: 0, rejected: [] });
    expect(await rowOf(channel, event, "a")).toMatchObject({ status: "deferred", detail: 1 });
  });

  test("takes its device from the query or a header if it names none", async () => {
    const { channel, event, url } = await channelWithEvent();
    expect((await ask(`${url}?device=a`, { body: { event, status: "done" } })).body.recorded).toBe(1);
    expect((await ask(url, { body: { event, status: "done" }, headers: { device: "b" } })).body.recorded).toBe(1);
    expect((await ask(`${url}?device=a`, { body: { event, status: "done", device: "c" } })).status).toBe(422);
    expect((await stateOf(channel, event)).receipts).toMatchObject({ done: 2, pending: 1 });
  });
});

describe("an array of receipts", () => {
  test("is recorded as far as possible, and the answer says which receipts were not, and why", async () => {
    const { channel, event, url } = await channelWithEvent();
    const stranger = event.replace(/-1$/, "-2");
    const answer = await ask(url, {
      body: [
        { event, device: "a", status: "done" },
        { event: stranger, device: "a", status: "done" },
        { event, device: "nobody", status: "done" },
        { event, device: "b", status: "maybe" },
        17,
        { event, device: "a", status: "done" },
        { event, device: "b", status: "received" },
      ],
    });
    expect(answer.status).toBe(200);
    expect(answer.body).toMatchObject({
      recorded: 2,
      duplicate: 1,
      rejected: [
        { index: 1, event: stranger },
        { index: 2, event },
        { index: 3, event },
        { index: 4, event: null },
      ],
    });
    for (const { reason } of answer.body.rejected) expect(reason.length).toBeGreaterThan(10);
    expect((await stateOf(channel, event)).receipts).toMatchObject({ done: 1, received: 1, pending: 1 });
  });

  test("without any valid receipt is a problem with the same body", async () => {
    const { url, event } = await channelWithEvent();
    const answer = await ask(url, { body: [{ event, device: "nobody", status: "done" }] });
    expect(answer.status).toBe(422);
    expect(answer.headers.get("content-type")).toBe("application/problem+json");
    expect(answer.body).toMatchObject({
      status: 422,
      title: expect.any(String),
      detail: expect.any(String),
      recorded: 0,
      duplicate: 0,
      rejected: [{ index: 0, event }],
    });
    expect(
      (await ask(`${pere.url}/feedback/never-used`, { body: { event, device: "a", status: "done" } })).status,
    ).toBe(422);
  });

  test("that is empty does nothing", async () => {
    const { url } = await channelWithEvent();
    expect((await ask(url, { body: [] })).body).toEqual({ recorded: 0, duplicate: 0, rejected: [] });
  });

  test("may have 1,000 and no more", async () => {
    const { channel, url } = await channelWithEvent();
    const lines = Array.from({ length: 1000 }, (_, n) => n).join("\n");
    const pushed = await ask(`${pere.url}/push/${channel}`, { body: lines, type: "application/x-ndjson" });
    const receipts = pushed.body.events.map(({ id }: { id: string }) => ({ event: id, device: "a", status: "done" }));
    expect((await ask(url, { body: receipts })).body.recorded).toBe(1000);
    const answer = await ask(url, { body: [...receipts, receipts[0]] });
    expect(answer.status).toBe(413);
  });
});

describe("bad input", () => {
  const detail = "x".repeat(4096);
  test.each([
    [{ device: "a", status: "done" }, 422],
    [{ event: 5, device: "a", status: "done" }, 422],
    [{ event: "x", device: "a", status: "done" }, 422],
    [{ device: "a", status: "done", event: "EVENT", at: "yesterday" }, 422],
    [{ device: "a b", status: "done", event: "EVENT" }, 422],
    [{ device: "a", status: "missing", event: "EVENT" }, 422],
    [{ device: "a", status: "pending", event: "EVENT" }, 422],
    [{ device: "a", status: "done", event: "EVENT", detail }, 422],
    ["{", 400],
    ["", 400],
    [new Uint8Array([0x22, 0xff, 0x22]), 400],
    [`${"[".repeat(100)}${"]".repeat(100)}`, 422],
  ])("%j is refused with a sentence, and records nothing", async (body, status) => {
    const { channel, event, url } = await channelWithEvent();
    const sent =
      typeof body === "object" && !(body instanceof Uint8Array) ? JSON.stringify(body).replace("EVENT", event) : body;
    const answer = await ask(url, { body: sent });
    expect(answer.status).toBe(status);
    expect(answer.body.detail.length).toBeGreaterThan(10);
    expect((await stateOf(channel, event)).receipts.pending).toBe(3);
  });

  test("another content type is 415, a bad channel 400", async () => {
    const { url } = await channelWithEvent();
    expect((await ask(url, { body: "{}", type: "text/plain" })).status).toBe(415);
    expect((await ask(`${pere.url}/feedback/..%2f`, { body: {} })).status).toBe(400);
    expect((await ask(`${pere.url}/feedback/a%2Cb`, { body: {} })).status).toBe(400);
  });
});

describe("the clients of 2014", () => {
  const form = "application/x-www-form-urlencoded";
  test.each([
    ["ok", "done", "ok"],
    ["rx ok", "done", "rx ok"],
    ["done", "done", null],
    ["failed", "failed", null],
    ["working", "working", null],
    ["printer on fire", "received", "printer on fire"],
    ["", "received", null],
  ])("a form with the status %j counts as %s", async (status, state, detail) => {
    const { channel, event, url } = await channelWithEvent();
    const answer = await ask(url, {
      type: form,
      body: new URLSearchParams({ id: event, device: "a", status }).toString(),
    });
    expect(answer.body).toEqual({ recorded: 1, duplicate: 0, rejected: [] });
    expect(await rowOf(channel, event, "a")).toMatchObject({ status: state, detail });
  });

  test("id may come as the header Last-Event-ID, the device in query or header", async () => {
    const { channel, event, url } = await channelWithEvent();
    const sent = { type: form, body: "status=ok" };
    await ask(`${url}?device=a`, { ...sent, headers: { "Last-Event-ID": event } });
    await ask(url, { ...sent, headers: { "Last-Event-ID": event, device: "b" } });
    expect((await stateOf(channel, event)).receipts).toMatchObject({ done: 2, pending: 1 });
  });

  test("a form without an id or a device is refused", async () => {
    const { event, url } = await channelWithEvent();
    expect((await ask(url, { type: form, body: "device=a&status=ok" })).status).toBe(400);
    expect((await ask(url, { type: form, body: `id=${event}&status=ok` })).status).toBe(422);
  });
});

describe("the receipts feed", () => {
  test("sends each recorded receipt once, in order, by all three transports, with its own ids", async () => {
    const { channel, event, url } = await channelWithEvent();
    const stream = await listen(url);
    const { socket, messages } = await connect(url);
    await give(pere.url, channel, event, "a", "received");
    await give(pere.url, channel, event, "a", "received");
    await give(pere.url, channel, event, "b", "failed", { detail: "no paper" });
    await give(pere.url, channel, event, "a", "done", { at: "2026-01-02T03:04:05Z" });
    const told = (await stream.have(3)).map(({ data }) => JSON.parse(data) as Record<string, unknown>);
    expect(told.map(({ device, status }) => `${device} ${status}`)).toEqual(["a received", "b failed", "a done"]);
    expect(told[2]).toEqual({
      id: event.replace(/-1$/, "-3"),
      event,
      channel,
      device: "a",
      status: "done",
      detail: null,
      at: told[2]!.at,
      deviceAt: "2026-01-02T03:04:05.000Z",
      late: false,
      round: 1,
      attempt: 0,
    });
    expect(stream.ids).toEqual(told.map(({ id }) => id as string));
    await until(() => messages.length === 4);
    expect(messages.slice(1)).toEqual(told);
    const polled = await ask(`${url}?since=earliest`, { headers: { Accept: "application/json" } });
    expect(polled.body).toEqual({ events: told, last: told[2]!.id });
    stream.close();
    socket.close();
  });

  test("resumes after Last-Event-ID without a loss", async () => {
    const { channel, event, url } = await channelWithEvent();
    const stream = await listen(url);
    await give(pere.url, channel, event, "a", "done");
    await stream.have(1);
    stream.close();
    await give(pere.url, channel, event, "b", "done");
    const again = await listen(url, { "Last-Event-ID": stream.ids[0]! });
    await give(pere.url, channel, event, "c", "done");
    expect((await again.have(2)).map(({ data }) => (JSON.parse(data) as { device: string }).device)).toEqual([
      "b",
      "c",
    ]);
    again.close();
  });

  test("is read-only: a message on its socket is answered with an error", async () => {
    const { url } = await channelWithEvent();
    const { socket, messages } = await connect(url);
    socket.send("{}");
    await until(() => messages.find(({ pere }) => pere === "error"));
    socket.close();
  });
});
