/**
 * The SDK as the service serves it: one module and its types, which pages of other origins import without a build step.
 */
import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { sdkModule, sdkTypes } from "../clients/bundle.ts";
import { publish } from "../clients/sdk/index.ts";
import * as sdk from "../clients/sdk/index.ts";
import { issueToken } from "../engine/auth/issue.ts";
import { browserTest, closeBrowser, openTab } from "./support/browser.ts";
import { ask, SECRET, start, startWith, temporary, until } from "./support/harness.ts";

afterAll(closeBrowser);

const SHOP = "https://shop.example";

test("the module and its types are served with their media types, and caches ask whether they are still right", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  for (const [path, type, text] of [
    ["/pere.js", "text/javascript", await sdkModule()],
    ["/pere.d.ts", "application/typescript", await sdkTypes()],
  ] as const) {
    const answer = await fetch(pere.url + path);
    expect(answer.status).toBe(200);
    expect(answer.headers.get("content-type")).toBe(`${type};charset=utf-8`);
    expect(answer.headers.get("cache-control")).toBe("no-cache");
    expect(answer.headers.get("x-typescript-types")).toBe(path === "/pere.js" ? "./pere.d.ts" : null);
    expect(await answer.text()).toBe(text);
    const again = await fetch(pere.url + path, { headers: { "If-None-Match": answer.headers.get("etag")! } });
    expect(again.status).toBe(304);
  }
});

test("only pages of allowed origins can read the module; it needs no token", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith({ origins: [SHOP] }), (service) => service.stop());
  const shop = await ask(`${pere.url}/pere.js`, { headers: { Origin: SHOP } });
  expect([shop.status, shop.headers.get("access-control-allow-origin")]).toEqual([200, SHOP]);
  const stranger = await ask(`${pere.url}/pere.js`, { headers: { Origin: "https://evil.example" } });
  expect([stranger.status, stranger.headers.has("access-control-allow-origin")]).toEqual([403, false]);
});

test("the module is readable, imports nothing, and exports what the SDK exports", async () => {
  const file = join(temporary(), "pere.mjs");
  const text = await sdkModule();
  await Bun.write(file, text);
  const served = (await import(file)) as object;
  expect(Object.keys(served).toSorted()).toEqual(Object.keys(sdk).toSorted());
  expect(text).not.toMatch(/^import /m);
  expect(text).toContain("\nclass ServiceClient {\n");
  expect(Math.max(...text.split("\n").map((line) => line.length))).toBeLessThan(400);
});

test("the types are what the TypeScript compiler makes of the sources", async () => {
  const folder = temporary();
  const types = await sdkTypes();
  await Bun.write(join(folder, "pere.d.ts"), types);
  // Each export of one is assignable to the same export of the other, in both directions.
  const names = [...types.matchAll(/^ {2}(type )?(\w+),$/gm)];
  const values = names.filter(([, isType]) => !isType).map(([, , name]) => name);
  const simple = names.filter(
    ([, isType, name]) => isType && !["PushedEvent", "ListenOptions", "Observable"].includes(name!),
  );
  const index = join(import.meta.dir, "..", "clients", "sdk", "index.ts");
  const check = `
import * as served from "./pere";
import * as source from "${index}";
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;
${values.map((name) => `export const value_${name}: Same<typeof served.${name}, typeof source.${name}> = true;`).join("\n")}
${simple.map(([, , name]) => `export const type_${name}: Same<served.${name}, source.${name}> = true;`).join("\n")}
export const all: Same<keyof typeof served, keyof typeof source> = true;
export const event: Same<served.PushedEvent<1>, source.PushedEvent<1>> = true;
export const options: Same<served.ListenOptions<1>, source.ListenOptions<1>> = true;
export const observable: Same<served.Observable<1>, source.Observable<1>> = true;
`;
  expect(values.length).toBeGreaterThan(5);
  await Bun.write(join(folder, "check.ts"), check);
  const tsc = [join(import.meta.dir, "..", "node_modules", ".bin", "tsc"), "check.ts", "--ignoreConfig", "--noEmit"];
  const flags = ["--strict", "--types", "", "--target", "es2022", "--lib", "es2022,dom", "--module", "esnext"];
  const child = Bun.spawn(
    [process.execPath, ...tsc, ...flags, "--moduleResolution", "bundler", "--allowImportingTsExtensions"],
    { cwd: folder, env: process.env, stdin: "ignore", stdout: "pipe", stderr: "inherit" },
  );
  expect(await new Response(child.stdout).text()).toBe("");
  expect(await child.exited).toBe(0);
}, 60_000);

browserTest("a page of another origin imports the SDK from the service, and is a device", async () => {
  await using cleanup = new AsyncDisposableStack();
  const page = (url: string, token: string): string => `<!doctype html><title>shop</title><script type="module">
    import { listen } from "${url}/pere.js";
    listen({ url: "${url}", channels: "orders", token: "${token}", onEvent: ({ data }) => {
      document.title = "table " + data.table;
      return { shown: data.table };
    } }).status().subscribe(({ state }) => (window.state = state));
  </script>`;
  let html = "";
  const shop = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: () => new Response(html, { headers: { "Content-Type": "text/html" } }),
  });
  cleanup.defer(() => shop.stop(true));
  const pere = cleanup.adopt(await startWith({ origins: [shop.url.origin] }), (service) => service.stop());
  const of = (sub: string, push: string[], feed: string[]): Promise<string> =>
    issueToken({ secret: SECRET }, { sub, push, feed, days: 1 });
  html = page(pere.url, await of("till-7", [], ["orders"]));
  using tab = openTab(500, 400);
  await tab.navigate(shop.url.href);
  await until(async () => (await tab.evaluate("window.state")) === "connected");
  const token = await of("office", ["orders"], []);
  const { receipts } = await publish(pere.url, "orders", { table: 7 }, { token, wait: 10 });
  expect(receipts).toMatchObject({ done: 1 });
  expect(await tab.evaluate("document.title")).toBe("table 7");
});
