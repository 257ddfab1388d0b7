/**
 * The console's first page: who did not do it, right now, in a sentence and in lists that lead to where one acts; and notifications of it.
 */
import { afterAll, expect } from "bun:test";
import { join } from "node:path";
import { axe } from "./support/axe.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, give, listen, push, spawn, start, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

afterAll(closeBrowser);

const HOUR_MS = 3_600_000;
const enrol = (url: string, channel: string, device: string) =>
  ask(`${url}/devices/${channel}/${device}`, { method: "PUT" });
const verdict = (tab: Tab, words: string): Promise<string> => tab.says(".verdict", words);
/** The items of a list, each as it is read. */
const items = (tab: Tab, list: string): Promise<string[]> =>
  tab.read(`[...document.querySelectorAll("section[aria-labelledby=list-${list}] li")]
    .map(({ textContent }) => textContent.replace(/\\s+/g, " ").trim())`);

browserTest("devices in trouble are named worst first, live, and each line leads to where one acts", async () => {
  await using cleanup = new AsyncDisposableStack();
  let ahead = 0;
  const service = await start({ now: () => Date.now() + ahead });
  const pere = cleanup.adopt(service, (one) => one.stop());
  const { url } = pere;
  for (const device of ["graz-till-02", "linz-till-07", "wien-till-01"]) await enrol(url, "orders", device);
  cleanup.adopt(await listen(`${url}/feed/orders?device=linz-till-07`), (stream) => stream.close());
  using tab = await new Tab(1280, 800).open(url);
  expect(await verdict(tab, "Nothing needs attention.")).toBe("Nothing needs attention.");
  expect(await tab.text(".looked")).toMatch(
    /^Every device did what was asked, or still has time\. Looked at \d\d:\d\d:\d\d\./,
  );

  const events: string[] = [];
  for (let n = 0; n < 3; n++) events.push(await push(url, "orders", n, "?type=order.created&deadline=60"));
  for (const event of events) {
    await give(url, "orders", event, "wien-till-01", "done");
    await give(url, "orders", event, "linz-till-07", event === events[0] ? "failed" : "done");
  }
  await verdict(tab, "1 device reported 1 failure.");
  ahead += 90_000;
  await verdict(tab, "2 devices owe answers or failed: 3 missed, 1 failed.");
  const [first, second] = await items(tab, "devices");
  expect(first).toStartWith("graz-till-02 orders 3 missed, never heard · since ");
  expect(second).toStartWith("linz-till-07 orders 1 failed, connected · since ");
  expect((await items(tab, "events"))[0]).toMatch(/^order\.created 1 orders 1 missed, 1 failed of 3 · deadline was /);
  expect(await items(tab, "channels")).toEqual(["orders 3 missed, 1 failed · 2 devices"]);
  await until(() => tab.read<boolean>(`document.title === "(2) Needs attention – PERE console"`), "the title");
  expect(await axe(tab)).toEqual([]);

  // An event without a deadline is overdue after an hour.
  await enrol(url, "alarms", "pump");
  await push(url, "alarms", 1);
  ahead += HOUR_MS;
  await verdict(tab, "3 devices owe answers or failed: 3 missed, 1 failed, 1 overdue.");
  expect((await items(tab, "events")).at(-1)).toMatch(/1 owe an answer of 1 · pushed .*, no deadline/);

  // By keyboard: to the device, and back to its line.
  const line = `a[href="#/orders/devices/graz-till-02"]`;
  await tab.read(`document.querySelector('${line}').focus()`);
  await tab.view.press("Enter");
  await tab.says("main", "It owes");
  expect(await tab.read<string>("location.hash")).toBe("#/orders/devices/graz-till-02");
  await tab.says("main h2", "graz-till-02");
  await tab.view.press("Escape");
  await verdict(tab, "3 devices");
  await until(() => tab.read<boolean>(`document.activeElement.matches('${line}')`), "the line in focus");
  for (const [list, hash] of [
    ["events", `#/orders/event/${events[0]}`],
    ["channels", "#/orders?only=trouble"],
  ] as const)
    expect(
      await tab.read<string>(`document.querySelector("section[aria-labelledby=list-${list}] a").getAttribute("href")`),
    ).toBe(hash);

  // What is done late is no longer missing.
  for (const event of events) await give(url, "orders", event, "graz-till-02", "done");
  await verdict(tab, "2 devices owe answers or failed: 1 failed, 1 overdue.");
  expect(tab.complaints).toEqual([]);
});

