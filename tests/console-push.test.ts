/**
 * The push form of the console: what a person types, presses and sees, and what the service and its devices then have.
 */
import { afterAll, expect } from "bun:test";
import { issueToken } from "../engine/auth/issue.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, SECRET, start, startWith, temporary, until } from "./support/harness.ts";

afterAll(closeBrowser);

interface Stored {
  readonly id: string;
  readonly at: string;
  readonly deadline?: string;
  readonly to?: readonly string[];
  readonly type?: string;
  /** The publisher's own text. */
  readonly text: string;
}

/** The events of a channel, oldest first, each with its data as it was pushed. */
async function stored(url: string, channel = "orders", headers: Record<string, string> = {}): Promise<Stored[]> {
  const { body } = await ask(`${url}/events/${channel}`, { headers });
  return Promise.all(
    (body.events as { id: string }[]).map(async ({ id }) => {
      const { text } = await ask(`${url}/events/${channel}/${id}`, { headers });
      return { ...(JSON.parse(text) as Stored), text: text.slice(text.indexOf(',"data":') + 8, -1) };
    }),
  );
}

const secondsOf = ({ at, deadline }: Stored): number | null =>
  deadline === undefined ? null : (Date.parse(deadline) - Date.parse(at)) / 1000;

async function enrol(url: string, ...devices: string[]): Promise<void> {
  for (const device of devices) await ask(`${url}/devices/orders/${device}`, { method: "PUT" });
}

/** Runs a command as it is pasted into a shell. */
async function shell(command: string, env: Record<string, string> = {}): Promise<string> {
  const child = Bun.spawn(["sh", "-c", command], {
    cwd: temporary(),
    env: { PATH: process.env.PATH!, HOME: "/nowhere", ...env },
    stdout: "pipe",
    stderr: "ignore",
  });
  return new Response(child.stdout).text();
}

const curl = "[aria-label='curl command']";
const NASTY = `{"say": "it's \\"fine\\", $HOME \`id\` $(id) ! \\\\ ü ☕", "n": 12345678901234567890}`;

browserTest(
  "a push has a deadline of 5 min unless another is chosen, and the curl command makes the same push",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    await enrol(pere.url, "till-1", "till-2");
    using tab = await new Tab().open(pere.url, "/orders/push");
    await tab.fill("#push-data", NASTY);
    await tab.choose("Push to all 2 devices");
    await tab.says(".push .well", "addressed to 2 devices");
    await shell(await tab.text(curl));
    for (const name of ["1 min", "15 min", "1 h", "none"]) {
      await tab.choose(name);
      await tab.choose("Push to all 2 devices");
      await tab.says(".push .well", "Stored");
      await until(async () => (await tab.text("[aria-busy=true]")) === "", "the answer");
    }
    await tab.choose("other");
    await tab.fill("[name=deadline]", "90");
    await tab.choose("only these");
    await tab.fill("[name=to]", "till-2");
    await tab.choose("More options");
    await tab.fill("[name=type]", "note");
    expect(JSON.parse(await shell(await tab.text(curl))).type).toBe("note");
    const events = await stored(pere.url);
    expect(events.map(secondsOf)).toEqual([300, 300, 60, 900, 3600, null, 90]);
    for (const { text } of events) expect(text).toBe(NASTY);
    expect(events.map(({ to }) => to)).toEqual([...Array.from({ length: 6 }, () => undefined), ["till-2"]]);
    expect(tab.complaints).toEqual([]);
  },
);

browserTest("where tokens are asked for, the curl command takes one from a variable", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith({ access: "own" }), (service) => service.stop());
  using tab = new Tab();
  await tab.view.navigate("about:blank");
  await tab.view.navigate(pere.url + (await pere.link())!);
  await tab.state("live");
  await tab.go("/orders/push");
  const command = await tab.says(curl, "$PERE_TOKEN");
  await tab.says(".push", "The service asks for a token");
  const token = new URL(pere.url + (await pere.link())!).searchParams.get("token")!;
  expect(command).not.toContain(token);
  expect(JSON.parse(await shell(command, { PERE_TOKEN: token }))).toMatchObject({ channel: "orders" });
  expect(JSON.parse(await shell(command))).toMatchObject({ status: 401 });
});

