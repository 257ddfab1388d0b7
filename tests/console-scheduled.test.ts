/**
 * Pushes for later in the console: the form with its times and time zones, the `curl` command for it, and the page of what is scheduled in a channel.
 */
import { afterAll, expect, test } from "bun:test";
import { cronOf, everyText, inZone, momentOf, NOW, timingOf, type When, whenFault } from "../web/console/push-when.ts";
import { axe } from "./support/axe.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, start, temporary, until } from "./support/harness.ts";

afterAll(closeBrowser);

interface Schedule {
  readonly id: string;
  readonly next: string | null;
  readonly every: string | null;
  readonly tz: string;
  readonly last: string | null;
}

const scheduled = async (url: string): Promise<Schedule[]> => (await ask(`${url}/scheduled/orders`)).body.scheduled;
const content = async (url: string, { id }: Schedule) => (await ask(`${url}/scheduled/orders/${id}`)).body;
const enrol = (url: string, device: string) => ask(`${url}/devices/orders/${device}`, { method: "PUT" });

/** The scheduled pushes as they are listed, top to bottom. */
const items = (tab: Tab): Promise<string[]> =>
  tab.read(`[...document.querySelectorAll(".schedules > li")].map(({ innerText }) => innerText.replace(/\\s+/g, " "))`);

/** Runs a command as it is pasted into a shell. */
async function shell(command: string): Promise<string> {
  const child = Bun.spawn(["sh", "-c", command], {
    ...{ cwd: temporary(), env: { PATH: process.env.PATH!, HOME: "/nowhere" } },
    ...{ stdout: "pipe", stderr: "ignore" },
  });
  return new Response(child.stdout).text();
}

/** Sets a field of a date or a time, whose parts are typed differently in each language. */
const set = (tab: Tab, selector: string, value: string): Promise<unknown> =>
  tab.read(`(() => {
    const field = document.querySelector(${JSON.stringify(selector)});
    field.value = ${JSON.stringify(value)};
    field.dispatchEvent(new Event("input", { bubbles: true }));
  })()`);

test("times of day are cron expressions, and a local time is sent in UTC", () => {
  const when = (part: Partial<When>): When => ({ ...NOW, zone: "Europe/Vienna", ...part });
  for (const [part, options] of [
    [{}, []],
    [
      { kind: "daily", time: "07:05" },
      [
        ["every", "5 7 * * *"],
        ["tz", "Europe/Vienna"],
      ],
    ],
    [
      { kind: "weekdays", time: "00:00" },
      [
        ["every", "0 0 * * 1-5"],
        ["tz", "Europe/Vienna"],
      ],
    ],
    [
      { kind: "cron", cron: " */5 * * * * ", zone: "UTC" },
      [
        ["every", "*/5 * * * *"],
        ["tz", "UTC"],
      ],
    ],
    [{ kind: "at", at: "2026-12-01T09:00" }, [["at", new Date(2026, 11, 1, 9).toISOString()]]],
  ] as const)
    expect(timingOf(when(part)), JSON.stringify(part)).toEqual(options as never);
  for (const at of ["", "tomorrow", "2026-12-01", "2026-12-01T9", "2026-13-01T09:00"]) expect(momentOf(at)).toBeNull();
  for (const [part, path] of [
    [{ kind: "at", at: "" }, "at"],
    [{ kind: "daily", time: "" }, "every"],
    [{ kind: "cron", cron: "  " }, "every"],
    [{ kind: "cron", cron: "61 * * * *" }, undefined],
    [{ kind: "now", at: "" }, undefined],
  ] as const)
    expect(whenFault(when(part), "")?.path, JSON.stringify(part)).toBe(path);
  expect(whenFault(when({ kind: "daily" }), "5")?.path).toBe("Prefer: wait");
  expect(whenFault(when({ kind: "now" }), "5")).toBeNull();
  expect(cronOf(when({ kind: "at" }))).toBe("");
});

test("usual cron expressions are read as words, and a time in a zone has the zone's name", () => {
  for (const [every, words] of [
    ["0 9 * * *", "every day at 09:00"],
    ["5 17 * * 1-5", "every weekday at 17:05"],
    ["0 0 * * 0", "every Sunday at 00:00"],
    ["0 0 * * 7", "every Sunday at 00:00"],
    ["*/5 * * * *", "*/5 * * * *"],
    ["0 9 1 * *", "0 9 1 * *"],
  ] as const)
    expect(everyText(every)).toBe(words);
  expect(inZone("2026-12-01T08:00:00.000Z", "Asia/Tokyo")).toBe("Tue 1 Dec 17:00 Asia/Tokyo");
  // The service may know a zone that this browser does not.
  expect(inZone("2026-12-01T08:00:00.000Z", "Mars/Base")).toMatch(/^Tue 1 Dec 08:00/);
});

