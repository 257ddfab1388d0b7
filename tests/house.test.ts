/**
 * The house keeps its order: imports point down only, `engine/` knows no HTTP, outsiders use the public contract, versions are pinned.
 */
import { expect, test } from "bun:test";
import { Glob } from "bun";
import packageJson from "../package.json";

/** What each room may import of the house, and of the world. Nothing that is not listed. */
const ROOMS: Record<string, readonly string[]> = {
  "engine/model.ts": [],
  "engine/store.ts": ["engine/model.ts"],
  "engine/breath.ts": [],
  "engine/faults.ts": ["engine/model.ts"],
  "engine/clock.ts": [],
  "engine/certificate.ts": ["node:crypto", "node:fs", "node:tls"],
  "engine/body.ts": ["engine/model.ts"],
  "engine/links.ts": ["node:fs", "node:path"],
  "engine/secret.ts": ["engine/links.ts", "engine/writable.ts", "engine/model.ts", "node:fs"],
  "engine/owed.ts": ["engine/breath.ts", "engine/store.ts", "engine/model.ts"],
  "engine/metrics.ts": ["engine/engine.ts", "engine/owed.ts", "engine/counts.ts", "engine/store.ts", "prom-client"],
  "engine/counts.ts": ["engine/model.ts"],
  "engine/writable.ts": ["node:fs", "node:path"],
  "engine/libc.ts": ["bun:ffi"],
  "engine/lock.ts": ["engine/libc.ts", "engine/writable.ts", "engine/model.ts", "bun:sqlite", "node:fs", "node:path"],
  "engine/place.ts": ["node:fs", "node:path"],
  "engine/mover.ts": [],
  "engine/descriptors.ts": ["node:fs"],
  "engine/commit.ts": [
    "engine/libc.ts",
    "engine/lock.ts",
    "engine/mover.ts",
    "engine/place.ts",
    "engine/counts.ts",
    "engine/model.ts",
    "bun:sqlite",
    "node:fs",
    "node:path",
  ],
  "engine/schema.ts": ["engine/commit.ts", "engine/model.ts"],
  "engine/enrolments.ts": [
    "engine/breath.ts",
    "engine/commit.ts",
    "engine/schema.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/answers.ts": ["engine/commit.ts", "engine/schema.ts", "engine/model.ts"],
  "engine/words.ts": [
    "engine/answers.ts",
    "engine/enrolments.ts",
    "engine/commit.ts",
    "engine/schema.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/trim.ts": [
    "engine/words.ts",
    "engine/enrolments.ts",
    "engine/commit.ts",
    "engine/schema.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/hook-rows.ts": ["engine/commit.ts", "engine/schema.ts", "engine/store.ts", "engine/model.ts"],
  "engine/standings.ts": [
    "engine/words.ts",
    "engine/breath.ts",
    "engine/commit.ts",
    "engine/schema.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/sqlite.ts": [
    "engine/breath.ts",
    "engine/standings.ts",
    "engine/answers.ts",
    "engine/enrolments.ts",
    "engine/words.ts",
    "engine/trim.ts",
    "engine/hook-rows.ts",
    "engine/schema.ts",
    "engine/commit.ts",
    "engine/counts.ts",
    "engine/store.ts",
    "engine/secret.ts",
    "engine/model.ts",
  ],
  "engine/keeping.ts": [
    "engine/links.ts",
    "engine/lock.ts",
    "engine/schema.ts",
    "engine/secret.ts",
    "engine/writable.ts",
    "engine/model.ts",
    "bun:sqlite",
    "node:fs",
    "node:path",
  ],
  "engine/redis-keys.ts": [],
  "engine/redis-scripts.ts": ["node:crypto"],
  "engine/redis-entries.ts": ["engine/model.ts"],
  "engine/redis-link.ts": ["engine/redis-scripts.ts", "engine/model.ts", "node:diagnostics_channel", "redis"],
  "engine/redis-cluster.ts": ["engine/redis-link.ts", "engine/redis-scripts.ts", "engine/model.ts"],
  "engine/redis-promise.ts": ["engine/redis-link.ts", "engine/store.ts", "engine/model.ts"],
  "engine/redis-ear.ts": [
    "engine/redis-link.ts",
    "engine/redis-entries.ts",
    "engine/redis-scripts.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/redis-presence.ts": [
    "engine/model.ts",
    "engine/redis-keys.ts",
    "engine/redis-link.ts",
    "engine/redis-scripts.ts",
  ],
  "engine/redis-deadlines.ts": ["engine/redis-link.ts", "engine/redis-keys.ts", "engine/redis-scripts.ts"],
  "engine/redis-hooks.ts": [
    "engine/redis-link.ts",
    "engine/redis-keys.ts",
    "engine/redis-scripts.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/redis.ts": [
    "engine/redis-deadlines.ts",
    "engine/redis-hooks.ts",
    "engine/redis-promise.ts",
    "engine/redis-presence.ts",
    "engine/redis-ear.ts",
    "engine/redis-cluster.ts",
    "engine/redis-link.ts",
    "engine/redis-entries.ts",
    "engine/redis-keys.ts",
    "engine/redis-scripts.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/tail.ts": ["engine/breath.ts", "engine/faults.ts", "engine/store.ts", "engine/model.ts"],
  "engine/presence.ts": ["engine/faults.ts", "engine/store.ts", "engine/model.ts"],
  "engine/feed.ts": ["engine/faults.ts", "engine/tail.ts", "engine/store.ts", "engine/model.ts"],
  "engine/feeds.ts": [
    "engine/faults.ts",
    "engine/feed.ts",
    "engine/counts.ts",
    "engine/presence.ts",
    "engine/tail.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/deadlines.ts": ["engine/faults.ts", "engine/store.ts"],
  "engine/reminders.ts": [
    "engine/faults.ts",
    "engine/breath.ts",
    "engine/feeds.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/waiting.ts": ["engine/feed.ts", "engine/tail.ts", "engine/store.ts", "engine/model.ts"],
  "engine/watching.ts": [
    "engine/breath.ts",
    "engine/faults.ts",
    "engine/counts.ts",
    "engine/presence.ts",
    "engine/feed.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/hook-call.ts": [
    "engine/descriptors.ts",
    "engine/model.ts",
    "ipaddr.js",
    "standardwebhooks",
    "node:dns/promises",
    "node:http",
    "node:https",
    "node:net",
  ],
  "engine/hook-runner.ts": [
    "engine/faults.ts",
    "engine/counts.ts",
    "engine/hook-call.ts",
    "engine/feed.ts",
    "engine/tail.ts",
    "engine/store.ts",
    "engine/model.ts",
    "node:crypto",
  ],
  "engine/hooks.ts": [
    "engine/faults.ts",
    "engine/hook-runner.ts",
    "engine/hook-call.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/retention.ts": ["engine/model.ts"],
  "engine/engine.ts": [
    "engine/clock.ts",
    "engine/breath.ts",
    "engine/faults.ts",
    "engine/retention.ts",
    "engine/counts.ts",
    "engine/deadlines.ts",
    "engine/reminders.ts",
    "engine/waiting.ts",
    "engine/watching.ts",
    "engine/hooks.ts",
    "engine/hook-call.ts",
    "engine/feeds.ts",
    "engine/feed.ts",
    "engine/tail.ts",
    "engine/store.ts",
    "engine/model.ts",
  ],
  "engine/rights.ts": ["engine/model.ts"],
  "engine/keys.ts": ["engine/model.ts", "jose", "node:fs/promises"],
  "engine/access.ts": ["engine/keys.ts", "engine/rights.ts", "engine/model.ts", "jose"],
  "engine/mint.ts": ["engine/access.ts", "engine/keys.ts", "engine/rights.ts", "engine/model.ts", "jose", "node:util"],
  "engine/log.ts": ["engine/access.ts", "pino"],
  "engine/rates.ts": [
    "engine/hook-call.ts",
    "engine/redis-link.ts",
    "engine/model.ts",
    "ipaddr.js",
    "rate-limiter-flexible",
  ],
  "engine/door.ts": [
    "engine/access.ts",
    "engine/rights.ts",
    "engine/hook-call.ts",
    "engine/model.ts",
    "engine/rates.ts",
  ],
  "engine/settings.ts": [
    "engine/access.ts",
    "engine/certificate.ts",
    "engine/door.ts",
    "engine/engine.ts",
    "engine/hook-call.ts",
    "engine/log.ts",
    "engine/model.ts",
    "engine/rates.ts",
    "engine/retention.ts",
    "node:fs",
    "node:net",
    "node:util",
  ],
  "engine/commands.ts": ["engine/keeping.ts", "engine/mint.ts", "engine/secret.ts", "engine/settings.ts"],
  "engine/listening.ts": ["node:dns/promises", "node:os", "engine/certificate.ts", "bun"],
  "engine/wires.ts": ["engine/feed.ts", "engine/watching.ts", "engine/tail.ts", "engine/model.ts", "bun"],
};

async function importsOf(file: string): Promise<string[]> {
  const { imports } = new Bun.Transpiler({ loader: file.endsWith("x") ? "tsx" : "ts" }).scan(
    await Bun.file(file).text(),
  );
  const found = imports.map(({ path }) => path);
  // Type-only imports are erased, and count all the same.
  for (const [, path] of (await Bun.file(file).text()).matchAll(/^(?:import|export) type [^;]*? from "([^"]+)"/gms))
    found.push(path!);
  const folder = file.includes("/") ? file.replace(/\/[^/]+$/, "") : ".";
  return [...new Set(found)].map((path) =>
    path.startsWith(".") ? new URL(path, `file:///${folder}/`).pathname.slice(1) : path,
  );
}

test("imports in engine/ point down the list only", async () => {
  const files = [...new Glob("engine/*.ts").scanSync(".")].sort();
  expect(files.filter((file) => !(file in ROOMS))).toEqual([]);
  for (const file of files)
    for (const path of await importsOf(file))
      expect(`${file} → ${path}: ${ROOMS[file]!.includes(path)}`).toEndWith("true");
});

test("clients and the pages use the public contract only", async () => {
  for (const file of new Glob("clients/*.ts").scanSync("."))
    for (const path of await importsOf(file)) expect(`${file} → ${path}`).not.toMatch(/→ (engine|index|web|tests)/);
  for (const file of new Glob("web/console/*.{ts,tsx}").scanSync("."))
    for (const path of await importsOf(file))
      expect(`${file} → ${path}`).not.toMatch(/→ (?!web\/console)(engine|index|web|tests)/);
  for (const file of new Glob("web/device/*.{ts,tsx}").scanSync("."))
    for (const path of await importsOf(file))
      expect(`${file} → ${path}`).not.toMatch(/→ (?!web\/(console|device)\/)(engine|index|web|tests)/);
});

test("the choice of the store is made on one line", async () => {
  const lines = (await Bun.file("index.ts").text()).split("\n").filter((line) => line.includes("new SqliteStore"));
  expect(lines).toHaveLength(1);
});

test("dependencies are pinned to exact versions", () => {
  for (const version of Object.values({ ...packageJson.dependencies, ...packageJson.devDependencies }))
    expect(version).toMatch(/^\d+\.\d+\.\d+$/);
});
