/**
 * The asyncio interface of `clients/python/pere.py`: `alisten`, `apublish` and `areceipts` keep the promises of the plain functions, whatever becomes of
 * the caller's task and event loop.
 */
import { expect } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { give, push, SECRET, start, startWith, temporary, until } from "./support/harness.ts";
import { cleanup, comesTo, enrol, Python, pythonTest, rowOf, service } from "./support/python.ts";

/** A program in asyncio. It waits for files of a folder where the test tells it when to go on. */
class Program extends Python {
  readonly #folder: string;

  /** @param main the lines of `async def main(url)`; `loop`: the lines that run it on an event loop */
  constructor(url: string, main: string, loop = "asyncio.run(main(sys.argv[1]))") {
    const folder = temporary();
    const script = `import asyncio, contextvars, os, pere, sys, threading
def is_told(what): return os.path.exists(os.path.join(sys.argv[2], what))
async def told(what):
    while not is_told(what): await asyncio.sleep(0.01)
async def main(url):
${main.replace(/^/gm, "    ")}
${loop}`;
    // A coroutine that nobody awaited is an error, and is told on the error output.
    super(["-c", script, url, folder], { PYTHONWARNINGS: "error" });
    this.#folder = folder;
  }

  tell(what: string): void {
    writeFileSync(join(this.#folder, what), "");
  }

  /** Waits for its end, which must be a good one without complaints. */
  async endsWell(complaints: string | RegExp = /^$/): Promise<void> {
    expect([await this.ended(), this.complained]).toEqual([0, expect.stringMatching(complaints)]);
  }
}

const isOpen = async (url: string, id: string): Promise<boolean> =>
  ["pending", "received"].includes((await rowOf(url, id)).status);
const areDone = async (url: string, ids: readonly string[]): Promise<void> => {
  for (const id of ids) await comesTo(url, id, "done");
};

/** A device that works on what comes until it is told to end. */
const LISTENS = `stop = asyncio.Event()
task = asyncio.create_task(pere.alisten(url, "orders", "till-7", handler, stop=stop))
await told("end")
stop.set()
await task`;

pythonTest("alisten: any kind of handler is `done` with what it returns, `failed` with what it raises", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const kinds = ["asynchronous", "Kitchen().work", "Kitchen()", "lambda event: asynchronous(event)", "plain"];
  for (const kind of kinds) {
    const program = new Program(
      url,
      `caller = contextvars.ContextVar("caller")
caller.set("main")
def plain(event):
    if event.data == "raise": raise ValueError("out of paper")
    if event.data == "late": raise TimeoutError()
    return {"n": event.data, "caller": caller.get()}
async def asynchronous(event):
    assert threading.current_thread() is threading.main_thread(), "not on the caller's loop"
    await asyncio.sleep(0)
    return plain(event)
class Kitchen:
    async def work(self, event): return await asynchronous(event)
    async def __call__(self, event): return await asynchronous(event)
handler = ${kind}
${LISTENS}`,
    );
    const ids = [await push(url, "orders", 7), await push(url, "orders", "raise"), await push(url, "orders", "late")];
    await comesTo(url, ids[0]!, "done");
    for (const id of ids.slice(1)) await comesTo(url, id, "failed");
    const details = await Promise.all(ids.map(async (id) => (await rowOf(url, id)).detail));
    expect([kind, ...details]).toEqual([kind, { n: 7, caller: "main" }, "out of paper", "TimeoutError"]);
    program.tell("end");
    await program.endsWell();
  }
});

pythonTest(
  "alisten: as many handlers as workers run at once, and a slow one holds up neither loop nor others",
  async () => {
    const { url } = await service();
    await enrol(url, "till-7");
    const program = new Program(
      url,
      `running = 0
async def handler(event):
    nonlocal running
    running += 1
    print("running", running, flush=True)
    await told("go-%s" % event.data)
    running -= 1
stop = asyncio.Event()
task = asyncio.create_task(pere.alisten(url, "orders", "till-7", handler, workers=3, stop=stop))
await told("end")
stop.set()
await task`,
    );
    const ids: string[] = [];
    for (let n = 0; n < 6; n++) ids.push(await push(url, "orders", n));
    // Three work, three wait, and all of them were received.
    await program.says(/running 3/);
    for (const id of ids) await comesTo(url, id, "received");
    for (const n of [1, 2, 3, 4, 5]) program.tell(`go-${n}`);
    await areDone(url, ids.slice(1));
    expect((await rowOf(url, ids[0]!)).status).toBe("received");
    program.tell("go-0");
    await areDone(url, ids);
    program.tell("end");
    await program.endsWell();
    const atOnce = [...program.said.matchAll(/running (\d)/g)].map(([, count]) => Number(count));
    expect([atOnce.length, Math.max(...atOnce)]).toEqual([6, 3]);
  },
);

pythonTest("alisten: `stop` lets a handler end, and its receipt is given; what waits comes again", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const program = new Program(
    url,
    `async def handler(event):
    print("at work", flush=True)
    await told("go")
    return "well"
${LISTENS.replace("await task", 'print("stopping", flush=True)\nawait task')}`,
  );
  const [id, waiting] = [await push(url, "orders", 1), await push(url, "orders", 2)];
  await comesTo(url, waiting, "received");
  await program.says(/at work/);
  program.tell("end");
  await program.says(/stopping/);
  program.tell("go");
  await program.endsWell();
  expect([await rowOf(url, id), await isOpen(url, waiting)]).toMatchObject([{ status: "done", detail: "well" }, true]);
});

