/**
 * Nothing jumps while a page loads: the cumulative layout shift, as the browser itself counts it, on a slow line, on a phone and on a desktop.
 */
import { afterAll, expect } from "bun:test";
import { browserTest, closeBrowser, openTab } from "./support/browser.ts";
import { ask, give, push, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

/** What counts as good: https://web.dev/articles/cls */
const SHIFT_MAX = 0.1;

/** The page's path, and when all is there. */
const PAGES = {
  "the console": ["/", "document.querySelector('main')?.innerText.includes('orders')"],
  "the board": ["/#/orders", "document.querySelector('canvas')?.dataset.drawn > 0"],
  "the device page": ["/weblistener.html?device=till-1", "document.querySelectorAll('#events > li').length === 8"],
  "the device page with nothing to do": [
    "/weblistener.html?device=other",
    "document.querySelector('#state')?.dataset.state === 'connected'",
  ],
  "the API page": ["/swagger", "document.querySelectorAll('details.operation').length > 10"],
} as const;

for (const [name, [path, isThere]] of Object.entries(PAGES))
  for (const [width, height] of [
    [390, 844],
    [1_280, 800],
  ] as const)
    browserTest(`${name} stays in its place at ${width} × ${height}`, async () => {
      await using cleanup = new AsyncDisposableStack();
      const pere = cleanup.adopt(await start(), (service) => service.stop());
      for (const device of ["till-1", "till-2", "till-3"])
        await ask(`${pere.url}/devices/orders/${device}`, { method: "PUT" });
      for (let n = 0; n < 8; n++) {
        const id = await push(pere.url, "orders", { title: `Table ${n}`, message: "two coffees" }, "?deadline=600");
        await give(pere.url, "orders", id, "till-2", n % 2 === 0 ? "done" : "failed");
      }
      await using tab = openTab(width, height);
      await tab.navigate("about:blank");
      await tab.cdp("Network.enable");
      await tab.cdp("Network.setCacheDisabled", { cacheDisabled: true });
      await tab.cdp("Network.emulateNetworkConditions", {
        offline: false,
        latency: 150,
        downloadThroughput: 200_000,
        uploadThroughput: 200_000,
      });
      await tab.cdp("Page.enable");
      const source = `globalThis.shift = 0; new PerformanceObserver((list) => {
        for (const { value, hadRecentInput } of list.getEntries()) if (!hadRecentInput) shift += value;
      }).observe({ type: "layout-shift", buffered: true })`;
      await tab.cdp("Page.addScriptToEvaluateOnNewDocument", { source });
      await tab.navigate(pere.url + path);
      await until(() => tab.evaluate(`Boolean(${isThere})`) as Promise<boolean>, name);
      // What is loaded later has come as well, and is drawn.
      await until(() => tab.evaluate("document.readyState === 'complete'") as Promise<boolean>, "all files");
      await tab.evaluate("new Promise((resolve) => setTimeout(resolve, 1_000))");
      const shift = (await tab.evaluate("shift")) as number;
      console.log(`${name} ${width}: ${shift.toFixed(3)}`);
      expect(shift).toBeLessThan(SHIFT_MAX);
    });
