/**
 * What the SDK believes, and what it does not: texts as they came, redirects, tokens and addresses that can't be right, clocks that are set, and an
 * application whose own functions throw. Bad answers in all their kinds are the bad day's (`badday/sdk-answers.test.ts`).
 */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, readlinkSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SignJWT } from "jose";
import { fileStorage, listen, type ListenOptions, publish, receipts } from "../clients/sdk/index.ts";
import { ask, SECRET, start, startWith, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

const LIMIT_MS = 60_000;
const TIMING = { pauseMsMax: 50 };

type Fetch = NonNullable<ListenOptions["fetch"]>;

const opened = (options: Partial<ListenOptions> & { url: string }) =>
  listen({ channels: "orders", device: "till-7", timing: TIMING, onEvent: () => {}, ...options });

for (const transport of ["sse", "websocket", "longpoll"] as const)
  test(
    `what was pushed, and what a device said, is handed on as it was written, by ${transport}`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const pere = cleanup.adopt(await start(), (service) => service.stop());
      const texts = [
        "12345678901234567890",
        '{"n":1e400,"n":-0.0,"s":"\\u00e9 \\"} ]"}',
        '[1.50, {"data":{"data":[]}}, "\\\\"]',
        '"a \\\\\\" b"',
        "null",
      ];
      const ways: Partial<ListenOptions> = {
        ...(transport === "sse"
          ? {}
          : {
              fetch: async (url, init) =>
                (init.headers as Record<string, string>).Accept === "text/event-stream"
                  ? new Response("no", { status: 406 })
                  : fetch(url, init),
            }),
        ...(transport === "longpoll" ? { WebSocket: null } : {}),
      };
      const got: string[] = [];
      const listener = opened({ url: pere.url, ...ways, onEvent: ({ text }) => void got.push(text) });
      cleanup.defer(() => listener.close());
      const said: string[] = [];
      const follower = receipts({ url: pere.url, channel: "orders", ...ways, timing: TIMING });
      await follower.ready;
      void (async () => {
        for await (const word of follower) if (word.kind === "receipt" && word.device === "desk") said.push(word.text);
      })();
      cleanup.defer(async () => void (await follower.return?.()));
      await until(() => listener.status().get().transport === transport);
      for (const text of texts) {
        const { id } = await publish(pere.url, "orders", text, { isJson: true, to: ["till-7", "desk"] });
        await ask(`${pere.url}/feedback/orders`, {
          body: `{"event":"${id}","device":"desk","status":"done","detail":${text}}`,
        });
      }
      await until(
        () => got.length === texts.length && said.length === texts.length,
        () => JSON.stringify([got, said]),
      );
      expect(got).toEqual(texts);
      // The service leaves out of a detail what says nothing: blanks, and the first of two equal keys.
      const told = ["12345678901234567890", '{"n":-0.0,"s":"é \\"} ]"}', '[1.50,{"data":{"data":[]}},"\\\\"]'];
      expect(said).toEqual([...told, ...texts.slice(3)]);
    },
    LIMIT_MS,
  );

test("a token with blanks around it is good; one with anything else is refused, and not shown", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith(), (service) => service.stop());
  const token = await new SignJWT({ pere: { push: ["orders"], feed: ["orders"] } })
    .setProtectedHeader({ alg: "HS256" })
    .setSubject("till-7")
    .setExpirationTime("1h")
    .sign(new TextEncoder().encode(SECRET));
  const { id } = await publish(pere.url, "orders", 1, { token: `\r\n ${token}\n` });
  expect(id).toBeString();
  for (const wrong of [`${token}\n${token}`, `${token}"\nX: 1`, `${token} x`, `${token}é`, "", " "]) {
    const refused = (): unknown => opened({ url: pere.url, token: wrong });
    expect(refused).toThrow(TypeError);
    expect(refused).not.toThrow(token.slice(0, 20));
    // One that is given later may be replaced by a good one.
    const given = [wrong, token];
    const listener = opened({ url: pere.url, device: undefined, token: () => given.shift() ?? token });
    const errors: (string | null)[] = [];
    listener.status().subscribe(({ error }) => errors.push(error));
    await until(() => listener.status().get().state === "connected");
    expect(errors.some((error) => error?.includes("the token is not a JWT"))).toBe(true);
    expect(JSON.stringify(errors)).not.toContain(token.slice(0, 20));
    await listener.close();
  }
});

