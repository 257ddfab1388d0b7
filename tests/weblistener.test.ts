/**
 * The device page in a real Chromium, as a person has it: events and answers, who the device is, tokens, and what is refused. Each test has a service of
 * its own. What a bad network does to it is in `weblistener-trouble.test.ts`.
 */
import { afterAll, expect } from "bun:test";
import { join } from "node:path";
import { BadProxy } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Page, row } from "./support/device-page.ts";
import { issueToken } from "../engine/auth/issue.ts";
import { ask, push, SECRET, spawn, start, startWith, temporary, until } from "./support/harness.ts";

afterAll(closeBrowser);

browserTest(
  "events appear as names and values in the order of their arrival; Done and what could not be done arrive in the rows",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    using page = await new Page().open(pere.url, "device=till-1");
    expect(await page.text("#device-name")).toBe("till-1");
    expect(await page.text("#channel-name")).toBe("orders");

    const plain = await push(pere.url, "orders", "two coffees");
    const typed = (
      await ask(`${pere.url}/push/orders?type=order.created`, {
        body: '{"table":7,"number":12345678901234567890,"total":12.50}',
      })
    ).body.id as string;
    await page.shows(plain, "received");
    const card = await page.shows(typed, "received");
    // Numbers as the publisher wrote them, beyond what a JavaScript number can hold.
    expect(card.text.split(/\n+/)).toEqual(["Table", "7", "Number", "12345678901234567890", "Total", "12.50"]);
    expect(card.data).toBe('{\n  "table": 7,\n  "number": 12345678901234567890,\n  "total": 12.50\n}');
    expect((await page.cards()).map(({ title, buttons }) => [title, buttons])).toEqual([
      ["two coffees", true],
      ["Order created", true],
    ]);
    // That it is here is told before anybody clicks.
    await row(pere.url, plain, "till-1", "received");
    await row(pere.url, typed, "till-1", "received");
    await page.toDo(2);
    await page.picture("open");

    await page.click(typed, "button.done");
    expect(await row(pere.url, typed, "till-1", "done")).toMatchObject({ detail: null, late: false });
    await page.fail(plain, "no milk");
    expect(await row(pere.url, plain, "till-1", "failed")).toMatchObject({ detail: "no milk" });
    expect(await page.shows(typed, "done")).toMatchObject({ buttons: false });
    expect(await page.shows(plain, "failed")).toMatchObject({ buttons: false });
    await page.toDo(0);
    // The card is gone; who works by keyboard stands at the next one, or at the heading.
    expect(await page.read<string>("document.activeElement.id")).toBe("to-do");
    await page.picture("answered");
    expect(page.complaints).toEqual([]);
  },
);

browserTest("with auto=1 it answers automatically; without a name it makes one and keeps it", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page(390, 780).open(pere.url, "auto=1");
  const device = await page.text("#device-name");
  expect(device).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  const id = await push(pere.url, "orders", { table: 7 });
  await row(pere.url, id, device, "done");
  await page.shows(id, "done");
  await page.picture("phone");
  await page.view.reload();
  await page.state("connected");
  expect(await page.text("#device-name")).toBe(device);
  // The form changes who it is.
  await page.read(
    "document.querySelector('[name=device]').value = 'truck 3', document.querySelector('form button').click()",
  );
  expect(await page.text("#device-name")).toBe(device);
  await page.read(
    "document.querySelector('[name=device]').value = 'truck-3', document.querySelector('form button').click()",
  );
  await until(async () => (await page.text("#device-name").catch(() => "")) === "truck-3", "the other name");
});

browserTest("markup in an event is text", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page().open(pere.url, "device=till-1");
  const markup =
    "<img src=x onerror=\"document.title = 'broken'\"><script>document.title = 'broken'</script></pre><b>bold</b>";
  const id = await push(pere.url, "orders", markup);
  const inObject = await push(pere.url, "orders", { [markup]: markup });
  expect((await page.shows(id, "received")).data).toBe(JSON.stringify(markup));
  expect((await page.shows(inObject, "received")).data).toBe(JSON.stringify({ [markup]: markup }, null, 2));
  expect(await page.read<number>("document.querySelectorAll('#events :is(img, script, b)').length")).toBe(0);
  expect(await page.read<string>("document.title")).toBe("(2) orders – PERE device");
});

