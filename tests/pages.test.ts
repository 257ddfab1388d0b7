/**
 * The pages as files: bundled on the first request, from a clone without packages and in an executable alike.
 */
import { expect, test } from "bun:test";
import { chmodSync, cpSync, mkdirSync, readdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { ask, temporary, until } from "./support/harness.ts";
import { asNobody, noNobody } from "./support/nobody.ts";

const ROOT = join(import.meta.dir, "..");

/** Starts a command that is PERE in a folder, looks at its pages, and ends it. */
async function look(command: readonly string[], cwd: string): Promise<void> {
  const child = Bun.spawn([...command], {
    cwd,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, PORT: "0", PERE_DB: ":memory:" },
    stdout: "pipe",
    stderr: "inherit",
  });
  try {
    let said = "";
    void child.stdout.pipeTo(new WritableStream({ write: (chunk) => void (said += new TextDecoder().decode(chunk)) }));
    const url = await until(
      () => /listening on (http:\S+)/.exec(said)?.[1] ?? "",
      () => `a start; it said ${said}`,
    );
    const home = await ask(`${url}/`);
    expect([home.status, home.headers.get("content-type"), home.headers.get("cache-control")]).toEqual([
      200,
      "text/html;charset=utf-8",
      "no-cache",
    ]);
    const again = await ask(`${url}/`, { headers: { "If-None-Match": home.headers.get("etag")! } });
    expect([again.status, again.text]).toEqual([304, ""]);
    const packed = await fetch(`${url}/`, { headers: { "Accept-Encoding": "br" } });
    expect([packed.headers.get("content-encoding"), await packed.text()]).toEqual(["br", home.text]);
    const names = [...home.text.matchAll(/(?:src|href)="([^"]+)"/g)]
      .map(([, name]) => name!)
      .filter((name) => name !== "swagger");
    expect([...new Set(names.map((name) => name.replace(/-[0-9a-z]{8}\./, ".")))]).toEqual([
      "./pages/early.js",
      "./pages/icon.svg",
      "./pages/icon-192.png",
      "./pages/console.webmanifest",
      "./pages/console.css",
      "./pages/console.js", // And what it shares with other pages.
    ]);
    for (const name of names) {
      const file = await ask(new URL(name, url).href);
      expect([file.status, file.headers.get("cache-control")], name).toEqual([
        200,
        "public, max-age=31536000, immutable",
      ]);
      expect(file.headers.get("content-security-policy"), name).toContain("default-src 'none'");
    }
    // What pages are made of is not served.
    for (const path of [
      "/pages/x",
      "/console.html",
      "/console/console.tsx",
      "/device/device.css",
      "/build.ts",
      "/screenshots/board-desk-light.png",
    ])
      expect(`${path} ${(await ask(url + path)).status}`).toBe(`${path} 404`);
    for (const path of [
      "/weblistener.html",
      "/weblistener-worker.js",
      "/console-worker.js",
      "/pere.js",
      "/pere.d.ts",
      "/swagger",
      "/icon.svg",
      "/monitoring/alerts.yaml",
      "/monitoring/grafana.json",
    ])
      expect(`${path} ${(await ask(url + path)).status}`).toBe(`${path} 200`);
    expect((await ask(`${url}/swagger/json`)).body.openapi).toBe("3.1.0");
  } finally {
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  }
}

/** Milliseconds from a command to the line that says that it listens. What they are decides nothing. */
async function startMs(command: readonly string[], cwd: string): Promise<number> {
  const began = performance.now();
  const child = Bun.spawn([...command], { cwd, env: { PORT: "0", PERE_DB: ":memory:" }, stdout: "pipe" });
  const { value } = await child.stdout.getReader().read();
  const took = performance.now() - began;
  expect(new TextDecoder().decode(value)).toStartWith("PERE listening on ");
  child.kill("SIGKILL");
  await child.exited;
  return took;
}

/** Starts the demo, waits until its devices answer, and ends it. */
async function runsDemo(command: readonly string[], cwd: string): Promise<void> {
  const child = Bun.spawn([...command, "demo", "--port", "0"], { cwd, env: {}, stdout: "pipe", stderr: "inherit" });
  try {
    const { value } = await child.stdout.getReader().read();
    const url = /listening on (\S+)/.exec(new TextDecoder().decode(value))![1]!;
    const isDone = async (): Promise<boolean> =>
      /"done":[1-9]/.test((await ask(`${url}/events/orders`).catch(() => ({ text: "" }))).text);
    await until(isDone, "a receipt in the demo");
  } finally {
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  }
}

/** Packages may have to be fetched. */
const LIMIT_MS = 300_000;

/** Why no packages can be had, or null: Bun takes them from its cache, or from a registry. */
const noPackages = ((): string | null => {
  const folder = temporary();
  for (const name of ["package.json", "bun.lock"]) cpSync(join(ROOT, name), join(folder, name));
  const command = [process.execPath, "install", "--frozen-lockfile", "--production"];
  return Bun.spawnSync(command, { cwd: folder, stdout: "ignore", stderr: "ignore" }).success
    ? null
    : "no registry can be reached, and Bun has no packages in its cache";
})();

test.skipIf(noPackages !== null && process.env.CI !== "true")(
  `a clone without installed packages serves its pages${noPackages ? ` (skipped: ${noPackages})` : ""}`,
  async () => {
    const clone = temporary();
    for (const name of ["package.json", "bun.lock", "tsconfig.json", "index.ts", "engine", "web", "clients"])
      cpSync(join(ROOT, name), join(clone, name), { recursive: true });
    await look([process.execPath, "run", "index.ts"], clone);
  },
  LIMIT_MS,
);

test(
  "one command makes an executable, which works in an empty read-only folder, with its pages and commands",
  async () => {
    // Compiled from a copy, so that nothing is left in the house.
    const copy = temporary();
    for (const name of ["package.json", "tsconfig.json", "index.ts", "engine", "web", "clients"])
      cpSync(join(ROOT, name), join(copy, name), { recursive: true });
    symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
    const { exitCode, stderr } = Bun.spawnSync([process.execPath, "run", "compile"], { cwd: copy, stderr: "pipe" });
    if (exitCode !== 0) throw new Error(stderr.toString());
    const pere = join(copy, "pere");
    const empty = join(copy, "empty");
    mkdirSync(empty, { mode: 0o555 });
    chmodSync(copy, 0o755);
    // Root may write anywhere, so it becomes nobody.
    const before = noNobody === null ? asNobody : [];
    await look([...before, pere], empty);
    expect(readdirSync(empty)).toEqual([]);

    const times: number[] = [];
    for (let n = 0; n < 5; n++) times.push(await startMs([pere], empty));
    console.log(`the executable listens after ${times.map((ms) => ms.toFixed(0)).join(", ")} ms`);
    await runsDemo([...before, pere], empty);
    expect(readdirSync(empty)).toEqual([]);
    const said = Bun.spawnSync([pere, "backup"], { cwd: empty, env: process.env }).stderr.toString();
    expect(said).toBe("PERE can't back up: usage: bun run index.ts backup FILE\n");
  },
  2 * LIMIT_MS,
);
