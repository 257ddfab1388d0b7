/**
 * The console's stream is asked for before its script is there, once, and the page goes on with that answer; or with one of its own, where the first was
 * for something else.
 */
import { afterAll, expect } from "bun:test";
import { issueToken } from "../engine/auth/issue.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { push, SECRET, start, startWith, until } from "./support/harness.ts";

afterAll(closeBrowser);

/** The streams that the page has asked for, in order; an open one has no entry in the resource timing. */
const RECORD = `(() => {
  globalThis.asked = [];
  const { fetch } = globalThis;
  globalThis.fetch = (url, init) => {
    const { pathname, search } = new URL(url, location.href);
    if (pathname === "/watch") asked.push([pathname + search, globalThis.pereEarly === undefined]);
    return fetch(url, init);
  };
})()`;

async function recorded(): Promise<Tab> {
  const tab = new Tab();
  await tab.view.navigate("about:blank");
  await tab.view.cdp("Page.enable");
  await tab.view.cdp("Page.addScriptToEvaluateOnNewDocument", { source: RECORD });
  return tab;
}

browserTest("one stream is asked for, early, with the channel of the address", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await push(pere.url, "shop.1:a~b", { table: 7 });
  for (const [place, path] of [
    ["/", "/watch"],
    ["/shop.1:a~b", "/watch?channel=shop.1:a~b"],
    ["/shop.1:a~b/devices", "/watch?channel=shop.1:a~b"],
    ["/~channels", "/watch"],
  ] as const) {
    using tab = await recorded();
    await tab.open(pere.url, place);
    await tab.says("body", "shop.1:a~b");
    expect(await tab.read<unknown[]>("asked")).toEqual([[path, true]]);
    // It is a stream as any other: what comes later arrives.
    await push(pere.url, "later", 1);
    await tab.says("body", "later");
    await until(() => pere.engine.watchers === 1, "one watcher");
    // Elsewhere another one is opened, and the first is given up.
    await tab.go("/later");
    await tab.says("h1", "later");
    await until(async () => (await tab.read<unknown[]>("asked")).length === 2, "another");
    await until(() => pere.engine.watchers === 1, "one watcher still");
    expect(tab.complaints).toEqual([]);
    tab.view.close();
    await until(() => pere.engine.watchers === 0, "no watcher");
  }
});

browserTest("with a pasted token nothing is asked for early", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith(), (service) => service.stop());
  const token = await issueToken({ secret: SECRET }, { sub: "office", push: ["*"], feed: [], days: 1 });
  using tab = await recorded();
  await tab.view.navigate("about:blank");
  await tab.view.cdp("Network.clearBrowserCookies");
  await tab.view.navigate(`${pere.url}/`);
  await tab.says("h1", "A token is required");
  await tab.read(`void sessionStorage.setItem("pere.token", ${JSON.stringify(token)})`);
  await tab.open(pere.url);
  expect(await tab.read<unknown[]>("asked")).toEqual([["/watch", false]]);
});