test("an address that can't be one is refused at once, and what it holds of a password is not shown", () => {
  for (const url of [
    "localhost:4567",
    "ftp://x",
    "http://",
    "http://[",
    "http://x/?channel=orders",
    "http://x/#a",
    "http://joe:secret@x/",
    "//joe:secret@x",
    "",
  ]) {
    for (const run of [() => opened({ url }), () => receipts({ url, channel: "orders" })])
      expect(run).toThrow(TypeError);
    expect(() => opened({ url })).not.toThrow("secret");
  }
});

/** A web server that leads elsewhere. */
function leading(status: number, to: (path: string) => string) {
  const asked: string[] = [];
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: (request) => {
      const { pathname, search } = new URL(request.url);
      asked.push(`${request.method} ${pathname} ${request.headers.get("authorization")}`);
      return new Response("", { status, headers: { Location: to(pathname + search) } });
    },
  });
  return { url: server.url.origin, asked, stop: () => server.stop(true) };
}

test(
  "a redirect is told with the address to use; 307 and 308 are followed within the origin, with the request as it is",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    for (const status of [301, 302, 303, 307, 308]) {
      const other = cleanup.adopt(
        leading(status, (path) => pere.url + path),
        ({ stop }) => stop(),
      );
      const why = await publish(other.url, "orders", 1, { token: "a.b.c", giveUpMs: 0 }).catch(
        ({ message }: Error) => message,
      );
      expect(why).toContain(`(status ${status}) to ${pere.url}: if PERE is there, use that address`);
      const listener = opened({ url: other.url, WebSocket: null });
      await until(() => listener.status().get().error?.includes(`to ${pere.url}: if PERE is there`));
      await listener.close();
    }
    expect((await ask(`${pere.url}/channels`)).body.channels).toEqual([]);

    for (const status of [307, 308]) {
      const proxy = Bun.serve({
        hostname: "127.0.0.1",
        port: 0,
        fetch: async (request) => {
          const { pathname, search } = new URL(request.url);
          if (!pathname.startsWith("/pere/"))
            return new Response("", { status, headers: { Location: `/pere${pathname}${search}` } });
          return fetch(pere.url + pathname.slice(5) + search, {
            method: request.method,
            headers: request.headers,
            ...(request.method === "POST" ? { body: await request.text() } : {}),
          });
        },
      });
      cleanup.defer(() => proxy.stop(true));
      const got: unknown[] = [];
      const listener = opened({ url: proxy.url.origin, onEvent: ({ data }) => void got.push(data) });
      cleanup.defer(() => listener.close());
      await until(() => listener.status().get().state === "connected");
      const { receipts } = await publish(proxy.url.origin, "orders", status, { wait: 10 });
      expect(receipts).toMatchObject({ done: 1 });
      expect(got).toEqual([status]);
      await listener.close();
    }
    const loop = cleanup.adopt(
      leading(307, (path) => path),
      ({ stop }) => stop(),
    );
    await expect(publish(loop.url, "orders", 1, { giveUpMs: 0 })).rejects.toThrow("redirect (status 307)");
    expect(loop.asked.length).toBeLessThan(20);
  },
  LIMIT_MS,
);

test(
  "a clock that is put back hides no silence, and one that is put forward ends nothing",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    let offMs = 0;
    let isSilent = false;
    // What came after the silence began is swallowed.
    const quiet: Fetch = async (url, init) => {
      const response = await fetch(url, init);
      if (!/event-stream/.test(response.headers.get("content-type") ?? "")) return response;
      const body = response.body!.pipeThrough(
        new TransformStream({ transform: (chunk, out) => void (isSilent || out.enqueue(chunk)) }),
      );
      return new Response(body, response);
    };
    const got: unknown[] = [];
    const listener = opened({
      url: pere.url,
      fetch: quiet,
      now: () => Date.now() + offMs,
      timing: { ...TIMING, silentMs: 1_000 },
      onEvent: ({ data }) => void got.push(data),
    });
    cleanup.defer(() => listener.close());
    await until(() => listener.status().get().transport === "sse");
    offMs = -3_600_000;
    isSilent = true;
    await publish(pere.url, "orders", 1);
    await until(() => got.length === 1);
    expect(listener.status().get().transport).toBe("websocket");
    offMs = 3_600_000;
    await publish(pere.url, "orders", 2, { wait: 10 });
    expect(listener.status().get()).toMatchObject({ state: "connected", transport: "websocket" });
  },
  LIMIT_MS,
);

