/**
 * `clients/python/pere.py` where something goes wrong that is not the work's: it is ended, its output goes away, its command can't be run, what answers is
 * not PERE, what it was given can't be meant. An event is `failed` only when the work said so.
 */
import { expect } from "bun:test";
import { existsSync, lstatSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { readRanges } from "../engine/addresses.ts";
import { issueToken } from "../engine/auth/issue.ts";
import { BAD_ANSWERS } from "./support/bad-answers.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { ask, give, openStream, push, SECRET, startWith, temporary, until } from "./support/harness.ts";
import { cleanup, enrol, Python, pythonTest, rowsOf, service } from "./support/python.ts";

const listen = (url: string, command: string, ...more: string[]): Python =>
  new Python(["listen", url, "orders", "--device", "till-7", "--exec", command, ...more]);
const statusOf = async (url: string, id: string): Promise<string> => (await rowsOf(url, id))[0]!.status;
const isDone = (url: string, id: string): Promise<unknown> =>
  until(async () => (await statusOf(url, id)) === "done", "done");

pythonTest("listen: a signal to it and to what works ends both, and the event comes again", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const folder = temporary();
  const ids: string[] = [];
  // A command that ends by the signal, and one that makes a failure of it.
  for (const [signal, answer] of [
    ["SIGTERM", ""],
    ["SIGINT", ""],
    ["SIGHUP", ""],
    ["SIGQUIT", ""],
    ["SIGTERM", "trap 'exit 1' TERM; "],
    ["SIGINT", "trap 'exit 1' INT; "],
  ] as const) {
    const gate = join(folder, String(ids.length));
    ids.push(await push(url, "orders", signal));
    const listener = listen(url, `${answer}echo $$ >'${gate}'; while :; do sleep 0.05; done`);
    await until(() => existsSync(gate), "work");
    process.kill(-listener.child.pid, signal);
    expect([signal, await listener.ended()]).toEqual([signal, 0]);
    for (const id of ids) expect(["pending", "received"]).toContain(await statusOf(url, id));
  }
  listen(url, "cat");
  for (const id of ids) await isDone(url, id);
});

pythonTest("listen: a command that somebody ends is run again; one that crashes by itself failed", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const gate = join(temporary(), "gate");
  listen(url, `[ "$(cat)" = 2 ] && kill -SEGV $$; [ -e '${gate}' ] || { : >'${gate}'; kill -TERM $$; }; echo well`);
  const [id, crashing] = [await push(url, "orders", 1), await push(url, "orders", 2)];
  await until(async () => (await statusOf(url, crashing)) === "failed", "the crash");
  expect(await rowsOf(url, id)).toMatchObject([{ status: "done", detail: "well" }]);
});

pythonTest("listen: a command that can't be run leaves the event open, and is run when it is there", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const command = join(temporary(), "command");
  const listener = listen(url, command);
  const id = await push(url, "orders", 1);
  await until(() => listener.complained.match(/stays open: the command could not be run/g)?.length === 1, "a word");
  writeFileSync(command, "#!/bin/sh\necho now\n", { mode: 0o644 });
  await until(() => /ermission denied/.test(listener.complained), "another");
  expect(await statusOf(url, id)).toBe("received");
  Bun.spawnSync(["chmod", "+x", command]);
  await isDone(url, id);
});

