/**
 * The SDK's bad days: transports that do not come through, connections that break, a service that goes and comes back as it was or as another, tokens
 * that end, a device that dies between its work and its receipt. Whatever happens, nothing is lost, nothing is worked on twice, and every
 * receipt is given.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { SignJWT } from "jose";
import {
  fileStorage,
  type Gap,
  listen,
  type ListenOptions,
  publish,
  publishMany,
  type Receipt,
  receipts,
} from "../clients/sdk/index.ts";
import { chance, seed } from "./support/chance.ts";
import { give, push, ask, SECRET, spawn, start, startWith, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";
import { Proxy } from "./support/proxy.ts";

/** A test here waits for several things, each with the harness's patience. */
const LIMIT_MS = 60_000;

/** Short pauses; what counts as silence is long enough for a busy machine. */
const TIMING = { pauseMsMax: 50, againMs: 600_000 };

type Fetch = NonNullable<ListenOptions["fetch"]>;

/** What is remembered for as long as the test runs. */
function memory() {
  const kept = new Map<string, string>();
  return { get: (name: string) => kept.get(name), set: (name: string, text: string) => kept.set(name, text) };
}

/** A device that notes what it worked on. */
function device(options: Partial<ListenOptions> & { url: string }) {
  const worked: unknown[] = [];
  const listener = listen({
    channels: "orders",
    device: "till-7",
    timing: TIMING,
    onEvent: ({ data }) => void worked.push(data),
    ...options,
  });
  return {
    worked,
    listener,
    status: () => listener.status().get(),
    by: (transport: string): Promise<unknown> =>
      until(
        () => listener.status().get().state === "connected" && listener.status().get().transport === transport,
        () => `${transport}: ${JSON.stringify(listener.status().get())}`,
      ),
  };
}

const counting = (count: number, from = 0): number[] => Array.from({ length: count }, (_, index) => from + index);

/** Waits until the service has a final receipt for all its events, and gives the tallies. */
const settled = (url: string, count: number): Promise<Record<string, number>[]> => {
  let events: { complete: boolean; receipts: Record<string, number> }[] = [];
  return until(
    async () => {
      ({ events } = (await ask(`${url}/events/orders?limit=1000`)).body as { events: typeof events });
      return (
        events.length === count && events.every(({ complete }) => complete) && events.map(({ receipts }) => receipts)
      );
    },
    () => `${count} complete events: ${JSON.stringify(events.filter(({ complete }) => !complete).slice(0, 3))}`,
  );
};

const accepts = (init: RequestInit): string => (init.headers as Record<string, string>).Accept ?? "";

/** What is between device and service: event streams are held back while `holds`, receipts that go by POST are counted. */
class Between {
  holds = true;
  posts = 0;
  /** Answers that were 401. */
  refusals = 0;
  readonly fetch: Fetch = async (url, init) => {
    if (init.method === "POST") this.posts++;
    if (accepts(init) !== "text/event-stream" || !this.holds) {
      const response = await fetch(url, init);
      if (response.status === 401) this.refusals++;
      return response;
    }
    // The proxy has it all, and keeps it to itself until it ends.
    return new Promise((_, reject) => init.signal!.addEventListener("abort", () => reject(new Error("aborted"))));
  };
}

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
      await until(() => status().state === "connected" && status().unsent === 0, "its return", 30_000);
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
  await expect(folder.listener.closed).rejects.toThrow("what was kept can't be read");
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

const tokenFor = (seconds: number, sub = "till-7"): Promise<string> =>
  new SignJWT({ pere: { feed: ["orders"], push: ["orders"] } })
    .setProtectedHeader({ alg: "HS256" })
    .setSubject(sub)
    .setExpirationTime(Math.floor(Date.now() / 1000) + seconds)
    .sign(new TextEncoder().encode(SECRET));

for (const transport of ["sse", "websocket", "longpoll"] as const)
  test(
    `tokens that end in mid-feed are replaced, by ${transport}; the device is the token's`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const pere = cleanup.adopt(await startWith(), (service) => service.stop());
      let asked = 0;
      let sockets = 0;
      class Counted extends WebSocket {
        constructor(url: string, protocols: string[]) {
          super(url, protocols);
          sockets++;
        }
      }
      const between = new Between();
      between.holds = transport !== "sse";
      const { worked, listener, by, status } = device({
        url: pere.url,
        device: undefined,
        // It asks for the next one when a fifth of its time is left: so long may a busy machine take over a request.
        token: () => (asked++, tokenFor(5)),
        fetch: between.fetch,
        WebSocket: transport === "longpoll" ? null : Counted,
        timing: { ...TIMING, ...(between.holds ? { firstByteMs: 1_000 } : {}) },
      });
      cleanup.defer(() => listener.close());
      const publisher = { token: await tokenFor(600, "office") };
      await by(transport);
      if (transport !== "longpoll") expect(status().device).toBe("till-7");
      for (let count = 0; asked < 3; count++) {
        const answer = await publish(pere.url, "orders", count, { ...publisher, wait: 10 });
        expect(answer).toMatchObject({ complete: true, receipts: { done: 1 } });
        await Bun.sleep(100);
      }
      expect(worked).toEqual(counting(worked.length));
      // None was used beyond its end, and an open socket was given the next.
      expect(between.refusals).toBe(0);
      expect(sockets).toBe(transport === "websocket" ? 1 : 0);
    },
    LIMIT_MS,
  );

test(
  "a token that is refused is asked for anew, as often as it takes; one that can't be replaced is refused for good",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await startWith(), (service) => service.stop());
    const tokens = ["nonsense", await tokenFor(600)];
    const recovers = device({ url: pere.url, token: () => tokens.shift()! });
    cleanup.defer(() => recovers.listener.close());
    await recovers.by("sse");
    const refused = device({ url: pere.url, token: "nonsense" });
    expect(await refused.listener.closed.catch((error: unknown) => error)).toHaveProperty("status", 401);
    await expect(publish(pere.url, "orders", 1, { token: () => "nonsense" })).rejects.toHaveProperty("status", 401);
    // Who gives tokens may have a better one later.
    for (const ways of [{}, { fetch: new Between().fetch, WebSocket: null }]) {
      const held: string[] = [];
      const waits = device({
        url: pere.url,
        token: () => held.at(-1) ?? tokenFor(-600),
        timing: { ...TIMING, firstByteMs: 1_000 },
        ...ways,
      });
      cleanup.defer(() => waits.listener.close());
      await until(() => /expired/.test(waits.status().error ?? ""));
      held.push(await tokenFor(600));
      await until(() => waits.status().state === "connected", "it to be let in", 30_000);
    }
    const stranger = device({ url: pere.url, channels: "secrets", token: await tokenFor(600) });
    expect(await stranger.listener.closed.catch((error: unknown) => error)).toHaveProperty("status", 403);
    // A giver that fails is asked again.
    let failures = 3;
    const patient = device({
      url: pere.url,
      token: () => (failures-- > 0 ? Promise.reject(new Error("no network")) : tokenFor(600)),
    });
    cleanup.defer(() => patient.listener.close());
    await patient.by("sse");
  },
  LIMIT_MS,
);

test("pauses are what the service asks for, and else grow by chance", async () => {
  const answers = [
    new Response("busy", { status: 503, headers: { "Retry-After": "7" } }),
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
  expect(retries).toEqual([7_700, 3_000, expect.any(Number), 9_000]);
  expect(retries[2]).toBeGreaterThan(0);
});

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
