/**
 * The console's page of an event: the verdict, the names behind it with their reasons, the filter, and a push to those who did not do it.
 */
import { afterAll, expect, test } from "bun:test";
import { answerText, titleOf, verdictText } from "../web/console/verdict.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, give, listen, push, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

const numbered = (name: string, count: number): string[] =>
  Array.from({ length: count }, (_, n) => `${name}-${String(n + 1).padStart(4, "0")}`);

const enrol = (url: string, devices: readonly string[]) =>
  Promise.all(devices.map((device) => ask(`${url}/devices/orders/${device}`, { method: "PUT" })));

const giveAll = (url: string, event: string, devices: readonly string[], status: string, detail?: unknown) =>
  ask(`${url}/feedback/orders`, {
    body: devices.map((device) => ({ event, device, status, ...(detail === undefined ? {} : { detail }) })),
  });

/** The rows of devices, top to bottom, each as its text. */
const rows = (tab: Tab): Promise<string[]> =>
  tab.read(`[...document.querySelectorAll(".names li")].map(({ innerText }) => innerText.replace(/\\s+/g, " "))`);

/** The buttons of the filter that are pressed. */
const pressed = (tab: Tab): Promise<string[]> =>
  tab.read(
    `[...document.querySelectorAll(".filters [aria-pressed=true]")].map(({ innerText }) => innerText.replace(/\\s+/g, " ").trim())`,
  );

test("a verdict says how many did not do it, who still owes an answer, and by when", () => {
  const now = Date.parse("2026-11-22T10:00:00.000Z");
  const at = (seconds: number): string => new Date(now + seconds * 1000).toISOString();
  const none = { pending: 0, received: 0, working: 0, done: 0, failed: 0, missing: 0 };
  for (const [standing, words] of [
    [
      { addressed: 40, receipts: { ...none, done: 31, failed: 4, missing: 5 }, type: "label.print" },
      "9 of 40 did not print: 4 failed, 5 gave no answer in time.",
    ],
    [
      { addressed: 40, receipts: { ...none, done: 31, missing: 9 }, type: "order.created" },
      "9 of 40 did not finish: 9 gave no answer in time.",
    ],
    [
      { addressed: 40, receipts: { ...none, done: 31, pending: 6, working: 3 }, deadline: at(180) },
      "31 of 40 done, 9 still owe an answer, deadline in 3 min.",
    ],
    [
      { addressed: 40, receipts: { ...none, done: 31, failed: 8, received: 1 } },
      "8 of 40 did not finish: 8 failed, 1 still owes an answer, no deadline.",
    ],
    [
      { addressed: 2, receipts: { ...none, done: 1, pending: 1 }, deadline: at(-1) },
      "1 of 2 done, 1 still owes an answer, the deadline has passed.",
    ],
    [{ addressed: 40, receipts: { ...none, done: 40 } }, "All 40 devices are done."],
    [{ addressed: 1, receipts: { ...none, done: 1 } }, "The device is done."],
    [{ addressed: 0, receipts: none }, "Addressed to no device."],
    // States of a later service.
    [{ addressed: 5, receipts: { ...none, done: 1, paused: 2, withdrawn: 2 } }, "1 of 5 done, 2 paused, 2 withdrawn."],
  ] as const)
    expect(verdictText(standing, now)).toBe(words);
});

test("a reason is the text of a detail, and a title that of the data", () => {
  for (const [status, detail, words] of [
    ["failed", "no paper", "no paper"],
    ["failed", { reason: "no paper" }, "no paper"],
    ["failed", { error: "cover open", code: 7 }, 'cover open {"code":7}'],
    ["failed", { reason: "a", error: "b" }, 'a {"error":"b"}'],
    ["failed", [1], "[1]"],
    ["failed", 0, "0"],
    ["failed", null, "gave no reason"],
    ["missing", null, "no answer before the deadline"],
    ["done", null, ""],
  ] as const)
    expect(answerText(status, detail)).toBe(words);
  expect(titleOf("a.b", '{"title":"Menu","message":"x"}', "e-1")).toBe("Menu");
  expect(titleOf("a.b", '{"title":7,"message":"Table 7"}', "e-1")).toBe("Table 7");
  expect(titleOf("a.b", '"Menu"', "e-1")).toBe("a.b");
  expect(titleOf(undefined, "null", "e-12")).toBe("Event 12");
});