pythonTest("listen: want of memory or of descriptors, and SystemExit, say nothing of the work", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const script = `import pere, sys, errno
errors = [MemoryError(), OSError(errno.EMFILE, "too many"), pere.NoOutcome("not now"), RecursionError("deep")]
def handle(event):
    if event.data == "leave": sys.exit("bye")
    if errors: raise errors.pop(0)
pere.AGAIN_SECONDS = 0.01
try: pere.listen(sys.argv[1], "orders", "till-7", handle)
except SystemExit as error: print("it left:", error)`;
  const listener = new Python(["-c", script, url]);
  const id = await push(url, "orders", 1);
  await until(async () => (await statusOf(url, id)) === "failed", "the fourth try");
  expect((await rowsOf(url, id))[0]!.detail).toBe("deep");
  expect(listener.complained.match(/stays open/g)).toHaveLength(3);
  const last = await push(url, "orders", "leave");
  await listener.says(/it left: bye/);
  expect(await statusOf(url, last)).toBe("received");
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
      const states = await Promise.all(ids.map((id) => statusOf(url, id)));
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

pythonTest("publish: the data is the bytes that were given, whatever the locale", async () => {
  const { url } = await service();
  const env = { LC_ALL: "C", PYTHONUTF8: "0", PYTHONCOERCECLOCALE: "0" };
  const publisher = new Python(["publish", url, "orders", '"☕"'], env);
  expect(await publisher.ended()).toBe(0);
  const { id } = JSON.parse(publisher.said) as { id: string };
  expect((await ask(`${url}/events/orders/${id}`)).body.data).toBe("☕");
});

pythonTest("listen: done when the command has ended, whatever it left running", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const pid = join(temporary(), "pid");
  listen(url, `sleep 1000 & echo $! >'${pid}'; echo ok`);
  const id = await push(url, "orders", 1);
  await isDone(url, id);
  const left = Number(readFileSync(pid, "utf8"));
  cleanup.push(() => process.kill(left, "SIGKILL"));
  process.kill(left, 0);
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

pythonTest("listen: an outcome goes along as it is, or as text", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  listen(url, 'sh -c "$(cat | sed \'s/^"//; s/"$//\' | base64 -d)"');
  const deep = `${"[".repeat(200)}${"]".repeat(200)}`;
  const expected: [string, string][] = [
    [`echo one; echo '{"printed":true}'`, '{"printed":true}'],
    [`printf '{\\n  "n":1e400,\\n "e":"é"}'`, '{"n":1e400,"e":"é"}'],
    ["echo 12345678901234567890.10", "12345678901234567890.10"],
    ["echo one; echo two", '"two"'],
    ["echo NaN", '"NaN"'],
    ["head -c 100000 /dev/zero | tr '\\0' '['", `{"cut": "${"[".repeat(600)}"}`],
    [`echo '${deep}'`, `{"cut": "${deep}"}`],
    ["true", "null"],
  ];
  const ids: string[] = [];
  for (const [command] of expected) ids.push(await push(url, "orders", Buffer.from(command).toString("base64")));
  for (const [index, [command, detail]] of expected.entries()) {
    await isDone(url, ids[index]!);
    const rows = await ask(`${url}/events/orders/${ids[index]}/receipts`);
    expect([command, rows.text.replaceAll('": "', '":"')]).toEqual([
      command,
      expect.stringContaining(`"detail":${detail.replaceAll('": "', '":"')}`),
    ]);
  }
});

pythonTest("events and receipts that hold more than Python's numbers pass as they are", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  const data = '{"n":1e400,"m":12345678901234567890.10}';
  // On long-polls as well.
  proxy.weather = ({ errand }) => (errand === "sse" ? "buffer" : "pass");
  for (const way of [url, proxy.url]) {
    const listener = new Python(["listen", way, "orders", "--device", "till-7", "--first-byte", "0.3"]);
    const { id } = (await ask(`${url}/push/orders`, { body: data })).body as { id: string };
    await isDone(url, id);
    expect(listener.said).toBe(`${id} ${data}\n`);
    listener.child.kill("SIGTERM");
    await listener.ended();
  }
  const id = await push(url, "orders", 1);
  const follower = new Python(["receipts", url, "orders", "--after", id.replace(/\d+$/, "0")]);
  await ask(`${url}/feedback/orders`, { body: `{"event":"${id}","device":"till-7","status":"done","detail":${data}}` });
  await follower.says(/"detail": \{"n": 1e400, "m": 12345678901234567890\.10\}/);
  // What a handler gives back of an event that it was given.
  const script = "import pere, sys\npere.listen(sys.argv[1], 'orders', 'till-7', lambda event: event.data)";
  new Python(["-c", script, url]);
  const back = await ask(`${url}/push/orders`, { body: '{"n":1e400}' });
  await isDone(url, back.body.id as string);
  const { text } = await ask(`${url}/events/orders/${back.body.id}/receipts`);
  expect(text).toContain('"detail":{"n":1E+400}');
});

