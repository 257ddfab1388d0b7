/**
 * The console's pages of an event, devices, pushing and hooks, in every state that a person can bring them to: axe finds nothing, nothing stands out to the
 * side, and on a phone everything to press is at least 44 px high.
 *
 * `PERE_SCREENSHOTS=<folder>` keeps a picture of each.
 */
import { afterAll, expect } from "bun:test";
import { join } from "node:path";
import { readRanges } from "../engine/addresses.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, listen, push, startWith, until } from "./support/harness.ts";

afterAll(closeBrowser);

/** What axe finds, in words. */
const AXE = `axe.run({ resultTypes: ["violations"] }).then(({ violations }) => violations
  .map(({ id, nodes }) => id + ": " + nodes.map(({ html, any }) => html.slice(0, 120) + " " + (any[0]?.message ?? "")).join("; ")))`;

/** What is too low for a finger: a label that is pressed counts instead of the field in it. */
const LOW = `[...document.querySelectorAll(":is(main, dialog) :is(button, select, summary, a.button, .inline, .segments span, input:not([type=radio], [type=checkbox]))")]
  .filter((one) => one.getClientRects().length > 0 && one.getBoundingClientRect().height < 43.5)
  .map((one) => one.outerHTML.slice(0, 80) + " " + one.getBoundingClientRect().height)`;

const TILLS = Array.from({ length: 12 }, (_, n) => `${n < 6 ? "graz" : "wien"}-till-${String(n + 1).padStart(2, "0")}`);

interface Events {
  readonly failed: string;
  readonly open: string;
  readonly done: string;
}

/** Events in trouble, under way and done. */
async function fill(url: string): Promise<Events> {
  for (const till of TILLS) await ask(`${url}/devices/orders/${till}`, { method: "PUT" });
  const give = (event: string, devices: readonly string[], status: string, detail?: unknown) =>
    ask(`${url}/feedback/orders`, { body: devices.map((device) => ({ event, device, status, detail })) });
  const failed = await push(url, "orders", { title: "Labels for the weekend" }, "?type=label.print&deadline=0.5");
  await give(failed, TILLS.slice(0, 7), "done");
  await give(failed, TILLS.slice(7, 9), "failed", { reason: "no paper", tray: 2 });
  await until(async () => (await ask(`${url}/events/orders/${failed}`)).body.receipts.missing === 3, "the deadline");
  const open = await push(url, "orders", { order: "A-1001" }, "?type=order.created&deadline=600");
  await give(open, TILLS.slice(0, 5), "done");
  await give(open, TILLS.slice(5, 7), "working");
  const done = await push(url, "orders", 1, "?to=graz-till-01");
  await give(done, TILLS.slice(0, 1), "done");
  return { failed, open, done };
}

/** A place, what is done there, and what is seen then. */
type View = readonly [
  name: string,
  place: string,
  act: (tab: Tab) => Promise<unknown>,
  selector: string,
  words: string,
];

const nothing = async (): Promise<void> => {};

const viewsOf = ({ failed, open, done }: Events): readonly View[] => [
  ["event-failed", `/orders/event/${failed}`, (tab) => tab.says(".names", "no paper"), ".answers", "Half of the 9"],
  ["event-open", `/orders/event/${open}`, (tab) => tab.says(".names", "working"), ".answers", "Half of the 5"],
  ["event-done", `/orders/event/${done}`, (tab) => tab.choose("not done 0"), "main", "Every device is done"],
  ["devices", "/orders/devices", nothing, ".devices", "wien-till-12"],
  ["device", "/orders/devices/wien-till-08", nothing, ".names", "no paper"],
  [
    "device-retire",
    "/orders/devices/wien-till-09",
    (tab) => tab.choose("Retire this device"),
    "dialog",
    "Retire wien-",
  ],
  ["device-gone", "/orders/devices/nobody", nothing, "main", "not enrolled"],
  ["channel-delete", "/orders/devices", deleteChannel, "dialog .trouble", "still has"],
  ["push", "/orders/push", (tab) => tab.choose("More options"), ".push", "Wait for receipts"],
  ["push-names", "/orders/push", suggest, ".suggestions", "wien-till-07"],
  ["push-fault", "/orders/push", pushWrong, ".push", "Must be a number of seconds"],
  ["push-text", "/orders/push", (tab) => tab.choose("plain text"), "#push-fault", "Sent as"],
  ["push-again", `/orders/push/${failed}`, nothing, ".push", "5 devices did not do it"],
  ["pushed", "/orders/push", (tab) => tab.click(".push .send"), ".recents", "to all devices"],
  ["hooks-none", "/empty/hooks", nothing, "main", "No hooks"],
  ["hook-form", "/orders/hooks", (tab) => tab.choose("Add a hook"), "form.hook", "Save"],
  ["hook-fault", "/orders/hooks", hookWrong, "form.hook .fault", "Give the hook a name"],
  ["hook-failing", "/orders/hooks", hookCalls, ".hooks", "status 500"],
  ["hook-delete", "/orders/hooks", (tab) => tab.choose("Delete"), "dialog", "Delete the hook"],
];