/** 40 tills: 31 printed, 3 failed, 6 were silent until the deadline. */
async function printed(url: string, setNow: (ms: number) => void): Promise<{ id: string; tills: string[] }> {
  const tills = numbered("till", 40);
  await enrol(url, tills);
  const start = Date.now() - 600_000;
  setNow(start);
  const id = await push(url, "orders", { title: "Labels", "no paper": 1 }, "?type=label.print&deadline=120");
  await giveAll(url, id, tills.slice(0, 31), "done");
  await giveAll(url, id, tills.slice(31, 33), "failed", { reason: "no paper" });
  await giveAll(url, id, tills.slice(33, 34), "failed", { code: 12345678901234567890n.toString() });
  setNow(start + 121_000);
  await until(async () => (await ask(`${url}/events/orders/${id}`)).body.receipts.missing === 6, "the missing ones");
  setNow(Date.now());
  return { id, tills };
}

for (const [width, height] of [
  [1280, 800],
  [390, 844],
] as const)
  browserTest(`the page begins with the verdict and the names; the legend is the filter (${width} px)`, async () => {
    await using cleanup = new AsyncDisposableStack();
    let now = Date.now();
    const pere = cleanup.adopt(await start({ now: () => now }), (service) => service.stop());
    const { id, tills } = await printed(pere.url, (ms) => (now = ms));
    cleanup.adopt(await listen(`${pere.url}/feed/orders?device=${tills[34]}`), (stream) => stream.close());
    using tab = await new Tab(width, height).open(pere.url, `/orders/event/${id}`);
    expect(await tab.says(".event h2", "did not")).toBe("9 of 40 did not print: 3 failed, 6 gave no answer in time.");
    await until(() => tab.read<boolean>(`document.title === "Labels – orders – PERE console"`), "the title");
    await until(async () => (await rows(tab)).length === 9, "the nine");
    expect(await pressed(tab)).toEqual(["not done 9"]);
    const [failed, , , connected, silent] = await rows(tab);
    expect(failed).toMatch(/^till-0032 .*failed.*no paper/);
    expect(connected).toMatch(/^till-0035 .*missing.*no answer before the deadline.*connected$/);
    expect(silent).toMatch(/^till-0036 .*missing.*never heard from$/);
    // By keyboard: to the next button of the filter, which is that of the failed ones.
    await tab.read("document.querySelector('.filters button').focus()");
    await tab.view.press("Tab");
    await tab.view.press("Enter");
    await until(async () => (await rows(tab)).length === 3, "the failed ones");
    expect(await pressed(tab)).toEqual(["failed 3"]);
    await tab.choose("done 31");
    await until(async () => (await rows(tab)).length === 31, "those that are done");
    await tab.choose("all 40");
    await until(async () => (await rows(tab)).length === 40, "all of them");
    expect(await tab.text(".answers figcaption")).toContain("Half of the 34 answers came within");
    // Nothing stands out to the side.
    expect(await tab.read<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(width);
    // Back from a device, the filter is as it was left.
    await tab.choose("till-0040");
    await tab.says("main h2", "till-0040");
    await tab.read("history.back()");
    await until(async () => (await rows(tab)).length === 40, "all of them");
    expect(await pressed(tab)).toEqual(["all 40"]);
    expect(tab.complaints).toEqual([]);
  });

browserTest("an event is pushed again to those who did not do it, with its data, type and deadline", async () => {
  await using cleanup = new AsyncDisposableStack();
  let now = Date.now();
  const pere = cleanup.adopt(await start({ now: () => now }), (service) => service.stop());
  const { id, tills } = await printed(pere.url, (ms) => (now = ms));
  using tab = await new Tab(390, 844).open(pere.url, `/orders/event/${id}`);
  await tab.choose("Push again to these 9");
  await tab.says(".push", "9 devices did not do it");
  await tab.says("[aria-label='curl command']", `/events/orders/${id}/again?deadline=120`);
  // One of them is retired meanwhile: the service leaves it out.
  await ask(`${pere.url}/devices/orders/${tills[31]!}`, { method: "DELETE" });
  await tab.choose("Push again to these 9");
  await tab.says(".push .well", "addressed to 8 devices");
  const { events } = (await ask(`${pere.url}/events/orders`)).body as { events: { id: string }[] };
  const { body } = await ask(`${pere.url}/events/orders/${events[1]!.id}`);
  expect(body).toMatchObject({ again: id, type: "label.print", data: { title: "Labels", "no paper": 1 } });
  expect(body.to.toSorted()).toEqual(tills.slice(32));
  expect(Date.parse(body.deadline) - Date.parse(body.at)).toBe(120_000);
  await tab.choose(events[1]!.id);
  await tab.says(".event", "It repeats an earlier event");
  // What was filled in may be changed first: here to one device.
  await tab.go(`/orders/push/${id}`);
  await tab.says(".push", "did not do it");
  await tab.choose("Change it first");
  await tab.says(".push", "did not do it");
  for (const till of tills.slice(32)) await tab.choose(`Remove ${till}`);
  await tab.choose("Push to 1 device");
  await tab.says(".push .well", "addressed to 1 device");
  expect(tab.complaints).toEqual([]);
});

browserTest("the verdict and the names move with the answers", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const tills = numbered("till", 3);
  await enrol(pere.url, tills);
  const id = await push(pere.url, "orders", 1, "?deadline=600");
  using tab = await new Tab().open(pere.url, `/orders/event/${id}`);
  await tab.says(".event h2", "0 of 3 done, 3 still owe an answer, deadline in 10 min.");
  await tab.says(".answers, .event", "No final answer yet.");
  await giveAll(pere.url, id, [tills[0]!], "done");
  await tab.says(".event h2", "1 of 3 done, 2 still owe an answer");
  await until(async () => (await rows(tab)).length === 2, "the two");
  expect((await rows(tab))[0]).toContain("no answer yet");
  await giveAll(pere.url, id, [tills[1]!], "failed", "no paper");
  await tab.says(".event h2", "1 of 3 did not finish: 1 failed, 1 still owes an answer");
  await tab.says(".names", "no paper");
  await giveAll(pere.url, id, [tills[2]!], "done");
  await tab.says(".event h2", "1 of 3 did not finish: 1 failed.");
  await tab.says(".answers", "Half of the 3 answers");
  expect(tab.complaints).toEqual([]);
});

