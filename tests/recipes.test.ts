/**
 * The recipes in docs/recipes/ work: the command of each runs as the recipe shows it, against a real service with real devices.
 */
import { afterEach, expect, test } from "bun:test";
import { chmodSync } from "node:fs";
import { join } from "node:path";
import { Deferred, listen, type Listener, type ListenOptions } from "../clients/sdk/index.ts";
import { readRanges } from "../engine/addresses.ts";
import type { Service } from "../index.ts";
import { blocksOf, commandsOf, run, type Running, textOf, workplace } from "./support/documents.ts";
import { ask, start, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

const endings: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

async function service(): Promise<Service> {
  const started = await start({ hooksAllowed: readRanges("127.0.0.0/8") });
  endings.push(() => started.stop());
  return started;
}

function device(url: string, channel: string, name: string, onEvent: ListenOptions["onEvent"]): Listener {
  const listener = listen({ url, channels: [channel], device: name, onEvent });
  endings.push(() => listener.close());
  return listener;
}

const enrol = (url: string, channel: string, name: string) =>
  ask(`${url}/devices/${channel}/${name}`, { method: "PUT" });

/** Runs the recipe's command that has this in it, with these parts replaced. */
async function cook(recipe: string, part: string, changes: Readonly<Record<string, string>>, folder = workplace()) {
  const blocks = blocksOf(await textOf(`docs/recipes/${recipe}.md`));
  let command = blocks
    .filter(({ language }) => language === "sh")
    .flatMap(commandsOf)
    .find((one) => one.includes(part))!;
  for (const [from, to] of Object.entries(changes)) {
    expect(command).toContain(from);
    command = command.replace(from, to);
  }
  const running: Running = run(command, folder);
  endings.push(() => running.child.kill("SIGKILL"));
  return running;
}

const said = (running: Running, text: string) =>
  until(
    () => running.output.text.includes(text),
    () => `"${text}" in ${running.output.text}`,
    180_000,
  );

test("an order is printed at each till, and pushed again to one that failed and to one that was off", async () => {
  const { url } = await service();
  const printed: string[] = [];
  let hasPaper = false;
  device(url, "orders", "till-1", () => {
    if (!hasPaper) throw new Error("no paper");
    printed.push("till-1");
  });
  const folder = workplace();
  await Bun.write(join(folder, "print-order"), "#!/bin/sh\ntee -a printed\necho >>printed\n");
  chmodSync(join(folder, "print-order"), 0o755);
  await cook("print-orders", "pere.sh", { "http://127.0.0.1:4567": url }, folder);
  await enrol(url, "orders", "till-8");
  await until(async () => {
    const { devices } = (await ask(`${url}/devices/orders`)).body;
    return devices.length === 3 && devices.filter((one: { connected: boolean }) => one.connected).length === 2;
  }, "the tills");
  const shop = await cook("print-orders", "print-orders.ts", { "http://127.0.0.1:4567": url, " 60": " 3" });
  await said(shop, "not printed at ");
  hasPaper = true;
  device(url, "orders", "till-8", () => void printed.push("till-8"));
  expect(await shop.ended()).toBe(0);
  expect(shop.output.text).toContain("all tills have printed it");
  expect(printed).toContain("till-1");
  expect(printed).toContain("till-8");
  // A till that printed it in time is not asked again.
  const again = shop.output.text.match(/^not printed at .*till-7/gm)?.length ?? 0;
  const lines = (await Bun.file(join(folder, "printed")).text()).trim().split("\n");
  expect(lines).toEqual(Array(1 + again).fill('{"number": 4711}'));
});

test("a configuration is pushed to kiosks that lack it, once, and to one that is added later", async () => {
  const { url } = await service();
  const folder = workplace();
  await Bun.write(join(folder, "configuration.json"), '{"version": 12, "opens": "08:00"}');
  const configure = async (): Promise<string> => {
    const running = await cook("configure-kiosks", ".ts", { "http://127.0.0.1:4567": url }, folder);
    expect([await running.ended(), running.output.text]).toEqual([0, expect.any(String)]);
    return running.output.text;
  };
  const got: string[] = [];
  const kiosk = (name: string) =>
    device(url, "kiosks", name, ({ data }) => void got.push(`${name} ${JSON.stringify(data)}`));
  kiosk("kiosk-1");
  await enrol(url, "kiosks", "kiosk-2");
  await until(async () => (await ask(`${url}/devices/kiosks`)).body.devices.length === 2, "the kiosks");
  expect(await configure()).toContain("pushed to 2 of 2");
  await until(() => got.length === 1, "the configuration");
  // One has it, the other will get it.
  expect(await configure()).toContain("pushed to 0 of 2");
  kiosk("kiosk-2");
  await enrol(url, "kiosks", "kiosk-3");
  expect(await configure()).toContain("kiosk-3: lacks it\nversion 12 pushed to 1 of 3");
  kiosk("kiosk-3");
  await until(() => got.length === 3, "all configurations");
  expect(got.sort()).toEqual([1, 2, 3].map((n) => `kiosk-${n} {"version":12,"opens":"08:00"}`));
});

test("a configuration that is pushed every night supersedes the older one, and a kiosk starts with the newest", async () => {
  const { url } = await service();
  const folder = workplace();
  const configure = async (version: number): Promise<string> => {
    await Bun.write(join(folder, "configuration.json"), `{"version": ${version}}`);
    const running = await cook("nightly-configuration", ".ts", { "http://127.0.0.1:4567": url }, folder);
    expect([await running.ended(), running.output.text]).toEqual([0, expect.any(String)]);
    return running.output.text;
  };
  const got: string[] = [];
  let isInUse = true;
  const kiosk = (name: string) => {
    const listener = listen<{ version: number }>({
      ...{ url, channels: "kiosks", device: name, since: "latest" },
      onEvent({ data, round = 1 }) {
        if (isInUse) throw new Deferred(1);
        got.push(`${name} ${data.version} ${round}`);
      },
    });
    endings.push(() => listener.close());
    return listener;
  };
  const first = kiosk("kiosk-1");
  await enrol(url, "kiosks", "kiosk-2");
  await until(async () => (await ask(`${url}/devices/kiosks`)).body.devices.length === 2, "the kiosks");
  expect(await configure(12)).toMatch(/^pushed to 2 kiosks, 1 of them connected\nagain at 20/);
  const states = async () => (await ask(`${url}/events/kiosks`)).body.events as { receipts: Record<string, number> }[];
  await until(async () => (await states())[0]!.receipts.deferred === 1, "a deferral");
  isInUse = false;
  await until(() => got.length === 1, "the configuration");
  await configure(13);
  await until(() => got.length === 2, "the next configuration");
  await until(async () => (await states())[1]!.receipts.done === 1, "its receipt");
  expect((await states()).map(({ receipts }) => [receipts.done, receipts.withdrawn])).toEqual([
    [1, 1],
    [1, 0],
  ]);
  // The other one was off, and this one starts again.
  await first.close();
  kiosk("kiosk-2");
  kiosk("kiosk-1");
  await until(() => got.length === 4, "the newest, at each start");
  expect(got).toEqual([
    expect.stringMatching(/^kiosk-1 12 [23]$/),
    "kiosk-1 13 1",
    ...[expect.stringMatching(/^kiosk-[12] 13 1$/), expect.stringMatching(/^kiosk-[12] 13 1$/)],
  ]);
  const { scheduled } = (await ask(`${url}/scheduled/kiosks`)).body as { scheduled: { id: string; tz: string }[] };
  expect(scheduled).toMatchObject([{ every: "0 3 * * *", tz: "Europe/Rome" }]);
  const nightly = (await ask(`${url}/scheduled/kiosks/${scheduled[0]!.id}`)).body;
  expect(nightly).toMatchObject({ data: { version: 13 }, options: { key: "configuration", attempts: "5" } });
});

test("an unanswered alarm is escalated once, and an answered one is not", async () => {
  const { url } = await service();
  for (const name of ["guard-1", "guard-2"]) await enrol(url, "alarms", name);
  const onCall: unknown[] = [];
  device(url, "on-call", "doctor", ({ data }) => void onCall.push(data));
  const port = String(lastingPort());
  const receiver = await cook("escalate-alarm", "escalate.ts", { "http://127.0.0.1:4567": url, " 8080": ` ${port}` });
  await said(receiver, "go to on-call");
  // The hook is there; a call of anybody else is refused.
  const forged = await fetch(`http://127.0.0.1:${port}`, { method: "POST", body: "{}" });
  expect(forged.status).toBe(401);
  const alarm = (data: object, deadline: number, to = "") =>
    ask(`${url}/push/alarms?type=fire&deadline=${deadline}${to}`, { body: data });
  const answered = (await alarm({ door: 1 }, 60, "&to=guard-1")).body.id;
  await ask(`${url}/feedback/alarms`, { body: { event: answered, device: "guard-1", status: "done" } });
  const { id } = (await alarm({ door: 3 }, 1)).body;
  await until(() => onCall.length > 0, "the escalation");
  expect(onCall).toEqual([{ escalated: id, alarm: { door: 3 } }]);
  expect((await ask(`${url}/events/on-call`)).body.events).toHaveLength(1);
});

test("an approval is requested from one phone, and the program exits with its answer", async () => {
  const { url } = await service();
  // What the person types.
  const person = await cook("approve", "answer-approvals.ts", {
    "http://127.0.0.1:4567": url,
    "bun ": "printf 'y fine\\nperhaps\\nNo too much\\n' | bun ",
  });
  await enrol(url, "approvals", "phone-2");
  await until(async () => {
    const { devices } = (await ask(`${url}/devices/approvals`)).body;
    return devices.some((one: { device: string; connected: boolean }) => one.device === "phone-1" && one.connected);
  }, "the person");
  const approve = async (changes: Readonly<Record<string, string>> = {}): Promise<[number, string]> => {
    const running = await cook("approve", "Refund", { "http://127.0.0.1:4567": url, ...changes });
    return [await running.ended(), running.output.text.trim()];
  };
  expect(await approve()).toEqual([0, 'approved: "fine"']);
  expect(await approve()).toEqual([1, expect.stringMatching(/^denied: .*too much/)]);
  expect(await approve({ "phone-1": "phone-2", " 120 http": " 1 http" })).toEqual([2, "no answer"]);
  const shown = "Refund 120 EUR for order 4711? (y/n, and a note)\n";
  expect(person.output.text).toBe(shown.repeat(3)); // The second question twice: "perhaps" is no answer.
  // A question that nobody can answer any more stays open.
  expect(await approve({ " 120 http": " 1 http" })).toEqual([2, "no answer"]);
  expect(await person.ended()).toBe(0);
});