browserTest(
  "it survives a restart of the service, and receipts given meanwhile arrive, also after a reload",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const db = join(temporary(), "pere.db");
    let pere = await spawn({ PERE_DB: db });
    cleanup.defer(async () => void (await pere.end("SIGKILL")));
    const { port } = new URL(pere.url);
    using page = await new Page().open(pere.url, "device=till-1");
    const [first, second, third] = [
      await push(pere.url, "orders", 1),
      await push(pere.url, "orders", 2),
      await push(pere.url, "orders", 3),
    ];
    for (const id of [first, second, third]) {
      await page.shows(id, "received");
      await row(pere.url, id, "till-1", "received");
    }

    await pere.end("SIGKILL");
    await page.state("offline");
    await page.click(first, "button.done");
    await page.fail(second);
    await page.shows(first, "queued: done");
    await page.shows(second, "queued: failed");
    await page.toDo(1, 2);
    await page.picture("offline");

    pere = await spawn({ PERE_DB: db, PORT: port });
    await page.state("connected");
    await row(pere.url, first, "till-1", "done");
    await row(pere.url, second, "till-1", "failed");
    await page.shows(first, "done");
    await page.shows(second, "failed");
    // The third is owed still, and was given again; it is there once. New ones come too.
    const fourth = await push(pere.url, "orders", 4);
    await page.shows(fourth, "received");
    expect((await page.cards()).map(({ id }) => id)).toEqual([third, fourth, second, first]);
    expect(page.complaints.filter((complaint) => !complaint.includes("ERR_CONNECTION"))).toEqual([]);

    // After a reload only what is owed comes back.
    await page.view.reload();
    await page.state("connected");
    await page.shows(fourth, "received");
    await page.shows(third, "received");
    expect((await page.cards()).map(({ id }) => id)).toEqual([third, fourth]);
  },
);

browserTest("an unsent receipt survives a reload, and its event is not shown again", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page().open(pere.url, "device=till-1");
  const finished = await push(pere.url, "orders", "finished before the reload");
  const owed = await push(pere.url, "orders", "owed");
  for (const id of [finished, owed]) await row(pere.url, id, "till-1", "received");
  await page.shows(finished, "received");

  // Receipts don't get through, everything else does.
  await page.view.cdp("Network.enable");
  await page.view.cdp("Network.setBlockedURLs", { urls: ["*/feedback/*"] });
  await page.click(finished, "button.done");
  await page.shows(finished, "queued: done");
  await page.view.reload();
  await page.state("connected");
  // The service sends both again, in order: once the second is here, the first was not shown.
  await page.shows(owed, "queued: received");
  expect((await page.cards()).map(({ id }) => id)).toEqual([owed]);
  await page.toDo(1, 1);
  expect((await ask(`${pere.url}/events/orders/${finished}`)).body.receipts).toMatchObject({ received: 1, done: 0 });

  await page.view.cdp("Network.setBlockedURLs", { urls: [] });
  await page.read("dispatchEvent(new Event('online'))");
  await row(pere.url, finished, "till-1", "done");
  await page.shows(owed, "received");
  await page.toDo(1);
});

browserTest("a rejected receipt is reported", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page().open(pere.url, "device=till-1");
  const id = await push(pere.url, "orders", "soon nobody's");
  await row(pere.url, id, "till-1", "received");
  await ask(`${pere.url}/devices/orders/till-1`, { method: "DELETE" });
  await page.click(id, "button.done");
  const refused = await until(
    async () => (await page.cards()).find(({ receipt }) => receipt.startsWith("not recorded: ")),
    "a rejection",
  );
  expect(refused).toMatchObject({ id, buttons: false });
  await page.toDo(0);
});