browserTest("devices are found by keyboard alone, pasted as a list, and taken out again", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await enrol(pere.url, "graz-1", "graz-2", "wien-1", "wien-2");
  using tab = await new Tab().open(pere.url, "/orders/push");
  await tab.says(".push", "all 4 devices");
  const chips = (): Promise<string[]> =>
    tab.read(`[...document.querySelectorAll(".chips li")].map(({ firstChild }) => firstChild.textContent)`);
  // From the data to the choice of devices, and on to the field for names.
  await tab.click("#push-data");
  await tab.view.press("Tab");
  await tab.view.press("ArrowRight");
  await tab.view.press("Tab");
  await tab.view.type("WIEN");
  await until(() => tab.read<boolean>(`document.querySelectorAll("[role=option]").length === 2`), "two suggestions");
  await tab.view.press("ArrowDown");
  await tab.view.press("ArrowDown");
  const active = `document.getElementById(document.activeElement.getAttribute("aria-activedescendant"))`;
  expect(await tab.read<string>(`${active}.textContent`)).toContain("wien-2");
  await tab.view.press("Enter");
  expect(await chips()).toEqual(["wien-2"]);
  await tab.read(`(() => {
    const data = new DataTransfer();
    data.setData("text", "graz-1\\ngraz-2, wien-2;bad/name");
    document.activeElement.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
  })()`);
  expect(await chips()).toEqual(["wien-2", "graz-1", "graz-2"]);
  // What is not a name stays in the field, and nothing is pushed with it.
  expect(await tab.read<string>("document.activeElement.value")).toBe("bad/name");
  await tab.choose("Push to 4 devices");
  await tab.says("#push-to-fault", "“bad/name” is not a device's name");
  await until(() => tab.read<boolean>("document.activeElement.id === 'push-to'"), "the focus in the field");
  expect(await stored(pere.url)).toEqual([]);
  await tab.read("document.activeElement.select()");
  await tab.view.press("Backspace");
  await tab.view.press("Backspace");
  expect(await chips()).toEqual(["wien-2", "graz-1"]);
  await tab.choose("Remove wien-2");
  // A name that is only typed counts too.
  await tab.view.type("wien-1");
  await tab.choose("Push to 2 devices");
  await tab.says(".push .well", "addressed to 2 devices");
  expect((await stored(pere.url)).map(({ to }) => to)).toEqual([["graz-1", "wien-1"]]);
  // No name at all is not everybody.
  await tab.choose("Remove graz-1");
  await tab.fill("[name=to]", "");
  await tab.choose("Push to 0 devices");
  await tab.says("#push-to-fault", "Name at least one device");
  expect(await stored(pere.url)).toHaveLength(1);
  expect(tab.complaints).toEqual([]);
});

browserTest("what the service refuses is said at its field, which gets the focus", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await enrol(pere.url, "till-1");
  using tab = await new Tab().open(pere.url, "/orders/push");
  await tab.choose("More options");
  await tab.fill("[name=type]", "pere.own");
  await tab.choose("More options");
  await tab.choose("Push to all 1 device");
  await tab.says("#push-type-fault", "reserved");
  const focused = (): Promise<string> => tab.read("document.activeElement.id");
  await until(async () => (await focused()) === "push-type", "the focus in the field");
  await tab.fill("[name=type]", "");
  await tab.fill("[name=wait]", "600");
  await tab.choose("Push to all 1 device");
  await tab.says("#push-wait-fault", "120");
  await tab.fill("[name=wait]", "");
  await tab.choose("other");
  await tab.fill("[name=deadline]", "soon");
  await tab.choose("Push to all 1 device");
  await tab.says("#push-deadline-fault", "Must be a number of seconds");
  await until(async () => (await focused()) === "push-deadline", "the focus in the field");
  expect(await stored(pere.url)).toEqual([]);
});

