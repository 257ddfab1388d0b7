/**
 * `bun run screenshots`: screenshots of the pages, light and dark, on a desktop and on a phone, into `web/screenshots/`; and the device page's icons,
 * from `web/icon.svg`, into `web/`.
 *
 * They show a real service with the data of a small chain of shops. The clock and all randomness are fixed, so that two runs differ only in ids.
 */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { closeBrowser, openTab } from "./support/browser.ts";
import { ask, listen, start, type Stream, until } from "./support/harness.ts";

if (process.argv.length > 3 || /^(-|$)/.test(process.argv[2] ?? ".")) {
  console.error("usage: bun tests/screenshots.ts [folder]");
  process.exit(2);
}
const FOLDER = process.argv[2] ?? join(import.meta.dir, "..", "web", "screenshots");

/** Milliseconds since 1970: the morning's beginning, and how far it is. */
let now = Date.now() - 50 * 60_000;
const pere = await start({ now: () => now });
const streams: Stream[] = [];

const DEVICES = [
  "bar-1",
  "bar-2",
  "kiosk-1",
  "kiosk-2",
  "kitchen",
  "office",
  "till-1",
  "till-2",
  "till-3",
  "till-4",
  "truck-7",
  "window",
];
const TYPES = ["order.created", "order.created", "order.paid", "menu.changed", "order.created"];
const STATUSES = ["received", "working", "done"] as const;

async function give(channel: string, event: string, words: readonly (readonly [string, string, unknown?])[]) {
  const body = words.map(([device, status, detail]) => ({
    event,
    device,
    status,
    ...(detail === undefined ? {} : { detail }),
  }));
  if (body.length > 0) await ask(`${pere.url}/feedback/${channel}`, { body });
}

const OVENS = ["oven-1", "oven-2", "oven-3", "grill", "fryer"];

/** The shops' orders: most done, some failed, some missing, the last ones on their way. */
async function orders(): Promise<string> {
  for (const device of DEVICES) await ask(`${pere.url}/devices/orders/${device}`, { method: "PUT" });
  for (const device of DEVICES.filter((_, n) => n % 5 !== 4))
    streams.push(await listen(`${pere.url}/feed/orders?device=${device}`));
  for (const oven of OVENS) streams.push(await listen(`${pere.url}/feed/kitchen?device=${oven}`));
  let shown = "";
  for (let n = 0; n < 46; n++) {
    now += 60_000 - n * 300;
    const query = `?type=${TYPES[n % 5]}&deadline=600${n % 6 === 5 ? "&to=till-1,till-2,till-3,till-4,kitchen" : ""}`;
    const pushed = await ask(`${pere.url}/push/orders${query}`, {
      body: { order: `A-${1001 + n}`, table: (n * 7) % 23, total: 12.5 + n },
    });
    const id = pushed.body.id as string;
    if (n === 41) shown = id;
    const left = 45 - n;
    const words: [string, string, unknown?][] = [];
    for (const [place, device] of DEVICES.entries()) {
      if (n % 6 === 5 && !/till|kitchen/.test(device)) continue;
      if (place % 5 === 4 && (n + place) % 3 > 0) continue; // Was not there.
      if (left < 5 && (place * 7 + n) % 5 < 5 - left) {
        const word = STATUSES[(place + n) % 4];
        if (word) words.push([device, word]);
      } else
        words.push(
          (n * 5 + place * 3) % 29 === 0
            ? [device, "failed", { reason: "no paper" }]
            : [device, "done", { printed: true }],
        );
    }
    for (const word of words) {
      now += 120;
      await give("orders", id, [word]);
    }
  }
  return shown;
}

/** Price changes for a thousand shelf labels. */
async function prices(): Promise<void> {
  const labels = Array.from({ length: 400 }, (_, n) => `label-${String(n).padStart(4, "0")}`);
  for (const label of labels) await ask(`${pere.url}/devices/prices.berlin/${label}`, { method: "PUT" });
  for (let n = 0; n < 30; n++) {
    const { body } = await ask(`${pere.url}/push/prices.berlin?type=price`, {
      body: { article: 4711 + n, price: 1.99 },
    });
    const word = (place: number): string => ((place * 31 + n * 17) % 97 === 0 ? "failed" : "done");
    await give(
      "prices.berlin",
      body.id as string,
      labels.slice(0, n < 26 ? 400 - n : 330 - n * 9).map((label, place) => [label, word(place)]),
    );
  }
}

const TABLES = [
  { order: "A-1051", table: 4, items: ["two coffees", "apple cake"] },
  { order: "A-1052", table: 11, items: ["lentil soup"] },
  { order: "A-1053", table: 2, items: ["tea", "toast"] },
  { order: "A-1054", table: 7, items: ["espresso", "two waters"] },
];

/** A device's page at work: of four orders two are answered. @returns answers the others, so that the next picture begins anew */
async function till(tab: Bun.WebView): Promise<() => Promise<void>> {
  await tab.navigate(`${pere.url}/weblistener.html?channel=counter&device=till-9`);
  const has = (selector: string, count: number): Promise<true> =>
    until(
      async () => (await tab.evaluate(`document.querySelectorAll(${JSON.stringify(selector)}).length`)) === count,
      `${count} of ${selector}`,
    );
  await has("#state[data-state=connected]", 1);
  const ids: string[] = [];
  for (const [place, body] of TABLES.entries()) {
    const deadline = place === 3 ? "&deadline=540" : "";
    const pushed = await ask(`${pere.url}/push/counter?type=order.created${deadline}`, { body });
    ids.push(pushed.body.id as string);
  }
  await has("[data-receipt=received]", TABLES.length);
  for (const [place, word] of ["done", "failed"].entries()) {
    await tab.evaluate(`document.querySelector("#event-${ids[place]} button.${word}").click()`);
    await has(`[data-receipt=${word}]`, 1);
  }
  await tab.evaluate("(document.activeElement.blur(), scrollTo(0, 0))");
  return async () => {
    for (const id of ids) await give("counter", id, [["till-9", "done"]]);
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
    tallies: "/prices.berlin",
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
      if (place === "service") await moveOn();
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

/** Some seconds of life, so that there is something in the plots. */
async function moveOn(): Promise<void> {
  for (let n = 0; n < 8; n++) {
    for (let m = 0; m < 3 + ((n * 5) % 7); m++) {
      const { body } = await ask(`${pere.url}/push/kitchen`, { body: m });
      now += 35 + ((n * m * 13) % 90);
      await give(
        "kitchen",
        body.id as string,
        OVENS.slice(0, 5 - (m % 2)).map((oven) => [oven, "done"]),
      );
    }
    await Bun.sleep(1_000);
  }
}

try {
  const event = await orders();
  await prices();
  now = Date.now();
  await pictures(event);
  await icons();
} finally {
  await closeBrowser();
  for (const stream of streams) stream.close();
  await pere.stop();
}
process.exit(0);
