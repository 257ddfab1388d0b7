/**
 * The SDK against the real service: what a device and a publisher get from it when all is well, and what they get told when it is not.
 */
import { expect, test } from "bun:test";
import {
  type DeviceReceipt,
  listen,
  PereError,
  publish,
  publishMany,
  type Receipt,
  receipts,
} from "../clients/sdk/index.ts";
import { EventStreamReader } from "../clients/sdk/event-stream.ts";
import { type EventSourceMessage, createParser } from "eventsource-parser";
import fc from "fast-check";
import { issueToken } from "../engine/auth/issue.ts";
import { ask, SECRET, start, startWith, until } from "./support/harness.ts";

/** What the service knows of an event: each device's last word and its detail. */
async function rows(url: string, id: string): Promise<Record<string, [status: string, detail: unknown]>> {
  const { body } = await ask(`${url}/events/orders/${id}/receipts`);
  const list = body.receipts as { device: string; status: string; detail: unknown }[];
  return Object.fromEntries(list.map(({ device, status, detail }) => [device, [status, detail]]));
}

test("a device works on events in their order; each is answered with what it returned, or why it failed", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const worked: unknown[] = [];
  const given: Receipt[] = [];
  const till = listen<{ table: number }>({
    url: pere.url,
    channels: "orders",
    device: "till-7",
    onEvent({ data, type }) {
      worked.push([type, data.table]);
      if (data.table === 13) throw new Error("there is no such table");
      return { printed: data.table };
    },
    onReceipt: (receipt) => given.push(receipt),
  });
  cleanup.defer(() => till.close());
  await until(() => till.status().get().state === "connected");
  expect(till.status().get()).toMatchObject({ transport: "sse", device: "till-7", error: null, isElsewhere: false });

  const first = await publish(pere.url, "orders", { table: 7 }, { type: "order.created", wait: 10 });
  expect(first).toMatchObject({ type: "order.created", complete: true, audience: { addressed: 1, connected: 1 } });
  const second = await publish(pere.url, "orders", { table: 13 }, { wait: 10 });
  expect(second.receipts).toMatchObject({ failed: 1 });
  expect(worked).toEqual([
    ["order.created", 7],
    [undefined, 13],
  ]);
  expect(await rows(pere.url, first.id)).toEqual({ "till-7": ["done", { printed: 7 }] });
  expect(await rows(pere.url, second.id)).toEqual({ "till-7": ["failed", "there is no such table"] });
  await until(() => given.length === 4);
  expect(given.map(({ event, status }) => [event, status])).toEqual([
    [first.id, "received"],
    [first.id, "done"],
    [second.id, "received"],
    [second.id, "failed"],
  ]);
  expect(till.status().get()).toMatchObject({ unsent: 0, rejected: 0, waiting: 0, open: 0 });
  await till.close();
  expect(till.status().get().state).toBe("closed");
});

test("one event after the other, unless more may be open at once; a person may take his time and say that he works", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const open = new Map<string, (result?: unknown) => void>();
  const device = (name: string, concurrency?: number) =>
    listen({
      url: pere.url,
      channels: ["orders"],
      device: name,
      concurrency,
      onEvent: ({ seq }, { working }) => {
        working(`looking at ${seq}`);
        return new Promise((resolve) => open.set(`${name} ${seq}`, resolve));
      },
    });
  const [clerk, crew] = [device("clerk"), device("crew", Number.POSITIVE_INFINITY)];
  for (const listener of [clerk, crew]) await until(() => listener.status().get().state === "connected");
  const { events } = await publishMany(pere.url, "orders", [1, 2, 3]);
  await until(() => open.size === 4 && crew.status().get().open === 3);
  expect([...open.keys()].sort()).toEqual(["clerk 1", "crew 1", "crew 2", "crew 3"]);
  expect(clerk.status().get()).toMatchObject({ open: 1, waiting: 2 });
  await until(async () => (await rows(pere.url, events[2]!.id)).crew?.[0] === "working");
  expect(await rows(pere.url, events[0]!.id)).toEqual({
    clerk: ["working", "looking at 1"],
    crew: ["working", "looking at 1"],
  });
  // The later button first.
  open.get("crew 3")!("third");
  open.get("clerk 1")!();
  await until(() => open.has("clerk 2"));
  await until(async () => (await rows(pere.url, events[0]!.id)).clerk?.[0] === "done");
  await until(async () => (await rows(pere.url, events[2]!.id)).crew?.[0] === "done");
  expect(await rows(pere.url, events[2]!.id)).toEqual({ clerk: ["received", null], crew: ["done", "third"] });
  // What is open at the end is not waited for beyond its time, and owed still.
  for (const [name, resolve] of open) if (!name.endsWith("2")) resolve();
  const closed = [clerk, crew].map((listener) => listener.close());
  for (const resolve of open.values()) resolve();
  await Promise.all(closed);
  expect(await rows(pere.url, events[1]!.id)).toEqual({ clerk: ["done", null], crew: ["done", null] });
});