browserTest("plain text is pushed as a message, and JSON is checked as it is typed", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await enrol(pere.url, "till-1");
  using tab = await new Tab().open(pere.url, "/orders/push");
  await tab.fill("#push-data", '{"a": 1');
  await tab.says("#push-fault", "JSON");
  expect(await tab.read<boolean>("document.querySelector('.push .send').disabled")).toBe(true);
  await tab.choose("plain text");
  await tab.fill("#push-data", `Table 7: "no onions", it's urgent`);
  await tab.choose("Push to all 1 device");
  await tab.says(".push .well", "Stored");
  // Back in JSON it is the same event.
  await tab.choose("JSON");
  await tab.choose("Push to all 1 device");
  await until(async () => (await stored(pere.url)).length === 2, "the second event");
  for (const { text } of await stored(pere.url))
    expect(JSON.parse(text)).toEqual({ message: `Table 7: "no onions", it's urgent` });
});

browserTest("what this tab pushed is listed with a link, and can be pushed again, also after a reload", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  await enrol(pere.url, "till-1", "till-2");
  using tab = await new Tab().open(pere.url, "/orders/push");
  await tab.fill("#push-data", "[1]");
  await tab.choose("only these");
  await tab.fill("[name=to]", "till-2");
  await tab.choose("15 min");
  await tab.choose("Push to 1 device");
  await tab.says(".recents", "to 1 device");
  const [first] = await stored(pere.url);
  expect(await tab.read<string>(`document.querySelector(".recents a").hash`)).toBe(`#/orders/event/${first!.id}`);
  await tab.view.reload();
  await tab.state("live");
  await tab.choose("Push again: event");
  await tab.choose("Push to 1 device");
  await until(async () => (await stored(pere.url)).length === 2, "the second event");
  const [, second] = await stored(pere.url);
  expect([second!.text, second!.to, secondsOf(second!)]).toEqual(["[1]", ["till-2"], 900]);
});

browserTest("a push without an answer can be repeated, and is stored once", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const proxy = cleanup.adopt(await BadProxy.to(pere.url), (one) => one.stop());
  await enrol(pere.url, "till-1");
  let isCut = true;
  proxy.weather = ({ target }) => (isCut && target.startsWith("/push/") ? { cut: 0 } : "pass");
  using tab = await new Tab().open(proxy.url, "/orders/push");
  await tab.choose("Push to all 1 device");
  await tab.says(".push .trouble", "PERE did not answer");
  expect(await stored(pere.url)).toHaveLength(1);
  isCut = false;
  await tab.choose("Push to all 1 device");
  await tab.says(".push .well", "Stored");
  expect(await stored(pere.url)).toHaveLength(1);
  // The next push is another event.
  await tab.choose("Push to all 1 device");
  await until(async () => (await stored(pere.url)).length === 2, "the next event");
});

browserTest(
  "an event that can't be read can't be pushed again: there is no form, which would push to everybody",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await startWith(), (service) => service.stop());
    const token = await issueToken(
      { secret: SECRET, now: Date.now },
      { sub: "office", push: ["*"], feed: [], days: 1 },
    );
    const headers = { Authorization: `Bearer ${token}` };
    using tab = new Tab();
    await tab.view.navigate("about:blank");
    await tab.view.navigate(`${pere.url}/?token=${token}#/orders/push/none-1`);
    await tab.state("live");
    await tab.says("main .trouble", "can't be pushed again");
    // The form is not there: it would push to everybody.
    expect(await tab.read<boolean>("document.querySelector('.push .send') === null")).toBe(true);
    expect((await ask(`${pere.url}/channels`, { headers })).body.channels).toEqual([]);
  },
);
