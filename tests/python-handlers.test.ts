/**
 * `clients/python/pere.py`: which handlers are accepted, what their exceptions mean, and numbers that Python's types can't hold.
 */
import { expect } from "bun:test";
import { ask, push, until } from "./support/harness.ts";
import { comesTo, enrol, Python, pythonTest, rowOf, service } from "./support/python.ts";

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
  expect(program.said).toMatch(/^(the handler must be a function, not .*\n){2}(the handler must be a plain .*\n){3}$/);
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
    await listener.says(/the handler returned a \w+, which does nothing by itself/);
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

pythonTest("listen: want of memory or of descriptors, and SystemExit, say nothing of the work", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const script = `import pere, sys, errno
errors = [MemoryError(), OSError(errno.EMFILE, "too many"), pere.NoOutcome("not now"), RecursionError("deep")]
def handle(event):
    if event.data == "leave": sys.exit("bye")
    if errors: raise errors.pop(0)
pere.HANDLER_RETRY_SECONDS_MIN = 0.01
try: pere.listen(sys.argv[1], "orders", "till-7", handle)
except SystemExit as error: print("it left:", error)`;
  const listener = new Python(["-c", script, url]);
  const id = await push(url, "orders", 1);
  await until(async () => (await rowOf(url, id)).status === "failed", "the fourth try");
  expect((await rowOf(url, id)).detail).toBe("deep");
  expect(listener.complained.match(/stays open/g)).toHaveLength(3);
  const last = await push(url, "orders", "leave");
  await listener.says(/it left: bye/);
  expect((await rowOf(url, last)).status).toBe("received");
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
    await comesTo(url, id, "done");
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
  await comesTo(url, back.body.id as string, "done");
  const { text } = await ask(`${url}/events/orders/${back.body.id}/receipts`);
  expect(text).toContain('"detail":{"n":1E+400}');
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
