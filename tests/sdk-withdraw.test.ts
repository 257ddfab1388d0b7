/**
 * The SDK where an event is taken back: its publisher withdraws or supersedes it, its device does not begin it or is told to stop, and late words are
 * told. And a push that is for later.
 */
import { describe, expect, test } from "bun:test";
import {
  cancelScheduled,
  listen,
  PereError,
  publish,
  publishMany,
  readRows,
  readScheduled,
  type ReceiptMessage,
  receipts,
  schedule,
  type Withdrawal,
  withdraw,
} from "../clients/sdk/index.ts";
import { ask, give, start, until } from "./support/harness.ts";
import { device, LIMIT_MS, memory, only, rowOf, TIMING, TRANSPORTS } from "./support/sdk-device.ts";

describe.each([...TRANSPORTS])("by %s", (transport) => {
  test(
    "an event that is withdrawn is not begun if it waits; the work on it is told to stop, and says nothing if it does",
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
      const withdrawn: Withdrawal[] = [];
      const stopped: unknown[] = [];
      const { listener, by, worked } = device({
        url,
        ...only(transport),
        onWithdrawn: (withdrawal) => void withdrawn.push(withdrawal),
        onEvent({ data }, { signal, working }) {
          worked.push(data);
          if (data !== "long") return data;
          return new Promise((_, reject) =>
            signal.addEventListener("abort", () => {
              working("after the end");
              stopped.push(signal.reason);
              reject(signal.reason);
            }),
          );
        },
      });
      cleanup.defer(() => listener.close());
      await by(transport);
      const long = await publish(url, "orders", "long");
      const waiting = await publish(url, "orders", "waiting");
      await until(() => worked.length === 1 && listener.status().get().waiting === 1);
      expect((await withdraw(url, "orders", waiting.id)).withdrawn).toMatchObject({ reason: "withdrawn" });
      await until(() => listener.status().get().waiting === 0);
      const state = await withdraw(url, "orders", long.id, { note: "printed twice" });
      expect(state).toMatchObject({ complete: true, receipts: { withdrawn: 1 }, data: "long" });
      await until(() => stopped.length === 1);
      expect(stopped).toEqual([new Error("the event was withdrawn: withdrawn")]);
      expect(await publish(url, "orders", "next", { wait: 10 })).toMatchObject({ complete: true });
      expect(worked).toEqual(["long", "next"]);
      expect(withdrawn.map((one) => [one.withdrawn, one.reason, one.note])).toEqual([
        [waiting.id, "withdrawn", undefined],
        [long.id, "withdrawn", "printed twice"],
      ]);
      for (const { id } of [waiting, long]) expect(await rowOf(url, id)).toMatchObject({ status: "withdrawn" });
      expect(listener.status().get()).toMatchObject({ unsent: 0, rejected: 0, open: 0, waiting: 0 });
    },
    LIMIT_MS,
  );

  test(
    "a publisher is told once that an event was withdrawn, and then that it is complete and settled",
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
      await ask(`${url}/devices/orders/till-7`, { method: "PUT" });
      const feed = receipts({ url, channel: "orders", ...only(transport), timing: TIMING });
      cleanup.defer(async () => void (await feed.return!()));
      await feed.ready;
      const old = await publish(url, "orders", 1, { eventKey: "config", deadline: 600 });
      const { id } = await publish(url, "orders", 2, { eventKey: "config" });
      await give(url, "orders", id, "till-7", "deferred", { after: 600 });
      const told: ReceiptMessage[] = [];
      for await (const message of feed) {
        told.push(message);
        if (told.length === 4) break;
      }
      // A long-poll lists them by kind.
      told.sort((a, b) => ("id" in a && "id" in b ? Number(a.id.split("-")[1]) - Number(b.id.split("-")[1]) : 0));
      expect(told).toMatchObject([
        { kind: "withdrawn", event: old.id, reason: "superseded", by: id, receipts: { withdrawn: 1, pending: 0 } },
        { kind: "complete", event: old.id },
        { kind: "settled", event: old.id, complete: true },
        { kind: "receipt", event: id, status: "deferred", round: 1, attempt: 0 },
      ]);
    },
    LIMIT_MS,
  );

  test(
    "a device that starts with the latest gets the newest event of each key, also one that it has finished, and then what comes",
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
      const storage = memory();
      const launch = () => device({ url, storage, since: "latest", ...only(transport), concurrency: 4 });
      const first = launch();
      await first.by(transport);
      for (const [key, data] of [
        ["config", 1],
        ["prices", 2],
        ["config", 3],
      ] as const)
        await publish(url, "orders", data, { eventKey: key, wait: 10 });
      await publish(url, "orders", 4, { wait: 10 });
      await first.listener.close();
      const second = launch();
      cleanup.defer(() => second.listener.close());
      await until(() => second.worked.length === 2);
      await publish(url, "orders", 5, { eventKey: "config", wait: 10 });
      expect(second.worked).toEqual([2, 3, 5]);
      expect(second.status()).toMatchObject({ rejected: 0, open: 0 });
    },
    LIMIT_MS,
  );
});