for (const [width, height] of [
  [1280, 800],
  [390, 844],
] as const)
  browserTest(`a push is scheduled at a time, every day, every weekday or by cron (${width} px)`, async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const { url } = pere;
    await enrol(url, "till-1");
    using tab = await new Tab(width, height).open(url, "/orders/push");
    await tab.view.cdp("Emulation.setTimezoneOverride", { timezoneId: "Asia/Tokyo" });
    await tab.view.reload();
    await tab.state("live");
    await tab.fill("#push-data", '{"title": "Menu"}');
    await tab.choose("at a time");
    await tab.says(".later", "Day and time, in Asia/Tokyo");
    const at = await tab.read<string>(`document.querySelector("[name=at]").value`);
    expect(at).toMatch(/^\d{4}-\d\d-\d\dT\d\d:00$/);
    await set(tab, "[name=at]", "2098-12-01T09:00");
    await tab.says(".later .help", "Mon 1 Dec 00:00 UTC");
    await tab.choose("Schedule this push");
    await tab.says(".push .well", "Scheduled: it is pushed Mon 1 Dec 09:00.");
    expect(await axe(tab)).toEqual([]);
    expect(await scheduled(url)).toMatchObject([{ next: "2098-12-01T00:00:00.000Z", every: null, last: null }]);
    // The same with curl is one more of the same.
    expect(JSON.parse(await shell(await tab.text(".copied pre")))).toMatchObject({ next: "2098-12-01T00:00:00.000Z" });
    await tab.choose("every weekday at");
    await set(tab, "[name=every]", "07:30");
    await tab.says(".later", "As cron: 30 7 * * 1-5");
    await tab.choose("More options");
    await tab.fill("[name=key]", "menu");
    await tab.fill("[name=attempts]", "3");
    await tab.choose("Schedule this push");
    await until(async () => (await scheduled(url)).length === 3, "the third");
    const weekday = (await scheduled(url)).find(({ every }) => every !== null)!;
    expect(weekday).toMatchObject({ every: "30 7 * * 1-5", tz: "Asia/Tokyo" });
    expect(await content(url, weekday)).toMatchObject({ options: { key: "menu", attempts: "3", deadline: "300" } });
    await tab.choose("cron");
    await tab.fill("[name=every]", "*/20 8-18 * * *");
    await tab.fill("[name=tz]", "Europe/Vienna");
    await tab.says(".push .send", "Schedule this push");
    expect(JSON.parse(await shell(await tab.text(".copied pre"))).id).toStartWith("s-");
    const cron = (await scheduled(url)).find(({ tz }) => tz === "Europe/Vienna")!;
    expect(cron.every).toBe("*/20 8-18 * * *");
    expect(await axe(tab)).toEqual([]);
    expect(await tab.read<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(width);
    // It is listed among what this tab pushed, and filled in again with its time.
    await tab.says(".recents", "scheduled");
    await tab.choose("now");
    await tab.choose("Push again: event");
    await until(() => tab.read<boolean>(`document.querySelector("[name=every]")?.value === "07:30"`), "the time");
    // Nothing was pushed.
    expect((await ask(`${url}/events/orders`)).body.events).toEqual([]);
    expect(tab.complaints).toEqual([]);
  });

browserTest("what is wrong with a time is said at its field, by the page or the service", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const { url } = pere;
  await enrol(url, "till-1");
  using tab = await new Tab().open(url, "/orders/push");
  const focused = (): Promise<string> => tab.read("document.activeElement.id");
  const refused = async (fault: string, words: string, field: string): Promise<void> => {
    await tab.choose("Schedule this push");
    await tab.says(fault, words);
    await until(async () => (await focused()) === field, `the focus in ${field}`);
  };
  await tab.choose("cron");
  await tab.fill("[name=every]", "61 * * * *");
  await refused("#push-every-fault", "is not a cron expression", "push-every");
  await tab.fill("[name=every]", "0 0 30 2 *");
  await refused("#push-every-fault", "is never due", "push-every");
  await tab.fill("[name=every]", "0 9 * * *");
  await tab.fill("[name=tz]", "Europe/Nowhere");
  await refused("#push-tz-fault", "There is no time zone", "push-tz");
  await tab.choose("at a time");
  await set(tab, "[name=at]", "");
  await refused("#push-at-fault", "Choose a day and a time.", "push-at");
  await tab.choose("every day at");
  await tab.choose("More options");
  await tab.fill("[name=wait]", "5");
  await refused("#push-wait-fault", "Only a push that is made now can wait for receipts.", "push-wait");
  await tab.fill("[name=wait]", "");
  await tab.fill("[name=key]", "a/b");
  await refused("#push-key-fault", "A key is 1 to 128", "push-key");
  await tab.fill("[name=key]", "");
  await tab.fill("[name=attempts]", "1");
  await refused("#push-attempts-fault", "2", "push-attempts");
  expect(await axe(tab)).toEqual([]);
  expect(await scheduled(url)).toEqual([]);
  expect((await ask(`${url}/events/orders`)).body.events).toEqual([]);
});

