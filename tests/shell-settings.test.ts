/**
 * `clients/pere.sh`: its arguments, its environment, its token and the files in its folder. Nothing that comes from outside becomes an option, a configuration,
 * a pattern or a query.
 */
import { expect, test } from "bun:test";
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { ask, push, SECRET, startWith, temporary, until } from "./support/harness.ts";
import { CLIENT, cleanup, Device, isDone, rowOf, service, SHELLS, shellTest } from "./support/shell.ts";

test("--help prints the arguments, the settings and their defaults, and nothing of the code", () => {
  for (const shell of SHELLS)
    for (const option of ["--help", "-h"]) {
      const { stdout, stderr, exitCode } = Bun.spawnSync([...shell, CLIENT, option], {
        env: { PATH: process.env.PATH },
      });
      expect([shell, exitCode, stderr.toString()]).toEqual([shell, 0, ""]);
      const lines = stdout.toString().trimEnd().split("\n");
      expect(lines[0]).toStartWith("A device for PERE");
      expect(lines).toContain("  sh pere.sh URL CHANNEL DEVICE COMMAND");
      expect(lines.at(-1)).toStartWith("Exit status: ");
      const code = readFileSync(CLIENT, "utf8");
      for (const [, name, , standard] of code.matchAll(/\$\{(PERE_(?!EVENT)\w+)(:-([^}]*))?\}/g)) {
        const line = lines.find((line) => line.startsWith(`  ${name} `)) ?? "";
        expect([name, line]).toEqual([name, expect.stringMatching(/\S/)]);
        if (/^\d+$/.test(standard ?? "")) expect(line).toContain(`(default: ${standard})`);
      }
    }
});

shellTest("what can't be meant is said in one line, at once, with status 2", async () => {
  const url = "http://127.0.0.1:9";
  const folder = temporary();
  mkdirSync(join(folder, "handled", "x"), { recursive: true });
  for (const [args, env] of [
    [[url, "orders", ""]],
    [[]],
    [[url, "orders", "", "cat"]],
    [[url, "orders", "d&since=earliest", "cat"]],
    [[url, "orders", "d e", "cat"]],
    [[url, "", "d", "cat"]],
    [[url, "x{a,b}", "d", "cat"]],
    [[url, "x[1-9]", "d", "cat"]],
    [[url, "a,,b", "d", "cat"]],
    [[url, "a,", "d", "cat"]],
    [[url, "../a", "d", "cat"]],
    [[url, "a?b", "d", "cat"]],
    [[url, "orders", "d", ""]],
    [["not a url", "orders", "d", "cat"]],
    [["", "orders", "d", "cat"]],
    [["-o/tmp/x", "orders", "d", "cat"]],
    [["ftp://127.0.0.1", "orders", "d", "cat"]],
    [["http://", "orders", "d", "cat"]],
    [["http://127.0.0.1:99999", "orders", "d", "cat"]],
    [["http://127.0.0.1:x", "orders", "d", "cat"]],
    [["http://me:pw@127.0.0.1", "orders", "d", "cat"]],
    [[`${url}?a=b`, "orders", "d", "cat"]],
    [[`${url}/{a,b}`, "orders", "d", "cat"]],
    [[url, "orders", "d", "cat"], { PERE_SILENCE: "nan" }],
    [[url, "orders", "d", "cat"], { PERE_FIRST_BYTE: "0" }],
    [[url, "orders", "d", "cat"], { PERE_RETURN: "$(id)" }],
    [[url, "orders", "d", "cat"], { PERE_RETURN: "08" }],
    [[url, "orders", "d", "cat"], { PERE_TOKEN: 'a"b' }],
    [[url, "orders", "d", "cat"], { PERE_TOKEN: "a\nb" }],
    [[url, "orders", "d", "cat"], { PERE_STATE: "/dev/null" }],
    [[url, "orders", "d", "cat"], { PERE_STATE: folder }],
  ] as [string[], Record<string, string>?][])
    for (const shell of SHELLS) {
      const device = new Device(args, env, shell);
      expect([shell, args, env, await device.ended()]).toEqual([shell, args, env, 2]);
      expect([args, device.complained]).toEqual([args, expect.stringMatching(/^pere: .+\n$/)]);
      if (env?.PERE_TOKEN) expect(device.complained).not.toContain(env.PERE_TOKEN);
    }
});

shellTest(
  "a token file is no configuration of curl's; what it holds is not shown, and blanks around a token are",
  async () => {
    const pere = await startWith();
    cleanup.push(() => pere.stop());
    const good = await issueToken({ secret: SECRET }, { sub: "till-7", push: ["orders"], feed: ["orders"], days: 1 });
    const headers = { Authorization: `Bearer ${good}` };
    expect((await ask(`${pere.url}/devices/orders/till-7`, { method: "PUT", headers })).status).toBe(201);
    const folder = temporary();
    const file = join(folder, "token");
    writeFileSync(file, `secret"\noutput = "${join(folder, "written")}"\nheader = "X: 1\n`);
    const device = new Device([pere.url, "orders", "till-7", "cat"], { PERE_TOKEN_FILE: file });
    await device.complains(/no token: /);
    writeFileSync(file, `\r\n  ${good} \r\n\r\n`);
    const { body } = await ask(`${pere.url}/push/orders`, { body: "1", headers });
    const rows = async () => (await ask(`${pere.url}/events/orders/${body.id}/receipts`, { headers })).body.receipts;
    await until(async () => (await rows())[0].status === "done", "done");
    expect(device.complained).not.toContain("secret");
    expect(existsSync(join(folder, "written"))).toBe(false);
  },
);

shellTest("links in its folder stay links; a position that is none is forgotten", async () => {
  const { url } = await service();
  const folder = temporary();
  for (const [position, state] of [
    ["rubbish", "a"],
    ['\0\x1b[31m\n"; x', "b"],
  ] as const) {
    const here = join(folder, state);
    mkdirSync(here);
    for (const name of ["handled", "position"]) symlinkSync(join(folder, `${state}-${name}`), join(here, name));
    writeFileSync(join(folder, `${state}-position`), position);
    const id = await push(url, "orders", 1);
    const device = new Device([url, "orders", "till-7", "cat"], { PERE_STATE: here });
    await isDone(url, id);
    await until(() => readFileSync(join(folder, `${state}-position`), "utf8") === `${id}\n`, "the position");
    device.child.kill("SIGTERM");
    await device.ended();
    expect(readFileSync(join(folder, `${state}-handled`), "utf8")).toBe(`${id} done 1\n`);
    for (const name of ["handled", "position"]) expect(lstatSync(join(here, name)).isSymbolicLink()).toBe(true);
    expect(readdirSync(here).sort()).not.toContain("position.new");
  }
});

shellTest("a line of its memory that was not written to its end is no outcome", async () => {
  const { url } = await service();
  for (const shell of SHELLS) {
    const id = await push(url, "orders", 1);
    const state = temporary();
    writeFileSync(join(state, "handled"), `a-1 done null\n${id} done {"pri`);
    const device = new Device([url, "orders", "till-7", "echo well"], { PERE_STATE: state }, shell);
    await isDone(url, id);
    expect([shell, (await rowOf(url, id)).detail]).toEqual([shell, "well"]);
    expect(readFileSync(join(state, "handled"), "utf8")).toBe(`a-1 done null\n${id} done "well"\n`);
    device.child.kill("SIGTERM");
    await device.ended();
  }
});
