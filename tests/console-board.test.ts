/**
 * The board carries trouble: devices in trouble first, alone or by prefix, with the reason at the cell; and what it says of states and dates.
 */
import { afterAll, describe, expect, test } from "bun:test";
import type { TroubledDevice } from "../web/console/attention.ts";
import { arrange, type Choice, prefixOf } from "../web/console/board-columns.ts";
import { openOf, reasonOf, statesIn, tallyText, wordsOf } from "../web/console/words.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, give, push, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

const cell = (tab: Tab, words: string): Promise<string> => tab.says("#cell-in-focus", words);
/** The device of the cell in focus, and its column from 0 on. */
const focused = (tab: Tab): Promise<string> =>
  tab.read(
    `(({ textContent, ariaColIndex }) => textContent.split(":")[0] + " " + (ariaColIndex - 2))(document.querySelector("#cell-in-focus"))`,
  );
/** Puts the focus on the first device of the first event until it is this one: the order may be about to change. */
const leads = (tab: Tab, device: string): Promise<true> =>
  until(
    async () => (await tab.focus(0, 0), (await focused(tab)) === `${device} 0`),
    () => `${device} to be the first`,
  );
const choose = (tab: Tab, name: string, value: string): Promise<unknown> =>
  tab.read(`(() => {
    const field = document.querySelector('[name="${name}"]');
    field.value = "${value}";
    field.dispatchEvent(new Event("change", { bubbles: true }));
  })()`);

browserTest(
  "devices in trouble come first, with their reason; they can be shown alone, by name and by prefix",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const { url } = pere;
    const towns = ["graz", "linz", "wien"].flatMap((town) => [1, 2, 3].map((n) => `${town}-till-${n}`));
    for (const device of towns) await ask(`${url}/devices/orders/${device}`, { method: "PUT" });
    const [first, second] = [await push(url, "orders", 1, "?type=order"), await push(url, "orders", 2, "?type=order")];
    for (const device of towns) await give(url, "orders", first, device, "done");
    for (const device of towns) if (device !== "linz-till-2") await give(url, "orders", second, device, "done");
    await give(url, "orders", second, "linz-till-2", "failed", {
      detail: { reason: "no paper", code: 12345678901234567890 },
    });

    using tab = await new Tab(1280, 800).open(url, "/orders");
    await tab.says(".facts", "1 failed");
    await leads(tab, "linz-till-2");
    await cell(tab, "linz-till-2: failed");
    await cell(tab, ": no paper; event 2, order");
    expect(await tab.text(".focus-line")).toContain("no paper");
    // The row tells it too.
    await tab.view.press("ArrowLeft");
    await tab.says(".focus-line", "Failed: linz-till-2 (no paper)");
    // By name.
    await choose(tab, "order", "name");
    await leads(tab, "graz-till-1");
    await cell(tab, "graz-till-1: done");
    // By prefix: the group with trouble first, in it the troubled device.
    await choose(tab, "order", "group");
    const said: string[] = [];
    await leads(tab, "linz-till-2");
    for (let n = 0; n < towns.length; n++) {
      await until(
        async () => (await focused(tab)).endsWith(` ${n}`),
        () => `column ${n}`,
      );
      said.push((await focused(tab)).split(" ")[0]!);
      await tab.view.press("ArrowRight");
    }
    expect(said).toEqual([
      "linz-till-2",
      "linz-till-1",
      "linz-till-3",
      ...towns.filter((name) => !name.startsWith("linz")),
    ]);
    // Alone: one device, one event.
    await tab.click("[name=trouble-only]");
    await until(
      () =>
        tab.read<boolean>(
          "document.querySelector('.grid').ariaRowCount === '1' && document.querySelector('.grid').ariaColCount === '2'",
        ),
      "one row and one column",
    );
    expect(await tab.read<string>("location.hash")).toBe("#/orders?only=trouble");
    await choose(tab, "order", "worst");
    await until(
      async () => (await tab.pixel(0, 0, "failed")).every((color, _, all) => color === all[0]),
      "the failed cell",
    );
    expect(tab.complaints).toEqual([]);
  },
);

browserTest(
  "an event without a deadline is overdue after an hour, and times of another day have their date",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    let now = Date.now() - 3 * 86_400_000;
    const pere = cleanup.adopt(await start({ now: () => now }), (service) => service.stop());
    await ask(`${pere.url}/devices/orders/till-1`, { method: "PUT" });
    await push(pere.url, "orders", 1);
    const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" }).format(now);
    now = Date.now();
    using tab = await new Tab(1280, 800).open(pere.url, "/orders");
    await tab.focus(0, 0);
    await cell(tab, `till-1: pending, overdue since ${day}`);
    await cell(tab, `event 1, ${day}`);
    await tab.says(".legend", "overdue");
    await until(
      async () => (await tab.pixel(0, 0, "overdue")).every((color, _, all) => color === all[0]),
      "the overdue cell",
    );
    await tab.click("[name=look]:not(:checked)");
    await tab.focus(0, -1);
    await cell(tab, "0 of 1 done, 1 pending");
  },
);

browserTest("a device that was only named in an event has a column once it is in trouble", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const id = await push(pere.url, "orders", 1, "?to=ghost-1,ghost-2");
  await give(pere.url, "orders", id, "ghost-2", "failed", { detail: "not here" });
  using tab = await new Tab(1280, 800).open(pere.url, "/orders?only=trouble");
  await leads(tab, "ghost-2");
  await cell(tab, "ghost-2: failed");
  await cell(tab, "not here");
});

