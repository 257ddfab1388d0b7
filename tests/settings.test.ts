/**
 * Starting the service as people do: flags and environment, one clear line for what is wrong, and a start in a folder of its own.
 */
import { expect, test } from "bun:test";
import { LIMITS } from "../engine/engine.ts";
import { USAGE } from "../engine/ops/commands.ts";
import { readSettings, SETTINGS } from "../engine/ops/settings.ts";
import { command } from "./support/commands.ts";
import { ask, spawn, temporary } from "./support/harness.ts";
import { NO_HOST } from "./support/ports.ts";
import { CONFIGURATION, configuration, EXAMPLE, example } from "./settings-texts.ts";

test("the defaults need no settings", () => {
  const { limits, hooksAllowed, access, origins, rates, proxies, log, metricsChannels, unknown, ...settings } =
    readSettings([], {});
  expect([rates, proxies, log]).toEqual([{ push: 0, receipt: 0, feed: 0 }, [], "info"]);
  expect(settings).toEqual({
    host: "127.0.0.1",
    port: 4567,
    basePath: "",
    db: "pere.db",
    redis: null,
    redisPrefix: "pere:",
    replicas: 0,
    tls: null,
  });
  expect(limits).toEqual({
    feedsPerCaller: Number.POSITIVE_INFINITY,
    keptEvents: LIMITS.keptEvents,
    keptMs: LIMITS.keptMs,
  });
  expect([hooksAllowed, access, origins, metricsChannels, unknown]).toEqual([[], "local", [], [], []]);
});

test("REDIS_URL selects Redis, with TLS or without", () => {
  for (const url of ["redis://127.0.0.1", "rediss://user:secret@redis.example:6380/1"])
    expect(readSettings([], { REDIS_URL: url }).redis).toEqual([url]);
});

test("PERE_REDIS_PREFIX is the prefix of keys, and an error without Redis", () => {
  const prefix = (text: string) => readSettings([], { REDIS_URL: "redis://a", PERE_REDIS_PREFIX: text }).redisPrefix;
  expect(prefix("shop-2:")).toBe("shop-2:");
  for (const wrong of ["{x}:", "a b", ":x", "a*", "ü", "x".repeat(65)])
    expect(() => prefix(wrong)).toThrow(/^PERE_REDIS_PREFIX must be 1 to 64 of /);
  expect(() => readSettings([], { PERE_REDIS_PREFIX: "x:" })).toThrow("not REDIS_URL");
});

test("several addresses in REDIS_URL are a Cluster, with one user for all", () => {
  const cluster = (text: string) => readSettings([], { REDIS_URL: text }).redis;
  expect(cluster("redis://a:7000,redis://b:7001")).toEqual(["redis://a:7000", "redis://b:7001"]);
  expect(cluster("rediss://a:7000, rediss://user:p%40ss@[::1]:7001/0,rediss://b")).toEqual([
    "rediss://user:p%40ss@a:7000",
    "rediss://user:p%40ss@[::1]:7001",
    "rediss://user:p%40ss@b",
  ]);
});

test.each([
  "redis://a:1,rediss://:secret@b:1",
  "redis://a:1,b:secret",
  "redis://:secret@a:1,",
  "redis://:secret@a:1/1,redis://b:1",
  "http://:secret@a",
])("REDIS_URL=%s is refused without repeating it", (text) => {
  const refused = (): string => {
    try {
      return JSON.stringify(readSettings([], { REDIS_URL: text }));
    } catch (error) {
      return (error as Error).message;
    }
  };
  expect(refused()).toStartWith("REDIS_URL ");
  expect(refused()).not.toContain("secret");
});

test("PERE_REDIS_REPLICAS is the number of replicas that must have acknowledged data", () => {
  const REDIS_URL = "redis://a:1";
  expect(readSettings([], { REDIS_URL }).replicas).toBe(0);
  expect(readSettings([], { REDIS_URL, PERE_REDIS_REPLICAS: "2" }).replicas).toBe(2);
});

test("docs/configuration.md and .env.example say what the settings are; `bun tests/settings-texts.ts` writes them", async () => {
  const text = await Bun.file(CONFIGURATION).text();
  expect(text).toBe(configuration(text));
  expect(await Bun.file(EXAMPLE).text()).toBe(example());
});

test("--help lists every setting and every command, and each listed command exists", async () => {
  const { code, stdout, stderr } = await command(["--help"], { PORT: "wrong" });
  expect([code, stderr]).toEqual([0, ""]);
  for (const name of Object.keys(SETTINGS)) expect(stdout).toContain(`\n  ${name}`);
  for (const [name, { args }] of Object.entries(USAGE)) {
    expect(stdout).toContain(`\n  ${`${name} ${args}`.trim()}\n`);
    const said = await command([name, "--what-is-that"], { PORT: "9" });
    expect(said.code).toBe(1);
    expect(said.stderr).toMatch(
      new RegExp(`^PERE can't (${name}|make a token|back up|examine|be reached|start the demo): [^\n]+\n$`),
    );
  }
});

