/**
 * PERE where a proxy leads only one path to it, `/pere/`: a real nginx that takes the path off, and one that leaves it on, before a service that is
 * told of it by PERE_BASE_PATH. All that an answer names, a page loads or a browser keeps is under that path.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { readSettings } from "../engine/ops/settings.ts";
import type { Service } from "../index.ts";
import { publish } from "../clients/sdk/index.ts";
import { browserTest, closeBrowser, openTab } from "./support/browser.ts";
import { type Front, NGINX, startNginx } from "./support/front.ts";
import { ask, connect, give, listen, SECRET, startWith, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

afterAll(closeBrowser);

const missing = NGINX || process.env.CI === "true" ? null : "there is no nginx on this machine";
const POLL = { Accept: "application/json" };

for (const [kind, target] of [
  ["takes the path off", "/"],
  ["leaves the path on", ""],
] as const)
  describe.skipIf(missing !== null)(`behind an nginx that ${kind}${missing ? ` (skipped: ${missing})` : ""},`, () => {
    let open: Service;
    let guarded: Service;
    let front: Front;
    /** The service without tokens, and the one with them, as the world sees them. */
    let [url, secured] = ["", ""];
    beforeAll(async () => {
      open = await startWith({ access: "open", basePath: "/pere" });
      guarded = await startWith({ basePath: "/tools/pere" });
      const port = lastingPort();
      const lines = `proxy_http_version 1.1; proxy_buffering off; proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;`;
      front = await startNginx(
        `events {} http { map $http_upgrade $connection_upgrade { default upgrade; "" ""; }
          server { listen 127.0.0.1:${port};
            location /pere/ { proxy_pass ${open.url}${target}; ${lines} }
            location /tools/pere/ { proxy_pass ${guarded.url}${target}; ${lines} }
            location = /health { return 200 ok; }
            location / { return 418; } } }`,
        port,
      );
      [url, secured] = [`${front.url}/pere`, `${front.url}/tools/pere`];
    });
    afterAll(() => Promise.all([front?.end(), open.stop(), guarded.stop()]));

    /** An address as an answer names it, seen from where it was asked. */
    const at = (where: string, named: string): string => new URL(named, where).href;

    test("events and receipts pass by each transport, and Location leads to the event", async () => {
      const pushed = await ask(`${url}/push/orders?to=till`, { body: 1 });
      const location = pushed.headers.get("location")!;
      expect(location).toBe(`/pere/events/orders/${pushed.body.id}`);
      expect((await ask(at(url, location))).body.id).toBe(pushed.body.id);
      const stream = await listen(`${url}/feed/orders?device=till`);
      expect((await stream.have(1))[0]!.id).toBe(pushed.body.id);
      stream.close();
      const { socket, messages } = await connect(`${url}/feed/orders?device=till`);
      await until(() => messages.some(({ id }) => id === pushed.body.id), "the event on a socket");
      socket.close();
      const polled = await ask(`${url}/feed/orders?device=till`, { headers: POLL });
      expect(polled.body.events).toHaveLength(1);
      expect((await give(url, "orders", pushed.body.id, "till", "done")).body.recorded).toBe(1);
      expect((await publish(url, "orders", { by: "the SDK" })).seq).toBe(2);
    });

    test("unknown paths and methods get 404 and 405 there too", async () => {
      expect((await ask(`${url}/nothing`)).status).toBe(404);
      const wrong = await ask(`${url}/push/orders`);
      expect([wrong.status, wrong.headers.get("allow")]).toEqual([405, "POST"]);
    });

    test("a link with a token sets a cookie for that path only, and redirects to the page", async () => {
      const claims = { sub: "till", push: ["*"], feed: ["*"], days: 1 };
      const token = await issueToken({ secret: SECRET, now: Date.now }, claims);
      const { status, headers } = await ask(`${secured}/?token=${token}`);
      expect([status, headers.get("location")]).toEqual([303, "/tools/pere/"]);
      expect(headers.get("set-cookie")).toContain("; Path=/tools/pere/; ");
      const page = await ask(at(secured, headers.get("location")!));
      expect(page.text).toContain("PERE console");
      const [cookie] = headers.get("set-cookie")!.split(";");
      expect((await ask(`${secured}/channels`, { headers: { Cookie: cookie! } })).status).toBe(200);
    });

    test("the API documents contain it, and pages and the manifest refer to nothing outside of it", async () => {
      expect((await ask(`${url}/swagger/json`)).body.servers).toMatchObject([{ url: "/pere" }]);
      const asyncapi = (await ask(`${url}/asyncapi.json`)).body as { servers: Record<string, { pathname: string }> };
      expect(Object.values(asyncapi.servers).map(({ pathname }) => pathname)).toEqual(["/pere", "/pere"]);
      for (const page of ["/", "/weblistener.html", "/swagger", "/swagger/"]) {
        const { text, status } = await ask(url + page);
        expect(status).toBe(200);
        const names = [...text.matchAll(/ (?:href|src)="([^"]+)"/g)].map(([, name]) => at(url + page, name!));
        expect(names.length).toBeGreaterThan(2);
        for (const name of names) {
          expect(name).toStartWith(`${url}/`);
          expect(`${(await ask(name)).status} ${name}`).toBe(`200 ${name}`);
        }
        const manifest = names.find((name) => name.endsWith(".webmanifest"));
        if (manifest === undefined) continue;
        const { start_url, scope, icons } = JSON.parse((await ask(manifest)).text) as {
          start_url: string;
          scope: string;
          icons: { src: string }[];
        };
        for (const name of [start_url, scope, ...icons.map(({ src }) => src)]) {
          expect(at(manifest, name)).toStartWith(`${url}/`);
          expect((await ask(at(manifest, name))).status).toBe(200);
        }
        expect(at(manifest, scope)).toBe(url + page);
      }
    });

    browserTest("the console, the device page and the API page work in a browser", async () => {
      const complaints: string[] = [];
      await using view = openTab(1000, 900, (what) => complaints.push(what));
      const page = <Value>(script: string): Promise<Value> => view.evaluate(script) as Promise<Value>;
      const shows = (text: string) =>
        until(async () => (await page<string>("document.body.innerText")).includes(text), text);
      await publish(url, "kitchen", { table: 7 });
      await view.navigate(`${url}/`);
      await shows("kitchen");
      await view.navigate(`${url}/weblistener.html?channel=kitchen&device=pad`);
      await until(async () => (await page("document.querySelector('#state')?.dataset.state")) === "connected", "it");
      await publish(url, "kitchen", { table: 8 });
      await shows("Table");
      const scope = await page<string>("navigator.serviceWorker.ready.then(({ scope }) => scope)");
      expect(scope).toBe(`${url}/weblistener.html`);
      for (const path of ["/swagger", "/swagger/"]) {
        await view.navigate(url + path);
        await until(
          async () => (await page<number>("document.querySelectorAll('details.operation').length")) > 10,
          path,
        );
      }
      expect(complaints).toEqual([]);
    });
  });