browserTest("1,000 devices, 40 of them in trouble: these are read with few requests, and so are all", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const devices = Array.from({ length: 1_000 }, (_, n) => `label-${String(n).padStart(4, "0")}`);
  for (let from = 0; from < devices.length; from += 50)
    await Promise.all(
      devices.slice(from, from + 50).map((one) => ask(`${pere.url}/devices/big/${one}`, { method: "PUT" })),
    );
  for (let n = 0; n < 5; n++) {
    const event = await push(pere.url, "big", n);
    await ask(`${pere.url}/feedback/big`, {
      body: devices.map((device, place) => ({ event, device, status: place % 25 === 7 ? "failed" : "done" })),
    });
  }
  using tab = await new Tab(1280, 800).open(pere.url, "/big?only=trouble");
  await until(
    async () => (await tab.read<string>("document.querySelector('.grid')?.ariaColCount")) === "41",
    "the columns",
  );
  await tab.focus(4, 30);
  await cell(tab, "label-0757: failed");
  const asked = (): Promise<number> =>
    tab.read(`performance.getEntriesByType("resource").filter(({ name }) => name.includes("/receipts?")).length`);
  expect(await asked()).toBeLessThanOrEqual(5 * 40);
  await tab.click("[name=trouble-only]");
  // A thousand devices are tallies, unless one asks for each.
  await until(() => tab.read<boolean>("document.querySelector('.grid').ariaColCount === '1'"), "tallies");
  await tab.click("[name=look]:not(:checked)");
  await tab.focus(0, 39);
  await cell(tab, "label-0982: failed");
  await tab.view.press("ArrowRight");
  await cell(tab, "label-0000: done");
});

describe("columns", () => {
  const named = (...names: string[]) =>
    names.map((device) => ({ device, enrolledAt: "", connected: false, seenAt: null, pending: 0, tags: {} }));
  const troubled = (...names: string[]): TroubledDevice[] =>
    names.map((device) => ({
      channel: "c",
      device,
      failed: 1,
      missing: 0,
      overdue: 0,
      since: "",
      connected: true,
      seenAt: null,
    }));
  const list = (choice: Partial<Choice>, devices: string[], count: number, worst: string[]) => {
    const columns = arrange(named(...devices), count, troubled(...worst), {
      order: "worst",
      isTroubleOnly: false,
      ...choice,
    });
    return [columns.list.map(({ device }) => device).join(" "), columns.count] as const;
  };

  test("trouble is first, whether its names were read or not, and the count is that of all devices", () => {
    expect(list({}, ["a", "b", "c"], 3, ["c", "b"])).toEqual(["c b a", 3]);
    expect(list({}, ["a", "b"], 5, ["d"])).toEqual(["d a b", 5]);
    expect(list({}, ["a", "b", "c"], 3, ["ghost"])).toEqual(["ghost a b c", 4]);
    expect(list({}, [], 0, [])).toEqual(["", 0]);
  });
  test("by name nothing stands before its place", () => {
    expect(list({ order: "name" }, ["a", "b", "c"], 3, ["c", "a"])).toEqual(["a b c", 3]);
    expect(list({ order: "name" }, ["a", "b"], 5, ["d"])).toEqual(["a b", 5]);
  });
  test("trouble alone needs no other names", () => {
    expect(list({ isTroubleOnly: true }, ["a"], 900, ["d", "a"])).toEqual(["d a", 2]);
    expect(list({ isTroubleOnly: true, order: "name" }, ["a"], 900, ["d", "a"])).toEqual(["a d", 2]);
  });
  test("groups are by prefix, those with most trouble first, and wait until all names are known", () => {
    const names = ["graz-1", "graz-2", "linz-1", "linz-2", "truck"];
    expect(list({ order: "group" }, names, 5, ["linz-2"])[0]).toBe("linz-2 linz-1 truck graz-1 graz-2");
    expect(list({ order: "group" }, names.slice(0, 2), 5, ["linz-2"])[0]).toBe("linz-2 graz-1 graz-2");
    const { groups } = arrange(named(...names), 5, troubled("linz-2"), { order: "group", isTroubleOnly: false });
    expect(groups).toEqual([
      { name: "linz-", from: 0, to: 2, troubled: 1 },
      { name: "", from: 2, to: 3, troubled: 0 },
      { name: "graz-", from: 3, to: 5, troubled: 0 },
    ]);
    expect(["a-b-c", "a.b", "a", "-a", "a-"].map(prefixOf)).toEqual(["a-", "a.", "", "", ""]);
  });
});

test("a state that the page does not know is shown by its name", () => {
  const tally = { done: 1, snoozed: 2, failed: 0, pending: 1 } as never;
  expect(statesIn(tally) as string[]).toEqual(["pending", "done", "snoozed"]);
  expect(tallyText(tally, 4)).toBe("1 of 4 done, 1 pending, 2 snoozed");
  expect(openOf(tally)).toBe(3);
  expect(wordsOf("snoozed").meaning).toContain("does not know");
});

test("a reason is what a device says, in its words", () => {
  expect(reasonOf(null)).toBe(null);
  expect(reasonOf("no paper")).toBe("no paper");
  expect(reasonOf({ code: 3, error: "jammed" })).toBe("jammed");
  expect(reasonOf({ code: 3 })).toBe('{"code":3}');
  expect(reasonOf("x".repeat(500))).toHaveLength(160);
});
