/**
 * The console where tokens are required: a pasted token stays with the tab and says so, and the page names no link that was not printed.
 */
import { afterAll, expect } from "bun:test";
import { issueToken } from "../engine/auth/issue.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, SECRET, startWith } from "./support/harness.ts";

afterAll(closeBrowser);

browserTest("a pasted token stays with the tab until it is forgotten; the printed link works", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith(), (service) => service.stop());
  const token = await issueToken(
    { secret: SECRET, now: Date.now },
    { sub: "office", push: ["shop.*"], feed: [], days: 1 },
  );
  const bearer = { Authorization: `Bearer ${token}` };
  await ask(`${pere.url}/push/shop.1?to=a`, { body: "1", headers: bearer });
  using tab = new Tab();
  await tab.view.navigate(pere.url);
  await tab.view.cdp("Network.clearBrowserCookies");
  await tab.view.navigate("about:blank");
  await tab.view.navigate(`${pere.url}/#/shop.1`);
  const said = await tab.says("main", "A token is required");
  // This service printed no link.
  expect(said).not.toMatch(/link|printed/);
  expect(said).toContain("It stays in this tab, also when you reload");
  await tab.click("input[type=password]");
  await tab.view.type("not a token");
  await tab.click("main button");
  await tab.says("main em", "not a signed JWT");
  await tab.read("document.querySelector('input[type=password]').select()");
  await tab.view.type(token);
  await tab.click("main button");
  await tab.state("live");
  await tab.says("header.title", "1 event");
  const left = "JSON.stringify([{ ...localStorage }, Object.keys(sessionStorage), document.cookie, location.href])";
  const kept = JSON.stringify([{}, ["pere.token"], "", `${pere.url}/#/shop.1`]);
  expect(await tab.read<string>(left)).toBe(kept);
  await tab.go("/other");
  await tab.says("main em", "no right to push on other");
  await tab.go("/shop.1");
  await tab.says("header.title", "1 event");
  await tab.view.reload();
  await tab.state("live");
  await tab.says("header.title", "1 event");
  expect(await tab.read<string>(left)).toBe(kept);
  await tab.read(
    `[...document.querySelectorAll("button")].find(({ textContent }) => textContent === "Forget the token").click()`,
  );
  await tab.says("main", "A token is required");
  expect(await tab.read<number>("sessionStorage.length")).toBe(0);
  await tab.view.reload();
  await tab.says("main", "A token is required");

  const own = cleanup.adopt(await startWith({ access: "own" }), (service) => service.stop());
  await tab.view.navigate(own.url + (await own.link())!);
  await tab.state("live");
  expect(await tab.read<string>("location.pathname + location.search")).toBe("/");
});
