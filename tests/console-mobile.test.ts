/**
 * The console on a phone of 390 × 844: nothing jumps or gapes, everything can be hit with a finger, and what is tapped is seen.
 */
import { afterAll, expect } from "bun:test";
import { axe } from "./support/axe.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, give, push, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

/** A phone: touch, and no mouse. */
async function phone(): Promise<Tab> {
  const tab = new Tab(390, 844);
  await tab.view.navigate("about:blank");
  await tab.view.cdp("Emulation.setDeviceMetricsOverride", {
    width: 390,
    height: 844,
    deviceScaleFactor: 2,
    mobile: true,
  });
  await tab.view.cdp("Emulation.setTouchEmulationEnabled", { enabled: true });
  return tab;
}

/** Twelve channels; the last one has trouble. */
async function fill(url: string): Promise<string> {
  for (let n = 0; n < 12; n++)
    for (const device of ["till-1", "till-2"]) await ask(`${url}/devices/shop-${10 + n}/${device}`, { method: "PUT" });
  const id = await push(url, "shop-21", { table: 7 }, "?type=order.created");
  await give(url, "shop-21", id, "till-2", "failed", { detail: "no paper" });
  return id;
}

/** Slow 3G, as Chrome's developer tools have it. */
const SLOW = { offline: false, latency: 2_000, downloadThroughput: 50_000, uploadThroughput: 50_000 };

browserTest("while pages load on a slow line little moves, and placeholders stand where nothing is known", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await fill(pere.url);
  for (const place of ["/", "/shop-21", "/~channels", "/shop-21/devices"]) {
    using tab = await phone();
    await tab.view.cdp("Page.enable");
    const source = `globalThis.shifted = 0; globalThis.saw = "";
      new PerformanceObserver((list) => { for (const one of list.getEntries()) if (!one.hadRecentInput) shifted += one.value; })
        .observe({ type: "layout-shift", buffered: true });
      new MutationObserver(() => {
        saw += (document.querySelector("main")?.innerText ?? "") + (document.querySelector(".skeleton") ? "…" : "");
      }).observe(document, { childList: true, subtree: true, characterData: true });`;
    await tab.view.cdp("Page.addScriptToEvaluateOnNewDocument", { source });
    await tab.view.cdp("Network.enable");
    await tab.view.cdp("Network.emulateNetworkConditions", { ...SLOW, latency: 400 });
    await tab.open(pere.url, place);
    await until(() => tab.read<boolean>("document.querySelector('.skeleton') === null"), "everything to be there");
    await Bun.sleep(500); // For shifts that come late.
    expect(await tab.read<string>("saw")).toContain("…");
    expect(await tab.read<string>("saw")).not.toMatch(/No events|No channels|No devices|Nothing needs/);
    const shifted = await tab.read<number>("shifted");
    console.log(`${place} shifts by ${shifted.toFixed(3)}`);
    expect(shifted, place).toBeLessThan(0.1);
  }
});

browserTest("no gap, the current channel in view with its trouble, and targets for fingers", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const id = await fill(pere.url);
  using tab = await phone();
  await tab.open(pere.url, "/shop-21");
  await tab.says(".side [aria-current]", "1 failed");
  const box = (selector: string): Promise<{ left: number; right: number; top: number; bottom: number }> =>
    tab.read(`document.querySelector(${JSON.stringify(selector)}).getBoundingClientRect().toJSON()`);
  await until(async () => {
    const { left, right } = await box(".side [aria-current]");
    return left >= 0 && right <= 390;
  }, "the current channel in view");
  for (const [place, words] of [
    ["/", "Needs attention"],
    ["/~channels", "shop-10"],
    ["/~service", "Per second"],
    ["/shop-21", "each device"],
    ["/shop-21?only=trouble", "each device"],
    ["/shop-10", "No events yet"],
  ] as const) {
    await tab.go(place);
    await tab.says("main", words);
    const [side, main] = [await box(".side"), await box("main")];
    expect(Math.abs(main.top - side.bottom), `a gap at ${place}`).toBeLessThanOrEqual(2);
    expect(await tab.read<number>("document.documentElement.scrollWidth"), place).toBeLessThanOrEqual(390);
    // Links within a sentence are excepted (WCAG 2.2, 2.5.8).
    const small = await tab.read<string[]>(`[...document.querySelectorAll("a, button, input, select")]
      .filter((element) => element.offsetParent !== null && !element.closest("p, .skip"))
      .map((element) => element.matches("input[type=radio], input[type=checkbox]") ? element.closest("label") : element)
      .filter((element) => element.getBoundingClientRect().height < 43.5)
      .map((element) => element.outerHTML.slice(0, 100))`);
    expect(small, place).toEqual([]);
    expect(await axe(tab), place).toEqual([]);
  }
  expect(id).not.toBe("");
});

browserTest("a tapped cell is told in a sheet that is in view, until Escape or its button closes it", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await fill(pere.url);
  using tab = await phone();
  await tab.open(pere.url, "/shop-21");
  await tab.says(".facts", "1 failed");
  await until(() => tab.read<boolean>("Number(document.querySelector('canvas')?.dataset.drawn) > 0"), "the board");
  /** Taps the middle of a cell. */
  const tap = async (row: number, column: number): Promise<void> => {
    const { x, y } = await tab.read<{ x: number; y: number }>(
      "(({ left, top }) => ({ x: left, y: top + Number(document.querySelector('canvas').dataset.head) }))(document.querySelector('.grid').getBoundingClientRect())",
    );
    const point = { x: x + 122 + 44 * column + 22, y: y + 44 * row + 22 };
    await tab.view.cdp("Input.dispatchTouchEvent", { type: "touchStart", touchPoints: [point] });
    await tab.view.cdp("Input.dispatchTouchEvent", { type: "touchEnd", touchPoints: [] });
  };
  const isOpen = (): Promise<boolean> => tab.read(`document.querySelector(".focus-line.open") !== null`);
  expect(await isOpen()).toBe(false);
  await tap(0, 0);
  expect(await tab.says(".focus-line.open", "no paper")).toContain("till-2");
  const { top, bottom } = await tab.read<{ top: number; bottom: number }>(
    "document.querySelector('.focus-line').getBoundingClientRect().toJSON()",
  );
  expect(bottom).toBeLessThanOrEqual(844);
  expect(top).toBeGreaterThan(500);
  expect(await axe(tab)).toEqual([]);
  await tab.view.press("Escape");
  await until(async () => !(await isOpen()), "the sheet to close");
  await tap(0, 1);
  await tab.says(".focus-line.open", "till-1");
  await tab.click(".focus-line button");
  await until(async () => !(await isOpen()), "the sheet to close");
  expect(tab.complaints).toEqual([]);
});

browserTest("the console can be installed as an app", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using tab = await phone();
  await tab.open(pere.url);
  type Answer = { installabilityErrors: { errorId: string }[] };
  const { installabilityErrors } = (await tab.view.cdp("Page.getInstallabilityErrors")) as Answer;
  expect(installabilityErrors).toEqual([]);
  const { url, data } = (await tab.view.cdp("Page.getAppManifest")) as { url: string; data: string };
  const manifest = JSON.parse(data) as { start_url: string; icons: { src: string }[] };
  expect(new URL(manifest.start_url, url).href).toBe(`${pere.url}/`);
  for (const { src } of manifest.icons) expect((await ask(new URL(src, url).href)).status).toBe(200);
});
