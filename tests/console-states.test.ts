/**
 * The console where an event is deferred, tried again, withdrawn or replaced: what an operator reads on the page of the event, on the board and on the page
 * of a device, and how an event is taken back.
 */
import { afterAll, expect, test } from "bun:test";
import { verdictText } from "../web/console/verdict.ts";
import { againText } from "../web/console/words.ts";
import { axe } from "./support/axe.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, push, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

const TILLS = ["till-1", "till-2", "till-3", "till-4", "till-5"] as const;

const enrol = (url: string, devices: readonly string[] = TILLS) =>
  Promise.all(devices.map((device) => ask(`${url}/devices/orders/${device}`, { method: "PUT" })));

async function say(url: string, event: string, device: string, status: string, more: object = {}): Promise<void> {
  const { body } = await ask(`${url}/feedback/orders`, { body: [{ event, device, status, ...more }] });
  expect(body).toMatchObject({ recorded: 1 });
}

const stateOf = async (url: string, id: string) => (await ask(`${url}/events/orders/${id}`)).body;

/** The rows of devices, top to bottom, each as its text. */
const rows = (tab: Tab): Promise<string[]> =>
  tab.read(`[...document.querySelectorAll(".names li")].map(({ innerText }) => innerText.replace(/\\s+/g, " "))`);

/** Waits until the rows are so. */
async function rowsBecome(tab: Tab, ...expected: readonly RegExp[]): Promise<void> {
  let found: string[] = [];
  await until(
    async () => (found = await rows(tab)).length === expected.length && expected.every((one, n) => one.test(found[n]!)),
    () => `${expected.join(" ")}; the rows are ${JSON.stringify(found)}`,
  );
}

test("a verdict says how an event ended, and who answers later", () => {
  const none = { pending: 0, received: 0, working: 0, deferred: 0, done: 0, failed: 0, missing: 0, withdrawn: 0 };
  for (const [receipts, withdrawn, words] of [
    [{ ...none, done: 3, deferred: 2 }, undefined, "3 of 5 done, 2 still owe an answer later, no deadline."],
    [
      { ...none, done: 2, deferred: 1, pending: 2 },
      undefined,
      "2 of 5 done, 3 still owe an answer, 1 of them later, no deadline.",
    ],
    [{ ...none, withdrawn: 5 }, "withdrawn", "Withdrawn. None of 5 did it, 5 need not do it any more."],
    [
      { ...none, done: 1, failed: 1, missing: 2, withdrawn: 1 },
      "superseded",
      "Replaced by a newer event. 1 of 5 did it, 1 failed, 2 gave no answer in time, 1 needs not do it any more.",
    ],
    [
      { ...none, done: 2, withdrawn: 3 },
      "met",
      "Over: enough devices did it. 2 of 5 did it, 3 need not do it any more.",
    ],
    // Of a later service.
    [{ ...none, done: 5 }, "lost", "Withdrawn (lost). 5 of 5 did it."],
  ] as const)
    expect(verdictText({ addressed: 5, receipts, withdrawn }, 0)).toBe(words);
});

test("a row says until when, which round and how many failures, where there is something to say", () => {
  const now = Date.now();
  const due = new Date(now + 600_000).toISOString();
  for (const [row, words] of [
    [{ status: "done", round: 1, attempt: 0 }, /^$/],
    [{ status: "failed", round: 1, attempt: 1 }, /^$/],
    [{ status: "deferred", round: 1, attempt: 0, due }, /^again .*\d\d:\d\d:\d\d, in 10 min$/],
    [{ status: "deferred", round: 2, attempt: 0 }, /^sent again, no answer yet, round 2$/],
    [{ status: "deferred", round: 1, attempt: 1, due }, /in 10 min, failed once so far$/],
    [{ status: "received", round: 3, attempt: 2 }, /^round 3, failed twice so far$/],
    [{ status: "failed", round: 5, attempt: 5 }, /^round 5, failed 5 times$/],
    // Of an earlier service.
    [{ status: "deferred" }, /^sent again, no answer yet$/],
  ] as const)
    expect(againText(row, now)).toMatch(words);
});

