/**
 * The log: one JSON object a line whatever is in it, no tokens, no flood, and a service that does not wait for who reads it.
 */
import { afterEach, describe, expect, jest, test } from "bun:test";
import { join } from "node:path";
import { SignJWT } from "jose";
import { type Level, type Logger, openLog, QUIET_MS } from "../engine/ops/logger.ts";
import { PereError } from "../engine/model.ts";
import { temporary } from "./support/harness.ts";
import { PATIENCE_MS } from "./support/limits.ts";

/** A line, looked at field by field; a wrong one fails the test. */
type Line = Record<string, any>;

/** A log, and what was written until now. */
function openHere(level?: Level): { log: Logger; written: () => string; lines: () => Line[] } {
  let text = "";
  const log = openLog(level, { write: (line) => void (text += line) });
  const lines = (): Line[] =>
    text
      .split("\n")
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Line);
  return { log, written: () => text, lines };
}

const token = await new SignJWT({ pere: { push: ["*"] } })
  .setProtectedHeader({ alg: "HS256" })
  .setSubject("shop")
  .setExpirationTime("1h")
  .sign(new Uint8Array(32).fill(7));

/** Neither a token is there nor the beginning of one of its parts. */
function expectNoToken(text: string): void {
  for (const part of [...token.split("."), "opensesame"]) expect(text).not.toContain(part.slice(0, 10));
}

describe("a line", () => {
  test("has level, time, message and its fields", () => {
    const { log, lines } = openHere();
    const before = Date.now();
    log.info("PERE listening", { port: 4567, tls: false, url: "http://127.0.0.1:4567", none: null });
    log.warn("slow");
    log.error("broken");
    const [first, ...others] = lines();
    expect(first).toEqual({
      level: "info",
      time: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
      msg: "PERE listening",
      port: 4567,
      tls: false,
      url: "http://127.0.0.1:4567",
      none: null,
    });
    expect(Math.abs(Date.parse(first!.time) - before)).toBeLessThan(PATIENCE_MS);
    expect(others.map(({ level, msg }) => [level, msg])).toEqual([
      ["warn", "slow"],
      ["error", "broken"],
    ]);
  });

  test("is written from the configured level on", () => {
    const all = ["debug", "info", "warn", "error"] as const;
    const writtenFrom = (level?: Level): string[] => {
      const { log, lines } = openHere(level);
      for (const one of all) log[one](one);
      return lines().map(({ msg }) => msg as string);
    };
    expect(writtenFrom()).toEqual(["info", "warn", "error"]);
    for (const [n, level] of all.entries()) expect(writtenFrom(level)).toEqual(all.slice(n));
  });

  test("is a single line, whatever it contains", () => {
    const cyclic: Record<string, unknown> = { name: "cyclic" };
    cyclic.self = cyclic;
    let deep: unknown = "bottom";
    for (let n = 0; n < 10_000; n++) deep = [deep];
    const throwing = {
      get value(): never {
        throw new Error("looked at");
      },
    };
    const cause = new Error("first\nline\u2028and\u0000more");
    const circular = new Error("circular");
    circular.cause = circular;
    const values: unknown[] = [
      "new\nline\r\n\u2028\u2029\u0000\u001b[31m\u007f",
      "\ud800 alone \udfff",
      '"quoted\\" \\',
      "%s %d %j %%",
      cyclic,
      deep,
      throwing,
      { nested: throwing },
      { toJSON: () => throwing.value },
      new Proxy({}, { ownKeys: () => throwing.value }),
      new Proxy({}, { getPrototypeOf: () => throwing.value }),
      Object.freeze(new Error("frozen", { cause })),
      circular,
      new AggregateError([cause, new Error("second")], "several"),
      new PereError("away", "the store is away", [{ path: "a", message: "b" }], cause),
      new Map([["a", 1]]),
      10n ** 30n,
      Symbol("symbol"),
      () => 1,
      NaN,
      undefined,
      null,
    ];
    const { log, written, lines } = openHere();
    for (const value of values) log.warn("told", { value });
    for (const value of values) if (typeof value === "string") log.warn(value);
    for (const value of values) log.incident(value);
    expect(lines()).toHaveLength(values.length * 2 + 4);
    expect(written().split("\n")).toHaveLength(values.length * 2 + 5);
    expect(written()).not.toMatch(/[\0-\x09\x0b-\x1f]/);
    expect(written().isWellFormed()).toBe(true);
    const told = lines().slice(0, values.length);
    for (const { level, time, msg } of told) expect([level, typeof time, msg]).toEqual(["warn", "string", "told"]);
    expect(told.slice(0, 4).map(({ value }) => value as string)).toEqual(values.slice(0, 4) as string[]);
    expect(told[4]!.value.name).toBe("cyclic");
    expect(told[6]!.value ?? told[6]!.unreadable).toBeDefined();
    expect(told[11]!.value).toContain("frozen");
    expect(told[11]!.value).toContain("first\nline");
    expect(told[13]!.value).toContain("second");
    expect(told[16]!.value).toContain("1" + "0".repeat(30));
    expect(told[20]!.value).toBe("undefined");
    const strings = lines().slice(values.length, values.length + 4);
    expect(strings.map(({ msg }) => msg as string)).toEqual(values.slice(0, 4) as string[]);
  });

  test("has an error's code, stack and causes, without source code", () => {
    const { log, lines } = openHere();
    const refusedBy = (port: number): Error =>
      Object.assign(new Error(`connect 127.0.0.1:${port}`), { code: "ECONNREFUSED" });
    const cause = new AggregateError([refusedBy(1), refusedBy(2)], "no address answers", { cause: "a text" });
    log.incident(new PereError("away", "Redis is away", [], cause));
    const text = lines()[0]!.error as string;
    expect(text.split("\n").filter((line) => !line.startsWith("    at "))).toEqual([
      "PereError [away]: Redis is away",
      "caused by AggregateError: no address answers",
      'caused by "a text"',
      "caused by Error [ECONNREFUSED]: connect 127.0.0.1:1",
      "caused by Error [ECONNREFUSED]: connect 127.0.0.1:2",
    ]);
    expect(text).toContain("log.test.ts:");

    let chain = new Error("number 0");
    for (let n = 1; n < 100_000; n++) chain = new Error(`number ${n}`, { cause: chain });
    log.error("a chain", { chain });
    expect(lines()[1]!.chain).toContain("number 99999");
    expect(lines()[1]!.chain.split("caused by")).toHaveLength(16);
  });

  test("is no longer than log collectors accept", () => {
    const { log, written, lines } = openHere();
    const long = "x".repeat(1024 * 1024);
    log.info("a field", { long });
    log.info(long);
    log.info("many", Object.fromEntries(Array.from({ length: 1_000 }, (_, n) => [`field${n}`, "y".repeat(1_000)])));
    log.info("\u0001".repeat(1024 * 1024));
    log.incident(new Error(long, { cause: new Error(long) }));
    for (const line of written().split("\n")) expect(line.length).toBeLessThanOrEqual(16 * 1024);
    const [field, message, many, escaped, incident] = lines();
    expect(field!.long).toMatch(/^x{8192}… \(1040384 more\)$/);
    expect(message!.msg).toMatch(/^x{8192}…/);
    expect(many!.msg).toBe("many");
    expect(many!.cut).toBeGreaterThan(1_000_000);
    expect(escaped!.msg).toHaveLength(2048);
    expect(incident!.error).toContain("xxx");
  });
});