browserTest(
  "more than a thousand devices are paged to the last one, and the event is pushed again to all of them",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const labels = numbered("label", 1_130);
    for (let from = 0; from < labels.length; from += 100) await enrol(pere.url, labels.slice(from, from + 100));
    const id = await push(pere.url, "orders", 1);
    await giveAll(pere.url, id, labels.slice(0, 20), "done");
    await giveAll(pere.url, id, labels.slice(20, 1_000), "failed", "no paper");
    await giveAll(pere.url, id, labels.slice(1_000), "failed", "no ink");
    using tab = await new Tab().open(pere.url, `/orders/event/${id}`);
    await tab.says(".event h2", "1,110 of 1,130 did not finish");
    for (let page = 0; page < 22; page++) {
      await tab.says(
        ".pages",
        `${(page * 50 + 1).toLocaleString("en")} to ${(page * 50 + 50).toLocaleString("en")} of 1,110`,
      );
      await tab.choose("Next");
    }
    await tab.says(".pages", "1,101 to 1,110 of 1,110");
    const last = await rows(tab);
    expect(last.length).toBe(10);
    expect(last[9]).toMatch(/^label-1130 .*failed.*no ink.*last heard (just now|[\d.]+ s ago)$/);
    expect(await tab.read<string>(`[...document.querySelectorAll(".pages button")].at(-1).ariaDisabled`)).toBe("true");
    await tab.go(`/orders/push/${id}`);
    await tab.says(".push", "1,110 devices did not do it.");
    await tab.says(".push .send", "Push again to these 1,110");
    expect(tab.complaints).toEqual([]);
  },
);

browserTest("a state that the page does not know is shown by its name", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const proxy = cleanup.adopt(await BadProxy.to(pere.url), (one) => one.stop());
  await enrol(pere.url, ["till-1"]);
  const id = await push(pere.url, "orders", 1);
  const { text } = await ask(`${pere.url}/events/orders/${id}`);
  const later = text.replace('"pending":1', '"pending":0,"paused":1');
  const row = { device: "till-1", status: "paused", detail: null, at: null, deviceAt: null, late: false };
  const answer = (body: string) => ({
    bytes: `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
    stays: false,
  });
  proxy.weather = ({ target }) => {
    if (target.startsWith(`/events/orders/${id}/receipts`))
      return answer(JSON.stringify({ receipts: [row], next: null }));
    return target === `/events/orders/${id}` ? answer(later) : "pass";
  };
  using tab = await new Tab().open(proxy.url, `/orders/event/${id}`);
  await tab.says(".event h2", "0 of 1 done, 1 paused.");
  await tab.says(".filters", "paused 1");
  await tab.says(".names", "paused");
  await give(pere.url, "orders", id, "till-1", "done");
  expect(tab.complaints).toEqual([]);
});