pythonTest("alisten: cancelled in the middle of work it answers what is known, and the rest comes again", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const program = new Program(
    url,
    `async def handler(event):
    print("at work", flush=True)
    try: await told("never")
    except asyncio.CancelledError:
        await asyncio.sleep(0.05)
        if event.data == "ends well": return "rolled back"
        if event.data == "raises": raise RuntimeError("connection closed")
        raise
task = asyncio.create_task(pere.alisten(url, "orders", "till-7", handler, workers=3))
await told("cancel")
task.cancel()
try: await task
except asyncio.CancelledError: print("cancelled")`,
  );
  const ids: string[] = [];
  for (const data of ["is cancelled", "raises", "ends well", "waits"]) ids.push(await push(url, "orders", data));
  await program.says(/(at work\n){3}/);
  for (const id of ids) await comesTo(url, id, "received");
  program.tell("cancel");
  await program.endsWell(/^(pere: .* stays open: (it was cancelled|connection closed); it comes again\n){2}$/);
  expect(program.said).toEndWith("cancelled\n");
  expect(await rowOf(url, ids[2]!)).toMatchObject({ status: "done", detail: "rolled back" });
  for (const id of [ids[0]!, ids[1]!, ids[3]!]) expect((await rowOf(url, id)).status).toBe("received");
  new Program(url, `async def handler(event): return "again"\n${LISTENS}`);
  await areDone(url, ids);
  expect((await rowOf(url, ids[2]!)).detail).toBe("rolled back");
});

pythonTest("alisten: a plain handler can't be cancelled; it is waited for, unless it is cancelled twice", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const script = `import time
def handler(event):
    print("at work", flush=True)
    while not is_told("go"): time.sleep(0.01)
    return "well"
task = asyncio.create_task(pere.alisten(url, "orders", "till-7", handler))
for _ in range(2):
    await told("cancel")
    task.cancel()
    await asyncio.wait({task}, timeout=0.3)
    print("ended" if task.done() else "works", flush=True)
    os.unlink(os.path.join(sys.argv[2], "cancel"))
    if is_told("go"): break
await asyncio.wait({task})`;
  for (const isPatient of [true, false]) {
    const program = new Program(url, script);
    const id = await push(url, "orders", 1);
    await program.says(/at work/);
    program.tell("cancel");
    await program.says(/works/);
    if (isPatient) {
      program.tell("go");
      await comesTo(url, id, "done");
      program.tell("cancel");
      await program.endsWell();
    } else {
      program.tell("cancel");
      await program.endsWell();
      expect(program.said).toEndWith("ended\n");
      expect((await rowOf(url, id)).status).toBe("received");
    }
  }
});

pythonTest("alisten: a handler that somebody else cancels has said nothing, and is called again", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const program = new Program(
    url,
    `pere.HANDLER_RETRY_SECONDS_MIN = 0.01
times = []
async def handler(event):
    times.append(event)
    if len(times) == 1: asyncio.current_task().cancel()
    if len(times) == 2: raise asyncio.CancelledError
    await asyncio.sleep(0)
    return len(times)
${LISTENS}`,
  );
  const id = await push(url, "orders", 1);
  await comesTo(url, id, "done");
  expect((await rowOf(url, id)).detail).toBe(3);
  program.tell("end");
  await program.endsWell(/^(pere: .* stays open: it was cancelled; trying again in .*\n){2}$/);
});

