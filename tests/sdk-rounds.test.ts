/**
 * The SDK's device says "not now", or fails and tries again: the event comes again with its next round, and each round is handled once.
 */
import { describe, expect, test } from "bun:test";
import { Deferred, Failed, listen, type PushedEvent, publish, type Receipt } from "../clients/sdk/index.ts";
import { ask, give, start, temporary, until } from "./support/harness.ts";
import { fileStorage } from "../clients/sdk/index.ts";
import { device, LIMIT_MS, memory, only, rowOf, TIMING, TRANSPORTS } from "./support/sdk-device.ts";
import { join } from "node:path";

/** A device that does in each round what it is told, by rounds from 1. */
function inRounds(said: readonly (() => unknown)[]) {
  const rounds: (number | undefined)[] = [];
  return { rounds, onEvent: ({ round }: PushedEvent) => (rounds.push(round), said[(round ?? 1) - 1]!()) };
}

const fail = (error: Error) => (): never => {
  throw error;
};

describe.each([...TRANSPORTS])("by %s", (transport) => {
  test(
    "an event that is deferred comes again when its time has come, with its round, and other events do not wait for it",
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
      const seen: string[] = [];
      const receipts: Receipt[] = [];
      const { listener, by } = device({
        url,
        ...only(transport),
        onReceipt: (receipt) => void receipts.push(receipt),
        onEvent({ data, round }) {
          seen.push(`${data} ${round ?? 1}`);
          if (data === "first" && (round ?? 1) < 3) throw new Deferred(1, { paper: "out" });
          return data;
        },
      });
      cleanup.defer(() => listener.close());
      await by(transport);
      const { id } = await publish(url, "orders", "first");
      await publish(url, "orders", "second", { wait: 10 });
      expect(await rowOf(url, id)).toMatchObject({ status: "deferred", detail: { paper: "out" } });
      await until(async () => (await rowOf(url, id)).status === "done");
      expect(await rowOf(url, id)).toMatchObject({ status: "done", detail: "first", round: 3, attempt: 0 });
      expect(seen).toEqual(["first 1", "second 1", "first 2", "first 3"]);
      const said = (): string[] =>
        receipts.filter(({ event }) => event === id).map(({ status, round, after }) => `${status} ${round} ${after}`);
      await until(() => said().length === 6);
      expect(said()).toEqual([
        "received 1 undefined",
        "deferred 1 1",
        "received 2 undefined",
        "deferred 2 1",
        "received 3 undefined",
        "done 3 undefined",
      ]);
    },
    LIMIT_MS,
  );

  test(
    "a failure with attempts left is tried again; the last one is final, and one that says so is final at once",
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
      const { listener, by, worked } = device({
        url,
        ...only(transport),
        onEvent({ data, round = 1 }) {
          worked.push(`${data} ${round}`);
          if (data === "hopeless") throw new Failed({ never: true }, { retry: false });
          throw new Failed(`try ${round}`, { after: 1 });
        },
      });
      cleanup.defer(() => listener.close());
      await by(transport);
      const { id } = await publish(url, "orders", "again", { attempts: 3 });
      const hopeless = await publish(url, "orders", "hopeless", { attempts: 3, wait: 10 });
      expect(hopeless.receipts).toMatchObject({ failed: 1, deferred: 0 });
      expect(await rowOf(url, hopeless.id)).toMatchObject({ status: "failed", detail: { never: true }, attempt: 1 });
      await until(async () => (await rowOf(url, id)).status === "failed");
      expect(await rowOf(url, id)).toMatchObject({ detail: "try 3", round: 3, attempt: 3 });
      expect(worked).toEqual(["again 1", "hopeless 1", "again 2", "again 3"]);
    },
    LIMIT_MS,
  );
});

test("what can't be a time is brought within its limits, or left to the service", () => {
  expect([0.2, 600, 1e9, Number.NaN, undefined].map((after) => new Deferred(after).after)).toEqual([
    ...[1, 600, 86_400],
    ...[undefined, undefined],
  ]);
  expect(new Failed("why", { after: -5 })).toMatchObject({ after: 1, retry: true, detail: "why", message: "why" });
});

test("an event that waits in the queue is handled in the newest round, and its receipts answer that", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  let open = (): void => {};
  const rounds: string[] = [];
  const { listener, by } = device({
    url,
    onEvent({ data, round }) {
      rounds.push(`${data} ${round}`);
      return data === "blocks" ? new Promise<void>((resolve) => (open = resolve)) : undefined;
    },
  });
  cleanup.defer(() => listener.close());
  await by("sse");
  const { id: blocking } = await publish(url, "orders", "blocks");
  const { id } = await publish(url, "orders", "waits");
  await until(() => listener.status().get().waiting === 1 && listener.status().get().unsent === 0);
  // Another program that has the same name.
  for (const event of [blocking, id])
    await ask(`${url}/feedback/orders`, { body: { event, device: "till-7", status: "deferred", after: 1 } });
  await until(async () => (await rowOf(url, id)).status === "received");
  await until(async () => (await rowOf(url, blocking)).status === "received");
  open();
  await until(async () => (await rowOf(url, id)).status === "done");
  expect(await rowOf(url, blocking)).toMatchObject({ status: "done", round: 2 });
  expect(await rowOf(url, id)).toMatchObject({ status: "done", round: 2 });
  expect(rounds).toEqual(["blocks undefined", "waits 2"]);
});

