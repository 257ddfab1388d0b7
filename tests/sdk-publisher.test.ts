/**
 * The SDK's publisher in trouble: pushes whose answers are lost, pauses that are asked for, and receipts that are followed through it all.
 */
import { expect, test } from "bun:test";
import { publish, publishMany, receipts } from "../clients/sdk/index.ts";
import { chance, seed } from "./support/chance.ts";
import { ask, give, push, start, until } from "./support/harness.ts";
import { Proxy } from "./support/proxy.ts";
import { accepts, Between, device, type Fetch, LIMIT_MS, TIMING } from "./support/sdk-device.ts";

/** A token that ends in so many seconds. */
test(
  "by a socket too, that an event is complete is told once: the position behind it is another than before it",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const between = new Between();
    between.holds = true;
    const follow = (since?: string) => {
      const told = receipts({
        ...{ url: pere.url, channel: "orders", fetch: between.fetch, timing: { ...TIMING, firstByteMs: 1_000 } },
        ...(since === undefined ? {} : { since }),
      });
      cleanup.defer(async () => void (await told.return?.()));
      return told;
    };
    await ask(`${pere.url}/devices/orders/till`, { method: "PUT" });
    const first = follow();
    await first.ready;
    const event = await push(pere.url, "orders", 1);
    await give(pere.url, "orders", event, "till", "done");
    expect((await first.next()).value).toMatchObject({ kind: "receipt", event });
    const cut = first.position;
    expect((await first.next()).value).toMatchObject({ kind: "complete", event });
    await until(() => first.position !== cut);
    // Whoever was cut off between the two is told; whoever was not hears of the next thing.
    expect((await follow(cut).next()).value).toMatchObject({ kind: "complete", event });
    const next = await push(pere.url, "orders", 2);
    await give(pere.url, "orders", next, "till", "working");
    expect((await follow(first.position).next()).value).toMatchObject({ kind: "receipt", event: next });
  },
  LIMIT_MS,
);

test(
  "receipts are followed by one socket, however often it is asked whether it lives",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    let [sockets, answers] = [0, 0];
    class Counted extends WebSocket {
      constructor(url: string, protocols: string[]) {
        super(url, protocols);
        sockets++;
        this.addEventListener("message", ({ data }) => void (String(data).includes('"pere":"error"') && answers++));
      }
    }
    const between = new Between();
    between.holds = true;
    const told = receipts({
      url: pere.url,
      channel: "orders",
      fetch: between.fetch,
      WebSocket: Counted,
      timing: { ...TIMING, firstByteMs: 1_000, silentMs: 2_000 },
    });
    cleanup.defer(async () => void (await told.return?.()));
    await told.ready;
    await until(() => answers >= 3);
    expect(sockets).toBe(1);
  },
  LIMIT_MS,
);

test("pauses are what the service asks for, and else grow by chance", async () => {
  const answers = [
    new Response("busy", { status: 503, headers: { "Retry-After": "7" } }),
    new Response("busy", { status: 503, headers: { "Retry-After": "7200" } }),
    new Response("busy", { status: 503, headers: { "Retry-After": "100000" } }),
    new Response("<h1>Bad gateway</h1>", { status: 502 }),
    new Response("<h1>Please pay</h1>", { headers: { "Content-Type": "text/html" } }),
    new Response('retry: 9000\n\nevent: pere.bye\ndata: {"reason":"busy"}\n\n', {
      headers: { "Content-Type": "text/event-stream" },
    }),
  ];
  const retries: number[] = [];
  for (const answer of answers) {
    const { listener, status } = device({
      url: "http://127.0.0.1:1",
      WebSocket: null,
      random: () => 0.5,
      now: () => 1_000_000,
      timing: { pauseMsMax: 30_000 },
      fetch: async (_, init) =>
        accepts(init) === "application/json" ? new Response("gone", { status: 500 }) : answer.clone(),
    });
    await until(() => status().state === "offline");
    retries.push(status().retryAt! - 1_000_000);
    expect(status().error).toBeString();
    await listener.close();
  }
  // Retry-After and up to a fifth; a `retry` of its own (2.5 s here) and by chance up to a second; what the stream told.
  expect(retries).toEqual([7_700, 3_960_000, 3_000, 3_000, expect.any(Number), 9_000]);
  expect(retries[4]).toBeGreaterThan(0);
});