browserTest(
  "when the service is killed the page says of when its numbers are, and has new ones when it is back",
  async () => {
    const env = { PERE_DB: join(temporary(), "pere.db"), PORT: String(lastingPort()) };
    const before = await spawn(env);
    await give(before.url, "orders", await push(before.url, "orders", 1, "?to=till-1"), "till-1", "failed");
    using tab = await new Tab(390, 844).open(before.url);
    await verdict(tab, "1 device reported 1 failure.");
    await tab.says(".facts", "1 channel · 0 devices, 0 connected");
    expect(await tab.text(".looked")).toMatch(/^Looked at/);
    await before.end("SIGKILL");
    await tab.state("offline");
    await tab.says(".looked", "Last looked at");
    expect(await tab.text(".facts")).toMatch(/^At \d\d:\d\d:\d\d: 1 channel/);
    expect(await axe(tab)).toEqual([]);
    const after = await spawn(env);
    await give(after.url, "orders", await push(after.url, "orders", 2, "?to=till-2"), "till-2", "failed");
    await tab.state("live");
    await verdict(tab, "2 devices reported 2 failures.");
    expect(await tab.text(".looked")).toMatch(/^Looked at/);
    await after.end("SIGKILL");
  },
);

browserTest("hooks that gave up are listed, and lead to their page", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await push(pere.url, "orders", 1, "?to=till-1");
  await pere.engine.attention(null, 1);
  const engine = pere.engine as { attention: typeof pere.engine.attention };
  const read = engine.attention.bind(engine);
  engine.attention = async (...asked) => ({
    ...(await read(...asked)),
    hooks: [{ channel: "orders", name: "backoffice", givenUp: 2, disabled: "it answered 410" }],
  });
  using tab = await new Tab(390, 844).open(pere.url);
  expect(await verdict(tab, "1 hook needs help.")).toBe("1 hook needs help.");
  expect(await items(tab, "hooks")).toEqual(["backoffice orders gave up 2 calls, disabled: it answered 410"]);
  await tab.click("section[aria-labelledby=list-hooks] a");
  await until(() => tab.read<boolean>(`location.hash === "#/orders/hooks"`), "the hooks");
});

browserTest(
  "a notification of new trouble is asked for by a button alone, and shown while the page is not looked at",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    await enrol(pere.url, "orders", "till-1");
    using tab = new Tab();
    await tab.view.navigate("about:blank");
    await tab.view.cdp("Page.enable");
    // Counts the questions to the user, and the notifications that the browser has. It is asked for these only then: asked while it adds one, Chromium
    // may drop it.
    const source = `globalThis.questions = globalThis.added = 0;
    const ask = Notification.requestPermission.bind(Notification);
    Notification.requestPermission = () => (questions++, ask());
    const { showNotification } = ServiceWorkerRegistration.prototype;
    ServiceWorkerRegistration.prototype.showNotification = async function (...words) {
      await showNotification.apply(this, words);
      added++;
    };`;
    await tab.view.cdp("Page.addScriptToEvaluateOnNewDocument", { source });
    await tab.open(pere.url);
    await verdict(tab, "Nothing needs attention.");
    expect(await tab.read<number>("questions")).toBe(0);
    await tab.view.cdp("Browser.grantPermissions", { origin: pere.url, permissions: ["notifications"] });
    await tab.click(".looked button");
    await tab.says(".looked button", "Notifications on");
    expect(await tab.read<number>("questions")).toBe(1);
    const shown = (): Promise<string[]> =>
      tab.read(`navigator.serviceWorker.getRegistration(new URL("console-alerts/", location.href).href)
      .then((registration) => registration?.getNotifications() ?? [])
      .then((all) => all.map(({ title, body }) => title + " " + body))`);
    await until(
      () =>
        tab.read<boolean>(
          `navigator.serviceWorker.getRegistration(new URL("console-alerts/", location.href).href).then((one) => one?.active?.state === "activated")`,
        ),
      "the worker",
    );
    // Looked at, the page is enough.
    const event = await push(pere.url, "orders", 1);
    await give(pere.url, "orders", event, "till-1", "failed");
    await verdict(tab, "1 device reported 1 failure.");
    expect(await shown()).toEqual([]);
    await tab.read(`void Object.defineProperty(document, "visibilityState", { value: "hidden", configurable: true })`);
    await give(pere.url, "orders", await push(pere.url, "orders", 2), "till-1", "failed");
    await until(async () => (await tab.read<number>("added")) > 0, "the notification");
    expect(await shown()).toEqual(["1 device reported 2 failures. till-1: 2 failed"]);
    // The page's own worker serves none of its files.
    expect(await tab.read<boolean>("navigator.serviceWorker.controller === null")).toBe(true);
  },
);