for (const [width, height] of [
  [1280, 800],
  [390, 844],
] as const)
  browserTest(
    `the page of what is scheduled: what, when next, what became of it, and cancel (${width} px)`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      let skippedMs = 0;
      const pere = cleanup.adopt(await start({ now: () => Date.now() + skippedMs }), (service) => service.stop());
      const { url } = pere;
      await enrol(url, "till-1");
      using tab = await new Tab(width, height).open(url, "/orders/scheduled");
      await tab.says("#scheduled", "Nothing is scheduled");
      expect(await axe(tab)).toEqual([]);
      const soon = new Date(Date.now() + 120_000).toISOString();
      const put = async (query: string, body: unknown): Promise<string> => {
        const answer = await ask(`${url}/push/orders?${query}`, { body });
        expect(answer.status).toBe(202);
        return answer.body.id as string;
      };
      await put(`at=${soon}&type=note`, { message: "Closing time" });
      await put("every=0+9+*+*+1-5&tz=Asia/Tokyo&to=till-1&key=menu&deadline=900", { title: "Menu" });
      await tab.says("#scheduled", "2 scheduled pushes");
      await until(async () => (await items(tab)).every((text) => !text.startsWith("s-")), "what is pushed");
      const [first, second] = await items(tab);
      expect(first).toMatch(
        /^Closing time to all devices At \w{3} .* \d\d:\d\d, in (2 min|\d+ s) Not pushed yet\. \{"message":"Closing time"\} Cancel$/,
      );
      expect(second).toMatch(
        /^Menu to 1 device, key menu, deadline 15 min Next \w{3} .* \d\d:\d\d.*, in .*; this is \w{3} .* 09:00 Asia\/Tokyo Every weekday at 09:00, Asia\/Tokyo Not pushed yet\. /,
      );
      expect(await axe(tab)).toEqual([]);
      expect(await tab.read<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(width);
      // Its time has come.
      skippedMs = 121_000;
      await until(async () => /Done Pushed as \S+-1\./.test((await items(tab))[1]!), "the event");
      await tab.says("#scheduled", "1 scheduled push");
      // Cancelled after a question; Escape asks again.
      await tab.choose("Cancel: Menu");
      await tab.says("dialog", "It is no longer pushed every weekday at 09:00.");
      expect(await axe(tab)).toEqual([]);
      await tab.view.press("Escape");
      await until(
        () =>
          tab.read<boolean>(
            `document.querySelector("dialog") === null && document.activeElement.getAttribute("aria-label") === "Cancel: Menu"`,
          ),
        "the focus back",
      );
      expect(await scheduled(url)).toHaveLength(2);
      await tab.view.press("Enter");
      await tab.choose("Cancel the push");
      await tab.says("#scheduled", "Nothing is scheduled");
      await tab.says(".notices", "The scheduled push was cancelled.");
      expect(await scheduled(url)).toHaveLength(1);
      // From the event one gets back here.
      await tab.click(".schedules a");
      await tab.says(".about", "Closing time");
      await tab.says(".names", "till-1");
      // Nothing moves any more.
      await until(() => tab.read<boolean>(`document.querySelector(".skeleton") === null`), "the whole page");
      await tab.choose("a scheduled push");
      await tab.says(".schedules", "Closing time");
      expect(tab.complaints).toEqual([]);
    },
  );

browserTest("many scheduled pushes are shown some at a time, the next one first", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const { url } = pere;
  for (let n = 40; n > 0; n--)
    await ask(`${url}/push/orders?at=2098-01-01T00:${String(n).padStart(2, "0")}:00Z`, {
      body: { title: `number ${n}` },
    });
  using tab = await new Tab().open(url, "/orders/scheduled");
  await tab.says("#scheduled", "40 scheduled pushes");
  await until(
    async () => (await items(tab)).length === 30 && !(await items(tab)).some((text) => text.startsWith("s-")),
    "30",
  );
  expect((await items(tab))[0]).toStartWith("number 1 ");
  expect((await items(tab))[29]).toStartWith("number 30 ");
  await tab.choose("Show more");
  await until(async () => (await items(tab))[39]?.startsWith("number 40 ") ?? false, "all of them");
});