test(
  "a push whose answer is lost is repeated and stored once; one that nobody answers ends in time, or by its signal",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    let lost = 2;
    const lossy: Fetch = async (url, init) => {
      const response = await fetch(url, init);
      if (lost-- > 0) throw new Error("the line was cut");
      return response;
    };
    const timing = { pauseMsMax: 50 };
    const one = await publish(pere.url, "orders", 1, { fetch: lossy, timing });
    lost = 1;
    const many = await publishMany(pere.url, "orders", ["[1,\n2]", "12345678901234567890"], {
      fetch: lossy,
      timing,
      isJson: true,
    });
    const { body, text } = await ask(`${pere.url}/events/orders`);
    expect((body.events as { id: string }[]).map(({ id }) => id)).toEqual([one.id, ...many.events.map(({ id }) => id)]);
    expect(text).toContain('"data":[1, 2]');
    expect(text).toContain('"data":12345678901234567890');

    const dead: Fetch = () => Promise.reject(new Error("there is no network"));
    await expect(publish(pere.url, "orders", 1, { fetch: dead, timing, giveUpMs: 200 })).rejects.toThrow(
      "there is no network",
    );
    const stop = new AbortController();
    const pushed = publish(pere.url, "orders", 1, { fetch: dead, timing, signal: stop.signal });
    stop.abort();
    await expect(pushed).rejects.toThrow("there is no network");
    // A key of one's own makes it one event, whoever repeats it.
    const key = "order 7";
    const again = [await publish(pere.url, "orders", 7, { key }), await publish(pere.url, "orders", 7, { key })];
    expect(again[0]!.id).toBe(again[1]!.id);
    await expect(publish(pere.url, "orders", 8, { key })).rejects.toHaveProperty("status", 422);
  },
  LIMIT_MS,
);

test(
  "receipts are followed through a line that is cut: each word once, in order",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const random = chance(seed);
    const pere = cleanup.adopt(await start({ random: () => 0 }), (service) => service.stop());
    const proxy = await Proxy.to(Number(new URL(pere.url).port));
    cleanup.defer(() => proxy.stop());
    const { listener, status } = device({ url: pere.url });
    cleanup.defer(() => listener.close());
    await until(() => status().state === "connected");
    const stop = new AbortController();
    const words = receipts({
      url: `http://127.0.0.1:${proxy.port}`,
      channel: "orders",
      timing: TIMING,
      signal: stop.signal,
    });
    await words.ready;
    const heard: string[] = [];
    const reading = (async () => {
      for await (const word of words)
        heard.push(`${word.kind === "gap" ? "" : word.event} ${word.kind === "receipt" ? word.status : word.kind}`);
    })();
    const expected: string[] = [];
    for (let cuts = 0; cuts < 10; cuts++) {
      const { id } = await publish(pere.url, "orders", cuts, { wait: 10 });
      expected.push(`${id} received`, `${id} done`, `${id} complete`);
      if (random() < 0.7) proxy.cut();
    }
    await until(
      () => heard.length >= expected.length,
      () => `${expected.length} words; ${heard.join(", ")}`,
    );
    expect(heard).toEqual(expected);
    stop.abort();
    await reading;
  },
  LIMIT_MS,
);

test("the answer to a push has the service's warnings, in words", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const nobody = "No device is enrolled in channel orders, so the event";
  expect((await publish(pere.url, "orders", 1)).warnings).toEqual([
    `${nobody} went to nobody. The channel had no events before: check its name.`,
  ]);
  expect((await publishMany(pere.url, "orders", [1, 2])).warnings).toEqual([`${nobody}s went to nobody.`]);
  await ask(`${pere.url}/devices/orders/till`, { method: "PUT" });
  expect((await publish(pere.url, "orders", 1)).warnings).toBeUndefined();
});
