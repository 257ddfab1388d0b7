/**
 * The pages and the SDK where a browser is old, or refuses what it could: in a Chromium from which all that is taken away which Safari 15.4, Chrome 94
 * or Firefox 100 lack. Whatever is missing, an event is answered as a person answered it, or not at all, and a push goes to whom it was for.
 */
import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { buildPages } from "../web/build.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Page, row } from "./support/device-page.ts";
import { ask, give, push, start, temporary, until } from "./support/harness.ts";
import { REFUSALS, WITHOUT } from "./support/old-browsers.ts";

afterAll(closeBrowser);

/** A page in a browser that lacks something, from its first script on. */
async function oldPage(script: string): Promise<Page> {
  const page = new Page(900, 900);
  await page.view.navigate("about:blank");
  await page.view.cdp("Page.enable");
  await page.view.cdp("Page.addScriptToEvaluateOnNewDocument", { source: script });
  return page;
}

for (const [name, script] of [["nothing that the oldest lack", WITHOUT], ...Object.entries(REFUSALS)] as const)
  browserTest(
    `the device page in a browser with ${name}: it shows an event and gives the answer that it was given`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const pere = cleanup.adopt(await start(), (service) => service.stop());
      using page = await oldPage(script);
      await page.open(pere.url, "device=till-1");
      const [id, other] = [await push(pere.url, "orders", { table: 7 }), await push(pere.url, "orders", 2)];
      await page.shows(id, "received");
      await page.click(id, "button.done");
      await row(pere.url, id, "till-1", "done");
      await page.shows(id, "done");
      await page.shows(other, "received");
      await page.fail(other);
      await row(pere.url, other, "till-1", "failed");
      // What was not answered is not answered by the page's end.
      const last = await push(pere.url, "orders", 3);
      await row(pere.url, last, "till-1", "received");
      await page.view.navigate("about:blank");
      await row(pere.url, last, "till-1", "received");
    },
  );

for (const [name, script] of [
  ["all that the oldest browsers lack", `${WITHOUT}; ${REFUSALS["no ResizeObserver"]}`],
  ["a localStorage", REFUSALS["a localStorage that throws"]!],
] as const)
  browserTest(`the console without ${name}: it shows the board, and a push goes to whom it is for`, async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    for (const device of ["till-1", "till-2", "till-3"])
      await ask(`${pere.url}/devices/orders/${device}`, { method: "PUT" });
    using page = await oldPage(script);
    await page.view.navigate(`${pere.url}/#/orders/push`);
    await until(() => page.read<boolean>(`document.querySelector(".push .send")?.disabled === false`), "the form");
    await page.view.scrollTo(".audience label + label");
    await page.view.click(".audience label + label");
    await page.view.scrollTo(".push [name=to]");
    await page.view.click(".push [name=to]");
    await page.view.type("till-1,till-3");
    await page.view.scrollTo(".push .send");
    await page.view.click(".push .send");
    await until(async () => (await page.text(".push .well")).includes("addressed to 2 devices"), "the push");
    const [{ id }] = (await ask(`${pere.url}/events/orders`)).body.events as [{ id: string }];
    expect((await ask(`${pere.url}/events/orders/${id}`)).body.to).toEqual(["till-1", "till-3"]);
    await page.read(`void (location.hash = "/orders")`);
    await until(() => page.read<boolean>(`document.querySelector("canvas")?.dataset.drawn > 0`), "the board");
    await give(pere.url, "orders", id, "till-3", "failed", { detail: "no paper" });
    for (const [place, words] of [
      ["/", "1 device reported 1 failure."],
      ["/~channels", "1 failed"],
      ["/~service", "Receipts owed"],
      ["/orders?only=trouble", "worst first"],
    ] as const) {
      await page.read(`void (location.hash = ${JSON.stringify(place)})`);
      await until(async () => (await page.text("main")).includes(words), place);
    }
    await page.read(`void (location.hash = "/orders/event/${id}")`);
    await until(async () => (await page.text(".event h3")) !== "", "the event");
    expect(page.complaints).toEqual([]);
  });

