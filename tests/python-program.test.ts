/**
 * `clients/python/pere.py` as a program: its arguments and tokens, its device name, its state file, closed outputs, and two signals at once.
 */
import { expect } from "bun:test";
import { lstatSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { ask, give, push, SECRET, startWith, temporary, until } from "./support/harness.ts";
import { cleanup, comesTo, enrol, listen, Python, pythonTest, rowOf, service } from "./support/python.ts";

pythonTest("what can't be meant is said in one line, at once, with status 2", async () => {
  const url = "http://127.0.0.1:9";
  const device = ["--device", "d"];
  for (const [args, program] of [
    ["listen", url, "orders", "--device", ""],
    ["listen", url, "orders", "--device", "d&since=earliest"],
    ["listen", url, "orders", ...device, "--workers", "0"],
    ["listen", url, "orders", ...device, "--workers=abc"],
    ["listen", url, "orders", ...device, "--silence", "nan"],
    ["listen", url, "orders", ...device, "--silence", "inf"],
    ["listen", url, "orders", ...device, "--first-byte", "-1"],
    ["listen", url, "orders", ...device, "--return", "0"],
    ["listen", url, "orders", ...device, "--exec", ""],
    ["listen", url, "orders", ...device, "--state", ""],
    ["listen", url, "orders", ...device, "--bogus"],
    ["listen", url, "a b", ...device],
    ["listen", url, "", ...device],
    ["listen", "not a url", "orders", ...device],
    ["listen", "ftp://127.0.0.1", "orders", ...device],
    ["listen", "http://127.0.0.1:99999", "orders", ...device],
    ["listen", `${url}?a=b`, "orders", ...device],
    ["listen", `${url}#a`, "orders", ...device],
    ["listen", "", "orders", ...device],
    ["receipts", url, "orders", "--after", "a\r\nX: 1"],
    ["publish", url, "orders", "1", "--key", "a\nb"],
    ["publish", url, "orders", "1", "--key", ""],
    ["publish", url, "orders", "1", "--type", "a b"],
    ["publish", url, "orders", "1", "--type", "pere.x"],
    ["publish", url, "orders", "1", "--to", ","],
    ["publish", url, "orders", "1", "--ttl", "1e3"],
    ["publish", url, "orders", "1", "--wait", "121"],
    ["publish", `${url}/?a`, "orders", "1"],
    ["bogus"],
    [],
  ].map((args) => [args, new Python(args)] as const)) {
    expect([args, await program.ended()]).toEqual([args, 2]);
    expect([args, program.said + program.complained]).toEqual([args, expect.stringMatching(/^pere: .+\n$/)]);
  }
  for (const token of ['a"b', "a b", "a\nX: 1", "a\r\nb", "é"]) {
    const program = new Python(["listen", url, "orders", ...device], { PERE_TOKEN: token });
    expect([token, await program.ended()]).toEqual([token, 2]);
    expect(program.complained).toMatch(/^pere: the token is not a JWT: .*\n$/);
    expect(program.complained).not.toContain(token);
  }
});

pythonTest(
  "a token is taken without the blanks around it; a file with another is waited for, and not shown",
  async () => {
    const pere = await startWith();
    cleanup.push(() => pere.stop());
    const good = await issueToken({ secret: SECRET }, { sub: "till-7", push: ["orders"], feed: ["orders"], days: 1 });
    const id = await push(pere.url, "orders", 1).catch(() => "");
    expect(id).toBe("");
    const publisher = new Python(["publish", pere.url, "orders", "1"], { PERE_TOKEN: `\r\n ${good}\r\n` });
    expect(await publisher.ended()).toBe(0);
    const file = join(temporary(), "token");
    writeFileSync(file, 'secret"\r\nX: 1\r\n');
    const listener = new Python(["listen", pere.url, "orders", "--device", "till-7", "--token-file", file]);
    await until(() => /no token: the token is not a JWT/.test(listener.complained), "a word");
    writeFileSync(file, ` ${good}\r\n`);
    const headers = { Authorization: `Bearer ${good}` };
    const devices = async () => (await ask(`${pere.url}/devices/orders`, { headers })).body.devices as object[];
    await until(async () => (await devices()).length > 0, "the device");
    expect(listener.complained).not.toContain("secret");
  },
);

pythonTest("listen: without a name it has the token's, or one that is made once and kept", async () => {
  const { url } = await service();
  const state = temporary();
  const names = async (at: string, headers = {}): Promise<string[]> =>
    ((await ask(`${at}/devices/orders`, { headers })).body.devices as { device: string }[]).map(({ device }) => device);
  // Where two begin at once, both are the one.
  const env = { XDG_STATE_HOME: state };
  const first = [0, 1].map(() => new Python(["listen", url, "orders"], env));
  await push(url, "orders", 1);
  await until(async () => (await names(url)).length > 0, "a device");
  const kept = readFileSync(join(state, "pere", "device"), "utf8");
  expect(kept).toMatch(/^.+-[0-9a-f]{8}\n$/);
  for (const { child } of first) child.kill("SIGKILL");
  const next = new Python(["listen", url, "orders"], env);
  const id = await push(url, "orders", 2);
  await comesTo(url, id, "done");
  next.child.kill("SIGTERM");
  await next.ended();
  expect(await names(url)).toEqual([kept.trim()]);

  const refused = new Python(["listen", url, "orders"], { XDG_STATE_HOME: "/dev/null" });
  expect(await refused.ended()).toBe(2);
  expect(refused.complained).toMatch(/^pere: --device is needed: .*\n$/);

  const pere = await startWith();
  cleanup.push(() => pere.stop());
  const token = await issueToken({ secret: SECRET }, { sub: "till-9", push: ["orders"], feed: ["orders"], days: 1 });
  new Python(["listen", pere.url, "orders"], { PERE_TOKEN: token, XDG_STATE_HOME: "/dev/null" });
  const headers = { Authorization: `Bearer ${token}` };
  expect((await ask(`${pere.url}/push/orders`, { body: "1", headers })).status).toBe(201);
  await until(async () => (await names(pere.url, headers)).includes("till-9"), "the device");
});

pythonTest("its file: a link stays a link, and what is no regular file is refused", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const folder = temporary();
  const [file, link] = [join(folder, "file"), join(folder, "link")];
  symlinkSync(file, link);
  const listener = listen(url, "cat", "--state", link);
  await comesTo(url, await push(url, "orders", 1), "done");
  listener.child.kill("SIGTERM");
  expect(await listener.ended()).toBe(0);
  expect(lstatSync(link).isSymbolicLink()).toBe(true);
  expect(readFileSync(file, "utf8")).toContain('"given"');
  mkdirSync(join(folder, "folder"));
  Bun.spawnSync(["mkfifo", join(folder, "pipe")]);
  for (const path of ["/dev/null", join(folder, "folder"), join(folder, "pipe")]) {
    const refused = listen(url, "cat", "--state", path);
    expect(await refused.ended()).toBe(2);
    expect(refused.complained).toBe(`pere: the state must be a regular file, and ${path} is not\n`);
  }
  expect(lstatSync("/dev/null").isCharacterDevice()).toBe(true);
});

