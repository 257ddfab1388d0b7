/**
 * The device page when something is not to be done now, or not any more: put off and brought again, withdrawn while somebody looks, or while the page was
 * closed.
 */
import { afterAll, expect, test } from "bun:test";
import { choicesOf } from "../web/device/later.ts";
import { axe } from "./support/axe.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Page, row } from "./support/device-page.ts";
import { ask, push, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

const later = (page: Page): Promise<string> => page.read(`document.querySelector("#later")?.innerText ?? ""`);
const farewells = (page: Page): Promise<string> => page.text("#farewells");
/** The buttons of a card, by what they say. */
const buttons = (page: Page, id: string): Promise<string[]> =>
  page.read(`[...document.querySelectorAll("#event-${id} .answer button")].map(({ textContent }) => textContent)`);

const withdraw = (url: string, id: string, note = "") =>
  ask(`${url}/events/orders/${id}${note && `?note=${encodeURIComponent(note)}`}`, { method: "DELETE" });

/** Waits until a card's button that says this is there, and presses it. */
async function press(page: Page, id: string, words: string): Promise<void> {
  const find = `[...document.querySelectorAll("#event-${id} .answer button")].findIndex(({ textContent }) => textContent.startsWith(${JSON.stringify(words)}))`;
  const place = await until(async () => (await page.read<number>(find)) + 1, `the button ${words}`);
  await page.click(id, `.answer button:nth-of-type(${place})`);
}

test("something is put off by ten minutes, an hour or to tomorrow morning, and comes back before its deadline", () => {
  const labels = (time: string, deadlineSeconds?: number): [string, number][] => {
    const now = new Date(time).getTime();
    const deadline = deadlineSeconds === undefined ? undefined : new Date(now + deadlineSeconds * 1000).toISOString();
    return choicesOf(deadline, now).map(({ label, seconds }) => [label, seconds]);
  };
  const soon: [string, number][] = [
    ["10 min", 600],
    ["1 h", 3_600],
  ];
  expect(labels("2026-11-22T20:00:00")).toEqual([...soon, ["tomorrow 08:00", 12 * 3_600]]);
  // The service puts nothing off by more than a day.
  expect(labels("2026-11-22T06:30:00")).toEqual([...soon, ["tomorrow 06:30", 86_400]]);
  expect(labels("2026-11-22T20:00:00", 12 * 3_600)).toEqual(soon);
  expect(labels("2026-11-22T20:00:00", 630)).toEqual(soon.slice(0, 1));
  expect(labels("2026-11-22T20:00:00", 629)).toEqual([["2 min", 120]]);
  expect(labels("2026-11-22T20:00:00", 149)).toEqual([]);
  expect(labels("2026-11-22T20:00:00", -1)).toEqual([]);
});

browserTest("what is not to be done now says when it comes back, and comes back then, marked", async () => {
  await using cleanup = new AsyncDisposableStack();
  let skippedMs = 0;
  const pere = cleanup.adopt(await start({ now: () => Date.now() + skippedMs }), (service) => service.stop());
  using page = await new Page(390, 844).open(pere.url, "device=till-1");
  const id = await push(pere.url, "orders", { title: "Clean the fridge" }, "?attempts=3");
  const other = await push(pere.url, "orders", { title: "Table 7" });
  await page.shows(other, "received");
  expect(await page.read<boolean>(`document.querySelector("#event-${id} .again") === null`)).toBe(true);
  await press(page, id, "Not now");
  expect((await buttons(page, id)).map((said) => said.replace(/\d\d:\d\d/, "…"))).toEqual([
    "10 min",
    "1 h",
    "tomorrow …",
    "Back",
  ]);
  expect(await axe(page)).toEqual([]);
  await press(page, id, "10 min");
  await page.toDo(1);
  await until(
    async () => /^Later\s+Clean the fridge comes back at \d\d:\d\d, in (9|10) min$/.test(await later(page)),
    "later",
  );
  expect(await page.text("#announcement")).toMatch(/^Clean the fridge comes back at \d\d:\d\d$/);
  const { due } = await row(pere.url, id, "till-1", "deferred");
  expect(Math.abs(Date.parse(due as string) - Date.now() - 600_000)).toBeLessThan(60_000);
  await page.picture("device-later");
  // The list stays through a reload, and the service does not send it before its time.
  await page.view.reload();
  await page.shows(other, "received");
  expect(await later(page)).toContain("Clean the fridge comes back at");
  skippedMs = 601_000;
  await page.shows(id, "received");
  await page.toDo(2);
  expect(await later(page)).toBe("");
  expect(await page.text(`#event-${id} .again`)).toBe("again");
  expect(await page.text("#announcement")).toBe("Again: Clean the fridge");
  // What could not be done comes again too, as long as there are attempts.
  await page.fail(id, "locked");
  await row(pere.url, id, "till-1", "deferred");
  await page.toDo(1);
  skippedMs += 120_000;
  await page.toDo(2);
  expect(await page.text(`#event-${id} .again`)).toBe("again");
  await page.click(id, "button.done");
  expect(await row(pere.url, id, "till-1", "done")).toMatchObject({ round: 3, attempt: 1 });
  expect(page.complaints).toEqual([]);
});

browserTest("by keyboard alone: Not now, a time, or back", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page(800, 900).open(pere.url, "device=till-1");
  const id = await push(pere.url, "orders", { title: "Clean the fridge" });
  await page.shows(id, "received");
  const focused = (): Promise<string> => page.read("document.activeElement.textContent");
  await page.read(`document.querySelector("#event-${id} .later").focus()`);
  await page.view.press("Enter");
  await until(async () => (await focused()) === "10 min", "the focus on the first time");
  await page.view.press("Escape");
  await until(async () => (await focused()) === "Not now", "the focus back");
  await page.view.press("Enter");
  await until(async () => (await focused()) === "10 min", "the focus on the first time");
  await page.view.press("Tab");
  expect(await focused()).toBe("1 h");
  await page.view.press("Enter");
  await page.toDo(0);
  await until(async () => (await focused()) === "Nothing to do", "the focus on the heading");
  const { due } = await row(pere.url, id, "till-1", "deferred");
  expect(Math.abs(Date.parse(due as string) - Date.now() - 3_600_000)).toBeLessThan(60_000);
});