test(
  "an application whose own functions throw is told so, and gets its events and gives its receipts all the same",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const said: unknown[] = [];
    const { error } = console;
    console.error = (...all: unknown[]) => void said.push(...all);
    cleanup.defer(() => void (console.error = error));
    const fail = (): never => {
      throw Object.create(null);
    };
    let cuts = 1;
    const listener = opened({
      url: pere.url,
      fetch: (url, init) => (init.method === "POST" && cuts-- > 0 ? fail() : fetch(url, init)),
      onReceipt: fail,
      onTrouble: fail,
      onGap: async () => fail(),
      onEvent: ({ data }) => (data === 1 ? fail() : data),
    });
    cleanup.defer(() => listener.close());
    listener.status().subscribe(({ state }) => state === "connected" && fail());
    await until(() => listener.status().get().state === "connected");
    for (const [data, word] of [
      [1, "failed"],
      [2, "done"],
    ] as const) {
      const { receipts } = await publish(pere.url, "orders", data, { wait: 20 });
      expect(receipts).toMatchObject({ [word]: 1 });
    }
    expect(said.length).toBeGreaterThan(2);
  },
  LIMIT_MS,
);

test("a file's link stays one, its mode too; what is no file, or something else's, is refused and stays what it is", async () => {
  const folder = temporary();
  const [place, link, loose] = ["kept.json", "link.json", "loose.json"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  writeFileSync(place, "{}", { mode: 0o640 });
  symlinkSync("kept.json", link);
  symlinkSync("later.json", loose);
  await fileStorage(link).set("a", "1");
  await fileStorage(loose).set("b", "2");
  expect(readlinkSync(link)).toBe("kept.json");
  expect(readlinkSync(loose)).toBe("later.json");
  expect(readFileSync(place, "utf8")).toBe('{"a":"1"}');
  expect(readFileSync(join(folder, "later.json"), "utf8")).toBe('{"b":"2"}');
  expect(statSync(place).mode & 0o777).toBe(0o640);

  const notes = join(folder, "notes.txt");
  writeFileSync(notes, "buy milk\n");
  mkdirSync(join(folder, "folder"));
  for (const path of ["/dev/null", notes, join(folder, "folder")]) {
    const listener = opened({ url: "http://127.0.0.1:1", storage: fileStorage(path) });
    await expect(listener.closed).rejects.toThrow(
      /the stored state can't be read: .*(is not a file|is not a state file)/,
    );
  }
  expect(readFileSync(notes, "utf8")).toBe("buy milk\n");
  expect(statSync("/dev/null").isCharacterDevice()).toBe(true);
});

test.skipIf(Bun.which("node") === null)(
  "on Node too an error says what caused it: the code and the address",
  async () => {
    const built = await Bun.build({
      entrypoints: [join(import.meta.dir, "..", "clients", "sdk", "index.ts")],
      target: "node",
    });
    const file = join(temporary(), "pere.mjs");
    await Bun.write(file, built.outputs[0]!);
    const port = lastingPort();
    const script = `const { publish } = await import(${JSON.stringify(file)});
    await publish(process.argv[1], "orders", 1, { giveUpMs: 0 }).catch(({ message }) => console.log(message));`;
    for (const [url, words] of [
      [`http://127.0.0.1:${port}`, `ECONNREFUSED 127.0.0.1:${port}`],
      ["http://nowhere.invalid", "nowhere.invalid"],
    ] as const) {
      const child = Bun.spawn(["node", "--input-type=module", "-e", script, url], { stdout: "pipe", stderr: "pipe" });
      expect(await new Response(child.stdout).text()).toContain(words);
    }
  },
);

test(
  "an answer that comes late on a socket is not taken for that to the next receipts",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const requestMs = 400;
    /** The first receipts of a socket go out when nobody waits for their answer any more; the next ones never. */
    class Slow extends WebSocket {
      #count = 0;
      override send(text: string): void {
        if (!text.includes('"status"')) super.send(text);
        else if (this.#count++ === 0) setTimeout(() => super.send(text), requestMs * 1.5);
      }
    }
    const listener = opened({
      url: pere.url,
      WebSocket: Slow as never,
      random: () => 0,
      timing: { ...TIMING, requestMs, againMs: 600_000 },
      fetch: async (url, init) =>
        (init.headers as Record<string, string>).Accept === "text/event-stream"
          ? new Response("no", { status: 406 })
          : fetch(url, init),
    });
    cleanup.defer(() => listener.close());
    await until(() => listener.status().get().transport === "websocket");
    for (const data of [1, 2, 3]) {
      const { receipts } = await publish(pere.url, "orders", data, { wait: 20 });
      expect(receipts).toMatchObject({ done: 1 });
    }
  },
  LIMIT_MS,
);

test("what was kept and is not what a device keeps is left out, and the rest counts", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await ask(`${pere.url}/devices/orders/till-7`, { method: "PUT" });
  const { id } = await publish(pere.url, "orders", 1);
  const good = { event: id, channel: "orders", status: "done", at: "2026-11-22T10:00:00.000Z" };
  for (const kept of [
    "",
    "{",
    "7",
    '{"version":1}',
    '{"version":1,"settled":5,"outbox":{},"last":[]}',
    '{"version":1,"settled":[null,["x"],[1,2],["a","b"]],"outbox":[null,5,{"event":7},{"event":"x","channel":"orders"}]}',
    JSON.stringify({ version: 1, settled: [], outbox: [null, good, {}] }),
  ]) {
    const worked: unknown[] = [];
    const listener = opened({
      url: pere.url,
      storage: { get: () => kept, set: () => {} },
      onEvent: ({ data }) => void worked.push(data),
      timing: { ...TIMING, flushMs: 5_000 },
      // It does its work and tells nobody, until the last.
      fetch: (url, init) =>
        init.method === "POST" && !kept.includes(id) ? Promise.reject(new Error("no way")) : fetch(url, init),
    });
    await until(() => listener.status().get().state === "connected" && (kept.includes(id) || worked.length === 1));
    if (kept.includes(id)) {
      await until(() => listener.status().get().unsent === 0);
      expect(worked).toEqual([]);
      expect((await ask(`${pere.url}/events/orders/${id}`)).body.receipts).toMatchObject({ done: 1 });
    }
    const ended = listener.close();
    if (!kept.includes(id)) continue; // Its receipts have nowhere to go.
    await ended;
  }
});

