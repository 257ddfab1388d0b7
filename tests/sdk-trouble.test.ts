/**
 * The SDK's bad days: connections that break, a service that goes and comes back as it was or as another, a device that dies between its work and
 * its receipt. Whatever happens, nothing is lost, nothing is worked on twice, and every receipt is given.
 *
 * Trouble with transports is in `sdk-transports.test.ts`, with tokens in `sdk-tokens.test.ts`, a publisher's in `sdk-publisher.test.ts`.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { fileStorage, type Gap, listen, publish, publishMany, type Receipt } from "../clients/sdk/index.ts";
import { chance, seed } from "./support/chance.ts";
import { ask, spawn, start, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";
import { Proxy } from "./support/proxy.ts";
import { Between, counting, device, type Fetch, LIMIT_MS, memory, settled, TIMING } from "./support/sdk-device.ts";

for (const transport of ["sse", "websocket", "longpoll"] as const)
  test(
    `a line that is cut again and again, by ${transport} (seed ${seed}): nothing lost, nothing twice, all answered`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const random = chance(seed);
      // The least pause that the service asks for.
      const pere = cleanup.adopt(await start({ random: () => 0 }), (service) => service.stop());
      const proxy = await Proxy.to(Number(new URL(pere.url).port));
      cleanup.defer(() => proxy.stop());
      const between = new Between();
      between.holds = transport !== "sse";
      const options = {
        url: `http://127.0.0.1:${proxy.port}`,
        fetch: between.fetch,
        ...(transport === "longpoll" ? { WebSocket: null } : {}),
        timing: { ...TIMING, ...(between.holds ? { firstByteMs: 1_000 } : {}) },
      };
      const { worked, listener, by } = device(options);
      // One without a name is told by its position alone what it missed.
      const nobody = device({ ...options, device: undefined });
      cleanup.defer(() => Promise.all([listener.close(), nobody.listener.close()]).then(() => {}));
      await nobody.by(transport);
      await by(transport);
      let count = 0;
      for (let cuts = 0; cuts < 8; cuts++) {
        await publishMany(pere.url, "orders", counting(20, count));
        count += 20;
        const least = count - Math.floor(random() * 20);
        await until(() => worked.length >= least && nobody.worked.length >= least);
        proxy.cut();
      }
      expect((await settled(pere.url, count)).every(({ done }) => done === 1)).toBe(true);
      expect(worked).toEqual(counting(count));
      await until(() => nobody.worked.length >= count);
      expect(nobody.worked).toEqual(counting(count));
    },
    LIMIT_MS,
  );

for (const storeIs of ["kept", "new"] as const)
  test(
    `a service that is killed and comes back with its store ${storeIs}`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      let db = join(temporary(), "pere.db");
      const PORT = String(lastingPort());
      let pere = await spawn({ PERE_DB: db, PORT });
      cleanup.defer(async () => void (await pere.end("SIGKILL")));
      const gaps: Gap[] = [];
      const rejected: Receipt[] = [];
      const finish: (() => void)[] = [];
      const worked: unknown[] = [];
      const { listener, status } = device({
        url: pere.url,
        concurrency: 2,
        onEvent: ({ data }) => {
          worked.push(data);
          if (data === "held") return new Promise<void>((resolve) => finish.push(resolve));
        },
        onGap: (gap) => gaps.push(gap),
        onRejected: (receipt) => rejected.push(receipt),
      });
      cleanup.defer(() => listener.close());
      await until(() => status().state === "connected");
      await publish(pere.url, "orders", 1, { wait: 10 });
      const { id } = await publish(pere.url, "orders", "held");
      await until(() => finish.length === 1 && status().unsent === 0);
      await pere.end("SIGKILL");
      await until(() => status().state === "offline");
      // It finishes without a service.
      finish[0]!();
      await until(() => status().unsent === 1);
      if (storeIs === "new") db = join(temporary(), "pere.db");
      pere = await spawn({ PERE_DB: db, PORT });
      // It was told to come back after up to 4 s, each time.
      await until(() => status().state === "connected" && status().unsent === 0, "its return");
      await publish(pere.url, "orders", 2, { wait: 10 });
      await publish(pere.url, "orders", 3, { wait: 10 });
      expect(worked).toEqual([1, "held", 2, 3]);
      await settled(pere.url, storeIs === "kept" ? 4 : 2);
      expect(rejected.map(({ event, status }) => [event, status])).toEqual(storeIs === "kept" ? [] : [[id, "done"]]);
      expect(gaps.map(({ after }) => after)).toEqual(storeIs === "kept" ? [] : [id]);
      expect(status().rejected).toBe(rejected.length);
    },
    LIMIT_MS,
  );

test(
  "a device that dies between its work and its receipt gives it when it comes back, and does not work again",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const path = join(temporary(), "till.json");
    let isCut = true;
    const cut: Fetch = (url, init) =>
      isCut && init.method === "POST" ? Promise.reject(new Error("no way")) : fetch(url, init);
    const options = { url: pere.url, fetch: cut, timing: { ...TIMING, flushMs: 0 } };
    const first = device({ ...options, storage: fileStorage(path), onEvent: ({ data }) => ({ printed: data }) });
    await until(() => first.status().state === "connected");
    const { id } = await publish(pere.url, "orders", 1);
    await until(() => first.status().unsent === 2);
    await first.listener.close();
    // One that was not finished comes again, and is then worked on.
    const { id: next } = await publish(pere.url, "orders", 2);

    isCut = false;
    const second = device({ ...options, storage: fileStorage(path) });
    cleanup.defer(() => second.listener.close());
    await settled(pere.url, 2);
    expect(second.worked).toEqual([2]);
    const { body } = await ask(`${pere.url}/events/orders/${id}/receipts`);
    expect(body.receipts).toMatchObject([{ device: "till-7", status: "done", detail: { printed: 1 } }]);
    await until(() => second.status().unsent === 0);
    await second.listener.close();

    // That the service has both is remembered too.
    const kept = JSON.parse(await Bun.file(path).text()) as Record<string, string>;
    expect(JSON.parse(Object.values(kept)[0]!)).toMatchObject({
      settled: [
        [id, "done"],
        [next, "done"],
      ],
      outbox: [],
    });
  },
  LIMIT_MS,
);

test(
  "an end is written down before the service is told of it, and before the next event is begun",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const log: string[] = [];
    const { listener, status } = device({
      url: pere.url,
      storage: {
        get: () => null,
        async set(_, text) {
          // Slower than receipts are gathered.
          await Bun.sleep(60);
          if (text.includes('"done"')) log.push("written");
        },
      },
      fetch: (url, init) => {
        if (init.method === "POST" && /"done"/.test(init.body as string)) log.push("told");
        return fetch(url, init);
      },
      onEvent: ({ data }) => void log.push(`begun ${data}`),
    });
    cleanup.defer(() => listener.close());
    await until(() => status().state === "connected");
    await publishMany(pere.url, "orders", [1, 2]);
    await settled(pere.url, 2);
    for (const what of ["told", "begun 2"]) expect(log.indexOf(what)).toBeGreaterThan(log.indexOf("written"));
    expect(log[0]).toBe("begun 1");
  },
  LIMIT_MS,
);

test(
  "a final word that the service has lost is given again when the event comes again, and the event is not worked on",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const storage = memory();
    // As a store that is put back to an older state.
    const forgetful: Fetch = async (url, init) => {
      if (init.method !== "POST") return fetch(url, init);
      const { length } = JSON.parse(init.body as string) as unknown[];
      return Response.json({ recorded: length, duplicate: 0, rejected: [] });
    };
    const first = device({ url: pere.url, storage, fetch: forgetful });
    await until(() => first.status().state === "connected");
    await publish(pere.url, "orders", 1);
    await until(() => first.worked.length === 1 && first.status().unsent === 0);
    await first.listener.close();
    const second = device({ url: pere.url, storage });
    cleanup.defer(() => second.listener.close());
    expect(await settled(pere.url, 1)).toMatchObject([{ done: 1 }]);
    expect(second.worked).toEqual([]);
  },
  LIMIT_MS,
);

test(
  "its end breaks work off without a word, lets finished work be told, and what was broken off comes again",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const stop = new AbortController();
    let begun = 0;
    const first = device({
      url: pere.url,
      signal: stop.signal,
      concurrency: 2,
      onEvent: async ({ data }, { signal }) => {
        begun++;
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
        if (data === 1) throw new Error("it was broken off");
      },
    });
    await until(() => first.status().state === "connected");
    const { events } = await publishMany(pere.url, "orders", [1, 2, 3]);
    await until(() => begun === 2);
    stop.abort();
    await first.listener.closed;
    expect(begun).toBe(2);
    expect(first.status()).toMatchObject({ state: "closed", unsent: 0, open: 0, waiting: 0 });
    const states = async (): Promise<Record<string, number>[]> =>
      ((await ask(`${pere.url}/events/orders`)).body.events as { receipts: Record<string, number> }[]).map(
        ({ receipts }) => receipts,
      );
    expect(await states()).toMatchObject([{ received: 1 }, { done: 1 }, { received: 1 }]);
    const second = device({ url: pere.url });
    cleanup.defer(() => second.listener.close());
    await settled(pere.url, events.length);
    expect(second.worked).toEqual([1, 3]);
  },
  LIMIT_MS,
);

test("a file keeps what several listeners remember, of this process and of one before", async () => {
  const path = join(temporary(), "kept.json");
  const first = fileStorage(path);
  expect(await first.get("a")).toBeNull();
  await Promise.all([first.set("a", "1"), first.set("b", "2"), first.set("a", "3")]);
  const second = fileStorage(path);
  expect([await second.get("a"), await second.get("b"), await second.get("c")]).toEqual(["3", "2", null]);
  await second.set("c", "4");
  const third = fileStorage(path);
  expect([await third.get("b"), await third.get("c")]).toEqual(["2", "4"]);
  // What can't be read is not taken for nothing, and nothing takes its place.
  const folder = device({ url: "http://127.0.0.1:1", storage: fileStorage(join(path, "..")) });
  await expect(folder.listener.closed).rejects.toThrow("the stored state can't be read");
});

test(
  "an event that comes again while it is worked on, or waits, is begun once",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const gate = Promise.withResolvers<void>();
    const begun: unknown[] = [];
    let came = 0;
    const { listener, status } = device({
      url: pere.url,
      concurrency: 2,
      // No receipt gets through, so the service reminds.
      fetch: (url, init) => (init.method === "POST" ? Promise.reject(new Error("no way")) : fetch(url, init)),
      parse: (text) => {
        if (text.includes('"data":')) came++;
        return JSON.parse(text) as unknown;
      },
      timing: { ...TIMING, flushMs: 0 },
      onEvent: ({ data }) => (begun.push(data), gate.promise),
    });
    cleanup.defer(() => listener.close());
    await until(() => status().state === "connected");
    await publishMany(pere.url, "orders", [1, 2, 3], { remind: 1 });
    await until(() => came >= 9);
    expect(begun).toEqual([1, 2]);
    expect(status()).toMatchObject({ open: 2, waiting: 1 });
    gate.resolve();
    await until(() => begun.length === 3);
    expect(begun).toEqual([1, 2, 3]);
  },
  LIMIT_MS,
);

test(
  "an anonymous feed with storage goes on where it was",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const storage = memory();
    const worked: unknown[] = [];
    for (const data of [1, 2, 3]) {
      if (data > 1) await publish(pere.url, "orders", data);
      const listener = listen({ url: pere.url, channels: "orders", storage, onEvent: ({ data }) => worked.push(data) });
      await until(() => listener.status().get().state === "connected");
      if (data === 1) await publish(pere.url, "orders", data);
      await until(() => worked.length === data);
      expect(listener.status().get()).toMatchObject({ unsent: 0, device: null });
      await listener.close();
    }
    expect(worked).toEqual([1, 2, 3]);
  },
  LIMIT_MS,
);

test(
  "more than it can do is left at the service, and comes in time",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    for (const transport of ["sse", "websocket", "longpoll"]) {
      const between = new Between();
      between.holds = transport !== "sse";
      const gate = Promise.withResolvers<void>();
      const worked: unknown[] = [];
      const { listener, by, status } = device({
        url: pere.url,
        device: transport,
        fetch: between.fetch,
        ...(transport === "longpoll" ? { WebSocket: null } : {}),
        timing: { ...TIMING, ...(between.holds ? { firstByteMs: 1_000 } : {}) },
        onEvent: ({ data }) => gate.promise.then(() => void worked.push((data as number[])[0])),
      });
      await by(transport);
      // Kilobytes, so that they can't all stand in the buffers on the way.
      const pad = "x".repeat(2_000);
      for (let batch = 0; batch < 5; batch++)
        await publishMany(
          pere.url,
          "orders",
          counting(1_000, batch * 1_000).map((number) => [number, pad]),
          { to: [transport] },
        );
      await until(() => status().state === "behind");
      expect(status().waiting).toBeGreaterThanOrEqual(1_000);
      expect(status().waiting).toBeLessThan(2_500);
      gate.resolve();
      await until(
        () => worked.length === 5_000,
        () => `5,000; ${worked.length} and ${JSON.stringify(status())}`,
      );
      expect(worked).toEqual(counting(5_000));
      await until(() => status().unsent === 0);
      await listener.close();
    }
  },
  LIMIT_MS,
);

test("a request that is refused whole is taken apart: one bad receipt does not hold up the others", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const problem = { type: "urn:pere:tooLarge", title: "Too large", status: 413, detail: "too large for us" };
  // In front of the service is something that takes no receipt with a certain word, and no four at once.
  const picky: Fetch = async (url, init) =>
    init.method === "POST" &&
    (/poison/.test(init.body as string) || (JSON.parse(init.body as string) as unknown[]).length > 3)
      ? Response.json(problem, { status: 413 })
      : fetch(url, init);
  const { listener, status } = device({
    url: pere.url,
    fetch: picky,
    timing: { ...TIMING, gatherMs: 100 },
    onEvent: ({ data }) => (data === 4 ? "poison" : "fine"),
  });
  cleanup.defer(() => listener.close());
  await until(() => status().state === "connected");
  const { events } = await publishMany(pere.url, "orders", counting(10));
  await settled(pere.url, 10);
  const { body } = await ask(`${pere.url}/events/orders/${events[4]!.id}/receipts`);
  expect(body.receipts).toMatchObject([{ status: "done", detail: { refused: "too large for us" } }]);
});
