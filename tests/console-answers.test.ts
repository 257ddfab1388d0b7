/**
 * The console where something else answers in the service's stead: a refusal that is not the service's ends nothing, and a page with a status of success
 * is not taken for a push that was stored.
 */
import { afterAll, expect } from "bun:test";
import { BadProxy } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Page } from "./support/device-page.ts";
import { ask, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

const PORTAL = "<!doctype html><p>Welcome to our network";

browserTest(
  "an error page of a proxy is not final: the console retries, and is live when the service answers",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const proxy = cleanup.adopt(await BadProxy.to(pere.url), (proxy) => proxy.stop());
    const statuses = [403, 404, 401, 429, 200];
    proxy.weather = ({ target }) => {
      const status = target.startsWith("/watch") ? statuses.shift() : undefined;
      return status === undefined ? "pass" : { status };
    };
    using page = new Page();
    await page.view.navigate(proxy.url);
    await until(async () => (await page.text(".link")).includes("live"), "it to be live");
    expect(statuses).toEqual([]);
  },
);

browserTest("a push that a portal's page answers is not shown as stored", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const proxy = cleanup.adopt(await BadProxy.to(pere.url), (proxy) => proxy.stop());
  proxy.weather = ({ target }) =>
    target.startsWith("/push/")
      ? {
          bytes: `HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: ${PORTAL.length}\r\nConnection: close\r\n\r\n${PORTAL}`,
          stays: false,
        }
      : "pass";
  using page = new Page();
  await page.view.navigate(`${proxy.url}/#/orders/push`);
  await until(() => page.read<boolean>(`document.querySelector(".push .send")?.disabled === false`), "the form");
  await page.view.scrollTo(".push .send");
  await page.view.click(".push .send");
  await until(async () => (await page.text(".push .trouble")).includes("PERE did not answer"), "a word on it");
  expect(await page.text(".push .well")).toBe("");
  expect((await ask(`${pere.url}/channels`)).body.channels).toEqual([]);
});

browserTest("answers of another shape are reported as an error, and no page goes blank", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const proxy = cleanup.adopt(await BadProxy.to(pere.url), (proxy) => proxy.stop());
  await ask(`${pere.url}/devices/orders/till-1`, { method: "PUT" });
  const { id } = (await ask(`${pere.url}/push/orders`, { body: "1" })).body;
  const body = '{"hello":1}';
  let isBad = true;
  proxy.weather = ({ target }) =>
    isBad && /^\/(devices|events|hooks)\//.test(target)
      ? {
          bytes: `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
          stays: false,
        }
      : "pass";
  using page = new Page();
  await page.view.navigate(proxy.url);
  for (const [place, words] of [
    ["/orders/devices", "The answer does not come from PERE."],
    ["/orders/hooks", "The answer does not come from PERE."],
    [`/orders/event/${id}`, "The answer does not come from PERE."],
    ["/orders", "each device"],
  ] as const) {
    await page.read(`void (location.hash = ${JSON.stringify(place)})`);
    await until(
      async () => (await page.text("main")).includes(words),
      () => `${place}: ${words}`,
    );
  }
  isBad = false;
  await page.read(`void (location.hash = "/orders/devices")`);
  await until(async () => (await page.text("main")).includes("till-1"), "the devices");
});

browserTest("a page whose script can't be loaded says so, and is loaded when the service is back", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const proxy = cleanup.adopt(await BadProxy.to(pere.url), (proxy) => proxy.stop());
  let isBad = true;
  proxy.weather = ({ target }) => (isBad && /^\/pages\/push-/.test(target) ? { status: 503 } : "pass");
  using page = new Page();
  await page.view.navigate(`${proxy.url}/#/orders/push`);
  const says = (words: string) =>
    until(
      async () => (await page.text("main")).includes(words),
      () => words,
    );
  await says("This page could not be loaded.");
  isBad = false;
  await page.view.click("main .trouble button");
  await says("Push to all devices");
});