test("a deferral that the service has lost is told again when the event comes again, and the event is not handled", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  let isLost = true;
  const { rounds, onEvent } = inRounds([fail(new Deferred(600)), () => "done"]);
  const { listener, by } = device({
    url,
    onEvent,
    // The answer comes, and the receipts are gone.
    fetch: async (to, init) => {
      if (init.method !== "POST" || !isLost) return fetch(to, init);
      const { length } = JSON.parse(init.body as string) as unknown[];
      return Response.json({ recorded: length, duplicate: 0, rejected: [] });
    },
  });
  cleanup.defer(() => listener.close());
  await by("sse");
  const { id } = await publish(url, "orders", 1, { remind: 1 });
  await until(() => rounds.length === 1 && listener.status().get().unsent === 0);
  isLost = false;
  await until(async () => (await rowOf(url, id)).status === "deferred");
  expect(rounds).toEqual([undefined]);
});

test(
  "a restart in between: the outbox, with receipts of an older round, is sent, and the round is known",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
    const storage = fileStorage(join(temporary(), "till.json"));
    let isCut = false;
    const { rounds, onEvent } = inRounds([fail(new Deferred(1)), () => "printed"]);
    const launch = () =>
      device({
        url,
        storage,
        onEvent,
        timing: { ...TIMING, flushMs: 10 },
        fetch: (to, init) => (init.method === "POST" && isCut ? Promise.reject(new Error("no way")) : fetch(to, init)),
      });
    const first = launch();
    await first.by("sse");
    isCut = true;
    const { id } = await publish(url, "orders", 1);
    await until(() => rounds.length === 1);
    await first.listener.close();
    expect(first.status().unsent).toBe(2);
    // Meanwhile another program with this name has deferred it too, and its time has come.
    await ask(`${url}/feedback/orders`, { body: { event: id, device: "till-7", status: "deferred", after: 1 } });
    await until(async () => (await rowOf(url, id)).round === 2);
    isCut = false;
    const second = launch();
    cleanup.defer(() => second.listener.close());
    await until(async () => (await rowOf(url, id)).status === "done");
    expect(rounds).toEqual([undefined, 2]);
    await until(() => second.status().unsent === 0);
    expect(second.status().rejected).toBe(0);
  },
  LIMIT_MS,
);

test("what the version before has stored is read: its outbox is sent for the current round", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  await ask(`${url}/devices/orders/till-7`, { method: "PUT" });
  const [one, two] = [await publish(url, "orders", 1), await publish(url, "orders", 2)];
  await give(url, "orders", two.id, "till-7", "done");
  const outbox = [{ event: one.id, channel: "orders", status: "done", at: one.at }];
  const text = JSON.stringify({ version: 1, settled: [[two.id, "done"]], outbox, last: "" });
  const { listener, worked } = device({ url, storage: { get: () => text, set: () => {} } });
  cleanup.defer(() => listener.close());
  await until(async () => (await rowOf(url, one.id)).status === "done");
  expect(worked).toEqual([]);
});

test("a service that knows no deferral rejects it; the event is handled when it comes again", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  const rejected: string[] = [];
  const storage = memory();
  let tries = 0;
  const old: Parameters<typeof device>[0]["fetch"] = async (to, init) => {
    const sent = init.method === "POST" ? (JSON.parse(init.body as string) as Receipt[]) : [];
    if (!sent.some(({ status }) => status === "deferred")) return fetch(to, init);
    const reason = "status: must be received, working, done or failed";
    const others = sent.filter(({ status }) => status !== "deferred");
    if (others.length > 0) await fetch(to, { ...init, body: JSON.stringify(others) });
    const list = sent.flatMap(({ event, status }, index) => (status === "deferred" ? [{ index, event, reason }] : []));
    return Response.json({ recorded: others.length, duplicate: 0, rejected: list });
  };
  const launch = () =>
    device({
      url,
      storage,
      fetch: old,
      onRejected: ({ status }) => void rejected.push(status),
      onEvent() {
        if (++tries === 1) throw new Deferred(1);
        return "at last";
      },
    });
  const first = launch();
  await first.by("sse");
  const { id } = await publish(url, "orders", 1);
  await until(() => rejected.length === 1);
  await first.listener.close();
  const second = launch();
  cleanup.defer(() => second.listener.close());
  await until(async () => (await rowOf(url, id)).status === "done");
  expect(tries).toBe(2);
});

test("without a name nothing is deferred, and nothing breaks", async () => {
  await using cleanup = new AsyncDisposableStack();
  const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
  let count = 0;
  const listener = listen({
    ...{ url, channels: "orders", timing: TIMING },
    onEvent() {
      count++;
      throw new Deferred();
    },
  });
  cleanup.defer(() => listener.close());
  await until(() => listener.status().get().state === "connected");
  await publish(url, "orders", 1);
  await publish(url, "orders", 2);
  await until(() => count === 2);
  expect(listener.status().get()).toMatchObject({ unsent: 0, rejected: 0 });
});
