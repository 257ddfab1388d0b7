/**
 * The console's frame: Back brings everything back, Escape leaves, each page has its title, and the page never shows as known what it does not know.
 */
import { afterAll, expect } from "bun:test";
import { axe } from "./support/axe.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, push, spawn, start, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";
import { join } from "node:path";

afterAll(closeBrowser);

const back = (tab: Tab): Promise<unknown> => tab.read("history.back()");
const place = (tab: Tab, hash: string): Promise<true> =>
  until(
    () => tab.read<boolean>(`location.hash === ${JSON.stringify(hash)}`),
    () => hash,
  );

browserTest(
  "Back and Escape return to the cell and the scroll position that were left, by keyboard alone",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    for (const device of ["till-1", "till-2"]) await ask(`${pere.url}/devices/orders/${device}`, { method: "PUT" });
    const lines = "1\n".repeat(80);
    await ask(`${pere.url}/push/orders`, { type: "application/x-ndjson", body: lines });
    for (const [width, height] of [
      [1280, 800],
      [390, 844],
    ] as const) {
      using tab = await new Tab(width, height).open(pere.url, "/orders");
      await tab.focus(60, 1);
      await tab.says("#cell-in-focus", "till-2: pending; event 20");
      await tab.read("scrollTo(0, 40)");
      const before = await tab.read<number[]>("[document.querySelector('.grid').scrollTop, scrollY]");
      expect(before[0]).toBeGreaterThan(0);
      for (const leave of [() => back(tab), () => tab.view.press("Escape")]) {
        await tab.view.press("Enter");
        await tab.says(".event", "Answers over time");
        // A screen reader begins at the heading of the new page.
        expect(await tab.read<string>("document.activeElement.tagName")).toBe("H1");
        expect(await tab.read<number>("scrollY")).toBe(0);
        await leave();
        await tab.says("#cell-in-focus", "till-2: pending; event 20");
        await until(() => tab.read<boolean>("document.activeElement.id === 'grid'"), "the focus on the board");
        await until(
          async () =>
            JSON.stringify(await tab.read("[document.querySelector('.grid').scrollTop, scrollY]")) ===
            JSON.stringify(before),
          "the scroll position",
        );
      }
      expect(tab.complaints).toEqual([]);
    }
  },
);

browserTest("each page has a title, and opening an event directly Escape goes to its board", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const id = await push(pere.url, "orders", 1, "?to=till-1");
  using tab = await new Tab().open(pere.url, `/orders/event/${id}`);
  const titles = new Set<string>();
  const PLACES = [`/orders/event/${id}`, "/orders", "/orders/devices", "/orders/push", "/orders/hooks", "/"];
  for (const at of PLACES) {
    await tab.go(at);
    const before = [...titles];
    let title = "";
    await until(
      async () => !before.includes((title = await tab.read<string>("document.title"))),
      () => `another title than ${title}`,
    );
    expect(title).toEndWith(" – PERE console");
    titles.add(title);
  }
  expect(titles).toContain("Devices – orders – PERE console");
  await tab.open(pere.url, `/orders/event/${id}`);
  await tab.says(".event", "Answers over time");
  await tab.view.press("Escape");
  await place(tab, "#/orders");
  // In a field Escape stays.
  await tab.go(`/orders/event/${id}`);
  await tab.click("input[type=search]");
  await tab.view.press("Escape");
  await place(tab, `#/orders/event/${id}`);
});

browserTest("nothing is said of a channel before the service answered", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const proxy = cleanup.adopt(await BadProxy.to(pere.url), (proxy) => proxy.stop());
  for (let n = 0; n < 3; n++) await push(pere.url, "orders", n);
  let isHeld = true;
  proxy.weather = ({ target }) => (isHeld && target.startsWith("/watch") ? { delayMs: 3_000 } : "pass");
  using tab = new Tab(390, 844);
  await tab.view.navigate(`${proxy.url}/#/orders`);
  await until(() => tab.read<boolean>("document.querySelector('main .skeleton') !== null"), "the skeleton");
  // All that the page says until it knows.
  await tab.read(`(() => {
    globalThis.saw = "";
    new MutationObserver(() => { saw += document.body.innerText; }).observe(document.body, { childList: true, subtree: true, characterData: true });
    saw += document.body.innerText;
  })()`);
  isHeld = false;
  await tab.state("live");
  await tab.says("header.title", "3 events");
  await until(() => tab.read<boolean>("document.querySelector('.grid') !== null"), "the board");
  expect(await tab.read<string>("saw")).not.toMatch(/No events|no devices|Nothing here/i);
  expect(await tab.read<boolean>("document.querySelector('.skeleton') === null")).toBe(true);
});

browserTest(
  "a silent service is told after 5 s and dims the page after 15 s; it is live again when it is heard",
  async () => {
    const env = { PERE_DB: join(temporary(), "pere.db"), PORT: String(lastingPort()) };
    const pere = await spawn(env);
    try {
      await ask(`${pere.url}/devices/orders/till-1`, { method: "PUT" });
      using tab = await new Tab().open(pere.url, "/orders");
      await tab.says("header.title", "1 device, 0 connected");
      const sight = (wanted: string): Promise<true> =>
        until(() => tab.read<boolean>(`document.querySelector(".body").dataset.sight === "${wanted}"`), wanted);
      await sight("current");
      pere.child.kill("SIGSTOP");
      expect(await tab.says(".link", "last heard")).toMatch(/silent.*last heard [5-9] s ago/);
      await sight("recent");
      // What was true then is told as of then.
      expect(await tab.text(".facts")).toMatch(/^At \d\d:\d\d:\d\d: 1 device, 0 connected/);
      await sight("old");
      expect(await tab.read<string>("getComputedStyle(document.querySelector('.body')).filter")).toBe("grayscale(1)");
      for (const scheme of ["dark", "light"]) {
        await tab.view.cdp("Emulation.setEmulatedMedia", {
          features: [{ name: "prefers-color-scheme", value: scheme }],
        });
        expect(await axe(tab), scheme).toEqual([]);
      }
      pere.child.kill("SIGCONT");
      await tab.state("live");
      await sight("current");
      expect(await tab.text(".facts")).toMatch(/^1 device/);
    } finally {
      pere.child.kill("SIGCONT");
      await pere.end("SIGKILL");
    }
  },
);

browserTest("a network that goes is told at once, and one that comes back is used at once", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using tab = await new Tab().open(pere.url);
  const network = (offline: boolean): Promise<unknown> =>
    tab.view.cdp("Network.emulateNetworkConditions", {
      offline,
      latency: 0,
      downloadThroughput: -1,
      uploadThroughput: -1,
    });
  await tab.view.cdp("Network.enable");
  await network(true);
  await tab.state("offline");
  await tab.says(".link", "this device has no network");
  await network(false);
  await tab.state("live");
});