describe("tokens are not written", () => {
  const url = `http://pere/feed/orders?device=d&token=opensesame&since=now`;

  test("whether they are in a message, a field, an error, its cause or its stack", () => {
    const failure = (): Error => {
      const cause = new TypeError(`fetch failed: "${url}"`);
      const error = new PereError("away", `refused: Bearer ${token}`, [{ path: "token", message: token }], cause);
      error.stack += `\n    at get (${url}:1:1) Bearer ${token}`;
      return error;
    };
    const { log, written, lines } = openHere("debug");
    log.info(`GET ${url}`, { url, nested: { deep: [{ referer: url, header: `Bearer ${token}` }] } });
    log.info("a quote behind it", { text: `{"url":"/feed/a?token=opensesame"}`, other: "kept" });
    log.debug("an error", { failure: failure(), several: new AggregateError([failure(), failure()]) });
    log.incident(failure());
    log.incident(`thrown ${url}`);
    log.cause(`refused ${url}`, failure());
    expectNoToken(written());
    const [first, second, third, incident, thrown, cause] = lines();
    expect(first!.msg).toBe("GET http://pere/feed/orders?device=d&token=…&since=now");
    expect(first!.nested.deep[0].header).toBe("Bearer …");
    expect(second).toMatchObject({ text: '{"url":"/feed/a?token=…"}', other: "kept" });
    for (const text of [third!.failure, third!.several, incident!.error, cause!.cause])
      expect(text).toContain("refused");
    expect(thrown!.error).toContain("token=…&since=now");
  });

  test("nor is a part of one that truncation would leave", () => {
    const { log, written, lines } = openHere();
    for (let before = 8192 - token.length; before < 8192; before += 7) {
      log.info("cut", { text: " ".repeat(before) + token });
      log.info("cut", { text: `${" ".repeat(before)}?token=opensesame` });
    }
    for (const { text } of lines()) expect(text).toStartWith("    ");
    expectNoToken(written());
  });
});

