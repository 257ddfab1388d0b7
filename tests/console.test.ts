/**
 * The console in a real Chromium: a push from its form, receipts that fill its board, a service that goes away, a thousand devices.
 *
 * Each test has a service of its own.
 */
import { afterAll, expect } from "bun:test";
import { join } from "node:path";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, give, listen, push, spawn, start, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

afterAll(closeBrowser);

browserTest(
  "a push from the form appears on the board, and two devices' receipts fill its cells as they arrive",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const { url } = pere;
    using tab = await new Tab().open(url);
    expect(await tab.says("main", "Nothing here yet")).toContain("Three steps");
    for (const device of ["till-1", "till-2"])
      cleanup.adopt(await listen(`${url}/feed/orders?device=${device}`), (stream) => stream.close());

    await tab.click('a[href="#/orders/push"]');
    await tab.click("#push-data");
    await tab.read("document.querySelector('#push-data').select()");
    await tab.view.type('{"table": 7, "total": 12.50, "number": 12345678901234567890');
    await tab.says("#push-fault", "JSON");
    expect(await tab.read<boolean>("document.querySelector('.push .send').disabled")).toBe(true);
    await tab.view.type("}");
    await tab.says("#push-fault", "Valid JSON");
    await tab.choose("More options");
    await tab.click('[name="type"]');
    await tab.view.type("order.created");
    await tab.choose("15 min");
    expect(await tab.text("[aria-label='curl command']")).toBe(
      `curl -X POST '${url}/push/orders?type=order.created&deadline=900' \\\n` +
        `  -H 'Content-Type: application/json' \\\n` +
        `  --data-raw '{"table": 7, "total": 12.50, "number": 12345678901234567890}'`,
    );
    await tab.click(".push .send");
    expect(await tab.says(".push .well", "Stored as")).toContain("addressed to 2 devices, 2 connected");
    const [event] = (await ask(`${url}/events/orders`)).body.events as { id: string }[];
    // The publisher's bytes, as they were typed.
    expect((await ask(`${url}/events/orders/${event!.id}`)).text).toContain(
      '"data":{"table": 7, "total": 12.50, "number": 12345678901234567890}',
    );

    await tab.go("/orders");
    await tab.focus(0, 0);
    expect(await tab.says("#cell-in-focus", "till-1: pending")).toContain("event 1, order.created");
    await give(url, "orders", event!.id, "till-1", "done");
    await tab.says("#cell-in-focus", "till-1: done");
    const about = `"event":"${event!.id}","device":"till-2","status":"failed"`;
    await ask(`${url}/feedback/orders`, { body: `{${about},"detail":{"no paper":12345678901234567890}}` });
    await tab.view.press("ArrowRight");
    await tab.says("#cell-in-focus", "till-2: failed");
    // Trouble is filled with its colour; what is done has none.
    const isFilled = async (column: number, state: string): Promise<boolean> => {
      const [found, wanted] = await tab.pixel(0, column, state);
      return found === wanted;
    };
    await until(() => isFilled(1, "failed"), "a failed cell");
    await until(async () => !(await isFilled(0, "done")), "a quiet cell");
    expect(await tab.says(".focus-line", "no paper")).toContain("failed");
    expect(await tab.text(".focus-line")).toContain("1 of 2 done, 1 failed");

    // Enter opens the event.
    await tab.view.press("Enter");
    await tab.says(".event h2", "1 of 2 did not finish: 1 failed.");
    expect(await tab.text(".event pre")).toContain("12345678901234567890");
    await tab.says(".names", "till-2");
    expect(await tab.text(".names")).not.toContain("till-1");
    expect(await tab.text(".names .reason")).toBe('{"no paper":12345678901234567890}');

    // An event that is open moves with its devices' receipts.
    const next = await push(url, "orders", 2);
    await tab.go(`/orders/event/${next}`);
    await tab.says(".event h2", "0 of 2 done, 2 still owe an answer, no deadline.");
    await give(url, "orders", next, "till-2", "done");
    await tab.says(".event h2", "1 of 2 done, 1 still owes an answer");
    await until(async () => !(await tab.text(".names")).includes("till-2"), "till-2 to leave the list");
    expect(await tab.text(".names")).toContain("till-1");
    await tab.go(`/orders/event/${event!.id}`);
    await tab.says(".event h2", "1 of 2 did not finish");

    // What the export brings is what the service exports.
    const folder = temporary();
    await tab.view.cdp("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: folder });
    await tab.read(
      `[...document.querySelectorAll("button")].find(({ textContent }) => textContent === "Export as CSV").click()`,
    );
    const exported = await ask(`${url}/events/orders/${event!.id}/receipts`, { headers: { Accept: "text/csv" } });
    const file = join(folder, `orders-${event!.id}.csv`);
    const saved = (): Promise<string> =>
      Bun.file(file)
        .text()
        .catch(() => "nothing");
    let text = "";
    await until(
      async () => (text = await saved()) === exported.text,
      () => `the export in a file, which holds ${JSON.stringify(text)}`,
    );

    expect(await tab.strangers(url)).toEqual([]);
    expect(tab.complaints).toEqual([]);
  },
);

