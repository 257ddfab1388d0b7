/**
 * The frames of an event stream, for readers that are less patient than a browser: no frame is without data, and no `id:` goes back.
 */
import { afterEach, expect, test } from "bun:test";
import { join } from "node:path";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { ServiceOptions, Service } from "../index.ts";
import { ask, connect, listen, openStream, push, start, temporary, until } from "./support/harness.ts";

const services: Service[] = [];
afterEach(() => Promise.all(services.splice(0).map((service) => service.stop())));
const begin = async (options: ServiceOptions = {}): Promise<Service> => {
  const service = await start(options);
  services.push(service);
  return service;
};

/** The frames so far, without those that are comments alone. */
const framesOf = (raw: string): string[] =>
  raw
    .slice(0, raw.lastIndexOf("\n\n"))
    .split("\n\n")
    .filter((frame) => frame.split("\n").some((line) => !line.startsWith(":")));

test("each frame has data, also the first: some clients treat one without data as an empty event", async () => {
  const pere = await begin({ limits: { feedsPerCaller: 3 } });
  const streams = [
    await listen(`${pere.url}/feed/orders?device=d`),
    await listen(`${pere.url}/feedback/orders`),
    await openStream(`${pere.url}/watch?channel=orders`),
  ];
  await push(pere.url, "orders", 1);
  await listen(`${pere.url}/feed/orders?device=e`);
  const refused = await openStream(`${pere.url}/feed/orders?device=f`);
  await until(() => refused.ended, "the end of one too many");
  await until(() => streams[2]!.messages.length > 1, "an overview and changes");
  for (const { raw } of [...streams, refused]) {
    expect(raw).toMatch(/^retry: \d+\n(?!\n)/);
    for (const frame of framesOf(raw)) expect(frame).toMatch(/^data: /m);
  }
  expect(framesOf(refused.raw).at(-1)).toContain('event: pere.bye\ndata: {"reason":"busy"}');
});

test("the first bytes do not wait for the first frame: they arrive while the store is read", async () => {
  const pere = await begin();
  const { promise, resolve } = Promise.withResolvers<void>();
  const held = pere.engine as unknown as { follow: Service["engine"]["follow"] };
  const follow = held.follow.bind(pere.engine);
  held.follow = (request, wire) => {
    const { ready } = wire;
    wire.ready = (...said) => void promise.then(() => ready.apply(wire, said));
    return follow(request, wire);
  };
  const stream = await openStream(`${pere.url}/feed/orders`);
  await until(() => /^retry: \d+\n$/.test(stream.raw), "the first line, alone");
  resolve();
  await stream.own("ready");
  expect(stream.retry).toBeGreaterThanOrEqual(1_000);
});

test("a gap before a feed's start does not move its position back, on one channel and on several", async () => {
  const pere = await begin({ limits: { keptEvents: 2, trimMs: 20 } });
  const enrolled = await ask(`${pere.url}/devices/orders/d`, { method: "PUT" });
  expect(enrolled.status).toBe(201);
  // The first is lost to d, what is kept is for others: it starts at the end.
  await push(pere.url, "orders", 1);
  for (const n of [2, 3]) await push(pere.url, "orders", n, "?to=another");
  await until(
    async () => (await ask(`${pere.url}/events/orders`)).body.events.length === 2,
    "the first to be no longer kept",
  );
  for (const channels of ["orders", "other,orders"]) {
    const stream = await listen(`${pere.url}/feed/${channels}?device=d`);
    await stream.own("gap");
    const [ready, gap] = stream.messages;
    expect([ready!.event, gap!.event]).toEqual(["pere.ready", "pere.gap"]);
    expect(gap!.id).toBe(ready!.id!);
    const last = await push(pere.url, "orders", 4);
    expect((await stream.have(1))[0]!.id).toEndWith(last);
    stream.close();
    const again = await listen(`${pere.url}/feed/${channels}?device=d`, { "Last-Event-ID": gap!.id! });
    expect((await again.have(1))[0]!.data).toContain(`"id":"${last}"`);
    again.close();
    const poll = { headers: { Accept: "application/json", "Last-Event-ID": gap!.id! } };
    expect((await ask(`${pere.url}/feed/${channels}?device=d`, poll)).body.gaps).toBeUndefined();
    const { socket, messages } = await connect(`${pere.url}/feed/${channels}?device=d&last-event-id=${gap!.id}`);
    await until(() => messages.some(({ id }) => id === last), "the event");
    expect(messages.map(({ pere: own }) => own)).not.toContain("gap");
    socket.close();
    await ask(`${pere.url}/feedback/orders`, { body: { event: last, device: "d", status: "received" } });
    await ask(`${pere.url}/devices/orders/d`, { method: "DELETE" });
    await ask(`${pere.url}/devices/orders/d`, { method: "PUT" });
    await push(pere.url, "orders", 1);
    for (const n of [2, 3]) await push(pere.url, "orders", n, "?to=another");
    await until(
      async () => (await ask(`${pere.url}/events/orders`)).body.events.every(({ to }: any) => to?.[0] === "another"),
      "only what is for others",
    );
  }
});

test("an event that an earlier version accepted with a reserved type of EventSource does not fire that", async () => {
  const path = join(temporary(), "pere.db");
  const store = new SqliteStore({ path });
  const draft = { to: null, ttl: null, deadline: null, remind: null, key: null, attempts: null, where: null };
  for (const type of ["error", "open", "message", "order"])
    await store.append("orders", [{ ...draft, type, data: "1" }], Date.now());
  await store.close();
  const pere = await start({}, path);
  services.push(pere);
  const stream = await listen(`${pere.url}/feed/orders?since=earliest`);
  const events = await stream.have(4);
  expect(events.map(({ event }) => event)).toEqual([undefined, undefined, undefined, "order"]);
  expect(events.map(({ data }) => (JSON.parse(data) as { type: string }).type)).toEqual([
    "error",
    "open",
    "message",
    "order",
  ]);
  stream.close();
});