describe("causes", () => {
  afterEach(() => void jest.useRealTimers());

  test("are logged at once, then once a second with their number", () => {
    jest.useFakeTimers();
    const { log, lines } = openHere();
    const told = () => lines().map(({ msg, others }) => [msg, others] as const);
    log.cause("first", new Error("disk full"));
    expect(told()).toEqual([["first", undefined]]);
    expect(lines()[0]!.cause).toContain("disk full");
    for (let n = 1; n <= 1_000; n++) log.cause(`refused ${n}`, new Error(`cause ${n}`));
    expect(told()).toHaveLength(1);
    jest.advanceTimersByTime(QUIET_MS - 1);
    expect(told()).toHaveLength(1);
    jest.advanceTimersByTime(1);
    expect(told().slice(1)).toEqual([["refused 1000", 999]]);
    expect(lines()[1]!.cause).toContain("cause 1000");
    log.cause("again", new Error("again"));
    expect(told()).toHaveLength(2);
    jest.advanceTimersByTime(QUIET_MS);
    expect(told().slice(2)).toEqual([["again", undefined]]);
    jest.advanceTimersByTime(10 * QUIET_MS);
    expect(told()).toHaveLength(3);
    log.cause("later", new Error("later"));
    expect(told().slice(3)).toEqual([["later", undefined]]);
  });

  test("of incidents are all logged, each with its own id", () => {
    const { log, lines } = openHere();
    const ids = Array.from({ length: 10 }, (_, n) => log.incident(new Error(`number ${n}`)));
    expect(new Set(ids).size).toBe(10);
    expect(lines().map(({ incident }) => incident as string)).toEqual(ids);
    for (const [n, { level, error }] of lines().entries()) {
      expect(level).toBe("error");
      expect(error).toContain(`number ${n}`);
    }
  });
});

/** A program that logs and ends, as source or as an executable. */
async function program(body: string): Promise<string> {
  const file = join(temporary(), "program.ts");
  const engine = join(import.meta.dir, "..", "engine", "ops", "logger.ts");
  await Bun.write(file, `import { openLog } from ${JSON.stringify(engine)};\nconst log = openLog();\n${body}\n`);
  return file;
}

const run = (...command: string[]) =>
  Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe", env: { PATH: process.env.PATH } });

/** What it wrote to standard output and to standard error. */
const said = async (child: ReturnType<typeof run>): Promise<readonly [string, string]> => {
  const texts = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  await child.exited;
  return texts;
};

describe("a process", () => {
  const LINES = 2_000;
  const body = `for (let n = 0; n < ${LINES}; n++) log.info("line", { n }); console.log("started");`;
  const expectAll = ([out, error]: readonly [string, string]): void => {
    expect(out).toBe("started\n");
    const lines = error.trimEnd().split("\n");
    expect(lines.map((line) => (JSON.parse(line) as Line).n as number)).toEqual(
      Array.from({ length: LINES }, (_, n) => n),
    );
  };

  test("has written the whole log to standard error when it ends", async () => {
    expectAll(await said(run(process.execPath, await program(`${body} process.exit(0);`))));
    expectAll(await said(run(process.execPath, await program(body))));
  });

  test("does not wait for further causes before it ends", async () => {
    const file = await program(`const set = globalThis.setTimeout, timers = [];
      globalThis.setTimeout = (...given) => (timers.push(set(...given)), timers.at(-1));
      log.cause("refused", new Error("disk full"));
      console.log(timers.map((timer) => timer.hasRef()).join());`);
    const [out, error] = await said(run(process.execPath, file));
    expect(out).toBe("false\n");
    expect(error).toContain("disk full");
  });

  test("may be one executable file", async () => {
    const file = await program(`${body} process.exit(0);`);
    const executable = join(temporary(), "program");
    const build = run(process.execPath, "build", "--compile", "--minify", file, "--outfile", executable);
    const [, trouble] = await said(build);
    expect(build.exitCode, trouble).toBe(0);
    expectAll(await said(run(executable)));
  }, 60_000);

  test("continues if its log is not read, and loses lines instead", async () => {
    // A thousand times what a pipe holds.
    const child = run(
      process.execPath,
      await program(`const before = process.memoryUsage.rss();
      for (let n = 0; n < 8_000; n++) {
        log.info("line", { text: "x".repeat(8_000) });
        if (n % 100 === 0) await Bun.sleep(1);
      }
      Bun.gc(true);
      console.log(process.memoryUsage.rss() - before < 50e6 ? "alive" : "fat");`),
    );
    const reader = child.stdout.getReader();
    const { value } = await reader.read();
    expect(new TextDecoder().decode(value)).toBe("alive\n");
    child.kill("SIGKILL");
    const lines = (await new Response(child.stderr).text()).split("\n");
    expect(lines.length).toBeLessThan(8_000);
  });
});