test("flags take precedence over the environment", () => {
  expect(
    readSettings(["-o", "::1", "--port", "8080"], { HOST: "127.0.0.2", PORT: "1", PERE_DB: "x.db" }),
  ).toMatchObject({ host: "::1", port: 8080, db: "x.db" });
  expect(
    readSettings([], { HOST: "127.9.9.9", PORT: "0", PERE_KEEP_EVENTS: "5", PERE_KEEP_SECONDS: "60" }),
  ).toMatchObject({ host: "127.9.9.9", port: 0, limits: { keptEvents: 5, keptMs: 60_000 } });
});

test("PERE_HOOKS_ALLOW lists ranges; empty, it lists none", () => {
  const ranges = (text: string): string[] =>
    readSettings([], { PERE_HOOKS_ALLOW: text }).hooksAllowed.map(([address, bits]) => `${address}/${bits}`);
  expect(ranges("10.0.0.0/8, fd00::/8")).toEqual(["10.0.0.0/8", "fd00::/8"]);
  expect(ranges("")).toEqual([]);
});

test.each([
  [["-p", "70000"], {}, "PORT"],
  [[], { PORT: "http" }, "PORT"],
  [[], { PERE_KEEP_EVENTS: "0" }, "PERE_KEEP_EVENTS"],
  [[], { PERE_KEEP_SECONDS: "1d" }, "PERE_KEEP_SECONDS"],
  [[], { PERE_KEEP: "orders" }, "PERE_KEEP"],
  [[], { PERE_KEEP: "or*:events=1" }, '"or*:events=1"'],
  [[], { PERE_KEEP: "a:events=1;:seconds=1" }, '":seconds=1"'],
  [[], { PERE_KEEP: "orders:days=1" }, '"days=1"'],
  [[], { PERE_KEEP: "orders:events=1,events=2" }, '"events=2"'],
  [[], { PERE_KEEP: "orders:events=0" }, "events must be a whole number"],
  [[], { PERE_KEEP: "orders:seconds=1d" }, "seconds must be a whole number"],
  [[], { PERE_KEEP: "shop.*:events=1;shop.till:events=2" }, "shop.till never applies"],
  [[], { PERE_KEEP: "shop.*:events=1;shop.a.*:events=2" }, "shop.a.* never applies"],
  [[], { PERE_KEEP: "*:events=1;orders:events=2" }, "orders never applies"],
  [[], { PERE_OPEN: "yes" }, "PERE_OPEN"],
  [[], { REDIS_URL: "127.0.0.1:6379" }, "redis://"],
  [[], { REDIS_URL: "http://127.0.0.1" }, "redis://"],
  [[], { REDIS_URL: "redis://a", PERE_REDIS_REPLICAS: "-1" }, "PERE_REDIS_REPLICAS"],
  [[], { REDIS_URL: "redis://a", PERE_REDIS_REPLICAS: "all" }, "PERE_REDIS_REPLICAS"],
  [[], { PERE_REDIS_REPLICAS: "1" }, "REDIS_URL"],
  [[], { PERE_HOOKS_ALLOW: "10.0.0.1" }, "PERE_HOOKS_ALLOW"],
  [[], { PERE_HOOKS_ALLOW: "127.0.0.0/8, localhost" }, "localhost"],
  [[], { PERE_HOOKS_ALLOW: "10.0.0.0/33" }, "10.0.0.0/33"],
  [[], { PERE_JWT_SECRET: "x".repeat(32), PERE_OPEN: "1" }, "PERE_OPEN=1"],
  [[], { PERE_JWT_SECRET: "x".repeat(32), PERE_JWT_SECRET_FILE: "/etc/hostname" }, "PERE_JWT_SECRET_FILE"],
  [[], { REDIS_URL_FILE: "/nowhere" }, "REDIS_URL_FILE"],
  [[], { PERE_ORIGINS: "shop.example" }, "PERE_ORIGINS"],
  [[], { PERE_ORIGINS: "https://shop.example/" }, "https://shop.example/"],
  [[], { PERE_ORIGINS: "wss://shop.example" }, '"wss://shop.example"'],
  [[], { PERE_ORIGINS: "capacitor://localhost/" }, '"capacitor://localhost/"'],
  [[], { PERE_ORIGINS: "https://shop.example" }, "pages of https://shop.example, but PERE requires no tokens"],
  [[], { PERE_ORIGINS: "http://127.0.0.1:1, https://localhost.evil.example" }, "PERE_JWT_SECRET"],
  [[], { PERE_ORIGINS: "*" }, "every page, but PERE requires no tokens"],
  [[], { PERE_ORIGINS: "null" }, "PERE_JWT_SECRET"],
  [["--host", "::1"], { PERE_PROXIES: "127.0.0.0/8" }, "PERE_PROXIES names proxies, but PERE requires no tokens"],
  [[], { PERE_METRICS_CHANNELS: "orders, a b" }, '"a b" is not'],
  [[], { PERE_METRICS_CHANNELS: Array.from({ length: 101 }, (_, n) => `c${n}`).join() }, "at most 100"],
  [[], { PERE_TLS_CERT: "cert.pem" }, "PERE_TLS_KEY"],
  [[], { PERE_TLS_KEY: "key.pem" }, "PERE_TLS_CERT"],
  [["--prot", "1"], {}, "--prot"],
])("%j %j is refused in a sentence that names %s", (argv, env, name) => {
  expect(() => readSettings(argv, env)).toThrow(name);
});

