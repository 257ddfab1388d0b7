/**
 * `bun tests/slow-line.ts`: how long each page takes on a slow line (400 kbit/s, 400 ms, as Chromium's developer tools emulate "slow 3G"), with an empty
 * cache, from the address to what a person came for. The service has the demo's fleet.
 */
import { startFleet } from "../clients/demo.ts";
import { closeBrowser, openTab } from "./support/browser.ts";
import { ask, start, until } from "./support/harness.ts";

/** Bytes per second, and milliseconds. */
const LINE = { offline: false, downloadThroughput: 400_000 / 8, uploadThroughput: 400_000 / 8, latency: 400 };

/**
 * Whether the board shows the statuses of so many events: below the head, in as many rows, there is a sign with a colour. Rows and devices come first,
 * with grey signs.
 */
const statusesOf = (events: number): string => `(() => {
  const canvas = document.querySelector(".grid canvas");
  if (!canvas || !(canvas.width > 0)) return false;
  const scale = canvas.width / canvas.clientWidth;
  const head = Math.ceil(Number(canvas.dataset.head) * scale), left = Math.ceil(canvas.width * 0.3);
  if (!(canvas.height > head)) return false;
  const width = canvas.width - left;
  const { data } = canvas.getContext("2d").getImageData(left, head, width, canvas.height - head);
  const rows = new Set();
  for (let n = 0; n < data.length; n += 4)
    if (data[n + 3] > 200 && Math.max(data[n], data[n + 1], data[n + 2]) - Math.min(data[n], data[n + 1], data[n + 2]) > 60)
      rows.add(Math.floor(n / 4 / width / (44 * scale)));
  return rows.size >= ${events};
})()`;

/** The page's path, and when it shows what a person came for. */
const PAGES = {
  "first page, devices": ["/", "document.querySelector('main')?.innerText.includes('graz-till-02') ?? false"],
  "board, rows": ["/#/orders", "document.querySelector('canvas')?.dataset.drawn > 0"],
  "board, first statuses": ["/#/orders", statusesOf(1)],
  "board, all statuses": ["/#/orders", statusesOf(5)],
  "device page": ["/weblistener.html?device=phone", "document.querySelector('#state')?.dataset.state === 'connected'"],
  "API page": ["/swagger", "document.querySelectorAll('details.operation').length > 10"],
} as const;

const pere = await start();
const end = startFleet({ url: pere.url, seed: 1 });
try {
  await until(async () => ((await ask(`${pere.url}/events/orders`)).body.events ?? []).length > 10, "a full board");
  for (const [name, [path, isThere]] of Object.entries(PAGES)) {
    const tab = openTab(390, 844);
    await tab.navigate("about:blank");
    await tab.cdp("Network.enable");
    await tab.cdp("Network.setCacheDisabled", { cacheDisabled: true });
    await tab.cdp("Network.emulateNetworkConditions", LINE);
    const source = `(() => {
      const look = () => (${isThere} ? (globalThis.there = performance.now()) : requestAnimationFrame(look));
      look();
      globalThis.shifts = 0;
      new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => (shifts += value))).observe({ type: "layout-shift", buffered: true });
    })()`;
    await tab.cdp("Page.enable");
    await tab.cdp("Page.addScriptToEvaluateOnNewDocument", { source });
    void tab.navigate(pere.url + path).catch(() => {}); // Its promise waits for the load event.
    await until(() => tab.evaluate("globalThis.there > 0").catch(() => false) as Promise<boolean>, name, 60_000);
    await Bun.sleep(1_000);
    const [ms, painted, kilobytes, shifts] = (await tab.evaluate(`[
      there,
      performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0,
      [...performance.getEntriesByType("resource"), ...performance.getEntriesByType("navigation")].reduce((sum, { transferSize }) => sum + transferSize, 0) / 1000,
      shifts,
    ]`)) as number[];
    const seconds = (value: number): string => `${(value / 1000).toFixed(1)} s`;
    console.log(
      `${name.padEnd(21)} ${seconds(ms!)} (first paint ${seconds(painted!)}, ${kilobytes!.toFixed(0)} kB, layout shift ${shifts!.toFixed(3)})`,
    );
    tab.close();
  }
} finally {
  await closeBrowser();
  await end();
  await pere.stop();
}
process.exit(0);
