/**
 * Starting the service as people do: flags and environment, one clear line for what is wrong, and a start in a folder of its own.
 */
import { expect, test } from "bun:test";
import { readSettings } from "../engine/settings.ts";
import { ask, spawn, temporary } from "./harness.ts";

test("defaults need nothing", () => {
  expect(readSettings([], {})).toEqual({ host: "127.0.0.1", port: 4567, db: "pere.db", limits: {} });
});

test("flags win over the environment", () => {
  expect(
    readSettings(["-o", "::1", "--port", "8080"], { HOST: "127.0.0.2", PORT: "1", PERE_DB: "x.db" }),
  ).toMatchObject({ host: "::1", port: 8080, db: "x.db" });
  expect(
    readSettings([], { HOST: "127.9.9.9", PORT: "0", PERE_KEEP_EVENTS: "5", PERE_KEEP_SECONDS: "60" }),
  ).toMatchObject({ host: "127.9.9.9", port: 0, limits: { keptEvents: 5, keptMs: 60_000 } });
});

test.each([
  [["-p", "70000"], {}, "PORT"],
  [[], { PORT: "http" }, "PORT"],
  [[], { PERE_KEEP_EVENTS: "0" }, "PERE_KEEP_EVENTS"],
  [[], { PERE_KEEP_SECONDS: "1d" }, "PERE_KEEP_SECONDS"],
  [[], { PERE_OPEN: "yes" }, "PERE_OPEN"],
  [[], { REDIS_URL: "redis://127.0.0.1" }, "REDIS_URL"],
  [[], { PERE_JWT_SECRET: "x".repeat(32) }, "PERE_JWT_SECRET"],
  [["-o", "0.0.0.0"], {}, "PERE_OPEN=1"],
  [[], { HOST: "127.0.0.1.example.org" }, "PERE_OPEN=1"],
  [["--prot", "1"], {}, "--prot"],
])("%j %j is refused in a sentence that names %s", (argv, env, name) => {
  expect(() => readSettings(argv, env)).toThrow(name);
});

test("beyond loopback only where the operator says that it is open", () => {
  expect(readSettings(["-o", "0.0.0.0"], { PERE_OPEN: "1" }).host).toBe("0.0.0.0");
});

test("the process says where it listens, serves, and ends with 0 on SIGTERM and SIGINT", async () => {
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    const pere = await spawn({ PERE_DB: `${temporary()}/pere.db` }, [], ["--host", "127.0.0.1"]);
    expect((await ask(`${pere.url}/health`)).status).toBe(200);
    expect(await pere.end(signal)).toBe(0);
  }
});

test("a wrong setting, a taken port and an unusable file each stop it with one clear line", async () => {
  const pere = await spawn({ PERE_DB: ":memory:" });
  const { port } = new URL(pere.url);
  for (const [env, words] of [
    [{ PORT: "x" }, "PORT must be"],
    [{ PORT: port, PERE_DB: ":memory:" }, port],
    [{ PERE_DB: "/nowhere/pere.db" }, "/nowhere/pere.db"],
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