for (const [width, height] of [
  [1280, 800],
  [390, 844],
] as const)
  browserTest(`deferred devices say until when; the legend filters them (${width} px)`, async () => {
    await using cleanup = new AsyncDisposableStack();
    let skippedMs = 0;
    const pere = cleanup.adopt(await start({ now: () => Date.now() + skippedMs }), (service) => service.stop());
    const { url } = pere;
    await enrol(url);
    const id = await push(url, "orders", { title: "Menu" }, "?attempts=3&type=menu.show");
    await say(url, id, "till-1", "done");
    await say(url, id, "till-2", "deferred", { after: 3_600, detail: "busy" });
    await say(url, id, "till-3", "failed", { after: 7_200, detail: { reason: "no paper" } });
    await say(url, id, "till-4", "failed", { retry: false, detail: "broken" });
    using tab = await new Tab(width, height).open(url, `/orders/event/${id}`);
    await tab.says(".verdict", "1 of 5 did not show: 1 failed, 3 still owe an answer, 2 of them later, no deadline.");
    await rowsBecome(
      tab,
      /^till-2 deferred busy · again .*, in 60 min /,
      /^till-3 deferred no paper · again .*, in 2 h, failed once so far /,
      /^till-4 failed broken /,
      /^till-5 pending /,
    );
    await tab.choose("deferred 2");
    await rowsBecome(tab, /^till-2 /, /^till-3 /);
    expect(await axe(tab)).toEqual([]);
    expect(await tab.read<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(width);
    expect(await tab.text(".event")).toContain("A device may try 3 times.");
    // The time has come, and nothing was said yet.
    skippedMs = 3_601_000;
    await say(url, id, "till-5", "done");
    await rowsBecome(tab, /^till-2 deferred busy · sent again, no answer yet, round 2 /, /^till-3 /);
    await say(url, id, "till-2", "done");
    await rowsBecome(tab, /^till-3 /);
    await tab.choose("all 5");
    await rowsBecome(tab, /^till-1 /, /^till-2 done round 2 /, /^till-3 /, /^till-4 /, /^till-5 /);
    await tab.go("/orders/devices/till-3");
    await rowsBecome(tab, /^menu\.show deferred no paper · again .*, failed once so far sent .* answered /);
    expect(tab.complaints).toEqual([]);
  });

browserTest("the board shows who deferred and until when, and an event that was taken back as quiet", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const { url } = pere;
  await enrol(url);
  const [older, id] = [await push(url, "orders", 1, "?key=menu"), await push(url, "orders", 2)];
  await say(url, id, "till-1", "done");
  await say(url, older, "till-1", "done");
  using tab = await new Tab(1280, 800).open(url, "/orders");
  await tab.focus(0, 1);
  await tab.says(".focus-line", "till-2");
  await say(url, id, "till-2", "deferred", { after: 600, detail: "busy" });
  expect(await tab.says(".focus-line", "deferred")).toBeTruthy();
  await until(async () => /deferred, .*, again .*, in 10 min: busy/.test(await tab.text(".focus-line")), "until when");
  await tab.says("ul.legend[aria-label=Signs]", "deferred");
  await ask(`${url}/events/orders/${id}?note=wrong`, { method: "DELETE" });
  await tab.says(".focus-line", "till-2  withdrawn");
  expect(await tab.text(".focus-line")).toContain("event 2, ");
  expect(await tab.text(".focus-line")).toContain("withdrawn: 1 of 5 done, 4 withdrawn");
  expect(await tab.says("#cell-in-focus", "till-2: withdrawn")).toContain("withdrawn, 1 of 5 done, 4 withdrawn");
  await tab.says("ul.legend[aria-label=Signs]", "withdrawn");
  // It is no trouble: nothing is filled with a colour, and nothing needs attention.
  await tab.read(`document.querySelector("[name=trouble-only]").click()`);
  await tab.says(".board .empty", "None of the 2 events here is in trouble.");
  await tab.read(`document.querySelector("[name=trouble-only]").click()`);
  // Replaced by a newer event with its key, told on the stream.
  await push(url, "orders", 3, "?key=menu");
  await tab.focus(2, 1);
  await tab.says("#cell-in-focus", "replaced by a newer event, 1 of 5 done, 4 withdrawn");
  await tab.go("/");
  await tab.says("main", "Nothing needs attention");
  expect(await axe(tab)).toEqual([]);
  expect(tab.complaints).toEqual([]);
});

