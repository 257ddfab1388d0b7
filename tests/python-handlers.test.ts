/**
 * `clients/python/pere.py`: what a handler is and what its end means; what stands around it (signals, files, proxies, closed outputs) answers no event.
 */
import { expect } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ask, push, temporary, until } from "./support/harness.ts";
import { enrol, Python, pythonTest, rowsOf, service } from "./support/python.ts";

const listen = (url: string, command: string, ...more: string[]): Python =>
  new Python(["listen", url, "orders", "--device", "till-7", "--exec", command, ...more]);
const rowOf = async (url: string, id: string) => (await rowsOf(url, id))[0]!;
const comesTo = (url: string, id: string, status: string): Promise<unknown> =>
  until(async () => (await rowOf(url, id)).status === status, status);

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
try: pere.listen(sys.argv[1], "orders", "till-7", pere._command("true", lambda: False))
except BaseException as error: print(error)`;
    const listener = new Python(["-c", script, url]);
    const id = await push(url, "orders", 1);
    await listener.says(/how the command ended can't be known: .*SIGCHLD/);
    expect((await rowOf(url, id)).status).toBe("received");
  },
);

pythonTest("listen: a handler that can't be called, or that runs nothing when called, is refused", async () => {
  const script = `import pere
async def asynchronous(event): pass
def generator(event): yield
class Callable:
    async def __call__(self, event): pass
for handler in (None, "onEvent", asynchronous, generator, Callable()):
    try: pere.listen("http://127.0.0.1:9", "orders", "till-7", handler)
    except ValueError as error: print(error)`;
  const program = new Python(["-c", script]);
  expect([await program.ended(), program.complained]).toEqual([0, ""]);
  expect(program.said).toMatch(
    /^(the handler must be a function, and not .*\n){2}(the handler must be a plain .*\n){3}$/,
  );
});

pythonTest("listen: a handler that gives back a coroutine or a generator answers nothing", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  for (const made of ["work(event)", "(n for n in [1])"]) {
    const script = `import pere, sys
async def work(event): pass
try: pere.listen(sys.argv[1], "orders", "till-7", lambda event: ${made})
except TypeError as error: print(error)`;
    const listener = new Python(["-c", script, url]);
    const id = await push(url, "orders", 1);
    await listener.says(/the handler gave a \w+ that nobody has run/);
    expect([made, (await rowOf(url, id)).status]).toEqual([made, "received"]);
  }
});

pythonTest("listen: what a handler raises after it was told to stop leaves the event open", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const script = `import pere, sys, threading
stop = threading.Event()
def handle(event):
    stop.set()
    raise RuntimeError("my own command was ended")
pere.listen(sys.argv[1], "orders", "till-7", handle, stop=stop)`;
  const listener = new Python(["-c", script, url]);
  const id = await push(url, "orders", 1);
  expect(await listener.ended()).toBe(0);
  expect(listener.complained).toContain(`${id} stays open: my own command was ended; it comes again`);
  expect(["pending", "received"]).toContain((await rowOf(url, id)).status);
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

pythonTest("a number with an exponent that no type holds passes as it is", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const number = "1e9999999999999999999";
  const script = `import pere, sys
pere.listen(sys.argv[1], "orders", "till-7", lambda event: event.data)`;
  const returning = new Python(["-c", script, url]);
  const { id } = (await ask(`${url}/push/orders`, { body: `{"n":${number}}` })).body as { id: string };
  await comesTo(url, id, "done");
  const follower = new Python(["receipts", url, "orders", "--after", id.replace(/\d+$/, "0")]);
  await follower.says(new RegExp(`"detail": \\{"n": ${number}\\}`));
  expect(returning.complained + follower.complained).toBe("");
});

pythonTest("an answer that says Connection: close has the stream's patience, not that of its first byte", async () => {
  const { url, proxy } = await service();
  const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
  proxy.weather = ({ errand }) =>
    errand === "sse" ? { bytes: `${head}event: pere.ready\ndata: {"channels":{}}\n\n`, stays: true } : "pass";
  await enrol(url, "till-7");
  const times = ["--first-byte", "300", "--silence", "0.5"];
  const listener = new Python(["listen", proxy.url, "orders", "--device", "till-7", ...times]);
  await until(() => /on with long-polls/.test(listener.complained), "long-polls");
});

pythonTest("receipts: told to stop during a long-poll, it stops", async () => {
  const { proxy } = await service();
  proxy.weather = ({ head }) => (/text\/event-stream/.test(head) ? "hold" : "pass");
  const script = `import pere, signal, sys
pere.FIRST_BYTE_SECONDS = 0.2
def follow(stop, is_ending):
    for receipt in pere.receipts(sys.argv[1], "orders", stop=stop): pass
pere._until_told(follow)`;
  const follower = new Python(["-c", script, proxy.url]);
  await until(() => proxy.seen.some(({ target }) => /wait=/.test(target)), "a long-poll");
  follower.child.kill("SIGTERM");
  // The long-poll itself rests for 25 s.
  await until(() => follower.child.exitCode === 0, "its end");
});

pythonTest("publish: a proxy for every program that is no HTTP proxy is passed by", async () => {
  const { url } = await service();
  const publisher = new Python(["publish", url, "orders", "1"], { ALL_PROXY: "socks5h://127.0.0.1:9" });
  expect([await publisher.ended(), publisher.complained]).toEqual([0, ""]);
});

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