browserTest(
  "what is put off without a network is kept here and sent later; what is late can't be put off",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    using page = await new Page(390, 844).open(pere.url, "device=till-1");
    const late = await push(pere.url, "orders", { title: "Late" }, "?deadline=0.2");
    const id = await push(pere.url, "orders", { title: "Clean the fridge" });
    await page.shows(id, "received");
    await row(pere.url, late, "till-1", "missing");
    await until(async () => (await buttons(page, late)).join() === "Done,Could not do it", "no way to put it off");
    await page.view.cdp("Network.enable");
    const network = (offline: boolean) =>
      page.view.cdp("Network.emulateNetworkConditions", {
        offline,
        latency: 0,
        downloadThroughput: -1,
        uploadThroughput: -1,
      });
    await network(true);
    await press(page, id, "Not now");
    await press(page, id, "10 min");
    await until(async () => (await later(page)).includes("not sent yet"), "not sent");
    await network(false);
    await row(pere.url, id, "till-1", "deferred");
    await until(async () => !(await later(page)).includes("not sent yet"), "sent");
  },
);

browserTest("a withdrawn card goes, says why for a moment, and the focus does not get lost", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page(390, 844).open(pere.url, "device=till-1");
  const id = await push(pere.url, "orders", { title: "Table 7" });
  const menu = await push(pere.url, "orders", { title: "Menu" }, "?key=menu");
  const done = await push(pere.url, "orders", { title: "Table 8" });
  await ask(`${pere.url}/devices/orders/till-2`, { method: "PUT" });
  const shared = await push(pere.url, "orders", { title: "Table 9" });
  await page.shows(shared, "received");
  await page.click(done, "button.done");
  await page.click(shared, "button.done");
  await row(pere.url, shared, "till-1", "done");
  await page.toDo(2);
  await page.read(`document.querySelector("#event-${id} button.done").focus()`);
  expect((await withdraw(pere.url, id, "printed twice")).status).toBe(200);
  await page.toDo(1);
  expect(await farewells(page)).toBe("“Table 7” was cancelled: printed twice.");
  expect(await page.read<string>("document.querySelector('#farewells').getAttribute('role')")).toBe("status");
  await until(() => page.read<boolean>(`document.activeElement.matches("#event-${menu} article")`), "the next card");
  expect(await axe(page)).toEqual([]);
  await page.picture("device-withdrawn");
  // A newer one with the same key replaces it.
  const newer = await push(pere.url, "orders", { title: "Menu with fish" }, "?key=menu");
  await page.shows(newer, "received");
  await page.toDo(1);
  await until(async () => (await farewells(page)).endsWith("“Menu” was replaced by a newer message."), "the reason");
  // What was done here stays done.
  await withdraw(pere.url, shared, "sold out");
  await page.click(newer, "button.done");
  await page.toDo(0);
  await until(
    () =>
      page.read<boolean>(
        `document.querySelector("#event-${shared}").textContent.includes("meanwhile it was cancelled: sold out")`,
      ),
    "what became of it",
  );
  expect(await row(pere.url, id, "till-1", "withdrawn")).toMatchObject({ late: false });
  await until(async () => (await farewells(page)) === "", "the sentences to go");
  expect(page.complaints).toEqual([]);
});

browserTest("what was withdrawn while the page was closed is told once, when it is opened again", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const page = await new Page(390, 844).open(pere.url, "device=till-1");
  const [id, putOff, stays] = [
    await push(pere.url, "orders", { title: "Table 7" }),
    await push(pere.url, "orders", { title: "Clean the fridge" }),
    await push(pere.url, "orders", { title: "Table 8" }),
  ];
  await page.shows(stays!, "received");
  await press(page, putOff!, "Not now");
  await press(page, putOff!, "1 h");
  await row(pere.url, putOff!, "till-1", "deferred");
  await row(pere.url, id!, "till-1", "received");
  await page.view.navigate("about:blank");
  page.view.close();
  await withdraw(pere.url, id!, "the guest has left");
  await withdraw(pere.url, putOff!);
  using again = await new Page(390, 844).open(pere.url, "device=till-1");
  await again.shows(stays!, "received");
  await again.toDo(1);
  const told = "“Table 7” was cancelled: the guest has left.“Clean the fridge” was cancelled.";
  await until(async () => (await farewells(again)) === told, "both reasons");
  expect(await later(again)).toBe("");
  await again.view.reload();
  await again.shows(stays!, "received");
  // Behind the withdrawals in the log.
  await again.shows(await push(pere.url, "orders", { title: "Table 9" }), "received");
  expect(await farewells(again)).toBe("");
});
