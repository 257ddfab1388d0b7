/**
 * `clients/python/pere.py listen --exec`: what becomes of an event when its command ends, fails, crashes, is ended by a signal or can't be run, and
 * what its output becomes in the receipt.
 */
import { expect } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ask, push, temporary, until } from "./support/harness.ts";
import { cleanup, comesTo, enrol, listen, Python, pythonTest, rowOf, rowsOf, service } from "./support/python.ts";

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
    for (const id of ids) expect(["pending", "received"]).toContain((await rowOf(url, id)).status);
  }
  listen(url, "cat");
  for (const id of ids) await comesTo(url, id, "done");
});

pythonTest("listen: a command that somebody ends is run again; one that crashes by itself failed", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const gate = join(temporary(), "gate");
  listen(url, `[ "$(cat)" = 2 ] && kill -SEGV $$; [ -e '${gate}' ] || { : >'${gate}'; kill -TERM $$; }; echo well`);
  const [id, crashing] = [await push(url, "orders", 1), await push(url, "orders", 2)];
  await until(async () => (await rowOf(url, crashing)).status === "failed", "the crash");
  expect(await rowsOf(url, id)).toMatchObject([{ status: "done", detail: "well" }]);
});

pythonTest(
  "listen: a command ended by SIGPIPE is run again; one that crashes says the status that a shell says",
  async () => {
    const { url } = await service();
    await enrol(url, "till-7");
    const gate = join(temporary(), "gate");
    listen(url, `[ "$(cat)" = 2 ] && kill -SEGV $$; [ -e '${gate}' ] || { : >'${gate}'; kill -PIPE $$; }; echo well`);
    const [id, crashing] = [await push(url, "orders", 1), await push(url, "orders", 2)];
    await comesTo(url, crashing, "failed");
    expect(await rowOf(url, id)).toMatchObject({ status: "done", detail: "well" });
    expect((await rowOf(url, crashing)).detail).toBe("exit status 139");
  },
);

pythonTest("listen: a command that can't be run leaves the event open, and is run when it is there", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const command = join(temporary(), "command");
  const listener = listen(url, command);
  const id = await push(url, "orders", 1);
  await until(() => listener.complained.match(/stays open: the command could not be run/g)?.length === 1, "a word");
  writeFileSync(command, "#!/bin/sh\necho now\n", { mode: 0o644 });
  await until(() => /ermission denied/.test(listener.complained), "another");
  expect((await rowOf(url, id)).status).toBe("received");
  Bun.spawnSync(["chmod", "+x", command]);
  await comesTo(url, id, "done");
});

pythonTest("listen: done when the command has ended, whatever it left running", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const pid = join(temporary(), "pid");
  listen(url, `sleep 1000 & echo $! >'${pid}'; echo ok`);
  const id = await push(url, "orders", 1);
  await comesTo(url, id, "done");
  const left = Number(readFileSync(pid, "utf8"));
  cleanup.push(() => process.kill(left, "SIGKILL"));
  process.kill(left, 0);
});

pythonTest("listen: started with SIGCHLD ignored, it runs the command once and answers", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const runs = join(temporary(), "runs");
  const ignoring =
    "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])";
  const args = ["listen", url, "orders", "--device", "till-7", "--exec", `echo run >>'${runs}'; echo well`];
  new Python(args, {}, undefined, `exec python3 -c '${ignoring}' "$@"`);
  const id = await push(url, "orders", 1);
  await comesTo(url, id, "done");
  expect([readFileSync(runs, "utf8"), (await rowOf(url, id)).detail]).toEqual(["run\n", "well"]);
});

pythonTest(
  "listen: where nobody can know how a command ended, it ends with a sentence and answers nothing",
  async () => {
    const { url } = await service();
    await enrol(url, "till-7");
    const script = `import pere, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try: pere.listen(sys.argv[1], "orders", "till-7", pere._command_handler("true", lambda: False))
except BaseException as error: print(error)`;
    const listener = new Python(["-c", script, url]);
    const id = await push(url, "orders", 1);
    await listener.says(/the exit status of the command is lost: .*SIGCHLD/);
    expect((await rowOf(url, id)).status).toBe("received");
  },
);

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
    await comesTo(url, ids[index]!, "done");
    const rows = await ask(`${url}/events/orders/${ids[index]}/receipts`);
    expect([command, rows.text.replaceAll('": "', '":"')]).toEqual([
      command,
      expect.stringContaining(`"detail":${detail.replaceAll('": "', '":"')}`),
    ]);
  }
});