browserTest("events that were lost while the device was away are reported, until dismissed", async () => {
  await using cleanup = new AsyncDisposableStack();
  const options = { limits: { keptEvents: 3, trimMs: 20 } };
  const pere = cleanup.adopt(await start(options), (service) => service.stop());
  using page = await new Page().open(pere.url, "device=till-1");
  await page.view.navigate("about:blank");
  const ids: string[] = [];
  for (let number = 1; number <= 9; number++) ids.push(await push(pere.url, "orders", number));
  await until(async () => (await ask(`${pere.url}/events/orders/${ids[5]}`)).status === 404, "the sixth to be dropped");
  await page.open(pere.url, "device=till-1");
  await page.shows(ids[8]!, "received");
  expect((await page.cards()).map(({ id }) => id)).toEqual([ids[6]!, ids[7]!, ids[8]!]);
  expect(await page.text("#notices .notice span")).toStartWith("Some messages of orders never arrived here (after ");
  expect(await page.text("#notices .notice span")).toContain(`, before ${ids[6]})`);
  await page.picture("gap");
  await page.view.click("#notices button");
  expect(await page.text("#notices")).toBe("");
});

browserTest("200 events are open at a time; of answered ones the newest twenty are listed", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page().open(pere.url, "device=till-1");
  const unanswered = await push(pere.url, "orders", "never answered");
  const answered = await push(pere.url, "orders", "answered");
  await page.shows(answered, "received");
  await page.click(answered, "button.done");
  await row(pere.url, answered, "till-1", "done");
  const many = Array.from({ length: 199 }, (_, number) => JSON.stringify(number)).join("\n");
  const pushed = await ask(`${pere.url}/push/orders`, { body: many, type: "application/x-ndjson" });
  await page.shows(pushed.body.events.at(-1).id, "received");
  const ids = (await page.cards()).map(({ id }) => id);
  expect(ids).toHaveLength(201);
  expect([ids[0], ids.at(-1)]).toEqual([unanswered, answered]);
  await page.toDo(200);
});

/** A token for a device that may follow orders. */
const till = (sub: string, feed: readonly string[] = ["orders"], days = 1): Promise<string> =>
  issueToken({ secret: SECRET }, { sub, push: [], feed, days });

/** A publisher's headers, and the rows of an event as he reads them. */
const office = async (): Promise<Record<string, string>> => ({
  Authorization: `Bearer ${await issueToken({ secret: SECRET }, { sub: "office", push: ["*"], feed: ["*"], days: 1 })}`,
});
async function rowsOf(url: string, id: string): Promise<string[]> {
  const { receipts } = (await ask(`${url}/events/orders/${id}/receipts`, { headers: await office() })).body;
  return (receipts as { device: string; status: string }[]).map(({ device, status }) => `${device} ${status}`);
}

browserTest("a token in the URL is removed, names the device, and survives a reload", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith(), (service) => service.stop());
  const token = await till("till-7");
  using page = new Page();
  await page.view.navigate(`${pere.url}/weblistener.html?token=${token}&device=somebody`);
  await page.becomes("till-7", "/weblistener.html?device=till-7");
  const { id } = (await ask(`${pere.url}/push/orders`, { body: 1, headers: await office() })).body;
  await page.shows(id, "received");
  await page.click(id, "button.done");
  await until(async () => (await rowsOf(pere.url, id))[0] === "till-7 done", "the receipt");
  await page.view.reload();
  await page.becomes("till-7", "/weblistener.html?device=till-7");
  expect(await page.read<string>("document.documentElement.outerHTML + document.cookie")).not.toContain(token);
  expect(await page.read<number>("history.length")).toBeLessThan(4);
  expect(page.complaints).toEqual([]);
  const devices = (await ask(`${pere.url}/devices/orders`, { headers: await office() })).body.devices;
  expect((devices as { device: string }[]).map(({ device }) => device)).toEqual(["till-7"]);
});

browserTest("the link with all rights sets a cookie that no script can read, and the page works with it", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith({ access: "own" }), (service) => service.stop());
  using page = new Page();
  const link = (await pere.link())!;
  await page.view.navigate(pere.url + link);
  expect(await page.read<string>("location.pathname + location.search")).toBe("/");
  await page.view.navigate(`${pere.url}/weblistener.html`);
  await page.state("connected");
  // Whose browser it is makes no device's name.
  const device = await page.text("#device-name");
  expect(device).toMatch(/^[0-9a-f-]{36}$/);
  const devices = await page.read<string>("fetch('/devices/orders').then((answer) => answer.text())");
  expect((JSON.parse(devices).devices as { device: string }[]).map(({ device }) => device)).toEqual([device]);
  expect(await page.read<string>("document.cookie")).toBe("");
  const pushed = await page.read<number>(
    "fetch('/push/orders', { method: 'POST', body: '1', headers: { 'Content-Type': 'application/json' } }).then(({ status }) => status)",
  );
  expect(pushed).toBe(201);
  await until(async () => (await page.cards()).some(({ receipt }) => receipt === "received"), "its card");
  expect(page.complaints).toEqual([]);
});