browserTest("when the service is killed the console says so, and continues when it is back", async () => {
  const env = { PERE_DB: join(temporary(), "pere.db"), PORT: String(lastingPort()) };
  const first = await spawn(env);
  await push(first.url, "orders", 1, "?to=till-1");
  using tab = await new Tab().open(first.url, "/orders");
  await tab.focus(0, -1);
  await tab.says("#cell-in-focus", "event 1");
  await first.end("SIGKILL");
  await tab.state("offline");
  const second = await spawn(env);
  const id = await push(second.url, "orders", 2, "?to=till-1&type=after");
  await tab.state("live");
  await tab.says("header.title", "2 events");
  await give(second.url, "orders", id, "till-1", "done");
  await tab.focus(0, -1);
  await tab.says("#cell-in-focus", "event 2, after");
  await tab.says("#cell-in-focus", "1 of 1 done");
  // A service that stops in order says that it does.
  expect(await second.end("SIGTERM")).toBe(0);
  await tab.state("offline");
});

/** A channel with so many devices and events, each event answered by some of them. */
async function fill(url: string, devices: readonly string[], events: number): Promise<string[]> {
  for (let from = 0; from < devices.length; from += 50)
    await Promise.all(
      devices.slice(from, from + 50).map((device) => ask(`${url}/devices/big/${device}`, { method: "PUT" })),
    );
  const lines = Array.from({ length: events }, (_, n) => `${n}\n`).join("");
  const { body } = await ask(`${url}/push/big`, { type: "application/x-ndjson", body: lines });
  const ids = (body.events as { id: string }[]).map(({ id }) => id);
  for (const [n, event] of ids.entries())
    await ask(`${url}/feedback/big`, {
      body: devices.slice(0, n * 5).map((device) => ({ event, device, status: n % 7 === 5 ? "failed" : "done" })),
    });
  return ids;
}

browserTest("1,000 devices × 200 events: it reads and draws only what is visible, and scrolls", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const devices = Array.from({ length: 1_000 }, (_, n) => `label-${String(n).padStart(4, "0")}`);
  const ids = await fill(pere.url, devices, 200);
  using tab = await new Tab().open(pere.url, "/big");
  // So many devices are tallies at first, for which no cell is asked.
  await tab.focus(0, -1);
  await tab.says("#cell-in-focus", "995 of 1000 done, 5 pending");
  const asked = (): Promise<number> =>
    tab.read(`performance.getEntriesByType("resource").filter(({ name }) => name.includes("/receipts?")).length`);
  expect(await asked()).toBe(0);

  await tab.click('[name="look"]');
  await tab.focus(2, 0);
  await tab.says("#cell-in-focus", "label-0000: done");
  const shown = await tab.read<{ rows: number; columns: number }>(`(() => {
    const { clientWidth, clientHeight } = document.querySelector(".grid");
    return { rows: Math.ceil((clientHeight - 96) / 26) + 1, columns: Math.ceil((clientWidth - 246) / 26) + 1 };
  })()`);
  const drawn = (): Promise<number> => tab.read("Number(document.querySelector('.grid canvas').dataset.drawn)");
  await until(async () => (await asked()) > 0, "cells");
  // Blocks of 50 devices, two where the view lies over an edge.
  expect(await asked()).toBeLessThanOrEqual(shown.rows * 2);
  expect(await drawn()).toBeLessThanOrEqual(shown.rows * shown.columns);

  // Through all of it, frame by frame, while receipts come. What counts is what the page works, not how long others keep it waiting.
  await tab.read("performance.setResourceTimingBufferSize(10_000)");
  await tab.view.cdp("Performance.enable", { timeDomain: "threadTicks" });
  const workedMs = async (): Promise<number> => {
    const { metrics } = (await tab.view.cdp("Performance.getMetrics")) as {
      metrics: { name: string; value: number }[];
    };
    return 1_000 * metrics.find(({ name }) => name === "TaskDuration")!.value;
  };
  const FRAMES = 90;
  const before = await workedMs();
  const given = ask(`${pere.url}/feedback/big`, {
    body: devices.map((device) => ({ event: ids[1]!, device, status: "done" })),
  });
  const most = await tab.read<number>(`new Promise((resolve) => {
    const grid = document.querySelector(".grid"), canvas = grid.querySelector("canvas");
    let most = 0, frame = 0;
    const step = () => {
      most = Math.max(most, Number(canvas.dataset.drawn));
      const place = frame / ${FRAMES};
      grid.scrollTop = place * (grid.scrollHeight - grid.clientHeight);
      grid.scrollLeft = (1 - Math.abs(1 - 2 * place)) * (grid.scrollWidth - grid.clientWidth);
      if (frame++ < ${FRAMES}) requestAnimationFrame(step);
      else resolve(most);
    };
    requestAnimationFrame(step);
  })`);
  await given;
  const frameMs = ((await workedMs()) - before) / FRAMES;
  console.log(`a frame of the scrolled board takes the page ${frameMs.toFixed(1)} ms of work`);
  expect(most).toBeLessThanOrEqual((shown.rows + 1) * (shown.columns + 1));
  expect(frameMs).toBeLessThan(50);

  // A thousand receipts at once are too many to be told one by one; what is looked at is right all the same.
  await tab.view.press("End", { modifiers: ["Control"] });
  await tab.says("#cell-in-focus", "label-0999: pending; event 1,");
  await ask(`${pere.url}/feedback/big`, { body: devices.map((device) => ({ event: ids[0], device, status: "done" })) });
  await tab.says("#cell-in-focus", "label-0999: done");
  expect(await tab.text("#cell-in-focus")).toContain("1000 of 1000 done");
  expect(tab.complaints).toEqual([]);
});