pythonTest("its file: one that holds something else is refused and left as it is; a cut-off line is not", async () => {
  const { url } = await service();
  const file = join(temporary(), "file");
  for (const text of ["#!/bin/sh\necho mine\n", "{}\n", "no line's end", '{"event": "a", "chan\n\nmine\n']) {
    writeFileSync(file, text);
    const refused = listen(url, "cat", "--state", file);
    expect([text, await refused.ended()]).toEqual([text, 2]);
    expect(refused.complained).toMatch(/^pere: the state must be a file that pere\.py wrote, .*\n$/);
    expect(readFileSync(file, "utf8")).toBe(text);
  }
  await enrol(url, "till-7");
  for (const text of ["", "\n", '{"ev', '{"event": "a", "chan\n{"given": "a"}\n\0\0\0']) {
    writeFileSync(file, text);
    const listener = listen(url, "cat", "--state", file);
    await comesTo(url, await push(url, "orders", 1), "done");
    listener.child.kill("SIGTERM");
    expect([text, await listener.ended()]).toEqual([text, 0]);
  }
});

pythonTest(
  "an output that goes away or can't take it ends the program with a sentence, and answers nothing",
  async () => {
    const { url } = await service();
    await enrol(url, "till-7");
    const args = ["listen", url, "orders", "--device", "till-7"];
    for (const [by, env] of [
      ['{ "$@"; echo "status $?" >&2; } | head -n 1', {}],
      ['"$@" >/dev/full; echo "status $?" >&2', {}],
      ['"$@" >&-; echo "status $?" >&2', {}],
      ['"$@" >/dev/null; echo "status $?" >&2', { PYTHONIOENCODING: "latin-1" }],
      ['"$@" >/dev/null; echo "status $?" >&2', { PYTHONIOENCODING: "ascii" }],
    ] as const) {
      const listener = new Python(args, env, undefined, by);
      const ids: string[] = [];
      // The pipe takes what comes until its reader has left.
      await until(async () => {
        if (/status/.test(listener.complained)) return true;
        ids.push(await push(url, "orders", "☕"));
        await Bun.sleep(100);
        return false;
      }, by);
      expect([by, listener.complained]).toEqual([
        by,
        expect.stringMatching(/^pere: the output can't be written: .*\nstatus 1\n$/),
      ]);
      const states = await Promise.all(ids.map(async (id) => (await rowOf(url, id)).status));
      expect([by, states.filter((state) => state === "failed")]).toEqual([by, []]);
      expect([by, states.some((state) => state !== "done")]).toEqual([by, true]);
      for (const id of ids) await give(url, "orders", id, "till-7", "done");
    }
    // The same for followers, and for publishers, whose event is stored all the same.
    const follower = new Python(["receipts", url, "orders"], {}, undefined, '"$@" >/dev/full; echo "status $?" >&2');
    await until(async () => {
      await give(url, "orders", await push(url, "orders", 1), "till-7", "done");
      return /can't be written[^]*status 1/.test(follower.complained);
    }, "its end");
    const publisher = new Python(["publish", url, "orders", "7"], {}, undefined, '"$@" >/dev/full');
    expect(await publisher.ended()).toBe(1);
    expect(publisher.complained).toMatch(/^pere: the output can't be written: .*\n$/);
  },
);

pythonTest("publish: without an error output it says nothing on the output", async () => {
  const { proxy } = await service();
  proxy.weather = () => (proxy.seen.length < 2 ? { status: 503 } : "pass");
  const script = `import pere, sys
sys.stderr = None
pere.publish(sys.argv[1], "orders", 1)`;
  const publisher = new Python(["-c", script, proxy.url]);
  expect([await publisher.ended(), publisher.said]).toEqual([0, ""]);
  expect(proxy.seen.length).toBeGreaterThan(1);
});

pythonTest("publish: the data is the bytes that were given, whatever the locale", async () => {
  const { url } = await service();
  const env = { LC_ALL: "C", PYTHONUTF8: "0", PYTHONCOERCECLOCALE: "0" };
  const publisher = new Python(["publish", url, "orders", '"☕"'], env);
  expect(await publisher.ended()).toBe(0);
  const { id } = JSON.parse(publisher.said) as { id: string };
  expect((await ask(`${url}/events/orders/${id}`)).body.data).toBe("☕");
});

pythonTest("publish: what may be wrong with a push is said on standard error, beside the answer", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const warning =
    "Device till-8 is not enrolled in channel orders: check its name. It gets the event if it opens a feed in time.";
  const publisher = new Python(["publish", url, "orders", "1", "--to", "till-7,till-8"]);
  expect(await publisher.ended()).toBe(0);
  expect(JSON.parse(publisher.said)).toMatchObject({ warnings: [warning] });
  expect(publisher.complained).toBe(`pere: ${warning}\n`);
  const well = new Python(["publish", url, "orders", "1"]);
  expect([await well.ended(), well.complained]).toEqual([0, ""]);
});

pythonTest("two signals at once end it", async () => {
  const { url } = await service();
  for (const args of [
    ["listen", url, "orders", "--device", "till-7"],
    ["receipts", url, "orders"],
  ])
    for (let n = 0; n < 6; n++) {
      const program = new Python(args, {}, undefined, 'exec "$@"');
      await Bun.sleep(50 * n + 200);
      process.kill(program.child.pid, "SIGINT");
      process.kill(program.child.pid, "SIGTERM");
      await until(() => program.child.exitCode !== null || program.child.signalCode !== null, "its end");
    }
});
