/**
 * The door, from outside: the ways in. The secret that the service makes itself and its link, tokens made by hand, and how much a caller may do.
 */
import { connect as dial } from "node:net";
import { afterEach, describe, expect, test } from "bun:test";
import { chmodSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { EngineOptions } from "../engine/engine.ts";
import { readRanges } from "../engine/addresses.ts";
import { readSettings, type Settings } from "../engine/ops/settings.ts";
import type { Service } from "../index.ts";
import { ask, connect, listen, SECRET, temporary, until } from "./support/harness.ts";
import { noRedis, startRedis } from "./support/redis-server.ts";
import { frameOf, handshake as opening, TEXT } from "./support/raw.ts";
import {
  DAY_SECONDS,
  closing,
  closeAll,
  start,
  token,
  bearer,
  JSON_ONLY,
  GOOD,
  handshake,
  run,
} from "./support/callers.ts";

afterEach(closeAll);

// ---------------------------------------------------------------------------------------------------------- a secret of its own

const ALL = { push: ["*"], feed: ["*"] };

/** Comes in by a link as a browser does, and gives the cookie's name and value, and its attributes. */
async function enter(
  url: string,
  link: string,
  headers: Record<string, string> = {},
): Promise<{ cookie: string; attributes: string[] }> {
  const answer = await ask(url + link, { headers });
  expect([answer.status, answer.headers.get("location"), answer.headers.get("referrer-policy")]).toEqual([
    303,
    "/",
    "no-referrer",
  ]);
  expect(answer.headers.get("cache-control")).toBe("no-store");
  const [cookie, ...attributes] = answer.headers.get("set-cookie")!.split("; ");
  return { cookie: cookie!, attributes };
}

describe("PERE's own secret", () => {
  const own = (settings: Partial<Settings> = {}, options: EngineOptions = {}): Promise<Service> =>
    start({ access: "own", ...settings }, options);

  test("is stored beside the data, readable only by its owner, and is the same after a restart", async () => {
    const db = join(temporary(), "pere.db");
    const first = await own({ db });
    const link = (await first.link())!;
    const path = `${db}.secret`;
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const secret = await Bun.file(path).text();
    expect(secret).toMatch(/^[\w-]{43}\n$/);
    await first.stop();
    chmodSync(path, 0o644);
    const second = await own({ db });
    expect(await Bun.file(path).text()).toBe(secret);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const { cookie } = await enter(second.url, link);
    expect((await ask(`${second.url}/channels`, { headers: { Cookie: cookie } })).status).toBe(200);
  });

  test("that is damaged stops the start", async () => {
    const db = join(temporary(), "pere.db");
    for (const text of ["", "short\n"]) {
      writeFileSync(`${db}.secret`, text);
      const refused = own({ db }).catch((error: Error) => error.message);
      expect(await refused).toContain(`${db}.secret can't be used`);
    }
  });

  test("in memory lives as long as the process", async () => {
    const [one, other] = [await own(), await own()];
    const { cookie } = await enter(one.url, (await one.link())!);
    expect((await ask(`${one.url}/channels`, { headers: { Cookie: cookie } })).status).toBe(200);
    expect((await ask(`${other.url}/channels`, { headers: { Cookie: cookie } })).status).toBe(401);
    expect(await Bun.file(":memory:.secret").exists()).toBe(false);
  });

  test("makes a link that sets a cookie, which no script and no other site gets, and which allows everything", async () => {
    const time = Date.UTC(2040, 0, 1);
    const pere = await own({}, { now: () => time });
    const link = (await pere.link())!;
    const { cookie, attributes } = await enter(pere.url, link);
    expect(attributes).toEqual(["Path=/", "HttpOnly", "SameSite=Strict", `Max-Age=${30 * DAY_SECONDS}`]);
    expect((await enter(pere.url, link, { "X-Forwarded-Proto": "https" })).attributes).toContain("Secure");
    expect(link).toEndWith(cookie.slice("pere_token=".length));
    const headers = { Cookie: cookie };
    expect((await ask(`${pere.url}/push/anything`, { body: 1, headers })).status).toBe(201);
    // Its bearer is a person, who may be any device, and is none unasked.
    for (const [query, device] of [
      ["", null],
      ["?device=till-7", "till-7"],
    ] as const) {
      const stream = await listen(`${pere.url}/feed/anything${query}`, headers);
      expect((await stream.own("ready")).device).toBe(device as never);
      stream.close();
    }
    const { devices } = (await ask(`${pere.url}/devices/anything`, { headers })).body;
    expect((devices as { device: string }[]).map(({ device }) => device)).toEqual(["till-7"]);
    expect(await handshake(pere.url, "/feed/anything", { ...headers, Origin: pere.url })).toBe(101);
    expect((await ask(`${pere.url}/channels`)).status).toBe(401);
  });

  test("accepts no link that it did not make", async () => {
    const pere = await own();
    for (const text of ["", "x", GOOD, await token(ALL)]) {
      const { status, headers } = await ask(`${pere.url}/?token=${text}`);
      expect([status, headers.has("set-cookie")]).toEqual([401, false]);
    }
    // Without one there is nothing to take.
    const { status, headers } = await ask(pere.url);
    expect([status, headers.has("set-cookie")]).toEqual([200, false]);
  });

  test("is created beyond loopback by a process, which prints the link, and tokens can be issued with it", async () => {
    const db = join(temporary(), "pere.db");
    const pere = await run({ PERE_DB: db }, ["-o", "0.0.0.0"]);
    const links = [...pere.texts.stdout.matchAll(/http:\/\/127\.0\.0\.1:\d+(\/\?token=\S+)/g)];
    expect(links).toHaveLength(1);
    expect(links[0]![0]).toStartWith(`${pere.url}/`);
    expect(pere.texts.stdout).toStartWith("PERE listening on http://0.0.0.0:");
    const { cookie } = await enter(pere.url, links[0]![1]!);
    expect((await ask(`${pere.url}/channels`, { headers: { Cookie: cookie } })).status).toBe(200);
    expect((await ask(`${pere.url}/channels`)).status).toBe(401);
    const minted = await run({ PERE_DB: db }, ["token", "--sub", "till-7", "--push", "orders"]);
    expect(
      (await ask(`${pere.url}/push/orders`, { body: 1, headers: bearer(minted.texts.stdout.trim()) })).status,
    ).toBe(201);
    expect(await pere.end("SIGTERM")).toBe(0);
  });

  test.skipIf(noRedis !== null)(
    `is shared by all instances on a Redis${noRedis === null ? "" : ` (skipped: ${noRedis})`}`,
    async () => {
      const redis = await startRedis();
      closing.push(() => redis.end());
      const [one, other] = await Promise.all([own({ redis: [redis.url] }), own({ redis: [redis.url] })]);
      const { cookie } = await enter(one.url, (await one.link())!);
      const headers = { Cookie: cookie };
      expect((await ask(`${other.url}/push/orders`, { body: 1, headers })).status).toBe(201);
      expect(
        (
          await ask(`${one.url}/events/orders`, {
            headers: { Cookie: (await enter(other.url, (await other.link())!)).cookie },
          })
        ).body.events,
      ).toHaveLength(1);
      await one.stop();
      const later = await own({ redis: [redis.url] });
      expect((await ask(`${later.url}/channels`, { headers })).status).toBe(200);
    },
  );
});

test("PERE_OPEN=1 is open beyond loopback, under any name; there is no link", async () => {
  const { url, texts, end } = await run({ PERE_DB: ":memory:", PERE_OPEN: "1" }, ["-o", "0.0.0.0"]);
  expect((await ask(`${url}/push/orders`, { body: 1 })).status).toBe(201);
  expect((await ask(`${url}/channels`, { headers: { Host: "pere.example" } })).status).toBe(200);
  expect(texts.stdout).not.toContain("token");
  // Pages of strangers are none of everybody.
  expect((await ask(`${url}/channels`, { headers: { Origin: "https://evil.example" } })).status).toBe(403);
  expect(await end("SIGTERM")).toBe(0);
});

// ------------------------------------------------------------------------------------------------------------------- pages

test("pages load only from this service, have no inline scripts, can't be framed, and have fixed content types", async () => {
  const pere = await start();
  for (const path of ["/weblistener.html", "/swagger", "/swagger/", "/"]) {
    const { headers, text } = await ask(pere.url + path);
    const policy = headers.get("content-security-policy")!;
    expect(policy).toContain("default-src 'none'; script-src 'self';");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).not.toMatch(/unsafe|https?:|\*/);
    expect([headers.get("x-content-type-options"), headers.get("referrer-policy")]).toEqual(["nosniff", "no-referrer"]);
    for (const [tag] of text.matchAll(/<script[^>]*>[^<]*/g)) expect(tag).toMatch(/ src="[^"]+"[^>]*>\s*$/);
  }
  for (const path of ["/weblistener-worker.js", "/icon.svg", "/pere.js", "/swagger/json", "/health", "/nothing"])
    expect((await ask(pere.url + path)).headers.get("x-content-type-options"), path).toBe("nosniff");
});