test("receipts come to the publisher as they are given, with the last one's word that it is complete", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await ask(`${pere.url}/devices/orders/truck-3`, { method: "PUT" });
  const words = receipts({ url: pere.url, channel: "orders" });
  await words.ready;
  const till = listen({ url: pere.url, channels: "orders", device: "till-7", onEvent: () => "printed" });
  cleanup.defer(() => till.close());
  await until(() => till.status().get().state === "connected");
  const { id } = await publish(pere.url, "orders", 1, { deadline: 1 });
  const said: string[] = [];
  for await (const word of words) {
    said.push(word.kind === "receipt" ? `${word.device} ${word.status} ${JSON.stringify(word.detail)}` : word.kind);
    if (word.kind === "receipt" && word.status === "missing")
      await ask(`${pere.url}/feedback/orders`, { body: { event: id, device: "truck-3", status: "done" } });
    if (word.kind === "complete") break;
  }
  expect(said).toEqual([
    "till-7 received null",
    'till-7 done "printed"',
    "truck-3 missing null",
    "settled",
    "truck-3 done null",
    "complete",
  ]);
  // Where he broke off he can go on, or from the beginning.
  const again = receipts({ url: pere.url, channel: "orders", since: "earliest" });
  expect(((await again.next()).value as DeviceReceipt).status).toBe("received");
  const on = receipts({ url: pere.url, channel: "orders", since: again.position });
  expect(((await on.next()).value as DeviceReceipt).status).toBe("done");
  await Promise.all([again.return!(), on.return!()]);
});

test("a no for good ends it with the reason: a listener, a publisher, a reader of receipts", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const { url } = pere;
  const till = listen({ url, channels: "no channel", device: "till-7", onEvent: () => {} });
  const refusals = await Promise.allSettled([
    till.closed,
    publish(url, "no channel", 1),
    receipts({ url, channel: "no channel" }).ready,
    receipts({ url, channel: "no channel" }).next(),
  ]);
  for (const refusal of refusals) {
    const { reason } = refusal as PromiseRejectedResult;
    expect(reason).toBeInstanceOf(PereError);
    expect(reason).toHaveProperty("status", 400);
    expect(reason).toHaveProperty("problem.type", "urn:pere:malformed");
  }
  expect(till.status().get()).toMatchObject({ state: "closed", error: expect.stringContaining("channel") });
  expect(() => listen({ url, channels: [], onEvent: () => {} })).toThrow(RangeError);
});

test("what a receipt can't carry is said in its place, and the event counts as done", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const circle: { self?: object } = {};
  circle.self = circle;
  let deep: unknown = 1;
  for (let depth = 0; depth < 100; depth++) deep = [deep];
  const results = ["x".repeat(5_000), circle, deep, 10n, undefined, "ü".repeat(2_040), "\0 \ud800"];
  const till = listen<number>({
    url: pere.url,
    channels: "orders",
    device: "till-7",
    onEvent: ({ data }) => results[data],
  });
  cleanup.defer(() => till.close());
  await until(() => till.status().get().state === "connected");
  const details: unknown[] = [];
  for (const index of results.keys()) {
    const { id, complete } = await publish(pere.url, "orders", index, { wait: 10 });
    expect(complete).toBe(true);
    const [status, detail] = (await rows(pere.url, id))["till-7"]!;
    expect(status).toBe("done");
    details.push(detail);
  }
  expect(details).toEqual([
    { trimmed: true, bytes: 5_002, start: `"${"x".repeat(999)}` },
    { unwritable: expect.any(String) },
    { trimmed: true, bytes: 201, start: expect.stringMatching(/^\[+1/) },
    { unwritable: expect.any(String) },
    null,
    "ü".repeat(2_040),
    "\0 \ud800",
  ]);
  expect(till.status().get().rejected).toBe(0);
});