pythonTest("alisten: goes on through a restart of the service; each event is worked on once", async () => {
  const db = join(temporary(), "pere.db");
  const first = await start({}, db);
  const proxy = await BadProxy.to(first.url);
  cleanup.push(() => proxy.stop());
  await enrol(first.url, "till-7");
  const program = new Program(
    proxy.url,
    `async def handler(event):
    print("work", event.data, flush=True)
    if event.data == 1: await told("go")
${LISTENS}`,
  );
  const ids = [await push(first.url, "orders", 1)];
  await program.says(/work 1/);
  await first.stop();
  program.tell("go");
  const second = await start({}, db);
  cleanup.push(() => second.stop());
  proxy.target = Number(new URL(second.url).port);
  ids.push(await push(second.url, "orders", 2));
  await areDone(second.url, ids);
  program.tell("end");
  expect(await program.ended()).toBe(0);
  expect(program.said).toBe("work 1\nwork 2\n");
});

pythonTest("alisten: cancelled while no receipt gets through, it keeps them, and the next one gives them", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  const state = join(temporary(), "state");
  const listens = (more: string): string => `async def handler(event):
    print("work", event.data, flush=True)
    return "well"
task = asyncio.create_task(pere.alisten(url, "orders", "till-7", handler, state=${JSON.stringify(state)}))
${more}
task.cancel()
await asyncio.wait({task})`;
  proxy.weather = ({ errand }) => (errand === "receipts" ? { status: 503 } : "pass");
  const program = new Program(proxy.url, listens('await told("cancel")'));
  const id = await push(url, "orders", 1);
  await until(() => existsSync(state) && readFileSync(state, "utf8").includes('"done"'), "the outcome");
  program.tell("cancel");
  await program.endsWell(/2 receipts could not be sent\n$/);
  expect(await isOpen(url, id)).toBe(true);
  proxy.weather = () => "pass";
  const next = new Program(proxy.url, listens('await told("cancel")'));
  await comesTo(url, id, "done");
  next.tell("cancel");
  expect(await next.ended()).toBe(0);
  expect(program.said + next.said).toBe("work 1\n");
});

pythonTest("alisten: when the loop is closed, listening ends by itself and answers nothing", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const program = new Program(
    url,
    `async def handler(event):
    print("at work", flush=True)
    await told("never")
global task
task = asyncio.create_task(pere.alisten(url, "orders", "till-7", handler, workers=2))
await told("close")`,
    `loop = asyncio.new_event_loop()
loop.run_until_complete(main(sys.argv[1]))
loop.close()
import time
while any(thread.name.startswith("pere-") for thread in threading.enumerate()): time.sleep(0.01)
print("no thread is left", flush=True)
os._exit(0)`,
  );
  const ids = [await push(url, "orders", 1), await push(url, "orders", 2), await push(url, "orders", 3)];
  await program.says(/(at work\n){2}/);
  for (const id of ids) await comesTo(url, id, "received");
  program.tell("close");
  await program.says(/no thread is left/);
  for (const id of ids) expect((await rowOf(url, id)).status).toBe("received");
  expect(program.complained).toContain("the event loop was closed; listening ends");
});

pythonTest(
  "a call to a loop that is closed, or whose calls were cancelled, runs none of the function's lines",
  async () => {
    const program = new Program(
      "",
      `global calls, call
calls = pere._LoopCalls()
async def work(): print("it ran")
def call():
    try: calls.run(work)
    except pere.NoOutcome as error: print(error, flush=True)
calls.cancel()
await asyncio.to_thread(call)
calls = pere._LoopCalls()`,
      `asyncio.run(main(sys.argv[1]))
call()`,
    );
    await program.endsWell();
    expect(program.said).toBe("it was cancelled\nthe event loop is closed\n");
  },
);

pythonTest("alisten: what can't be meant is refused; SystemExit and a refusal of the service end it", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const program = new Program(
    url,
    `def generator(event): yield
async def agenerator(event): yield
for handler in (None, "onEvent", generator, agenerator):
    try: await pere.alisten(url, "orders", "till-7", handler)
    except ValueError as error: print(error, flush=True)
try: await pere.alisten(url, "orders", "no name", print)
except ValueError as error: print(error, flush=True)
try: await pere.alisten(url, "no channel", "till-7", print)
except pere.Refused as error: print(error.status, flush=True)
async def handler(event):
    if event.data == "leave": sys.exit("bye")
    return agenerator(event)
try: await pere.alisten(url, "orders", "till-7", handler)
except TypeError as error: print(error, flush=True)
await told("answered")
await pere.alisten(url, "orders", "till-7", handler)`,
  );
  await program.says(/^(the handler must be .*\n){4}a device name .*\n400\n$/);
  const id = await push(url, "orders", 1);
  await program.says(/the handler returned a async_generator, which does nothing by itself/);
  expect((await rowOf(url, id)).status).toBe("received");
  await give(url, "orders", id, "till-7", "done");
  program.tell("answered");
  const last = await push(url, "orders", "leave");
  expect(await program.ended()).toBe(1);
  expect(program.complained).toContain("bye");
  expect(await isOpen(url, last)).toBe(true);
});