pythonTest("its file: a link stays a link, and what is no regular file is refused", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const folder = temporary();
  const [file, link] = [join(folder, "file"), join(folder, "link")];
  symlinkSync(file, link);
  const listener = listen(url, "cat", "--state", link);
  await isDone(url, await push(url, "orders", 1));
  listener.child.kill("SIGTERM");
  expect(await listener.ended()).toBe(0);
  expect(lstatSync(link).isSymbolicLink()).toBe(true);
  expect(readFileSync(file, "utf8")).toContain('"given"');
  mkdirSync(join(folder, "folder"));
  Bun.spawnSync(["mkfifo", join(folder, "pipe")]);
  for (const path of ["/dev/null", join(folder, "folder"), join(folder, "pipe")]) {
    const refused = listen(url, "cat", "--state", path);
    expect(await refused.ended()).toBe(2);
    expect(refused.complained).toBe(`pere: the state must be a regular file, and ${path} is none\n`);
  }
  expect(lstatSync("/dev/null").isCharacterDevice()).toBe(true);
});

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
    await until(() => /there is no token: the token is not a JWT/.test(listener.complained), "a word");
    writeFileSync(file, ` ${good}\r\n`);
    const headers = { Authorization: `Bearer ${good}` };
    const devices = async () => (await ask(`${pere.url}/devices/orders`, { headers })).body.devices as object[];
    await until(async () => (await devices()).length > 0, "the device");
    expect(listener.complained).not.toContain("secret");
  },
);

pythonTest("publish: what is no answer of the service is tried again, whatever it is", async () => {
  const { url, proxy } = await service();
  const rows = BAD_ANSWERS.filter(({ to }) => to.includes("push"));
  let next = 0;
  let endsAt = 0;
  proxy.weather = ({ target }) => {
    const row = rows[next >> 1];
    if (row === undefined || !target.startsWith("/push/")) return "pass";
    if (performance.now() < endsAt) return row;
    // Each one once, and then the service.
    if (next++ % 2 === 1) return "pass";
    endsAt = performance.now() + row.forMs;
    return row;
  };
  const script = `import pere, sys
pere.BACKOFF_SECONDS_MAX = 0.02
for n in range(int(sys.argv[2])): print(pere.publish(sys.argv[1], "orders", n, report=lambda line: None)["id"])`;
  const publisher = new Python(["-c", script, proxy.url, String(rows.length)]);
  expect([await publisher.ended(), publisher.complained]).toEqual([0, ""]);
  const stored = (await ask(`${url}/events/orders?limit=1000`)).body.events as { id: string }[];
  expect(publisher.said.trim().split("\n")).toEqual(stored.map(({ id }) => id));
  expect(stored).toHaveLength(rows.length);
});

pythonTest("receipts: what is no answer of the service is passed over, whatever it is", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  const id = await push(url, "orders", 1);
  const rows = BAD_ANSWERS.filter(({ to }) => to.includes("stream"));
  let endsAt = 0;
  let row = rows[0]!;
  proxy.weather = () => {
    if (performance.now() < endsAt) return row;
    const next = rows.shift();
    if (next === undefined) return "pass";
    row = next;
    endsAt = performance.now() + row.forMs;
    return row;
  };
  const script = `import pere, sys
pere.BACKOFF_SECONDS_MAX = 0.02
for receipt in pere.receipts(sys.argv[1], "orders", report=lambda line: None): print(receipt.get("status", receipt.get("complete")))`;
  const follower = new Python(["-c", script, proxy.url]);
  await until(() => proxy.seen.at(-1)?.answer.includes('"channels":{'), "the service", 50_000);
  await give(url, "orders", id, "till-7", "done");
  await follower.says(/True/);
  expect([follower.said, follower.complained]).toEqual(["done\nTrue\n", ""]);
});

pythonTest("publish: where nobody answers it says so before two seconds have passed", async () => {
  // Takes connections, and says nothing.
  const mute = createServer();
  mute.listen(0, "127.0.0.1");
  await until(() => mute.listening, "a port");
  cleanup.push(() => mute.close());
  const { port } = mute.address() as { port: number };
  for (const url of [`http://127.0.0.1:${port}`, "http://127.0.0.1:9"]) {
    const publisher = new Python(["publish", url, "orders", "1"]);
    await until(() => /^pere: .*(trying for 60 s|trying again)/.test(publisher.complained), "a word");
    publisher.child.kill("SIGKILL");
  }
});

