/**
 * One event's way, from the publisher to the devices and back. Read this first.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { Service } from "../index.ts";
import { ask, connect, listen, start, until } from "./support/harness.ts";

let pere: Service;
beforeAll(async () => void (pere = await start()));
afterAll(() => pere.stop());

test("an order is pushed to two tills and a truck; the publisher sees the outcome at each", async () => {
  // Two tills listen by SSE and WebSocket. A truck is enrolled, but out of reach.
  const till = await listen(`${pere.url}/feed/orders?device=till-1`);
  const kiosk = await connect(`${pere.url}/feed/orders?device=kiosk-2`);
  await ask(`${pere.url}/devices/orders/truck-3`, { method: "PUT" });
  // The publisher follows what comes back.
  const receipts = await listen(`${pere.url}/feedback/orders`);

  // He pushes an order. The answer comes when it is durable, and says who it is for and who of them is there.
  const pushed = await ask(`${pere.url}/push/orders?type=order.created`, { body: '{"table": 7, "total": 12.50}' });
  expect(pushed.status).toBe(201);
  expect(pushed.body).toMatchObject({
    channel: "orders",
    seq: 1,
    type: "order.created",
    audience: { addressed: 3, connected: 2 },
  });
  const id = pushed.body.id as string;
  expect(pushed.headers.get("location")).toBe(`/events/orders/${id}`);

  // Both that listen get it, with his own bytes in it.
  const [event] = await till.have(1);
  expect(event).toMatchObject({ id, event: "order.created" });
  expect(event!.data).toEndWith(',"type":"order.created","data":{"table": 7, "total": 12.50}}');
  const frame = await until(() => kiosk.messages.find((message) => message.id === id));
  expect(frame).toEqual(JSON.parse(event!.data));

  // They answer: the till over HTTP, the kiosk over its socket.
  await ask(`${pere.url}/feedback/orders`, { body: { event: id, device: "till-1", status: "received" } });
  const done = await ask(`${pere.url}/feedback/orders`, {
    body: { event: id, device: "till-1", status: "done", detail: { printed: true } },
  });
  expect(done.body).toEqual({ recorded: 1, duplicate: 0, rejected: [] });
  kiosk.socket.send(JSON.stringify({ event: id, status: "failed", detail: "no paper" }));
  await until(() => kiosk.messages.find((message) => message.pere === "receipts"));

  // The publisher has heard each word as it came.
  const words = (await receipts.have(3)).map(({ data }) => JSON.parse(data) as Record<string, unknown>);
  expect(words.map(({ device, status, detail }) => [device, status, detail])).toEqual([
    ["till-1", "received", null],
    ["till-1", "done", { printed: true }],
    ["kiosk-2", "failed", "no paper"],
  ]);

  // And he can see, at any time, who got what, what became of it, and who is missing.
  const state = await ask(`${pere.url}/events/orders/${id}`);
  expect(state.body).toMatchObject({
    audience: { addressed: 3, connected: 2 },
    receipts: { pending: 1, received: 0, working: 0, deferred: 0, done: 1, failed: 1, missing: 0, withdrawn: 0 },
    complete: false,
  });
  const rows = await ask(`${pere.url}/events/orders/${id}/receipts?status=pending`);
  expect(rows.body.receipts).toEqual([
    {
      device: "truck-3",
      status: "pending",
      detail: null,
      at: null,
      deviceAt: null,
      late: false,
      round: 1,
      attempt: 0,
      tags: {},
    },
  ]);

  // The truck comes back into reach, without remembering anything, and is given what it owes.
  const truck = await listen(`${pere.url}/feed/orders?device=truck-3`);
  expect((await truck.have(1))[0]!.id).toBe(id);
  await ask(`${pere.url}/feedback/orders`, { body: { event: id, device: "truck-3", status: "done" } });
  expect((await ask(`${pere.url}/events/orders/${id}`)).body.complete).toBe(true);

  // Once it has said so, it is not given the order again.
  truck.close();
  const again = await listen(`${pere.url}/feed/orders?device=truck-3`);
  const next = await ask(`${pere.url}/push/orders`, { body: "2" });
  expect((await again.have(1)).map((message) => message.id)).toEqual([next.body.id]);
  for (const stream of [till, receipts, again]) stream.close();
  kiosk.socket.close();
});