test("origins and proxies on other machines are accepted with tokens or with PERE_OPEN=1", () => {
  const elsewhere = { PERE_ORIGINS: "https://shop.example,null", PERE_PROXIES: "10.0.0.0/8" };
  for (const env of [{ PERE_JWT_SECRET: "x".repeat(32) }, { PERE_OPEN: "1" }, { HOST: "0.0.0.0" }])
    expect(readSettings([], { ...elsewhere, ...env }).origins).toEqual(["https://shop.example", "null"]);
});

test("origins on this machine and of apps are accepted as written, also without tokens", () => {
  const origins = [
    "http://localhost:5173",
    "https://pere.localhost",
    "http://[::1]:8080",
    "capacitor://localhost",
    "ionic://localhost",
    "app://",
    "app://-",
    "tauri://localhost",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "moz-extension://7C1A-9",
    "file://",
  ];
  const read = readSettings([], { PERE_ORIGINS: origins.join(", ") });
  expect([read.origins, read.access]).toEqual([origins, "local"]);
});

test("rate limits apply wherever tokens are required, and not on loopback without tokens, where all callers are the same", () => {
  const limits = (env: Record<string, string>): number[] => {
    const { rates, limits } = readSettings([], env);
    return [rates.push, rates.receipt, rates.feed, limits.feedsPerCaller!];
  };
  const usual = [6_000, 60_000, 1_200, 10_000];
  for (const env of [{ PERE_JWT_SECRET: "x".repeat(32) }, { PERE_JWKS: "keys.json" }, { HOST: "0.0.0.0" }])
    expect(limits(env)).toEqual(usual);
  expect(limits({ HOST: "0.0.0.0", PERE_OPEN: "1" })).toEqual(usual);
  expect(limits({ PERE_OPEN: "1", PERE_PROXIES: "127.0.0.1/32" })).toEqual(usual);
  for (const env of [{}, { PERE_OPEN: "1" }]) expect(limits(env)).toEqual([0, 0, 0, Number.POSITIVE_INFINITY]);
  expect(limits({ PERE_RATE_FEEDS: "7" })[2]).toBe(7);
});

test("PERE_KEEP is parsed rule by rule, also for names with colons", () => {
  const { limits } = readSettings([], {
    PERE_KEEP: " a:b:events=5 ; shop.till:seconds=60;shop.*:events=7, seconds=8;*:events=9;",
  });
  expect(limits.keep).toEqual([
    { pattern: "a:b", events: 5, ms: null },
    { pattern: "shop.till", events: null, ms: 60_000 },
    { pattern: "shop.*", events: 7, ms: 8_000 },
    { pattern: "*", events: 9, ms: null },
  ]);
});

test("beyond loopback only with PERE_OPEN=1", () => {
  expect(readSettings(["-o", "0.0.0.0"], { PERE_OPEN: "1" }).host).toBe("0.0.0.0");
});

test("the process prints where it listens, serves, and exits with 0 on SIGTERM and SIGINT", async () => {
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    const pere = await spawn({ PERE_DB: `${temporary()}/pere.db` }, [], ["--host", "127.0.0.1"]);
    expect((await ask(`${pere.url}/health`)).status).toBe(200);
    expect(await pere.end(signal)).toBe(0);
  }
});

test("a wrong setting, a port in use and an unusable file each stop it with one clear line", async () => {
  const pere = await spawn({ PERE_DB: ":memory:" });
  const { port } = new URL(pere.url);
  for (const [env, words] of [
    [{ PORT: "x" }, "PORT must be"],
    [{ PORT: port, PERE_DB: ":memory:" }, `127.0.0.1, port ${port}: another program listens there`],
    [{ HOST: "192.0.2.1", PERE_OPEN: "1", PERE_DB: ":memory:" }, "192.0.2.1, port 0: this machine has no such address"],
    [{ HOST: NO_HOST, PERE_OPEN: "1", PERE_DB: ":memory:" }, "this machine has no such address"],
    [{ PERE_DB: "/nowhere/pere.db" }, "/nowhere/pere.db"],
    [{ PERE_HOOKS_ALLOW: "10.0.0.0", PERE_DB: ":memory:" }, "PERE_HOOKS_ALLOW must be ranges like 10.0.0.0/8"],
  ] as const) {
    const said = await spawn(env).then(
      () => "it started",
      (error: Error) => error.message,
    );
    expect(said).toStartWith("PERE can't start: ");
    expect(said).toContain(words);
    expect(said.split("\n")).toHaveLength(1);
  }
  await pere.end("SIGTERM");
});
