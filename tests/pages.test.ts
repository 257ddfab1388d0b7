/**
 * The pages as files: bundled on the first request, from a clone without packages and in an executable alike.
 */
import { expect, test } from "bun:test";
import { cpSync, mkdirSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { ask, PATIENCE_MS, temporary, until } from "./harness.ts";

const ROOT = join(import.meta.dir, "..");

/** A folder that goes with its test: an executable is large. */
class Folder {
  readonly path = temporary();

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true });
  }
}

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
    const names = [...home.text.matchAll(/(?:src|href)="([^"]+)"/g)]
      .map(([, name]) => name!)
      .filter((name) => name !== "/swagger");
    expect(names.map((name) => name.replace(/-[0-9a-z]{8}\./, "."))).toEqual([
      "/pages/icon.svg",
      "/pages/console.css",
      "/pages/console.js",
    ]);
    for (const name of names) {
      const file = await ask(url + name);
      expect([file.status, file.headers.get("cache-control")], name).toEqual([
        200,
        "public, max-age=31536000, immutable",
      ]);
      expect(file.headers.get("content-security-policy"), name).toContain("default-src 'none'");
    }
    // What pages are made of is not served.
    for (const path of ["/pages/x", "/console.html", "/console/console.tsx", "/console/console.css", "/build.ts"])
      expect(`${path} ${(await ask(url + path)).status}`).toBe(`${path} 404`);
    for (const path of ["/weblistener.html", "/swagger", "/icon.svg"])
      expect(`${path} ${(await ask(url + path)).status}`).toBe(`${path} 200`);
  } finally {
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  }
}

/** Packages may have to be fetched. */
const LIMIT_MS = 3 * PATIENCE_MS;

test(
  "a clone without packages has its pages",
  async () => {
    using clone = new Folder();
    for (const name of ["package.json", "bun.lock", "tsconfig.json", "index.ts", "engine", "web"])
      cpSync(join(ROOT, name), join(clone.path, name), { recursive: true });
    await look([process.execPath, "run", "index.ts"], clone.path);
  },
  LIMIT_MS,
);

test(
  "an executable in an empty folder has its pages",
  async () => {
    // Compiled from a copy, so that nothing is left in the house.
    using folder = new Folder();
    const copy = folder.path;
    for (const name of ["package.json", "tsconfig.json", "index.ts", "engine", "web"])
      cpSync(join(ROOT, name), join(copy, name), { recursive: true });
    symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
    const run = (...args: string[]): void => {
      const { exitCode, stderr } = Bun.spawnSync([process.execPath, ...args], { cwd: copy, stderr: "pipe" });
      if (exitCode !== 0) throw new Error(stderr.toString());
    };
    run("web/build.ts", "web/built");
    run("build", "--compile", "--minify", "index.ts", "--asset", "web", "--outfile", "pere");
    const empty = join(copy, "empty");
    mkdirSync(empty);
    await look([join(copy, "pere")], empty);
  },
  LIMIT_MS,
);
