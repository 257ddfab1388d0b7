/**
 * `bun run screenshots`: screenshots of the pages, light and dark, on a desktop and on a phone, into `web/screenshots/`; and the device page's icons,
 * from `web/icon.svg`, into `web/`.
 *
 * They show the demo, `bun run index.ts demo`, with a seed of its own: what is pushed and who is in trouble is the same each time.
 */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { ORDERS, startFleet } from "../clients/demo.ts";
import { closeBrowser, openTab } from "./support/browser.ts";
import { ask, push, start, until } from "./support/harness.ts";

if (process.argv.length > 3 || /^(-|$)/.test(process.argv[2] ?? ".")) {
  console.error("usage: bun tests/screenshots.ts [folder]");
  process.exit(2);
}
const FOLDER = process.argv[2] ?? join(import.meta.dir, "..", "web", "screenshots");
const SEED = 5;
/** So many orders fill the board. */
const ORDERS_SHOWN = 24;

const pere = await start();
const endFleet = startFleet({ url: pere.url, seed: SEED });

type Events = readonly { id: string; receipts: { failed: number; missing: number } }[];
const orders = async (): Promise<Events> => (await ask(`${pere.url}/events/${ORDERS}`)).body.events ?? [];

const TABLES = [
  { title: "Table 4", message: "Two coffees, apple cake" },
  { title: "Table 11", message: "Lentil soup" },
  { title: "Table 2", message: "Tea, cheese toast" },
  { title: "Table 7", message: "Espresso, two lemonades" },
  { title: "Table 9", message: "Pancakes" },
];

/** A device's page at work: of five orders two are answered. @returns answers the others, so that the next picture begins in the same way */
async function till(tab: Bun.WebView): Promise<() => Promise<void>> {
  await tab.navigate(`${pere.url}/weblistener.html?channel=counter&device=graz-till-11`);
  const has = (selector: string, count: number): Promise<true> =>
    until(
      async () => (await tab.evaluate(`document.querySelectorAll(${JSON.stringify(selector)}).length`)) === count,
      `${count} of ${selector}`,
    );
  await has("#state[data-state=connected]", 1);
  const ids: string[] = [];
  for (const [place, body] of TABLES.entries())
    ids.push(await push(pere.url, "counter", body, place === 2 ? "?deadline=0.5" : place === 3 ? "?deadline=540" : ""));
  await has("#events > li", TABLES.length);
  for (const [place, word] of ["done", "failed"].entries()) {
    await Bun.sleep(500); // A card that has just moved takes no answer.
    const card = `document.querySelector("#event-${ids[place]}")`;
    await tab.evaluate(`${card}.querySelector("button.${word}").click()`);
    if (word === "failed") {
      await has(`#event-${ids[place]} form`, 1);
      await tab.evaluate(`${card}.querySelector(".send").click()`);
    }
    await has(`#answered [data-receipt=${word}]`, 1);
  }
  await has("#events .late", 1);
  await tab.evaluate("(document.activeElement.blur(), scrollTo(0, 0))");
  return async () => {
    const body = ids.map((event) => ({ event, device: "graz-till-11", status: "done" }));
    await ask(`${pere.url}/feedback/counter`, { body });
  };
}

/** Icons for home screens, with ground to their edges, so that systems may cut them as they like. */
async function icons(): Promise<void> {
  const web = join(import.meta.dir, "..", "web");
  const icon = await Bun.file(join(web, "icon.svg")).text();
  for (const size of [192, 512]) {
    const tab = openTab(600, 800);
    const style = `body{margin:0;background:#1f2937}svg{display:block;width:${size}px}`;
    await tab.navigate(`data:text/html,${encodeURIComponent(`<style>${style}</style>${icon}`)}`);
    const clip = { x: 0, y: 0, width: size, height: size, scale: 1 };
    const { data } = (await tab.cdp("Page.captureScreenshot", { clip })) as { data: string };
    await Bun.write(join(web, `icon-${size}.png`), Buffer.from(data, "base64"));
    tab.close();
  }
}

/** Those that are shown in the README; all of them go to a folder that is named. */
const KEPT = ["board", "event"];

const SIZES = { desk: [1200, 800], phone: [390, 780] } as const;

/** A tab in each size and scheme, one after the other. @param show takes its pictures, which end with `name` */
async function each(show: (tab: Bun.WebView, name: string) => Promise<void>): Promise<void> {
  for (const [size, [width, height]] of Object.entries(SIZES))
    for (const scheme of ["light", "dark"]) {
      const tab = openTab(width, height);
      await tab.navigate(pere.url);
      await tab.cdp("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
      await show(tab, `${size}-${scheme}`);
      tab.close();
    }
}

async function pictures(event: string): Promise<void> {
  await mkdir(FOLDER, { recursive: true });
  const places: Record<string, string> = {
    attention: "/",
    service: "/~service",
    channels: "/~channels",
    board: "/orders",
    event: `/orders/event/${event}`,
    push: "/orders/push",
    devices: "/orders/devices",
    hooks: "/orders/hooks",
  };
  await each(async (tab, name) => {
    for (const [place, hash] of Object.entries(places)) {
      if (process.argv[2] === undefined && !KEPT.includes(place) && !`${place} ${name}`.startsWith("attention desk"))
        continue;
      await tab.evaluate(`void (location.hash = ${JSON.stringify(hash)})`);
      const isSettled =
        "document.readyState === 'complete' && !/Loading…|connecting/.test(document.body.innerText) && !document.querySelector('.skeleton')";
      await until(() => tab.evaluate(isSettled) as Promise<boolean>, `${place} to be there`);
      await picture(tab, `${place}-${name}`);
    }
  });
  // At the end, since it is seen on the console.
  await each(async (tab, name) => {
    const over = await till(tab);
    await picture(tab, `device-${name}`);
    await over();
  });
}

async function picture(tab: Bun.WebView, name: string): Promise<void> {
  await Bun.sleep(400); // For the last frame to be drawn.
  await Bun.write(join(FOLDER, `${name}.png`), await tab.screenshot());
}

try {
  const full = await until(
    async () => {
      const all = await orders();
      return all.length >= ORDERS_SHOWN && all;
    },
    "a full board",
    180_000,
  );
  await pictures(full.find(({ receipts }) => receipts.failed > 0 && receipts.missing > 0)!.id);
  await icons();
} finally {
  await closeBrowser();
  await endFleet();
  await pere.stop();
}
process.exit(0);
