/**
 * `clients/python/` as people install it: by pip into an empty virtual environment, with types that `mypy --strict` accepts.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import packageJson from "../package.json";
import { start, temporary } from "./support/harness.ts";

const SOURCE = join(import.meta.dir, "..", "clients", "python");
const LIMIT_MS = 240_000;
const folder = temporary();
const bin = join(folder, "venv", "bin");

/** Runs a program to its end. @returns its exit code and what it printed */
async function run(command: readonly string[], cwd = folder): Promise<{ code: number; said: string }> {
  const child = Bun.spawn([...command], { cwd, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const said = (await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])).join("");
  return { code: await child.exited, said };
}

/** Why nothing can be installed here; null: it can. */
let missing: string | null = null;

beforeAll(async () => {
  const python = Bun.which("python3");
  if (python === null) missing = "no python3 is installed";
  // A build leaves nothing in the sources.
  cpSync(SOURCE, join(folder, "python"), { recursive: true });
  for (const command of [
    [python ?? "python3", "-m", "venv", "venv"],
    [join(bin, "pip"), "install", "--quiet", "mypy==2.4.1"],
    [join(bin, "pip"), "install", "--quiet", "./python"],
  ]) {
    if (missing !== null) break;
    const { code, said } = await run(command);
    if (code !== 0) missing = `${command.slice(1).join(" ")} failed: ${said.trim().split("\n").at(-1)}`;
  }
  if (missing !== null && process.env.CI === "true") throw new Error(missing);
}, LIMIT_MS);

// Thousands of files: they take longer to go than a hook may by default.
afterAll(() => rm(folder, { recursive: true, force: true }), LIMIT_MS);

/** A test that needs the environment; where there is none it says why, and passes. */
const installedTest = (name: string, body: () => Promise<void>): void =>
  test(
    name,
    async () => {
      if (missing === null) return body();
      console.warn(`skipped: ${missing}`);
    },
    LIMIT_MS,
  );

const DEVICE = `
import sys, threading, pere

url, stop = sys.argv[1], threading.Event()
pushed = pere.publish(url, "orders", {"table": 6})
assert pushed["audience"]["addressed"] == 0

def handle(event: pere.Event) -> object:
    threading.Timer(0.2, stop.set).start()
    return {"printed": event.data["table"]}

def office() -> None:
    while pere.publish(url, "orders", {"table": 7})["audience"]["connected"] == 0:
        pass

threading.Thread(target=office, daemon=True).start()
pere.listen(url, "orders", "till-7", handle, stop=stop)
`;

test("its version and its licence are PERE's", async () => {
  const { project } = Bun.TOML.parse(await Bun.file(join(SOURCE, "pyproject.toml")).text()) as {
    project: { version: string; license: string };
  };
  expect(project).toMatchObject({ version: packageJson.version, license: packageJson.license });
});

installedTest("pip installs the package, and a program is a device with it", async () => {
  const pere = await start();
  try {
    await Bun.write(join(folder, "device.py"), DEVICE);
    expect(await run([join(bin, "python"), "device.py", pere.url])).toEqual({ code: 0, said: "" });
    const { events } = (await (await fetch(`${pere.url}/events/orders`)).json()) as {
      events: { data: { table: number }; receipts: { done: number } }[];
    };
    expect(events.some(({ data, receipts }) => data.table === 7 && receipts.done === 1)).toBe(true);
    const published = await run([join(bin, "pere-client"), "publish", pere.url, "orders", '{"table":8}']);
    expect(published).toEqual({ code: 0, said: expect.stringContaining('"channel":') });
    expect((await run([join(bin, "pere-client"), "publish", "no address", "orders", "1"])).code).toBe(2);
  } finally {
    await pere.stop();
  }
});

installedTest("mypy accepts the module with --strict, and sees its types in a program that imports it", async () => {
  const mypy = [join(bin, "mypy"), "--strict"];
  expect(await run([...mypy, join("python", "pere.py")])).toMatchObject({ code: 0 });
  await Bun.write(join(folder, "use", "right.py"), DEVICE);
  expect(await run([...mypy, "right.py"], join(folder, "use"))).toMatchObject({ code: 0 });
  await Bun.write(join(folder, "use", "wrong.py"), 'import pere\npere.publish(7, "orders", None)\n');
  const wrong = await run([...mypy, "wrong.py"], join(folder, "use"));
  expect(wrong).toEqual({
    code: 1,
    said: expect.stringContaining('Argument 1 to "publish" has incompatible type "int"'),
  });
});