pythonTest("a redirect is told with the address to use; 307 and 308 to the same origin are followed", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  const html = (status: number, location: string) => ({
    bytes: `HTTP/1.1 ${status} Moved\r\nLocation: ${location}\r\nContent-Length: 0\r\n\r\n`,
    stays: false,
  });
  proxy.weather = () => html(301, "https://push.example.com{target}");
  const listener = new Python(["listen", proxy.url, "orders", "--device", "till-7"]);
  await until(
    () => /redirected with status 301: use the address https:\/\/push\.example\.com;/.test(listener.complained),
    () => listener.complained,
  );
  listener.child.kill("SIGKILL");
  for (const [status, location] of [
    [307, "{origin}{target}&ttl=60"],
    [308, "{target}&ttl=60"],
  ] as const) {
    const before = proxy.seen.length;
    proxy.weather = ({ target }) => (/ttl=60/.test(target) ? "pass" : html(status, location));
    const publisher = new Python(["publish", proxy.url, "orders", "1", "--type", "a"]);
    expect(await publisher.ended()).toBe(0);
    expect(proxy.seen.length - before).toBe(2);
    expect(proxy.seen.at(-1)).toMatchObject({ body: "1", target: expect.stringContaining("ttl=60") });
  }
});

pythonTest(
  "the proxy that the environment names is used, with its password, and not where NO_PROXY says so",
  async () => {
    const { url, proxy } = await service();
    const port = new URL(proxy.url).port;
    for (const [env, isProxied] of [
      [{ HTTP_PROXY: `http://me:p%20w@127.0.0.1:${port}` }, true],
      [{ http_proxy: `127.0.0.1:${port}`, NO_PROXY: "example.com" }, true],
      [{ ALL_PROXY: `http://127.0.0.1:${port}` }, true],
      [{ HTTP_PROXY: proxy.url, NO_PROXY: "127.0.0.1" }, false],
      [{ HTTPS_PROXY: proxy.url }, false],
    ] as [Record<string, string>, boolean][]) {
      const before = proxy.seen.length;
      const publisher = new Python(["publish", url, "orders", "1"], env);
      expect([env, await publisher.ended(), publisher.complained]).toEqual([env, 0, ""]);
      expect([env, proxy.seen.length > before]).toEqual([env, isProxied]);
      if (isProxied) expect(proxy.seen.at(-1)!.target).toBe(`${url}/push/orders?`);
      if ("HTTP_PROXY" in env && isProxied)
        expect(proxy.seen.at(-1)!.head).toContain(`Proxy-Authorization: Basic ${btoa("me:p w")}`);
    }
    // For TLS it is asked for a tunnel.
    const before = proxy.seen.length;
    const secure = new Python(["publish", "https://push.example.com", "orders", "1"], { HTTPS_PROXY: proxy.url });
    await until(() => proxy.seen.length > before, "a request");
    expect(proxy.seen[before]!.head).toStartWith("CONNECT push.example.com:443 ");
    secure.child.kill("SIGKILL");
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
  await isDone(url, id);
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

pythonTest("listen: a device that is open at two addresses says so, on an event stream and on long-polls", async () => {
  const pere = await startWith({ access: "open", origins: "*", proxies: readRanges("127.0.0.1/32") });
  cleanup.push(() => pere.stop());
  const proxy = await BadProxy.to(pere.url);
  cleanup.push(() => proxy.stop());
  proxy.weather = ({ errand }) => (errand === "sse" ? "buffer" : "pass");
  const twin = await openStream(`${pere.url}/feed/orders?device=till-7`, { "X-Forwarded-For": "192.0.2.1" });
  cleanup.push(() => twin.close());
  for (const url of [pere.url, proxy.url]) {
    const listener = new Python(["listen", url, "orders", "--device", "till-7", "--first-byte", "0.5"]);
    // An event ends a long-poll.
    await until(
      async () => {
        await push(pere.url, "orders", 1);
        await Bun.sleep(100);
        return /open at several addresses; .*192\.0\.2\.1/.test(listener.complained);
      },
      () => listener.complained,
      180_000,
    );
    listener.child.kill("SIGTERM");
    await listener.ended();
  }
});