test("the reader of event streams agrees with eventsource-parser, wherever the chunks end", () => {
  const line = fc.oneof(
    fc.constantFrom(
      "",
      "",
      "data",
      "data:",
      "data: ",
      ":",
      ":beat",
      "id",
      "id:",
      "event",
      "retry: 12",
      "retry: 1x",
      "other: 1",
    ),
    fc
      .tuple(fc.constantFrom("data", "id", "event", "retry", "x", ""), fc.constantFrom(":", ": "), fc.string())
      .map((parts) => parts.join("")),
  );
  const stream = fc
    .array(fc.tuple(line, fc.constantFrom("\n", "\r\n", "\r")))
    .map((lines) => lines.map(([text, end]) => text.replaceAll(/[\r\n]/g, "") + end).join(""));
  fc.assert(
    fc.property(stream, fc.array(fc.nat(8)), (text, cuts) => {
      const reference: EventSourceMessage[] = [];
      const retries: [number[], number[]] = [[], []];
      let id = "";
      const parser = createParser({
        onEvent: (message) => reference.push(message),
        onRetry: (ms) => retries[0].push(ms),
      });
      const read: EventSourceMessage[] = [];
      const reader = new EventStreamReader(
        (event, data, last) => {
          id = last;
          if (data !== null) read.push({ event: event || undefined, data, id });
        },
        (ms) => retries[1].push(ms),
      );
      let at = 0;
      for (const cut of [...cuts, text.length]) {
        parser.feed(text.slice(at, at + cut));
        reader.feed(text.slice(at, at + cut));
        at += cut;
      }
      expect(read.map(({ event, data }) => [event, data])).toEqual(reference.map(({ event, data }) => [event, data]));
      // The reference gives an id with its own message only; a stream's last id stands until another comes.
      expect(read.map(({ id }, index) => reference[index]!.id ?? id)).toEqual(read.map(({ id }) => id));
      expect(retries[1]).toEqual(retries[0]);
    }),
    { numRuns: 2_000 },
  );
});

test("one that fails without a word gives no detail", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const till = listen({
    url: pere.url,
    channels: "orders",
    device: "till-7",
    onEvent: () => Promise.reject(new Error("")),
  });
  cleanup.defer(() => till.close());
  await until(() => till.status().get().state === "connected");
  const { id } = await publish(pere.url, "orders", 1, { wait: 10 });
  expect(await rows(pere.url, id)).toEqual({ "till-7": ["failed", null] });
});

test("receipts that one device keeps are not given where a cookie says that it is another one", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith(), (service) => service.stop());
  const of = (sub: string, push: string[]): Promise<string> =>
    issueToken({ secret: SECRET }, { sub, push, feed: ["orders"], days: 1 });
  const office = await of("office", ["orders"]);
  const pushed = await publish(pere.url, "orders", 1, { token: office, to: ["till-7", "till-8"] });
  const kept = new Map<string, string>();
  const outbox = [{ event: pushed.id, channel: "orders", status: "done", at: pushed.at }];
  kept.set(`pere ${pere.url} orders till-7`, JSON.stringify({ version: 1, settled: [], outbox, last: "" }));
  /** A page of `till-7`, whose browser has a cookie of somebody's. */
  const open = async (sub: string) => {
    const cookie = `pere_token=${await of(sub, [])}`;
    return listen({
      url: pere.url,
      channels: "orders",
      device: "till-7",
      storage: { get: (name) => kept.get(name), set: (name, text) => kept.set(name, text) },
      fetch: (url, init) => fetch(url, { ...init, headers: { ...(init.headers as object), Cookie: cookie } }),
      timing: { flushMs: 10 },
      onEvent: () => new Promise(() => {}),
    });
  };
  const said = async (): Promise<Record<string, string>> => {
    const headers = { Authorization: `Bearer ${office}` };
    const { receipts } = (await ask(`${pere.url}/events/orders/${pushed.id}/receipts`, { headers })).body;
    const list = receipts as { device: string; status: string }[];
    return Object.fromEntries(list.map(({ device, status }) => [device, status]));
  };
  const other = await open("till-8");
  await until(() => other.status().get().error?.includes("takes this device for till-8"));
  await other.close();
  expect(other.status().get().unsent).toBe(1);
  expect(await said()).toEqual({ "till-7": "pending", "till-8": "pending" });
  const own = await open("till-7");
  cleanup.defer(() => own.close());
  await until(async () => (await said())["till-7"] === "done");
  expect(await said()).toEqual({ "till-7": "done", "till-8": "pending" });
});