browserTest("without a token, or with an insufficient one, the page says why and stops retrying", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith({}, { limits: { beatMs: 150 } }), (service) => service.stop());
  using page = new Page();
  // Another test's, for the same host: a cookie knows no port.
  await page.view.navigate("about:blank");
  await page.view.cdp("Network.clearBrowserCookies");
  const why = (): Promise<string> => page.text("#state-why").catch(() => "");
  const asked = (): Promise<number> =>
    page.read<number>("performance.getEntriesByType('resource').filter(({ name }) => name.includes('/feed/')).length");
  for (const [query, words] of [
    ["", "a token is needed here"],
    [`?token=${await till("till-7", ["other"])}`, "this token gives no right to feed on orders"],
    ["?token=x", "token: it is not a signed JWT"],
  ] as const) {
    await page.view.navigate("about:blank");
    await page.view.navigate(`${pere.url}/weblistener.html${query}`);
    await until(async () => (await why()).startsWith(`${words}. `), words);
    expect(await page.read<string>("document.querySelector('#state').dataset.state")).toBe("offline");
    const before = await asked();
    await Bun.sleep(1_500); // The first pauses would be shorter.
    expect([before, await asked()]).toEqual([1, 1]);
  }
  // One that ends while it is open is told, too.
  await page.view.navigate(
    `${pere.url}/weblistener.html?token=${await till("till-7", ["orders"], 8 / 86_400)}&device=till-7`,
  );
  await page.state("connected");
  await until(async () => (await why()).startsWith("token: it has expired. "), "the end");
});

browserTest(
  "one device's queued receipts are not sent with another device's token, and are kept until it returns",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await startWith(), (service) => service.stop());
    const proxy = cleanup.adopt(await BadProxy.to(pere.url), (proxy) => proxy.stop());
    using page = new Page();
    const open = async (device: string): Promise<void> => {
      await page.view.navigate(`${proxy.url}/weblistener.html?token=${await till(device)}&device=${device}`);
      await page.becomes(device, `/weblistener.html?device=${device}`);
    };
    await open("till-7");
    const { id } = (await ask(`${pere.url}/push/orders`, { body: 1, headers: await office() })).body;
    await page.shows(id, "received");
    await until(async () => (await rowsOf(pere.url, id))[0] === "till-7 received", "the first receipt");
    proxy.weather = ({ errand }) => (errand === "receipts" ? { status: 503 } : "pass");
    await page.click(id, "button.done");
    await page.shows(id, "queued: done");
    await page.view.navigate("about:blank");
    proxy.weather = () => "pass";
    // A page that the service does not know gives nothing, whoever it takes itself for.
    await page.view.navigate(`${proxy.url}/weblistener.html?channel=other&token=${await till("till-8")}`);
    await until(async () => (await page.text("#state-why").catch(() => "")).includes("no right"), "its refusal");
    expect(await page.text("#device-name")).toBe("till-8");
    // Nor does one whose browser has another one's cookie: it is that one, from then on.
    await page.read(`void (sessionStorage.clear(), (document.cookie = "pere_token=${await till("till-8")}"))`);
    await page.view.navigate(`${proxy.url}/weblistener.html?device=till-7`);
    await page.becomes("till-8", "/weblistener.html?device=till-8");
    await page.view.cdp("Network.clearBrowserCookies");
    expect(await page.read<string>("JSON.stringify({ ...localStorage })")).toContain(id as string);
    await open("till-8");
    const other = (await ask(`${pere.url}/push/orders`, { body: 2, headers: await office() })).body.id as string;
    await until(async () => (await rowsOf(pere.url, other)).includes("till-8 received"), "the other's receipt");
    expect(await rowsOf(pere.url, id)).toEqual(["till-7 received"]);
    await open("till-7");
    await until(async () => (await rowsOf(pere.url, id))[0] === "till-7 done", "the queued receipt");
  },
);