browserTest("new events are inserted above, and the visible ones stay in place after scrolling", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await ask(`${pere.url}/devices/orders/till-1`, { method: "PUT" });
  const lines = (count: number) =>
    ask(`${pere.url}/push/orders`, { type: "application/x-ndjson", body: "1\n".repeat(count) });
  await lines(230);
  using tab = await new Tab().open(pere.url, "/orders");
  await tab.focus(60, -1);
  await tab.says("#cell-in-focus", "event 170");
  const before = await tab.read<number>("document.querySelector('.grid').scrollTop");
  await lines(3);
  await tab.says("header.title", "233 events");
  await until(
    async () => (await tab.read<number>("document.querySelector('.grid').scrollTop")) === before + 3 * 26,
    "the view",
  );
  await tab.says("#cell-in-focus", "event 170");
  // Older ones are there when asked for.
  const rows = (): Promise<number> => tab.read("Number(document.querySelector('.grid').ariaRowCount)");
  expect(await rows()).toBe(203);
  await tab.click(".more button");
  await until(async () => (await rows()) === 233, "the older ones");
  expect(await tab.read<boolean>("document.querySelector('.more') === null")).toBe(true);
  expect(tab.complaints).toEqual([]);
});

browserTest("a channel beyond the overview's limit has a board too", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  for (let n = 0; n < 201; n++) await push(pere.url, `a-${n}`, n, "?to=nobody");
  for (const device of ["till-1", "till-2"]) await ask(`${pere.url}/devices/z/${device}`, { method: "PUT" });
  const id = await push(pere.url, "z", 1);
  await give(pere.url, "z", id, "till-2", "done");
  using tab = await new Tab().open(pere.url);
  await tab.says(".side", "All channels");
  await tab.click(".side input[type=search]");
  await tab.view.type("z");
  // The service finds it among all.
  await tab.click('.side a[href="#/z"]');
  await tab.says(".facts", "2 devices, 0 connected · 1 event");
  await tab.says("main", "each device");
  await tab.focus(0, 1);
  await tab.says("#cell-in-focus", "till-2: done");
  // All are listed, a page at a time, and searched.
  await tab.go("/~channels");
  await tab.says(".facts", "202 channels · 2 devices, 0 connected");
  const rows = (): Promise<string> =>
    tab.read(`[...document.querySelectorAll(".channels tbody th")].map(({ textContent }) => textContent).join(" ")`);
  await until(async () => (await rows()).split(" ").length === 100, "a page");
  for (const last of ["a-98", "z"]) {
    await tab.read(`[...document.querySelectorAll("main button")].at(-1).click()`);
    await until(
      async () => (await rows()).endsWith(` ${last}`),
      () => `the page that ends with ${last}`,
    );
  }
  await tab.click("main input[type=search]");
  await tab.view.type("-19");
  await until(
    async () => (await rows()) === ["a-19", ...Array.from({ length: 10 }, (_, n) => `a-19${n}`)].join(" "),
    "those found",
  );
  expect(await tab.read<string>("location.hash")).toBe("#/~channels?search=-19");
  // Devices that were only named in `to` have no column; the event is a bar then.
  await tab.go("/a-0");
  await tab.says("header.title h1", "a-0");
  await tab.focus(0, -1);
  await tab.says("#cell-in-focus", "0 of 1 done, 1 pending");
  expect(await tab.read<string>("document.querySelector('[name=look]:checked').parentElement.textContent")).toBe(
    "tallies",
  );
  expect(tab.complaints).toEqual([]);
});
