/**
 * The console's page of hooks: one is added, its secret shown once, tested, changed and deleted; a call that failed shows its attempts. And an empty
 * channel is deleted.
 */
import { afterAll, expect } from "bun:test";
import { Webhook } from "standardwebhooks";
import { readRanges } from "../engine/addresses.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Tab } from "./support/console-tab.ts";
import { ask, give, push, startWith, until } from "./support/harness.ts";

afterAll(closeBrowser);

const PHONE = [390, 844] as const;

interface Call {
  readonly body: string;
  readonly headers: Record<string, string>;
}

/** A receiver that answers as it is told to. */
function receive() {
  const calls: Call[] = [];
  const answer: { status: number; body: string | null } = { status: 200, body: "thank you" };
  const server = Bun.serve({
    port: 0,
    async fetch(request) {
      calls.push({ body: await request.text(), headers: Object.fromEntries(request.headers) });
      return new Response(answer.body, { status: answer.status });
    },
  });
  return { calls, answer, server, url: `http://127.0.0.1:${server.port}/pere` };
}

const startOpen = () => startWith({ access: "open", hooksAllowed: readRanges("127.0.0.0/8") });

/** The hooks of the channel as the service lists them. */
const hooksOf = async (url: string): Promise<{ name: string; url: string; on: string[] }[]> =>
  (await ask(`${url}/hooks/orders`)).body.hooks;

browserTest("a hook is added by keyboard, its secret shown once, tested, changed and deleted", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startOpen(), (service) => service.stop());
  const receiver = receive();
  cleanup.defer(() => receiver.server.stop(true));
  using tab = await new Tab(...PHONE).open(pere.url, "/orders/hooks");
  await tab.says("main", "No hooks");
  await tab.choose("Add a hook");
  await until(() => tab.read<boolean>("document.activeElement.name === 'name'"), "the focus in the name's field");
  await tab.view.type("backoffice");
  await tab.view.press("Tab");
  await tab.view.type("not a url");
  await tab.view.press("Enter");
  await tab.says("#hook-url-fault", "Must be a URL that begins with http:// or https://.");
  await tab.fill("[name=url]", receiver.url);
  // To the first kind of call, which is added to the two that are chosen.
  await tab.view.press("Tab");
  await tab.view.press("Space");
  await tab.choose("Save");
  await tab.says("main", "The hook backoffice was saved");
  const secret = await tab.text("[aria-label=Secret]");
  expect(secret).toStartWith("whsec_");
  await tab.choose("I have it");
  await tab.says("article.hook", "called for receipt, complete, missing");
  expect(await tab.text("main")).not.toContain(secret);

  await tab.choose("Make a test call");
  await tab.says("article.hook .well", "It answered with status 200 after");
  expect(await tab.text("[aria-label='Body of the answer']")).toBe("thank you");
  // It was signed with the secret that was shown.
  const [{ body, headers }] = receiver.calls as [Call];
  expect(new Webhook(secret).verify(body, headers)).toMatchObject({ type: "pere.test" });
  Object.assign(receiver.answer, { status: 503, body: "closed <b>today</b>" });
  await tab.choose("Make a test call");
  await tab.says("article.hook .trouble", "It answered with status 503 after");
  expect(await tab.text("[aria-label='Body of the answer']")).toBe("closed <b>today</b>");
  await receiver.server.stop(true);
  await tab.choose("Make a test call");
  await tab.says("article.hook .trouble", "It did not answer");

  await tab.choose("Change");
  await tab.says("form.hook", "backoffice");
  await tab.choose("receipt for each receipt of a device");
  await tab.choose("Save");
  await tab.says("article.hook", "called for complete, missing");
  expect((await hooksOf(pere.url)).map(({ name, on }) => [name, on])).toEqual([
    ["backoffice", ["complete", "missing"]],
  ]);

  await tab.choose("Delete");
  expect(await tab.says("dialog", "Delete the hook backoffice?")).toContain(
    `PERE no longer calls ${receiver.url} for orders`,
  );
  await tab.choose("Cancel", "dialog");
  expect(await hooksOf(pere.url)).toHaveLength(1);
  await tab.choose("Delete");
  await tab.choose("Delete backoffice", "dialog");
  await tab.says(".notices", "The hook backoffice was deleted.");
  await tab.says("main", "No hooks");
  expect(await hooksOf(pere.url)).toEqual([]);
  expect(tab.complaints.filter((what) => !what.includes("400"))).toEqual([]);
});

browserTest("a call that failed shows each attempt with its status, time and body, and is sent again", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startOpen(), (service) => service.stop());
  const receiver = receive();
  cleanup.defer(() => receiver.server.stop(true));
  Object.assign(receiver.answer, { status: 500, body: "no table <img src=x>" });
  await ask(`${pere.url}/hooks/orders/backoffice`, { method: "PUT", body: { url: receiver.url, on: ["complete"] } });
  const id = await push(pere.url, "orders", { table: 7 }, "?to=till-1");
  await give(pere.url, "orders", id, "till-1", "done");
  using tab = await new Tab(...PHONE).open(pere.url, "/orders/hooks");
  await tab.says("article.hook", "No call has got through yet.");
  await tab.click(".calls summary");
  const said = await tab.says(".calls li li", "status 500, after");
  expect(said).toMatch(/^\d\d:\d\d:\d\d: status 500, after \d+ ms/);
  expect(await tab.text(".calls li li pre")).toBe("no table <img src=x>");
  expect(await tab.text("[aria-label='Body of the call']")).toContain(id);
  Object.assign(receiver.answer, { status: 204, body: null });
  await tab.choose("Send it again now");
  await tab.says(".notices", "1 call of backoffice will be sent again now.");
  await tab.says("article.hook", "Last call that got through");
  await tab.says("article.hook", "No failed calls.");
  const ids = new Set(receiver.calls.map(({ headers }) => headers["webhook-id"]));
  expect(ids.size).toBe(1);
  expect(tab.complaints).toEqual([]);
});

browserTest("a channel is deleted only when nothing is left in it, and the refusal says what is left", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startOpen(), (service) => service.stop());
  await ask(`${pere.url}/devices/orders/till-1`, { method: "PUT" });
  // An event that has expired is nothing any more.
  await push(pere.url, "orders", 1, "?ttl=0.001");
  using tab = await new Tab(...PHONE).open(pere.url, "/orders/devices");
  await tab.choose("Delete orders");
  await tab.says("dialog", "Delete the channel orders?");
  await tab.choose("Delete it", "dialog");
  await tab.says("dialog .trouble", "Channel orders can't be deleted: it still has 1 device.");
  expect(await tab.read<string>("document.activeElement.textContent")).toBe("Delete it");
  await tab.view.press("Escape");
  await ask(`${pere.url}/devices/orders/till-1`, { method: "DELETE" });
  await tab.choose("Delete orders");
  await tab.choose("Delete it", "dialog");
  await tab.says(".notices", "The channel orders was deleted.");
  expect((await ask(`${pere.url}/channels`)).body.channels).toEqual([]);
});
