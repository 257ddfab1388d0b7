/**
 * The console's pages of devices: found and sorted, one device with what it was sent and said, and retired after a question.
 */
import { afterAll, expect } from "bun:test";
import { readRanges } from "../engine/addresses.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, give, listen, push, start, startWith, until } from "./support/harness.ts";

afterAll(closeBrowser);

const PHONE = [390, 844] as const;

const enrol = (url: string, device: string) => ask(`${url}/devices/orders/${device}`, { method: "PUT" });

/** The names in the table, top to bottom. */
const names = (tab: Tab): Promise<string[]> =>
  tab.read(`[...document.querySelectorAll(".devices tbody th")].map(({ textContent }) => textContent)`);

const shows = (tab: Tab, ...wanted: string[]): Promise<true> =>
  until(
    async () => JSON.stringify(await names(tab)) === JSON.stringify(wanted),
    () => `the devices ${wanted.join(", ")}`,
  );

browserTest("devices are found by name, sorted by what they owe, and filtered by connection", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  for (const device of ["graz-1", "graz-2", "wien-1"]) await enrol(pere.url, device);
  cleanup.adopt(await listen(`${pere.url}/feed/orders?device=graz-2`), (stream) => stream.close());
  await push(pere.url, "orders", 1, "?to=wien-1");
  await push(pere.url, "orders", 2, "?to=wien-1,graz-2");
  using tab = await new Tab(...PHONE).open(pere.url, "/orders/devices");
  await shows(tab, "graz-1", "graz-2", "wien-1");
  const rows = await tab.text(".devices tbody");
  // A device that never spoke has no time, and one that is connected has no time ago.
  expect(rows).toContain("graz-1 never heard from0");
  expect(rows).toContain("graz-2 connected1");
  await tab.fill(".find input[type=search]", "GRAZ");
  await shows(tab, "graz-1", "graz-2");
  await tab.fill(".find input[type=search]", "nothing like it");
  await tab.says("main", "No device fits");
  await tab.fill(".find input[type=search]", "");
  await tab.read(`(() => {
    const select = document.querySelector(".find select");
    select.value = "pending";
    select.dispatchEvent(new Event("change", { bubbles: true }));
  })()`);
  await shows(tab, "wien-1", "graz-2", "graz-1");
  await tab.choose("Connected only");
  await shows(tab, "graz-2");
  // Another one connects while the list is open.
  cleanup.adopt(await listen(`${pere.url}/feed/orders?device=wien-1`), (stream) => stream.close());
  await shows(tab, "wien-1", "graz-2");
  // Back from a device, the list is as it was left.
  await tab.choose("graz-2");
  await tab.says("main h2", "graz-2");
  await tab.read("history.back()");
  await shows(tab, "wien-1", "graz-2");
  expect(tab.complaints).toEqual([]);
});

browserTest("more devices than a page has are paged", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const all = Array.from({ length: 250 }, (_, n) => `label-${String(n).padStart(3, "0")}`);
  await Promise.all(all.map((device) => enrol(pere.url, device)));
  using tab = await new Tab().open(pere.url, "/orders/devices");
  await shows(tab, ...all.slice(0, 100));
  await tab.choose("Next");
  await shows(tab, ...all.slice(100, 200));
  await tab.choose("Next");
  await shows(tab, ...all.slice(200));
  await tab.says(".pages", "201 to 250");
  await tab.choose("Previous");
  await shows(tab, ...all.slice(100, 200));
});

browserTest("one device: what it was sent, what it said, and its retirement after a question", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  for (const device of ["till-1", "till-2"]) await enrol(pere.url, device);
  const ids = [
    await push(pere.url, "orders", 1, "?type=first"),
    await push(pere.url, "orders", 2, "?type=second"),
    await push(pere.url, "orders", 3),
    await push(pere.url, "orders", 4, "?to=till-2"),
  ];
  await give(pere.url, "orders", ids[0]!, "till-1", "failed", { detail: { reason: "no paper" } });
  await give(pere.url, "orders", ids[1]!, "till-1", "done", { detail: "printed" });
  using tab = await new Tab(...PHONE).open(pere.url, "/orders/devices");
  await tab.choose("till-1");
  await tab.says("main h2", "till-1");
  await tab.says("main", "It owes 1 answer");
  const rows = (): Promise<string[]> =>
    tab.read(`[...document.querySelectorAll(".names li")].map(({ innerText }) => innerText.replace(/\\s+/g, " "))`);
  await until(async () => (await rows()).length === 3, "the history");
  const [third, second, first] = await rows();
  expect(third).toMatch(/^event 3 .*pending/);
  expect(third).toContain("no answer yet");
  expect(second).toMatch(/^second .*done.*printed/);
  expect(first).toMatch(/^first .*failed.*no paper.*answered \d\d:\d\d:\d\d/);
  expect(await tab.read<string>("document.title")).toBe("till-1 – orders – PERE console");

  await tab.choose("Retire this device");
  const said = await tab.says("dialog", "Retire till-1?");
  expect(said).toContain("New events in orders are no longer for it.");
  expect(said).toContain("Nobody waits any more for the 1 answer that it owes.");
  await tab.view.press("Escape");
  await until(() => tab.read<boolean>("document.querySelector('dialog') === null"), "the question to go");
  // Still here, and the focus is where it was.
  expect(await tab.read<string>("document.activeElement.textContent")).toBe("Retire this device");
  expect((await ask(`${pere.url}/devices/orders/till-1`)).status).toBe(200);

  await tab.choose("Retire this device");
  // By keyboard: from "Cancel" to the button that does it.
  await tab.says("dialog", "Retire till-1?");
  expect(await tab.read<string>("document.activeElement.textContent")).toBe("Cancel");
  await tab.view.press("Tab");
  await tab.view.press("Enter");
  await tab.says(".notices", "till-1 was retired from orders.");
  await shows(tab, "till-2");
  expect((await ask(`${pere.url}/devices/orders/till-1`)).status).toBe(404);
  await tab.go("/orders/devices/till-1");
  await tab.says("main", "This device is not enrolled in orders");
  expect(tab.complaints.filter((what) => !what.includes("404"))).toEqual([]);
});

browserTest("a device that can't be retired stays, and the question says why", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const proxy = cleanup.adopt(await BadProxy.to(pere.url), (one) => one.stop());
  await enrol(pere.url, "till-1");
  using tab = await new Tab().open(proxy.url, "/orders/devices/till-1");
  await tab.choose("Retire this device");
  await tab.says("dialog", "Retire till-1?");
  proxy.weather = ({ head }) => (head.startsWith("DELETE") ? { cut: 0 } : "pass");
  await tab.choose("Retire till-1", "dialog");
  await tab.says("dialog", "The service can't be reached.");
});

browserTest("a device that two machines use as their name says so", async () => {
  await using cleanup = new AsyncDisposableStack();
  const settings = { access: "open", proxies: readRanges("127.0.0.1/32") } as const;
  const pere = cleanup.adopt(await startWith(settings), (service) => service.stop());
  const connect = async (address: string): Promise<void> => {
    const headers = { "X-Forwarded-For": address };
    cleanup.adopt(await listen(`${pere.url}/feed/orders?device=pi`, headers), (stream) => stream.close());
  };
  await connect("198.51.100.1");
  await connect("2001:db8::1");
  using tab = await new Tab().open(pere.url, "/orders/devices/pi");
  await tab.says("main", "connected");
  // One machine has both kinds of addresses.
  expect(await tab.text("main")).not.toContain("at once");
  await connect("198.51.100.2");
  await tab.says("main .trouble", "connected from 3 addresses at once");
});
