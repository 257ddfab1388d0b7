/**
 * Tabs of one device where the one that leads is frozen, stands still, or comes back: another one goes on with its events, and each receipt is given.
 */
import { afterAll, expect } from "bun:test";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Page, row } from "./support/device-page.ts";
import { push, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

const lifecycle = (page: Page, state: "frozen" | "active"): Promise<unknown> =>
  page.view.cdp("Page.setWebLifecycleState", { state });

/** A second tab of the device, which is not the one that leads. */
async function secondTab(url: string): Promise<Page> {
  const second = new Page();
  await second.view.navigate(`${url}/weblistener.html?device=till-1`);
  await second.state("elsewhere");
  return second;
}

/** The browser takes a second to give a lock, and `states` has each state that the page shows. */
const SLOW_LOCKS = `const { request } = LockManager.prototype;
  LockManager.prototype.request = async function (...all) {
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    return request.apply(this, all);
  };
  globalThis.states = [];
  new MutationObserver(() => {
    const { state } = document.querySelector("#state")?.dataset ?? {};
    if (state !== undefined && state !== states.at(-1)) states.push(state);
  }).observe(document, { subtree: true, childList: true, attributes: true });`;

browserTest("a tab that gets its lock late never says that the device is open elsewhere", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = new Page();
  await page.view.navigate("about:blank");
  await page.view.cdp("Page.enable");
  await page.view.cdp("Page.addScriptToEvaluateOnNewDocument", { source: SLOW_LOCKS });
  await page.open(pere.url, "device=till-1");
  expect(await page.read<string[]>("states")).toEqual(["connecting", "connected"]);
  using second = await secondTab(pere.url);
  expect(await second.text("#state-word")).toBe("Open elsewhere");
});

browserTest("a frozen active tab is replaced, and waits when it is resumed", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using first = await new Page().open(pere.url, "device=till-1");
  const id = await push(pere.url, "orders", 1);
  await first.shows(id, "received");
  using second = await secondTab(pere.url);
  await lifecycle(first, "frozen");
  await second.state("connected");
  await second.shows(id, "received");
  await second.click(id, "button.done");
  await row(pere.url, id, "till-1", "done");
  await lifecycle(first, "active");
  await first.state("elsewhere");
  expect(await first.cards()).toEqual([]);
  expect(pere.engine.held.feeds).toBe(1);
  // And the turn comes back to it.
  second.view.close();
  await first.state("connected");
});

/** The page says nothing more to other tabs, as one that stands still; the browser does not know. */
const STILL = `void (BroadcastChannel.prototype.postMessage = () => {})`;

browserTest("a silent active tab is replaced after a while", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using first = await new Page().open(pere.url, "device=till-1");
  const id = await push(pere.url, "orders", 1);
  await first.shows(id, "received");
  using second = await secondTab(pere.url);
  await first.read(STILL);
  await until(async () => (await second.text("#state-word")) === "Connected", "the second tab's turn", 40_000);
  await second.shows(id, "received");
  await first.state("elsewhere");
  expect(await first.cards()).toEqual([]);
  await second.fail(id);
  await row(pere.url, id, "till-1", "failed");
});

browserTest("a tab that is reloaded beside a frozen one says so, and can take over at once", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using first = await new Page().open(pere.url, "device=till-1");
  using second = await secondTab(pere.url);
  await first.read(STILL);
  await second.view.reload();
  await second.state("elsewhere");
  const id = await push(pere.url, "orders", 1);
  await second.view.click("#state button");
  await second.shows(id, "received");
  await second.click(id, "button.done");
  await row(pere.url, id, "till-1", "done");
  await first.state("elsewhere");
});