test("without a proxy, paths with and without it work, and the one without a slash redirects", async () => {
  const pere = await startWith({ access: "open", basePath: "/pere" });
  for (const path of ["/health", "/pere/health", "/icon.svg", "/pere/icon.svg", "/", "/pere/"])
    expect(`${path} ${(await ask(pere.url + path)).status}`).toBe(`${path} 200`);
  const { status, headers } = await ask(`${pere.url}/pere?token=x`);
  expect([status, headers.get("location")]).toEqual([308, "/pere/?token=x"]);
  await pere.stop();
});

test("the printed link has the path, and works", async () => {
  const pere = await startWith({ access: "own", basePath: "/pere", db: join(temporary(), "pere.db") });
  const link = (await pere.link())!;
  expect(link).toStartWith("/pere/?token=");
  expect((await ask(pere.url + link)).headers.get("location")).toBe("/pere/");
  await pere.stop();
});

describe("PERE_BASE_PATH", () => {
  test.each([
    ["", ""],
    ["/", ""],
    ["/pere", "/pere"],
    ["/pere/", "/pere"],
    ["/tools/pere-2.0~x_y", "/tools/pere-2.0~x_y"],
  ])("%p is %p", (text, path) => {
    expect(readSettings([], { PERE_BASE_PATH: text }).basePath).toBe(path);
  });
  test.each(["pere", "//pere", "/a//b", "/../x", "/a b", "/a?b", "/:channel", "/*", "https://x/pere", "/ü"])(
    "%p stops the start",
    (text) => {
      expect(() => readSettings([], { PERE_BASE_PATH: text })).toThrow(
        `PERE_BASE_PATH must be a path like /pere or /tools/pere, not "${text}"`,
      );
    },
  );
  test("a base path that begins like one of PERE's own paths stops the start", async () => {
    for (const path of ["/events", "/push/pere", "/health"])
      await expect(startWith({ basePath: path })).rejects.toThrow(
        "PERE_BASE_PATH must not begin with a path of PERE's",
      );
  });
});
