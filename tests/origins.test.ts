/**
 * The door, from outside: what pages of others get and what pages of strangers, and which names this service answers to.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { ask, listen, logOf, spawn, until } from "./support/harness.ts";
import { closeAll, start, bearer, GOOD, JSON_ONLY, raw, statusOf, handshake } from "./support/callers.ts";
import { noIpv6 } from "./support/ports.ts";

afterEach(closeAll);

// ------------------------------------------------------------------------------------------------------------- pages of others

const SHOP = "https://shop.example";
/** What the files of pages depend on: they are compressed. */
const FILE = "Accept-Encoding, Origin";

describe("a page of a listed origin", () => {
  const CREDENTIALS = "access-control-allow-credentials";

  test("may send a preflight, without a token", async () => {
    const pere = await start({ origins: [SHOP] });
    for (const path of ["/push/orders", "/feed/orders", "/devices/orders/d"]) {
      const { status, headers, text } = await ask(pere.url + path, {
        method: "OPTIONS",
        headers: {
          Origin: SHOP,
          "Access-Control-Request-Method": "PUT",
          "Access-Control-Request-Headers": "authorization",
        },
      });
      expect([status, text, headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([
        204,
        "",
        SHOP,
        "Origin",
      ]);
      expect(headers.get("access-control-allow-methods")).toBe("GET, POST, PUT, PATCH, DELETE");
      const names = headers.get("access-control-allow-headers")!.split(", ");
      for (const name of ["authorization", "content-type", "idempotency-key", "last-event-id", "prefer", "device"])
        expect(names).toContain(name);
      expect(headers.has(CREDENTIALS)).toBe(false);
    }
    // Other questions are not that one.
    expect((await ask(`${pere.url}/push/orders`, { method: "OPTIONS", headers: { Origin: SHOP } })).status).toBe(405);
  });

  test("may read every answer: successes, errors of all kinds, pages and streams", async () => {
    const pere = await start({ origins: ["http://127.0.0.1:1", SHOP] });
    const good = bearer(GOOD);
    for (const [path, status, init, varies = "Origin"] of [
      ["/push/orders", 201, { body: 1, headers: good }],
      ["/push/orders", 400, { body: "{", headers: good }],
      ["/push/orders", 401, { body: 1 }],
      ["/push/b", 403, { body: 1, headers: good }],
      ["/events/orders/0-1", 404, { headers: good }],
      ["/nothing", 404, {}],
      ["/push/orders", 405, {}],
      ["/push/orders", 415, { body: "1", type: "text/plain", headers: good }],
      ["/feed/orders?wait=0", 200, { headers: { ...good, ...JSON_ONLY } }],
      ["/weblistener-worker.js", 200, {}, FILE],
      ["/weblistener.html", 200, {}, FILE],
      ["/weblistener.html", 304, { headers: { "If-None-Match": "*" } }, FILE],
      ["/swagger/json", 200, {}, FILE],
    ] as const) {
      const answer = await ask(pere.url + path, {
        ...init,
        headers: { ...("headers" in init ? init.headers : {}), Origin: SHOP },
      });
      const { headers } = answer;
      expect([
        path,
        answer.status,
        headers.get("access-control-allow-origin"),
        headers.get("vary"),
        headers.has(CREDENTIALS),
      ]).toEqual([path, status, SHOP, varies, false]);
      expect(headers.get("access-control-expose-headers")).toContain("WWW-Authenticate");
    }
    const stream = await listen(`${pere.url}/feed/orders`, { ...good, Origin: SHOP });
    const { headers } = stream.response;
    expect([headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([SHOP, "Origin"]);
    stream.close();
    expect(await handshake(pere.url, "/feed/orders", { ...good, Origin: SHOP })).toBe(101);
  });

  test("may send every header field that it asks for; invalid names are left out", async () => {
    const pere = await start({ origins: [SHOP] });
    const preflight = async (fields: string): Promise<string[]> => {
      const headers = {
        Origin: SHOP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": fields,
      };
      const answer = await ask(`${pere.url}/push/orders`, { method: "OPTIONS", headers });
      expect(answer.status).toBe(204);
      return answer.headers.get("access-control-allow-headers")!.split(", ");
    };
    const usual = await preflight("");
    expect(await preflight("sentry-trace, baggage, traceparent,Authorization")).toEqual([
      ...usual,
      "sentry-trace",
      "baggage",
      "traceparent",
    ]);
    expect(await preflight("x y, ,(z), *")).toEqual([...usual, "*"]);
  });

  test("may be an app's, as listed: its requests, preflights and sockets", async () => {
    const apps = ["capacitor://localhost", "tauri://localhost", "chrome-extension://abcdef", "file://", "null"];
    const pere = await start({ origins: apps });
    for (const Origin of apps) {
      const headers = { Origin, ...bearer(GOOD) };
      const answer = await ask(`${pere.url}/push/orders`, { body: 1, headers });
      expect([answer.status, answer.headers.get("access-control-allow-origin")]).toEqual([201, Origin]);
      expect(await handshake(pere.url, "/feed/orders", headers)).toBe(101);
    }
    for (const Origin of ["capacitor://localhost:1", "CAPACITOR://localhost", "file:///", "tauri://evil.example"])
      expect((await ask(`${pere.url}/channels`, { headers: { Origin, ...bearer(GOOD) } })).status).toBe(403);
  });

  test("is distinguished by caches, also in answers without an origin", async () => {
    const pere = await start({ origins: [SHOP] });
    const { headers } = await ask(`${pere.url}/weblistener.html`);
    expect([headers.get("vary"), headers.has("access-control-allow-origin")]).toEqual([FILE, false]);
  });

  test("is any page with *, which allows no cookies", async () => {
    const pere = await start({ origins: "*" });
    const { status, headers } = await ask(`${pere.url}/channels`, {
      headers: { Origin: "https://any.example", ...bearer(GOOD) },
    });
    expect([status, headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([200, "*", null]);
    expect(headers.has(CREDENTIALS)).toBe(false);
    expect(await handshake(pere.url, "/feed/orders", { Origin: "https://any.example", ...bearer(GOOD) })).toBe(101);
  });
});

describe("a page of an unlisted origin", () => {
  test("gets nothing and changes nothing, by any method and transport, even with a token", async () => {
    const pere = await start({ origins: [SHOP] });
    const good = bearer(GOOD);
    const evil = [
      "https://evil.example",
      "null",
      "http://shop.example",
      "https://shop.example:444",
      "https://shop.example.evil.example",
      "https://evilshop.example",
      "https://SHOP.example",
      "https://shop.example/",
      "https://shop.example, https://evil.example",
      `${pere.url}0`,
      "http://127.0.0.1",
    ];
    for (const Origin of evil) {
      const headers = { ...good, Origin };
      for (const [path, init] of [
        ["/feed/orders", {}],
        ["/channels", {}],
        ["/weblistener-worker.js", {}],
        ["/swagger/json", {}],
        ["/nothing", {}],
        [`/?token=${GOOD}`, {}],
        ["/push/orders", { body: 1 }],
        ["/devices/orders/d", { method: "PUT" }],
        ["/devices/orders/d", { method: "DELETE" }],
        ["/push/orders", { method: "OPTIONS", headers: { "Access-Control-Request-Method": "POST" } }],
      ] as const) {
        const more = "headers" in init ? init.headers : {};
        const answer = await ask(pere.url + path, { ...init, headers: { ...headers, ...more } });
        expect(`${Origin} ${path} ${answer.status}`).toBe(`${Origin} ${path} 403`);
        expect([answer.headers.get("access-control-allow-origin"), answer.headers.get("set-cookie")]).toEqual([
          null,
          null,
        ]);
        expect(answer.text).not.toContain(Origin);
      }
      expect(await handshake(pere.url, "/feed/orders", headers)).toBe(403);
    }
    expect((await ask(`${pere.url}/channels`, { headers: good })).body.channels).toEqual([]);
  });

  test("is also one with the origin null, even with *", async () => {
    const pere = await start({ origins: "*" });
    const headers = { ...bearer(GOOD), Origin: "null" };
    const { status, headers: said } = await ask(`${pere.url}/channels`, { headers });
    expect([status, said.has("access-control-allow-origin")]).toEqual([403, false]);
    expect(await handshake(pere.url, "/feed/orders", headers)).toBe(403);
  });

  test("enrols no device on an open service through an image or a link", async () => {
    const pere = await start({ access: "open" });
    const path = "/feed/orders?device=evil&wait=0";
    for (const site of ["cross-site", "same-site"])
      for (const mode of ["no-cors", "navigate"]) {
        const headers = { ...JSON_ONLY, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode };
        expect(`${site} ${mode} ${(await ask(pere.url + path, { headers })).status}`).toBe(`${site} ${mode} 403`);
        expect((await ask(`${pere.url}/channels`, { headers })).status).toBe(403);
        // It may lead to the pages.
        expect((await ask(`${pere.url}/weblistener.html`, { headers })).status).toBe(200);
      }
    expect((await ask(`${pere.url}/channels`)).body.channels).toEqual([]);
    for (const site of ["none", "same-origin"]) {
      const headers = { ...JSON_ONLY, "Sec-Fetch-Site": site };
      expect((await ask(pere.url + path, { headers })).status).toBe(200);
    }
  });
});

test("its own pages may call it, also behind a proxy with TLS, where the scheme differs", async () => {
  const pere = await start();
  for (const [Host, Origin] of [
    [new URL(pere.url).host, pere.url],
    ["shop.example", SHOP],
    ["shop.example:8443", "https://shop.example:8443"],
  ] as const) {
    const headers = { Host, Origin, ...bearer(GOOD) };
    const answer = await ask(`${pere.url}/push/orders`, { body: 1, headers });
    expect([answer.status, answer.headers.get("access-control-allow-origin")]).toEqual([201, null]);
    expect(await handshake(pere.url, "/feed/orders", headers)).toBe(101);
  }
  expect(await handshake(pere.url, "/feed/orders", { Host: "shop.example", Origin: "https://evil.example" })).toBe(403);
});

// ------------------------------------------------------------------------------------------------------------------ its names

describe("Host", () => {
  const get = (url: string, host: string | null, path = "/health", version = "1.1"): Promise<number> =>
    raw(url, `GET ${path} HTTP/${version}\r\n${host === null ? "" : `Host: ${host}\r\n`}\r\n`).then(statusOf);

  test("must be a name or an address, optionally with a port, which is checked first", async () => {
    const pere = await start({ origins: [SHOP] });
    for (const host of [
      "shop.example",
      "SHOP.example:80",
      "127.0.0.1:4567",
      "[::1]",
      "[::1]:4567",
      "a",
      "a_b",
      "xn--bcher-kva.example",
    ])
      expect(`${host} ${await get(pere.url, host)}`).toBe(`${host} 200`);
    for (const host of [
      "",
      "shop.example/",
      "a/b",
      "a b",
      "a,b",
      "user@a",
      "a:b",
      "a:",
      "a:123456",
      "[::1",
      "::1",
      "[x]",
      "a?b",
      "a#b",
      "-a",
      "a\\b",
      "ü",
      "é.example",
      "a".repeat(300),
    ])
      for (const path of ["/channels", "/weblistener-worker.js", "/swagger/json", "/", "/nothing"])
        expect(`${host} ${path} ${await get(pere.url, host, path)}`).toBe(`${host} ${path} 400`);
    expect(await get(pere.url, null)).toBe(400);
    expect(await get(pere.url, null, "/channels", "1.0")).toBe(400);
    expect(await get(pere.url, "a\r\nHost: b", "/channels")).toBe(400);
    // Not even a question beforehand.
    const preflight = `OPTIONS /push/a HTTP/1.1\r\nHost: a/b\r\nOrigin: ${SHOP}\r\nAccess-Control-Request-Method: POST\r\n\r\n`;
    expect(statusOf(await raw(pere.url, preflight))).toBe(400);
  });

  test("that is short does not shift the path: the requested path is routed", async () => {
    const pere = await start({ access: "local" });
    const tokens = await start();
    for (const host of ["x", "ab", "a.b"]) {
      expect(await get(tokens.url, host, "/ab/channels")).toBe(404);
      expect(await get(tokens.url, host, "/ab/health")).toBe(404);
      expect(await get(tokens.url, host, "/ab/admin/z")).toBe(404);
      expect(await get(tokens.url, host, "/health")).toBe(200);
      expect(await get(tokens.url, host, "/channels")).toBe(401);
      expect(await get(pere.url, host, "/ab/health")).toBe(403);
      expect(await get(pere.url, host, "/channels")).toBe(403);
    }
    expect(await get(tokens.url, "a", "//channels")).toBe(404);
    expect(await get(tokens.url, "a", "/%2fchannels")).toBe(404);
  });

  test("of a local service must be a loopback name: any other may be DNS rebinding", async () => {
    const pere = await start({ access: "local", origins: ["http://localhost:5173"] });
    for (const host of [
      "127.0.0.1",
      "127.1.2.3:80",
      "localhost:4567",
      "LOCALHOST",
      "localhost.",
      "pere.localhost",
      "[::1]:1",
    ])
      expect(`${host} ${await get(pere.url, host, "/channels")}`).toBe(`${host} 200`);
    for (const host of [
      "evil.example",
      "127.0.0.1.evil.example",
      "localhost.evil.example",
      "evillocalhost",
      "0.0.0.0",
      "10.0.0.1",
      "[::]",
      "[::ffff:127.0.0.1]",
      "127.0.0.1.nip.io",
      "2130706433",
    ])
      for (const path of ["/channels", "/weblistener-worker.js", "/swagger/json", "/feed/orders"])
        expect(`${host} ${path} ${await get(pere.url, host, path)}`).toBe(`${host} ${path} 403`);
    // To itself it would be a page of its own.
    const rebound = { Host: "evil.example", Origin: "http://evil.example" };
    expect(await handshake(pere.url, "/feed/orders", rebound)).toBe(403);
    expect((await ask(`${pere.url}/push/orders`, { body: 1, headers: rebound })).status).toBe(403);
  });

  test("and Origin do not matter to /health and /ready, which answer any caller", async () => {
    for (const pere of [await start({ origins: [SHOP] }), await start({ access: "local" })])
      for (const path of ["/health", "/ready", "/ready?x=1"]) {
        for (const host of ["balancer.internal", "10.0.0.9:4567", "a/b", "a b", "", "-", "x".repeat(300)])
          expect(`${host} ${path} ${await get(pere.url, host, path)}`).toBe(`${host} ${path} 200`);
        expect(await get(pere.url, null, path, "1.0")).toBe(200);
        for (const headers of [
          { Origin: "https://evil.example" },
          { Origin: "null" },
          { "X-Forwarded-For": "192.0.2.1", Via: "1.1 balancer" },
        ] as Record<string, string>[]) {
          const answer = await ask(pere.url + path, { headers });
          expect([answer.status, answer.headers.has("access-control-allow-origin")]).toEqual([200, false]);
        }
        // Only when they are asked, and only these.
        expect((await ask(pere.url + path, { method: "POST", headers: { Origin: "null" } })).status).toBe(403);
        expect(await get(pere.url, "a/health", "/channels")).toBe(400);
        expect(await get(pere.url, "a b", "/x/health")).toBe(400);
      }
  });

  test.skipIf(noIpv6 !== null)(
    `of a browser on ::1 is in brackets${noIpv6 ? ` (skipped: ${noIpv6})` : ""}`,
    async () => {
      const pere = await start({ host: "::1", access: "local" });
      expect(pere.url).toStartWith("http://[::1]:");
      expect((await ask(`${pere.url}/channels`)).status).toBe(200);
    },
  );
});

test("a page that was refused leaves a line in the log that names its origin", async () => {
  const pere = await spawn({ PERE_DB: ":memory:" });
  const log = logOf(pere);
  const { status } = await ask(`${pere.url}/push/orders`, { body: 1, headers: { Origin: SHOP } });
  expect(status).toBe(403);
  await until(
    () => log.lines.some((line) => line.includes("refused a request") && line.includes(`"origin":"${SHOP}"`)),
    () => `the line; there are ${log.lines.join(" ")}`,
  );
  await pere.end("SIGKILL");
});