test("options that can't be right are a TypeError at once", async () => {
  const url = "http://127.0.0.1:1";
  for (const options of [
    { onEvent: undefined },
    { onEvent: null },
    { concurrency: Number.NaN },
    { concurrency: "3" },
    { device: "" },
    { device: "a b" },
  ])
    expect(() => opened({ url, ...options } as unknown as ListenOptions)).toThrow(TypeError);
  const asked: string[] = [];
  const by = { fetch: async (to: string) => (asked.push(to), new Response("", { status: 503 })), giveUpMs: 1 };
  for (const options of [
    { key: "é" },
    { key: "a\nb" },
    { key: "" },
    { wait: Number.NaN },
    { wait: -1 },
    { giveUpMs: Number.NaN },
  ])
    expect(await publish(url, "orders", 1, { ...by, ...options }).catch((error: unknown) => error)).toBeInstanceOf(
      TypeError,
    );
  expect(asked).toEqual([]);
});

test("a storage that keeps nothing is told as trouble", async () => {
  const pere = await start();
  const told: string[] = [];
  const storage = { get: () => undefined, set: () => Promise.reject(new Error("the disk is full")) };
  const listener = opened({ url: pere.url, storage, onTrouble: (why) => void told.push(why) });
  try {
    await until(() => listener.status().get().state === "connected");
    await publish(pere.url, "orders", 1);
    await until(() => told.includes("the state can't be stored: the disk is full"));
  } finally {
    await listener.close();
    await pere.stop();
  }
});