async function deleteChannel(tab: Tab): Promise<void> {
  await tab.choose("Delete orders");
  await tab.choose("Delete it", "dialog");
}

async function suggest(tab: Tab): Promise<void> {
  await tab.choose("only these");
  await tab.fill("[name=to]", "graz-till-01 graz-till-02 wien");
}

async function pushWrong(tab: Tab): Promise<void> {
  await tab.choose("other");
  await tab.fill("[name=deadline]", "soon");
  await tab.click(".push .send");
}

async function hookWrong(tab: Tab): Promise<void> {
  await tab.choose("Add a hook");
  await tab.choose("Save");
}

async function hookCalls(tab: Tab): Promise<void> {
  await tab.click(".calls summary");
}

for (const [size, width, height] of [
  ["desk", 1280, 800],
  ["phone", 390, 844],
] as const)
  for (const scheme of ["light", "dark"])
    browserTest(`every state of the pages is accessible: ${size}, ${scheme}`, async () => {
      await using cleanup = new AsyncDisposableStack();
      const pere = cleanup.adopt(
        await startWith({ access: "open", hooksAllowed: readRanges("127.0.0.0/8") }),
        (service) => service.stop(),
      );
      const receiver = Bun.serve({ port: 0, fetch: () => new Response("out of order", { status: 500 }) });
      cleanup.defer(() => receiver.stop(true));
      await ask(`${pere.url}/hooks/orders/backoffice`, {
        method: "PUT",
        body: { url: `http://127.0.0.1:${receiver.port}/pere`, on: ["complete"] },
      });
      cleanup.adopt(await listen(`${pere.url}/feed/orders?device=${TILLS[0]}`), (stream) => stream.close());
      const views = viewsOf(await fill(pere.url));
      const axe = await Bun.file(join(import.meta.dir, "..", "node_modules", "axe-core", "axe.min.js")).text();
      using tab = new Tab(width, height);
      await tab.view.navigate("about:blank");
      await tab.view.cdp("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
      for (const [name, place, act, selector, words] of views) {
        // Each begins with a page of its own, in which nothing is open.
        await tab.open(pere.url, place);
        await act(tab);
        await tab.says(selector, words);
        if (process.env.PERE_SCREENSHOTS) await picture(tab, width, `${name}-${size}-${scheme}`);
        await tab.read(`(() => {\n${axe}\n})()`);
        expect(await tab.read<string[]>(AXE), name).toEqual([]);
        expect(await tab.read<number>("document.documentElement.scrollWidth"), name).toBeLessThanOrEqual(width);
        if (size === "phone") expect(await tab.read<string[]>(LOW), name).toEqual([]);
      }
      expect(tab.complaints.filter((what) => !/40[049]/.test(what))).toEqual([]);
    });

browserTest(
  "a page that the browser keeps for Back gives its connection back, and watches again when it is shown",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await startWith({ access: "open" }), (service) => service.stop());
    using tab = await new Tab().open(pere.url, "/orders/push");
    await until(() => pere.engine.watchers === 1, "a watcher");
    await tab.view.navigate(`${pere.url}/weblistener.html?channel=orders&device=till-1`);
    await until(() => pere.engine.watchers === 0, "no watcher");
    await tab.read("history.back()");
    await until(() => pere.engine.watchers === 1, "a watcher again");
    await tab.state("live");
    await push(pere.url, "orders", 1);
    await tab.says("header.title", "1 event");
  },
);

/** The whole page, also what lies below the fold. */
async function picture(tab: Tab, width: number, name: string): Promise<void> {
  await Bun.sleep(300); // For the last frame to be drawn.
  const height = Math.min(2_600, await tab.read<number>("document.documentElement.scrollHeight"));
  const clip = { x: 0, y: 0, width, height, scale: 1 };
  const shot = (await tab.view.cdp("Page.captureScreenshot", { clip, captureBeyondViewport: true })) as {
    data: string;
  };
  await Bun.write(join(process.env.PERE_SCREENSHOTS!, `${name}.png`), Buffer.from(shot.data, "base64"));
}
