/**
 * What a stranger gets who generates a client from the OpenAPI document: `oazapfts` makes one of it as it is served, TypeScript at its strictest takes it
 * together with a program that knows nothing of PERE but the generated names, and the program runs through an event's life against the real service.
 *
 * The program's `@ts-expect-error` lines are half of the test: what the document forbids must not compile, so no type may have come out as `any`.
 */
import { expect, test } from "bun:test";
import { symlinkSync } from "node:fs";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { ask, SECRET, startWith, temporary } from "./support/harness.ts";

const PACKAGES = join(import.meta.dir, "..", "node_modules");
/** A generator and a compiler are started, and the machine may be busy. */
const LIMIT_MS = 120_000;

const PROGRAM = `
import * as pere from "./client.ts";

const [url, token] = process.argv.slice(2);
pere.defaults.baseUrl = url!;
pere.defaults.headers = { Authorization: \`Bearer \${token}\` };

const enrolled = await pere.enrolDevice("orders", "till-7");
if (enrolled.status !== 201) throw new Error("not enrolled: " + enrolled.status);

const pushed = await pere.push("orders", { order: "A-1001" }, { $type: "order.created", to: ["till-7", "till-8"], ttl: 60 });
if (pushed.status !== 201 || !("id" in pushed.data)) throw new Error("not pushed: " + pushed.status);
const { id, seq, audience }: { id: string; seq: number; audience: { addressed: number } } = pushed.data;
if (seq !== 1 || audience.addressed !== 2) throw new Error("addressed to others");

const feed = await pere.followEvents("orders", { device: "till-7", wait: 0 }, { headers: { Accept: "application/json" } });
if (feed.status !== 200) throw new Error("no feed");
const [event] = feed.data.events;
if (event?.id !== id || event.type !== "order.created") throw new Error("another event");

const given = await pere.giveReceipts("orders", [
  { event: id, device: "till-7", status: "done", detail: { printed: true } },
  { event: id, device: "nobody", status: "failed" },
]);
if (given.status !== 200 || given.data.recorded !== 1) throw new Error("not recorded");
const reason: string = given.data.rejected[0]!.reason;

const state = await pere.readEvent("orders", id);
if (state.status !== 200) throw new Error("not read");
const { done, pending }: { done: number; pending: number } = state.data.receipts;
const complete: boolean = state.data.complete;

const rows = await pere.listReceipts("orders", id, { status: ["done", "failed"], limit: 10 });
if (rows.status !== 200) throw new Error("no rows");
const deviceAt: string | null = rows.data.receipts[0]!.deviceAt;

const refused = await pere.push("orders", 1, { $type: "pere.mine" });
if (refused.status !== 422) throw new Error("not refused");
const { detail, errors }: pere.Problem = refused.data;

const followed = await pere.followReceipts("orders", { since: "earliest" }, { headers: { Accept: "application/json" } });
if (followed.status !== 200) throw new Error("no receipts");

console.log(JSON.stringify({
  ...{ id, reason, done, pending, complete, deviceAt, detail, path: errors?.[0]?.path },
  receipts: followed.data.events.map(({ device, status, late }) => [device, status, late]),
}));

/** What must not compile; it is never called. */
export async function wrong(): Promise<void> {
  // @ts-expect-error: there is no such word
  await pere.giveReceipts("orders", { event: id, status: "finished" });
  // @ts-expect-error: a receipt names its event
  await pere.giveReceipts("orders", { status: "done" });
  // @ts-expect-error: an option of another type
  await pere.push("orders", 1, { ttl: "60" });
  // @ts-expect-error: there is no such option
  await pere.push("orders", 1, { timeToLive: 60 });
  // @ts-expect-error: what may be absent must be looked at first
  state.data.deadline.length;
  // @ts-expect-error: what may be null too
  rows.data.receipts[0]!.at.length;
  // @ts-expect-error: one event's answer is not many events'
  pushed.data.events;
  // @ts-expect-error: a state that there is not
  await pere.listReceipts("orders", id, { status: ["open"] });
  // @ts-expect-error: a hook is called for what there is
  await pere.putHook("orders", "shop", { url: "https://shop.example/", on: ["everything"] });
  // Without \`on\`, it is called for everything.
  await pere.putHook("orders", "shop", { url: "https://shop.example/" });
  // @ts-expect-error: a problem is no event
  refused.data.id;
}
`;

/** Runs a program to its end. @returns its exit code, and all that it said */
async function run(command: readonly string[], cwd: string): Promise<{ code: number; said: string }> {
  const child = Bun.spawn([process.execPath, ...command], {
    cwd,
    env: process.env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [said, complained] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, said: said + complained };
}

test(
  "a client generated from the document compiles, pushes, follows, gives receipts and reads what became of the event",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await startWith(), (service) => service.stop());
    const folder = temporary();
    symlinkSync(PACKAGES, join(folder, "node_modules"));
    await Bun.write(join(folder, "openapi.json"), (await ask(`${pere.url}/swagger/json`)).text);
    await Bun.write(join(folder, "program.ts"), PROGRAM);

    const generated = await run([join(PACKAGES, ".bin", "oazapfts"), "openapi.json", "client.ts"], folder);
    expect(generated).toEqual({ code: 0, said: "" });
    const strict = ["--strict", "--noUncheckedIndexedAccess", "--noImplicitOverride", "--noUnusedLocals"];
    const language = ["--target", "esnext", "--module", "esnext", "--moduleResolution", "bundler"];
    const own = ["--noEmit", "--allowImportingTsExtensions", "--types", "bun-types"];
    const tsc = [join(PACKAGES, ".bin", "tsc"), "--ignoreConfig", "program.ts", ...strict, ...language, ...own];
    expect(await run(tsc, folder)).toEqual({ code: 0, said: "" });

    const claims = { sub: "till-7", push: ["orders"], feed: ["orders"], days: 1 };
    const { code, said } = await run(["program.ts", pere.url, await issueToken({ secret: SECRET }, claims)], folder);
    expect([code, said]).toEqual([0, expect.stringMatching(/^\{.*\}\n$/)]);
    const told = JSON.parse(said) as Record<string, unknown>;
    expect(told).toEqual({
      ...{ id: expect.stringMatching(/-1$/), done: 1, pending: 1, complete: false, deviceAt: null, path: "type" },
      ...{
        reason: expect.stringContaining("but the request is from till-7"),
        detail: "type: types that begin with pere. are reserved",
      },
      receipts: [["till-7", "done", false]],
    });
    // The service says the same to others.
    const office = await issueToken({ secret: SECRET }, { ...claims, sub: "office" });
    const { body } = await ask(`${pere.url}/events/orders/${String(told.id)}`, {
      headers: { Authorization: `Bearer ${office}` },
    });
    expect(body).toMatchObject({ data: { order: "A-1001" }, type: "order.created", receipts: { done: 1, pending: 1 } });
  },
  LIMIT_MS,
);