pythonTest("a token may come from an async function, for each of the three", async () => {
  const pere = await startWith();
  cleanup.push(() => pere.stop());
  const rights = { push: ["orders"], feed: ["orders"], receipts: ["orders"] };
  const token = await issueToken({ secret: SECRET }, { sub: "till-7", ...rights, days: 1 });
  const program = new Program(
    pere.url,
    `async def token():
    await asyncio.sleep(0)
    return ${JSON.stringify(token)}
async def handler(event): return "well"
task = asyncio.create_task(pere.alisten(url, "orders", "till-7", handler, token=token))
answer = {"audience": {"addressed": 0}}
while answer["audience"]["addressed"] == 0: answer = await pere.apublish(url, "orders", 7, wait=20, token=token)
print(answer["complete"])
async for receipt in pere.areceipts(url, "orders", after=answer["id"].rpartition("-")[0] + "-0", token=token):
    if receipt.get("complete"): break
print("complete")
task.cancel()
await asyncio.wait({task})`,
  );
  await program.endsWell();
  expect(program.said).toBe("True\ncomplete\n");
});

pythonTest(
  "apublish: pushes run side by side, are refused with a reason, and a cancelled one ends at once",
  async () => {
    const { url, proxy } = await service();
    const mute = createServer();
    mute.listen(0, "127.0.0.1");
    await until(() => mute.listening, "a port");
    cleanup.push(() => mute.close());
    await enrol(url, "till-7");
    proxy.weather = ({ target }) => (/type=refused/.test(target) ? { status: 503, retryAfter: 3_600 } : "pass");
    const program = new Program(
      proxy.url,
      `answers = await asyncio.gather(*(pere.apublish(url, "orders", n) for n in range(20)))
print(len({answer["id"] for answer in answers}), flush=True)
try: await pere.apublish(url, "no channel", 1)
except pere.Refused as error: print(error, flush=True)
try: await pere.apublish(url, "orders", 1, type="refused", report=lambda line: None)
except pere.Unavailable as error: print(error, flush=True)
# No device answers; what is asked says nothing.
for address in (url, ${JSON.stringify(`http://127.0.0.1:${(mute.address() as { port: number }).port}`)}):
    try: await asyncio.wait_for(pere.apublish(address, "orders", 1, wait=100), 0.5)
    except asyncio.TimeoutError: print("cancelled", flush=True)
while any(thread.name.startswith("pere-") for thread in threading.enumerate()): await asyncio.sleep(0.01)`,
    );
    await program.endsWell();
    expect(program.said).toMatch(/^20\nchannel: .*\nstatus 503\n(cancelled\n){2}$/);
    // The service sees that nobody waits for the receipts any more.
    await until(() => proxy.seen.every(({ endedAt }) => endedAt !== null), "the end of its requests");
  },
);

pythonTest(
  "areceipts: come in their order as they are asked for, and go on after the last one that was seen",
  async () => {
    const { url } = await service();
    const ids: string[] = [];
    await enrol(url, "till-7");
    for (let n = 0; n < 3; n++) {
      ids.push(await push(url, "orders", n));
      await give(url, "orders", ids[n]!, "till-7", "done");
    }
    const first = ids[0]!.replace(/\d+$/, "0");
    const program = new Program(
      url,
      `last = "${first}"
for round in range(3):
    receipts = pere.areceipts(url, "orders", after=last)
    async for receipt in receipts:
        if "complete" in receipt: continue
        last = receipt["id"]
        print(receipt["event"], flush=True)
        break
    await receipts.aclose()
async def follow():
    async for receipt in pere.areceipts(url, "orders", after=last):
        if "complete" not in receipt: print("another", flush=True)
task = asyncio.create_task(follow())
await told("cancel")
task.cancel()
await asyncio.wait({task})
while any(thread.name.startswith("pere-") for thread in threading.enumerate()): await asyncio.sleep(0.01)
try:
    async for receipt in pere.areceipts(url, "orders", after="a\\r\\nb"): pass
except ValueError as error: print("refused", flush=True)`,
    );
    await program.says(new RegExp(ids.join("\n")));
    await until(async () => {
      await give(url, "orders", await push(url, "orders", 1), "till-7", "done");
      return program.said.includes("another");
    }, "a receipt");
    program.tell("cancel");
    await program.endsWell();
    expect(program.said).toEndWith("refused\n");
  },
);