for (const [width, height] of [
  [1280, 800],
  [390, 844],
] as const)
  browserTest(`an event is withdrawn after a question, with a note (${width} px)`, async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const { url } = pere;
    await enrol(url);
    const id = await push(url, "orders", { title: "Table 7" }, "?deadline=600");
    await say(url, id, "till-1", "done");
    using tab = await new Tab(width, height).open(url, `/orders/event/${id}`);
    await tab.choose("Withdraw");
    await tab.says("dialog", "4 devices that have not finished it need not do it any more.");
    await tab.says("dialog", "Answers that still arrive are recorded as late.");
    expect(await axe(tab)).toEqual([]);
    // Escape leaves everything as it is, and the focus goes back.
    await tab.view.press("Escape");
    await until(
      () =>
        tab.read<boolean>(
          `document.querySelector("dialog") === null && document.activeElement.textContent === "Withdraw"`,
        ),
      "the focus back",
    );
    expect((await stateOf(url, id)).withdrawn).toBeUndefined();
    await tab.view.press("Enter");
    await tab.fill("dialog [name=note]", "the guest has left");
    await tab.choose("Withdraw it");
    await tab.says(".verdict", "Withdrawn. 1 of 5 did it, 4 need not do it any more.");
    expect(await stateOf(url, id)).toMatchObject({ withdrawn: { reason: "withdrawn", note: "the guest has left" } });
    expect(await tab.text(".ended")).toMatch(/^Taken back .*: “the guest has left”/);
    await tab.says(".notices", "The event was withdrawn.");
    // Nothing is left to take back, and it can be pushed again to those who need not do it any more.
    await until(async () => (await tab.text(".actions")) === "Push again to these 4Export as CSV", "the actions");
    await tab.choose("withdrawn 4");
    await until(async () => (await rows(tab)).length === 4, "the four");
    // What still comes is late, and counts as done.
    await say(url, id, "till-2", "done");
    await tab.says(".verdict", "Withdrawn. 2 of 5 did it, 3 need not do it any more.");
    await tab.choose("done 2");
    await rowsBecome(tab, /^till-1 done \d/, /^till-2 done ?late .*after it was over/);
    await tab.says(".answers figcaption", "1 answer came too late.");
    expect(await axe(tab)).toEqual([]);
    expect(await tab.read<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(width);
    expect(tab.complaints).toEqual([]);
  });

browserTest(
  "an event is withdrawn elsewhere while its page is open, and one that can't be withdrawn says why",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const proxy = cleanup.adopt(await BadProxy.to(pere.url), (one) => one.stop());
    await enrol(pere.url);
    const id = await push(pere.url, "orders", 1);
    using tab = await new Tab().open(proxy.url, `/orders/event/${id}`);
    proxy.weather = ({ target }) => (target.includes("?note=") ? { cutRequest: 0 } : "pass");
    await tab.choose("Withdraw");
    await tab.fill("dialog [name=note]", "wrong");
    await tab.choose("Withdraw it");
    await tab.says("dialog .trouble", "The service can't be reached.");
    await tab.choose("Cancel");
    proxy.weather = () => "pass";
    await ask(`${pere.url}/events/orders/${id}`, { method: "DELETE" });
    await tab.says(".verdict", "Withdrawn.");
    await until(
      () => tab.read<boolean>(`document.querySelector(".ended").textContent.startsWith("Taken back")`),
      "when",
    );
  },
);

browserTest("events with a key lead to the older and newer ones with that key", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const { url } = pere;
  await enrol(url);
  const first = await push(url, "orders", { title: "Soup" }, "?key=menu");
  for (const till of TILLS) await say(url, first, till, "done");
  const second = await push(url, "orders", { title: "Fish" }, "?key=menu");
  await push(url, "orders", { title: "Table 7" }, "?key=other");
  const third = await push(url, "orders", { title: "Cake" }, "?key=menu");
  using tab = await new Tab(390, 844).open(url, `/orders/event/${second}`);
  await tab.says(".verdict", "Replaced by a newer event. None of 5 did it, 5 need not do it any more.");
  expect(await tab.text(".ended")).toMatch(/^Replaced /);
  const links = (): Promise<string[]> =>
    tab.read(`[...document.querySelectorAll(".same-key li")].map(({ innerText }) => innerText.replace(/\\s+/g, " "))`);
  await until(async () => (await links()).length === 2, "the other two");
  expect((await links())[0]).toMatch(/^newer, event 4 \S+ 0 of 5 done, 5 pending/);
  expect((await links())[1]).toMatch(/^older, event 1 \S+ 5 of 5 done/);
  expect(await axe(tab)).toEqual([]);
  await tab.choose("See the newer event");
  await tab.says(".about", "Cake");
  expect(await tab.read<string>("location.hash")).toBe(`#/orders/event/${third}`);
  await until(async () => (await links()).length === 2, "the two older ones");
  await until(async () => (await rows(tab)).length === 5, "the rows above");
  await until(() => tab.read<boolean>(`document.querySelector(".skeleton") === null`), "the whole page");
  expect((await links())[0]).toMatch(/^older, event 2 \S+ Replaced by a newer event. 0 of 5 done, 5 withdrawn/);
  await tab.choose("older, event 1");
  await tab.says(".about", "Soup");
  expect(tab.complaints).toEqual([]);
});