// ---------------------------------------------------------------------------------------------------------------- making tokens

describe("the token command", () => {
  const db = "/nowhere/pere.db";

  test("issues a token that the service with the same secret accepts, with exactly the given claims", async () => {
    const path = join(temporary(), "secret");
    writeFileSync(path, `${SECRET}\n`);
    const environment = {
      PERE_JWT_SECRET_FILE: path,
      PERE_JWT_AUDIENCE: "shops",
      PERE_JWT_ISSUER: "head-office",
      PERE_DB: db,
    };
    const made = await run(environment, [
      "token",
      "--push",
      "orders,shop.*",
      "--feed",
      "orders",
      "--sub",
      "till-7",
      "--days",
      "30",
    ]);
    expect([await made.code(), made.texts.stderr]).toEqual([0, ""]);
    expect(made.texts.stdout).toMatch(/^[\w-]+\.[\w-]+\.[\w-]+\n$/);
    const text = made.texts.stdout.trim();
    const claims = JSON.parse(Buffer.from(text.split(".")[1]!, "base64url").toString()) as Record<string, number>;
    expect(claims).toMatchObject({
      sub: "till-7",
      aud: "shops",
      iss: "head-office",
      pere: { push: ["orders", "shop.*"], feed: ["orders"] },
    });
    expect(claims.exp! - claims.iat!).toBe(30 * DAY_SECONDS);

    const pere = await start({ access: readSettings([], environment).access });
    for (const [channel, status] of [
      ["orders", 201],
      ["shop.1", 201],
      ["shop", 403],
    ] as const)
      expect((await ask(`${pere.url}/push/${channel}`, { body: 1, headers: bearer(text) })).status).toBe(status);
    const stream = await listen(`${pere.url}/feed/orders`, bearer(text));
    expect((await stream.own("ready")).device).toBe("till-7");
    stream.close();
    // Without them it is a token of another house.
    expect((await ask(`${pere.url}/push/orders`, { body: 1, headers: bearer(GOOD) })).status).toBe(401);
  });

  test.each([
    [[], {}, "PERE_JWT_SECRET"],
    [[], { PERE_JWKS: "/nowhere" }, "PERE_JWT_SECRET"],
    [[], { PERE_JWT_SECRET: "short" }, "at least 32 bytes"],
    [["--sub", "a b"], { PERE_JWT_SECRET: SECRET }, "--sub"],
    [["--days", "0"], { PERE_JWT_SECRET: SECRET }, "--days"],
    [["--push", "or*ders"], { PERE_JWT_SECRET: SECRET }, "or*ders"],
    [["--until", "friday"], { PERE_JWT_SECRET: SECRET }, "--until"],
  ] as const)("reports in one line why it issues none: %j %j", async (args, env, words) => {
    const usual = args[0] === "--sub" ? [] : ["--sub", "till-7"];
    const { texts, code } = await run({ PERE_DB: db, ...env }, ["token", "--feed", "orders", ...usual, ...args]);
    expect([await code(), texts.stdout]).toEqual([1, ""]);
    expect(texts.stderr).toMatch(/^PERE can't make a token: [^\n]+\n$/);
    expect(texts.stderr).toContain(words);
    expect(texts.stderr).not.toContain(SECRET);
  });
});

// ------------------------------------------------------------------------------------------------------------------ settings

describe("settings of access are read together", () => {
  const whoMay = (env: Record<string, string>, argv: readonly string[] = []): Settings["access"] =>
    readSettings(argv, env).access;

  test("open on loopback, an own secret beyond it, and configured keys everywhere", () => {
    for (const host of ["127.0.0.1", "127.9.9.9", "localhost", "::1"]) {
      expect(whoMay({ HOST: host })).toBe("local");
      expect(whoMay({ HOST: host, PERE_OPEN: "1" })).toBe("open");
    }
    for (const host of ["0.0.0.0", "::", "10.0.0.1", "pere.example", "127.0.0.1.evil.example", "::ffff:127.0.0.1"]) {
      expect(whoMay({ HOST: host })).toBe("own");
      expect(whoMay({}, ["--host", host])).toBe("own");
      expect(whoMay({ HOST: host, PERE_OPEN: "1" })).toBe("open");
      expect(whoMay({ HOST: host, PERE_JWT_SECRET: SECRET })).toEqual({ secret: SECRET });
    }
    expect(whoMay({ PERE_JWT_SECRET: SECRET })).toEqual({ secret: SECRET });
    expect(whoMay({ PERE_JWKS: "keys.json", PERE_JWT_AUDIENCE: "a" })).toEqual({ jwks: "keys.json", audience: "a" });
  });

  test("a secret may be in a file, with a trailing newline", () => {
    const path = join(temporary(), "secret");
    for (const end of ["", "\n", "\r\n"]) {
      writeFileSync(path, SECRET + end);
      expect(whoMay({ PERE_JWT_SECRET_FILE: path })).toEqual({ secret: SECRET });
    }
    writeFileSync(path, "redis://:geheim@127.0.0.1\n");
    expect(readSettings([], { REDIS_URL_FILE: path }).redis).toEqual(["redis://:geheim@127.0.0.1"]);
  });

  test("contradictory settings stop the start", () => {
    const empty = join(temporary(), "empty");
    writeFileSync(empty, "\n");
    for (const [env, words] of [
      [{ PERE_JWT_SECRET_FILE: empty }, "PERE_JWT_SECRET_FILE is an empty file"],
      [{ REDIS_URL_FILE: empty }, "REDIS_URL_FILE is an empty file"],
      [{ PERE_JWT_SECRET_FILE: empty, PERE_JWT_SECRET: SECRET }, "both set"],
      [{ REDIS_URL_FILE: empty, REDIS_URL: "redis://a" }, "both set"],
      [{ PERE_JWT_AUDIENCE: "a" }, "PERE_JWT_AUDIENCE is set, but"],
      [{ PERE_JWT_ISSUER: "a", HOST: "0.0.0.0" }, "PERE_JWT_ISSUER is set, but"],
      [{ PERE_OPEN: "1", PERE_JWKS: "keys.json" }, "PERE_OPEN=1"],
      [{ PERE_ORIGINS: "*, https://a.example" }, "PERE_ORIGINS"],
      [{ PERE_ORIGINS: "https://user@a.example" }, "PERE_ORIGINS"],
      [{ PERE_ORIGINS: "https://a.example:443" }, "PERE_ORIGINS"],
      [{ PERE_ORIGINS: "file:///" }, "PERE_ORIGINS"],
    ] as const)
      expect(() => readSettings([], env as Record<string, string>)).toThrow(words);
  });

  test("an invalid key stops the start before anything is opened", async () => {
    const db = join(temporary(), "pere.db");
    for (const access of [{ secret: "short" }, { jwks: "/nowhere/keys.json" }]) {
      const refused = await start({ db, access }).catch((error: Error) => error.message);
      expect(refused).toMatch(/^PERE_(JWT_SECRET|JWKS)/);
    }
    expect(await Bun.file(db).exists()).toBe(false);
  });

  test("an unknown setting is reported by name, without its value", async () => {
    expect(readSettings([], { PERE_JWT_SECERT: "x", PERE_OPEN: "0", PATH: "/" }).unknown).toEqual(["PERE_JWT_SECERT"]);
    const { texts, end } = await run({ PERE_DB: ":memory:", PERE_JWT_SECERT: SECRET });
    await until(() => texts.stderr.includes("PERE_JWT_SECERT"), "the name");
    expect(texts.stderr).not.toContain(SECRET);
    expect(await end("SIGTERM")).toBe(0);
  });
});

describe("a caller over its limits", () => {
  const rates = { push: 3, receipt: 3, feed: 2 };
  const at = (url: string, path: string, grant: string, init: Parameters<typeof ask>[1] = {}) =>
    ask(`${url}${path}`, { ...init, headers: { ...bearer(grant), ...init.headers } });

  test("can't push for a while, with each line of a batch counted; others continue", async () => {
    const { url } = await start({ rates });
    const other = await token({ sub: "other", push: ["orders"] });
    const two = await at(url, "/push/orders", GOOD, { body: "1\n2\n", type: "application/x-ndjson" });
    expect(two.status).toBe(201);
    expect((await at(url, "/push/orders", GOOD, { body: 3 })).status).toBe(201);
    const refused = await at(url, "/push/orders", GOOD, { body: 4 });
    expect(refused.status).toBe(429);
    expect(refused.body).toMatchObject({ type: "urn:pere:tooMany", status: 429 });
    const seconds = Number(refused.headers.get("retry-after"));
    expect(seconds).toBeGreaterThan(0);
    expect(refused.headers.get("ratelimit")).toBe(`"push";r=0;t=${seconds}`);
    expect(refused.headers.get("ratelimit-policy")).toBe('"push";q=3;w=60');
    expect((await at(url, "/push/orders", other, { body: 5 })).status).toBe(201);
    expect((await at(url, "/events/orders", GOOD)).body.events).toHaveLength(4);
  });

  test("can't send receipts, by HTTP and by WebSocket, and none of them is stored", async () => {
    const { url } = await start({ rates });
    const event = (await at(url, "/push/orders?to=till-7", GOOD, { body: 1 })).body.id as string;
    const words = ["received", "working", "received"].map((status) => ({ event, status }));
    expect((await at(url, "/feedback/orders", GOOD, { body: words })).status).toBe(200);
    const refused = await at(url, "/feedback/orders", GOOD, { body: { event, status: "done" } });
    expect(refused.status).toBe(429);
    expect(refused.headers.get("ratelimit-policy")).toBe('"receipt";q=3;w=60');
    const socket = await connect(`${url}/feed/orders?token=${GOOD}`);
    closing.push(() => socket.socket.close());
    socket.socket.send(JSON.stringify({ event, status: "done" }));
    const said = await until(() => socket.messages.find(({ pere }) => pere === "error"), "the refusal");
    expect(said.detail).toContain("more than 3 receipts");
    expect((await at(url, `/events/orders/${event}`, GOOD)).body.receipts).toMatchObject({ working: 1, done: 0 });
  });

  test("can't open feeds: a stream and a socket are told to come back, a poll gets 429", async () => {
    const { url } = await start({ rates });
    for (let n = 0; n < 2; n++)
      expect((await at(url, "/feed/orders?wait=0", GOOD, { headers: JSON_ONLY })).status).toBe(200);
    expect((await at(url, "/feed/orders?wait=0", GOOD, { headers: JSON_ONLY })).status).toBe(429);
    const stream = await fetch(`${url}/feed/orders`, { headers: bearer(GOOD) });
    expect(stream.status).toBe(200);
    expect(await stream.text()).toContain('event: pere.bye\ndata: {"reason":"busy"}\n\n');
    const socket = await connect(`${url}/feed/orders?token=${GOOD}`);
    expect((await socket.closed).code).toBe(1013);
  });

  test("is limited by channels: each channel of a feed counts", async () => {
    const { url } = await start({ rates: { ...rates, feed: 5 } });
    const all = bearer(await token({ feed: ["*"] }));
    const poll = async (channels: string): Promise<number> =>
      (await ask(`${url}/feed/${channels}?wait=0`, { headers: { ...all, ...JSON_ONLY } })).status;
    expect([await poll("a,b,c"), await poll("d,e"), await poll("f")]).toEqual([200, 200, 429]);
  });

  test("may have only so many feeds open at once; closing one allows another", async () => {
    const { url, engine } = await start({}, { limits: { feedsPerCaller: 1 } });
    const first = await listen(`${url}/feed/orders?token=${GOOD}`);
    const stream = await fetch(`${url}/feed/orders`, { headers: bearer(GOOD) });
    expect(await stream.text()).toContain('{"reason":"busy"}');
    const other = await listen(`${url}/feed/orders?token=${await token({ sub: "other", feed: ["orders"] })}`);
    closing.push(() => other.close());
    await until(() => engine.held.live === 2, "both to be there");
    first.close();
    await until(() => engine.held.live === 1, "its end");
    const again = await listen(`${url}/feed/orders?token=${GOOD}`);
    closing.push(() => again.close());
    await until(() => engine.held.live === 2, "it to be back");
  });

  test("is identified by its address without tokens, and an untrusted X-Forwarded-For is ignored", async () => {
    const { url } = await start({ access: "open", rates, proxies: readRanges("10.0.0.0/8") });
    const from = (address: string) => ask(`${url}/push/orders`, { body: 1, headers: { "X-Forwarded-For": address } });
    for (const address of ["192.0.2.1", "192.0.2.2", "192.0.2.3"]) expect((await from(address)).status).toBe(201);
    expect((await from("192.0.2.4")).status).toBe(429);
    const behind = await start({ access: "open", rates, proxies: readRanges("127.0.0.0/8") });
    const through = (address: string) =>
      ask(`${behind.url}/push/orders`, { body: 1, headers: { "X-Forwarded-For": address } });
    for (let n = 0; n < 3; n++) expect((await through("192.0.2.1")).status).toBe(201);
    expect((await through("192.0.2.1")).status).toBe(429);
    expect((await through("192.0.2.2")).status).toBe(201);
  });

  test("is identified by its address on a socket too, as reported by a trusted proxy", async () => {
    const few = { push: 0, receipt: 3, feed: 0 };
    const direct = await start({ access: "open", rates: few });
    const behind = await start({ access: "open", rates: few, proxies: readRanges("127.0.0.0/8") });
    /** What a socket from there is answered: four receipts, one after the other. */
    const answers = async (url: string, from: string, headers: Record<string, string>): Promise<string[]> => {
      const { hostname, port } = new URL(url);
      const socket = dial({ host: hostname, port: Number(port), localAddress: from });
      closing.push(() => socket.destroy());
      let said = "";
      socket.on("data", (bytes: Buffer) => (said += bytes.toString("latin1")));
      socket.write(opening("/feed/orders?device=d", headers));
      await until(
        () => said.includes('"pere":"ready"'),
        () => said,
      );
      const words = (): string[] => said.match(/"pere":"(?:receipts|error)"/g) ?? [];
      for (let n = 1; n <= 4; n++) {
        socket.write(frameOf(TEXT, JSON.stringify({ event: "x-1", status: "done" })));
        await until(
          () => words().length === n,
          () => said,
        );
      }
      return words().map((word) => word.slice(8, -1));
    };
    const once = ["receipts", "receipts", "receipts", "error"];
    for (const address of ["127.0.0.2", "127.0.0.3"])
      expect(await answers(direct.url, address, { "X-Forwarded-For": "192.0.2.1" })).toEqual(once);
    expect(await answers(direct.url, "127.0.0.2", {})).toEqual(["error", "error", "error", "error"]);
    for (const address of ["192.0.2.1", "192.0.2.2"])
      expect(await answers(behind.url, "127.0.0.1", { "X-Forwarded-For": address })).toEqual(once);
  });
});
