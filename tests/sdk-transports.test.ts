/**
 * The SDK finds a way through: event streams that are held back, sockets that fail, lines that go silent, and ways that come back.
 */
import { expect, test } from "bun:test";
import { publish, publishMany } from "../clients/sdk/index.ts";
import { start, until } from "./support/harness.ts";
import { Proxy } from "./support/proxy.ts";
import { accepts, Between, counting, device, LIMIT_MS, settled, TIMING } from "./support/sdk-device.ts";

test(
  "where event streams are held back a socket serves, receipts and all; and SSE again when it gets through",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const between = new Between();
    const timing = { ...TIMING, firstByteMs: 1_000, againMs: 1_500 };
    const { worked, listener, by } = device({ url: pere.url, fetch: between.fetch, timing });
    cleanup.defer(() => listener.close());
    await by("websocket");
    await publishMany(pere.url, "orders", counting(20));
    expect((await settled(pere.url, 20)).every(({ done }) => done === 1)).toBe(true);
    expect(between.posts).toBe(0);
    between.holds = false;
    await by("sse");
    await publishMany(pere.url, "orders", counting(20, 20));
    await settled(pere.url, 40);
    expect(worked).toEqual(counting(40));
  },
  LIMIT_MS,
);

test(
  "where sockets fail too it polls; and SSE again when it gets through",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const between = new Between();
    class Deaf extends WebSocket {
      constructor() {
        super("ws://127.0.0.1:1");
      }
    }
    for (const none of [null, Deaf]) {
      between.holds = true;
      const name = none === null ? "till-1" : "till-2";
      const timing = { ...TIMING, firstByteMs: 1_000, againMs: 1_500 };
      const { worked, listener, by } = device({
        url: pere.url,
        device: name,
        fetch: between.fetch,
        WebSocket: none,
        timing,
      });
      await by("longpoll");
      const { events } = await publishMany(pere.url, "orders", counting(20), { to: [name] });
      await until(() => worked.length === 20);
      between.holds = false;
      // A poll that waits is ended by an event.
      await until(() => Date.now() > Date.parse(events[0]!.at) + 1_500);
      await publish(pere.url, "orders", 20, { to: [name] });
      await by("sse");
      await publish(pere.url, "orders", 21, { to: [name] });
      await until(() => worked.length === 22);
      expect(worked).toEqual(counting(22));
      await listener.close();
    }
    await settled(pere.url, 44);
  },
  LIMIT_MS,
);

test(
  "a line that goes silent is given up, and what was pushed meanwhile comes by the next",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const proxy = await Proxy.to(Number(new URL(pere.url).port));
    cleanup.defer(() => proxy.stop());
    const timing = { ...TIMING, silentMs: 1_000 };
    const { worked, listener, by } = device({ url: `http://127.0.0.1:${proxy.port}`, timing });
    cleanup.defer(() => listener.close());
    await by("sse");
    proxy.swallow();
    await publish(pere.url, "orders", 1);
    proxy.pass();
    await by("websocket");
    await until(() => worked.length === 1);
    await settled(pere.url, 1);
  },
  LIMIT_MS,
);

test(
  "where something in between refuses event streams, another way is taken",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const { worked, listener, by } = device({
      url: pere.url,
      fetch: async (url, init) =>
        accepts(init) === "text/event-stream" ? new Response("<h1>Not here</h1>", { status: 406 }) : fetch(url, init),
    });
    cleanup.defer(() => listener.close());
    await by("websocket");
    await publish(pere.url, "orders", 1, { wait: 10 });
    expect(worked).toEqual([1]);
  },
  LIMIT_MS,
);

test("a listener that is closed while it gets a token for a socket opens none, and ends", async () => {
  let laterMs = 0;
  const calls: ((token: string) => void)[] = [];
  let sockets = 0;
  class Socket {
    onmessage = null;
    onclose = null;
    onerror = null;
    constructor() {
      sockets++;
    }
    send(): void {}
    close(): void {}
  }
  const claims = btoa(JSON.stringify({ sub: "till-7", exp: Date.now() / 1000 + 600 })).replaceAll("=", "");
  let asked = 0;
  const { listener } = device({
    url: "http://127.0.0.1:1",
    token: () => new Promise((resolve) => void calls.push(resolve)),
    monotonic: () => performance.now() + laterMs,
    // The first answer is no event stream; and by then the token is due again.
    fetch: async () => {
      asked++;
      laterMs = 3_600_000;
      return new Response("a portal");
    },
    WebSocket: Socket,
    share: false,
  });
  await until(() => calls.length === 1, "the first token");
  calls[0]!(`e30.${claims}.x`);
  await until(() => calls.length === 2, "the token for the socket");
  const closed = listener.close();
  calls[1]!(`e30.${claims}.x`);
  await closed;
  expect([asked, sockets]).toEqual([1, 0]);
});
