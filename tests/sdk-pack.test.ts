/**
 * The SDK's package as people get it: made, looked at by `publint`, installed in an empty folder, and used there from Node and from TypeScript.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { start, temporary } from "./support/harness.ts";

const root = join(import.meta.dir, "..");
const node = Bun.which("node");
const skipped = node === null && process.env.CI !== "true";

/** Runs a program to its end. @returns its exit code, and what it printed */
async function run(command: readonly string[], cwd: string): Promise<{ code: number; said: string }> {
  const child = Bun.spawn([...command], { cwd, env: process.env, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const said = (await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])).join("");
  return { code: await child.exited, said };
}

const CONSUMER = `
import { listen, publish, receipts } from "pere-client";
const url = process.argv[2];
const words = receipts({ url, channel: "orders" });
await words.ready;
const till = listen({ url, channels: "orders", device: "till-7", onEvent: ({ data }) => ({ printed: data.table }) });
for await (const { state } of till.status()) if (state === "connected") break;
const { complete } = await publish(url, "orders", { table: 7 }, { wait: 10 });
console.log(complete);
for await (const word of words) {
  console.log(word.kind, word.status ?? "", JSON.stringify(word.detail ?? null));
  if (word.kind === "complete") break;
}
await till.close();
`;

const TYPED = `
import { listen, type Listener, type PushedEvent, type Status } from "pere-client";
interface Order { table: number }
export const till: Listener = listen<Order>({
  url: "http://127.0.0.1:4567",
  channels: ["orders"],
  onEvent: ({ data }: PushedEvent<Order>, { working }) => { working({ at: data.table }); },
});
export const state: Status["state"] = till.status().get().state;
// @ts-expect-error: it has no such state
export const wrong: "asleep" = till.status().get().state;
`;

test.skipIf(skipped)(
  skipped
    ? "the package (skipped: no node is installed)"
    : "the package installs in an empty folder and works in Node and in TypeScript",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const folder = temporary();
    const packed = await run([process.execPath, "run", "--silent", "pack", join(folder, "made")], root);
    expect(packed).toEqual({ code: 0, said: expect.stringMatching(/pere-client-\d+\.\d+\.\d+\.tgz\n$/) });
    const file = packed.said.trim().split("\n").at(-1)!;

    const shop = join(folder, "shop");
    await Bun.write(join(shop, "package.json"), '{"name":"shop","type":"module","private":true}');
    const installed = await run([process.execPath, "add", file], shop);
    expect(installed).toMatchObject({ code: 0 });
    const contents = [...new Bun.Glob("**/*").scanSync(join(shop, "node_modules", "pere-client"))];
    expect(contents.sort()).toEqual(["LICENSE", "README.md", "package.json", "pere.d.ts", "pere.js"]);

    await Bun.write(join(shop, "consumer.mjs"), CONSUMER);
    const used = await run([node ?? "node", "consumer.mjs", pere.url], shop);
    expect(used).toEqual({
      code: 0,
      said: 'true\nreceipt received null\nreceipt done {"printed":7}\ncomplete  null\n',
    });

    await Bun.write(join(shop, "typed.ts"), TYPED);
    const tsc = [process.execPath, join(root, "node_modules", ".bin", "tsc"), "--noEmit", "--strict", "--types", ""];
    const checked = await run(
      [...tsc, "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom", "typed.ts"],
      shop,
    );
    expect(checked).toEqual({ code: 0, said: "" });
  },
  180_000,
);