test("work that ends well although its event was withdrawn is told as done, and the device learns that this came late", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  for (const transport of ["sse", "websocket"] as const) {
    const late: string[] = [];
    let finish = (_: unknown): void => {};
    const { listener, by } = device({
      url,
      ...only(transport),
      device: `till-${transport}`,
      onLate: ({ event, status }, reason) => void late.push(`${event} ${status} ${reason}`),
      onEvent: () => new Promise((resolve) => (finish = resolve)),
    });
    await by(transport);
    const { id } = await publish(url, "orders", 1, { to: [`till-${transport}`] });
    await until(() => listener.status().get().open === 1 && listener.status().get().unsent === 0);
    await withdraw(url, "orders", id);
    finish("printed all the same");
    await until(() => late.length === 1);
    expect(late).toEqual([`${id} done withdrawn`]);
    expect(await rowOf(url, id, `till-${transport}`)).toMatchObject({
      ...{ status: "done", late: true, detail: "printed all the same" },
    });
    await listener.close();
  }
});

test("a withdrawal that comes after a restart reaches an event that waits there", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  await ask(`${url}/devices/orders/till-7`, { method: "PUT" });
  const { events } = await publishMany(url, "orders", ["blocks", "second", "third"]);
  const worked: unknown[] = [];
  const listener = listen({
    ...{ url, channels: "orders", device: "till-7", timing: TIMING },
    onEvent: ({ data }, { signal }) => {
      worked.push(data);
      if (data === "blocks")
        return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
      return undefined;
    },
  });
  cleanup.defer(() => listener.close());
  await until(() => listener.status().get().waiting === 2);
  await withdraw(url, "orders", events[1]!.id);
  await withdraw(url, "orders", events[0]!.id);
  await until(async () => (await rowOf(url, events[2]!.id)).status === "done");
  expect(worked).toEqual(["blocks", "third"]);
});

test("a withdrawal is repeated until it is answered; a note that is too long and an event that is unknown are refused", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  await ask(`${url}/devices/orders/till-7`, { method: "PUT" });
  const { id } = await publish(url, "orders", 1);
  let cuts = 2;
  const state = await withdraw(url, "orders", id, {
    timing: TIMING,
    fetch: async (to, init) => {
      const response = await fetch(to, init);
      return cuts-- > 0 ? Promise.reject(new Error("cut")) : response;
    },
  });
  expect(state.receipts).toEqual({
    ...{ pending: 0, received: 0, working: 0, deferred: 0 },
    ...{ done: 0, failed: 0, missing: 0, withdrawn: 1 },
  });
  await expect(withdraw(url, "orders", id, { note: "x".repeat(257) })).rejects.toMatchObject({ status: 422 });
  await expect(withdraw(url, "orders", `${id}9`)).rejects.toBeInstanceOf(PereError);
  const rows = await Array.fromAsync(readRows({ url, channel: "orders", event: id, status: ["withdrawn"] }));
  expect(rows).toMatchObject([{ device: "till-7", status: "withdrawn", round: 1, attempt: 0 }]);
});

test("a push for later is scheduled once, however often the network fails; it is listed, pushed, and can be cancelled", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  const { listener, by, worked } = device({ url });
  cleanup.defer(() => listener.close());
  await by("sse");
  let cuts = 2;
  const nightly = await schedule(url, "orders", "config", {
    ...{ every: "30 2 * * *", tz: "Europe/Rome", eventKey: "config", timing: TIMING },
    fetch: async (to, init) => {
      const response = await fetch(to, init);
      return cuts-- > 0 ? Promise.reject(new Error("cut")) : response;
    },
  });
  expect(nightly.id).toStartWith("s-");
  expect(Date.parse(nightly.next!)).toBeGreaterThan(Date.now());
  const once = await schedule(url, "orders", "now", { at: new Date(0) });
  await until(() => worked.length === 1);
  expect(worked).toEqual(["now"]);
  const listed = async () => Array.fromAsync(readScheduled({ url, channel: "orders" }));
  await until(async () => (await listed()).some(({ id, last }) => id === once.id && last !== null));
  expect((await listed()).map(({ id, every, tz, next }) => [id, every, tz, next]).sort()).toEqual(
    [
      [nightly.id, "30 2 * * *", "Europe/Rome", nightly.next],
      [once.id, null, null, null],
    ].sort(),
  );
  cuts = 1;
  await cancelScheduled({
    ...{ url, channel: "orders", id: nightly.id, timing: TIMING },
    fetch: async (to, init) => {
      const response = await fetch(to, init);
      return cuts-- > 0 ? Promise.reject(new Error("cut")) : response;
    },
  });
  expect((await listed()).map(({ id }) => id)).toEqual([once.id]);
  await expect(cancelScheduled({ url, channel: "orders", id: nightly.id })).rejects.toMatchObject({ status: 404 });
  await expect(schedule(url, "orders", 1, { every: "never" })).rejects.toBeInstanceOf(PereError);
});