browserTest("the API page without all that the oldest browsers lack: it shows and sends requests", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await oldPage(WITHOUT);
  await page.view.navigate(`${pere.url}/swagger#/Operation/health`);
  await until(() => page.read<boolean>("document.querySelector('#health .send') !== null"), "the operation");
  await page.view.scrollTo("#health .send");
  await page.view.click("#health .send");
  await until(async () => (await page.text("#health .outcome")).startsWith("200"), "the answer");
  expect(await page.read<number>("document.querySelectorAll('.prose table').length")).toBe(1);
  expect(page.complaints).toEqual([]);
});

browserTest("a push whose options can't be encoded is not sent", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await oldPage("");
  await page.view.navigate(`${pere.url}/#/orders/push`);
  await until(() => page.read<boolean>(`document.querySelector(".push .send")?.disabled === false`), "the form");
  await page.view.scrollTo(".audience label + label");
  await page.view.click(".audience label + label");
  await page.view.click(".push [name=to]");
  await page.view.type("till-1");
  await page.read(`void (globalThis.encodeURIComponent = () => { throw new Error("out of order"); })`);
  await page.view.scrollTo(".push .send");
  await page.view.click(".push .send");
  await until(async () => (await page.text(".push .trouble")).includes("Nothing was pushed"), "a word on it");
  expect((await ask(`${pere.url}/channels`)).body.channels).toEqual([]);
});

for (const [what, path, script] of [
  ["the console", "/", "delete globalThis.Map;"],
  ["the device page", "/weblistener.html", "delete globalThis.Map;"],
] as const)
  browserTest(`in a browser that is older still ${what} says which one it takes`, async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    using page = await oldPage(script);
    await page.view.navigate(pere.url + path);
    const seen = `getComputedStyle(document.querySelector(".old")).visibility === "visible" && document.body.innerText`;
    await until(
      async () => /Safari 15\.4, Chrome 94, Firefox 100/.test(String(await page.read(seen).catch(() => ""))),
      "the sentence",
    );
  });

test("pages use only JavaScript of the oldest supported browsers", async () => {
  const files = await buildPages(join(import.meta.dir, "..", "web"));
  const scripts = [...files].filter(([path]) => path.endsWith(".js"));
  expect(scripts.length).toBeGreaterThan(2);
  for (const [path, { bytes }] of scripts) {
    const text = new TextDecoder().decode(bytes);
    // A class's static block and a look behind in a pattern are Safari 16.4's.
    for (const young of [/\bstatic\s*\{/, /\(\?<[=!]/, /\bawait using\b/])
      expect(`${path}: ${young.exec(text)?.[0] ?? ""}`).toBe(`${path}: `);
  }
});

const SCRIPT = `
  import { listen, publish, publishMany, receipts } from "./pere.mjs";
  const url = process.argv[2];
  const said = receipts({ url, channel: "orders" });
  await said.ready;
  const till = listen({ url, channels: "orders", device: "till-7", onEvent: ({ data }) => data });
  for await (const { state } of till.status()) if (state === "connected") break;
  const { complete } = await publish(url, "orders", "a b", { type: "note", to: ["till-7"], wait: 10 });
  const { events } = await publishMany(url, "orders", [1, 2]);
  for await (const word of said) if (word.kind === "complete" && word.event === events[1].id) break;
  await till.close();
  console.log(complete, till.status().get().rejected);
  process.exit(0);
`;

for (const [name, program] of [
  ["Bun", process.execPath],
  ["Node", Bun.which("node")],
] as const)
  test.skipIf(program === null)(`the SDK on ${name} without all that the oldest browsers lack`, async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const folder = temporary();
    const built = await Bun.build({
      entrypoints: [join(import.meta.dir, "..", "clients", "sdk", "index.ts")],
      target: "node",
    });
    await Bun.write(join(folder, "pere.mjs"), built.outputs[0]!);
    await Bun.write(join(folder, "without.mjs"), WITHOUT);
    await Bun.write(join(folder, "device.mjs"), `import "./without.mjs";\n${SCRIPT}`);
    const child = Bun.spawn([program!, join(folder, "device.mjs"), pere.url], {
      env: process.env,
      stdout: "pipe",
      stderr: "pipe",
    });
    const [said, complained] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
    ]);
    expect([said, complained]).toEqual(["true 0\n", ""]);
  });
