/**
 * `clients/python/pere.py` as a module and a program, beside what the bad day asks of it: its arguments, what handlers return and raise, receipts that go on
 * while one works, pushes that are tried again, the receipts feed, and its file.
 */
import { expect } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { ask, give, push, SECRET, startWith, temporary, until } from "./support/harness.ts";
import { cleanup, enrol, Python, pythonTest, rowsOf, service } from "./support/python.ts";

/** A device whose handler is these lines of Python, with `event` to work on. */
const device = (url: string, handler: string, more = ""): Python =>
  new Python([
    "-c",
    `import pere, sys, time, os\ndef handle(event):\n${handler.replace(/^/gm, "    ")}\npere.listen(sys.argv[1], "orders", "till-7", handle${more})`,
    url,
  ]);

pythonTest("publish: what was asked for arrives, with the bytes as they are", async () => {
  const { url } = await service();
  const options = "--type order.created --to till-1,till-2 --ttl 3600 --deadline 600 --remind 60 --key k1".split(" ");
  const publisher = new Python(["publish", url, "orders", '{"total": 12.50}', ...options]);
  expect(await publisher.ended()).toBe(0);
  const answer = JSON.parse(publisher.said) as { id: string; type: string; audience: object };
  expect(answer).toMatchObject({ type: "order.created", audience: { addressed: 2 } });
  const event = await ask(`${url}/events/orders/${answer.id}`);
  expect(event.text).toContain('"data":{"total": 12.50}');
  expect(event.body).toMatchObject({ remind: 60, to: ["till-1", "till-2"] });
  expect(Date.parse(event.body.deadline) - Date.parse(event.body.at)).toBe(600_000);
  expect(Date.parse(event.body.expiresAt) - Date.parse(event.body.at)).toBe(3_600_000);

  // The same key is the same event; and the data may come from the input.
  const again = new Python(["publish", url, "orders", "-", ...options], {}, '{"total": 12.50}');
  expect(await again.ended()).toBe(0);
  expect(JSON.parse(again.said)).toMatchObject({ id: answer.id });
});

pythonTest("publish: tried again until it is answered, and stored once", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  const fates = [{ cut: 0 }, { cut: 40 }, { status: 503, retryAfter: 1 }] as const;
  let next = 0;
  proxy.weather = () => fates[next++] ?? "pass";
  const script = `import pere, sys\nprint(pere.publish(sys.argv[1], "orders", {"table": 7}, wait=1))`;
  const publisher = new Python(["-c", script, proxy.url]);
  expect(await publisher.ended()).toBe(0);
  expect(publisher.said).toContain("'complete': False");
  expect(next).toBeGreaterThan(fates.length);
  expect((await ask(`${url}/events/orders`)).body.events).toHaveLength(1);
  expect(proxy.seen[3]!.at - proxy.seen[2]!.at).toBeGreaterThan(950);
});

pythonTest("publish: what is refused for good says why; what can't be had says so when patience ends", async () => {
  const { url, proxy } = await service();
  const refused = new Python(["publish", url, "no channel", "1"]);
  expect(await refused.ended()).toBe(1);
  expect(refused.complained).toMatch(/^pere: channel: /);
  proxy.weather = () => ({ status: 502 });
  const script = `import pere, sys
try: pere.publish(sys.argv[1], "orders", 1, patience_seconds=0.5)
except pere.Unavailable as error: print("unavailable:", error)`;
  const patient = new Python(["-c", script, proxy.url]);
  expect(await patient.ended()).toBe(0);
  expect(patient.said).toBe("unavailable: status 502\n");
});

pythonTest("publish: an answer that comes byte by byte is not waited for without end", async () => {
  let connections = 0;
  for (const text of ["HTTP/1.1 200 OK\r\nX-Slow: ", 'HTTP/1.1 201 Created\r\n\r\n{"id":"']) {
    const dripping = createServer((socket) => {
      connections++;
      socket.write(text);
      const drip = setInterval(() => socket.write("x"), 20);
      socket.on("close", () => clearInterval(drip)).on("error", () => {});
    });
    dripping.listen(0, "127.0.0.1");
    await until(() => dripping.listening, "a port");
    cleanup.push(() => dripping.close());
    const script = `import pere, sys
pere.ANSWER_SECONDS = 0.3
try: pere.publish(sys.argv[1], "orders", 1, patience_seconds=1, report=lambda line: None)
except pere.Unavailable: print("unavailable")`;
    const { port } = dripping.address() as { port: number };
    const publisher = new Python(["-c", script, `http://127.0.0.1:${port}`]);
    expect(await publisher.ended()).toBe(0);
    expect(publisher.said).toBe("unavailable\n");
  }
  expect(connections).toBeGreaterThanOrEqual(2);
});

pythonTest("receipts: come in their order, through a cut, and tell what is missing and complete", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  const id = await push(url, "orders", 1);
  const follower = new Python(["receipts", proxy.url, "orders"]);
  await until(() => proxy.seen.some(({ answer }) => answer.includes("pere.ready")), "the follower");
  await give(url, "orders", id, "till-7", "received");
  await follower.says(/"received"/);
  proxy.weather = ({ errand }) => (errand === "other" ? { cut: 300 } : "pass");
  proxy.cut();
  await give(url, "orders", id, "till-7", "working");
  await until(() => proxy.seen.length > 2, "two that were cut");
  proxy.weather = () => "pass";
  await give(url, "orders", id, "till-7", "done", { detail: "Grüße" });
  await follower.says(/"complete": true/);
  const late = await push(url, "orders", 2, "?deadline=1");
  await follower.says(/"kind": "settled"/);
  const lines = follower.said
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { status?: string; complete?: boolean; kind?: string; event: string });
  expect(lines.map(({ event, status, complete, kind }) => [event, status ?? complete ?? kind])).toEqual([
    [id, "received"],
    [id, "working"],
    [id, "done"],
    [id, true],
    [late, "missing"],
    [late, "settled"],
  ]);
  follower.child.kill("SIGTERM");
  expect(await follower.ended()).toBe(0);
});

pythonTest("listen: what a handler returns is the detail of `done`, what it raises that of `failed`", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  device(
    url,
    `what = event.data["do"]
if what == "raise": raise ValueError("out of paper")
if what == "silent": raise KeyError
return {"value": {"n": 1, "e": "é"}, "none": None, "long": "é" * 5000, "object": event.__class__, "nan": float("nan"),
        "digits": len(event.text), "type": event.type, "surrogate": "\\ud800"}[what]`,
  );
  const expected: [string, unknown, unknown][] = [
    [JSON.stringify({ do: "raise" }), "failed", "out of paper"],
    [JSON.stringify({ do: "silent" }), "failed", "KeyError"],
    [JSON.stringify({ do: "value" }), "done", { n: 1, e: "é" }],
    [JSON.stringify({ do: "none" }), "done", null],
    [JSON.stringify({ do: "long" }), "done", { cut: "é".repeat(600) }],
    [JSON.stringify({ do: "object" }), "done", "<class 'pere.Event'>"],
    [JSON.stringify({ do: "nan" }), "done", "nan"],
    // More digits than Python reads of a whole number.
    [`{"do":"digits","n":${"9".repeat(5_000)}}`, "done", 5_020],
    [JSON.stringify({ do: "surrogate" }), "done", "\ud800"],
    [JSON.stringify({ do: "type" }), "done", "order.created"],
  ];
  const ids: string[] = [];
  for (const [data] of expected) {
    const answer = await ask(`${url}/push/orders?type=order.created`, { body: data });
    ids.push(answer.body.id as string);
  }
  for (const [index, [data, status, detail]] of expected.entries()) {
    const row = async () => (await rowsOf(url, ids[index]!))[0]!;
    await until(async () => ["done", "failed"].includes((await row()).status), data.slice(0, 40));
    expect(await row()).toMatchObject({ status, detail });
  }
});

pythonTest("listen: while one handler works, the others' receipts go on", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const gate = join(temporary(), "gate");
  const handler = `while event.data == "slow" and not os.path.exists(${JSON.stringify(gate)}): time.sleep(0.01)`;
  const listener = device(url, handler, ", workers=2");
  const slow = await push(url, "orders", "slow");
  const ids = [await push(url, "orders", 1), await push(url, "orders", 2)];
  for (const id of ids) await until(async () => (await rowsOf(url, id))[0]!.status === "done", "others to be done");
  expect((await rowsOf(url, slow))[0]!.status).toBe("received");
  writeFileSync(gate, "");
  await until(async () => (await rowsOf(url, slow))[0]!.status === "done", "the slow one");
  expect(listener.complained).toBe("");
});

pythonTest("listen: with one worker events are handled in their order, and `received` is said on arrival", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const gate = join(temporary(), "gate");
  const wait = `while not os.path.exists(${JSON.stringify(gate)}): time.sleep(0.01)`;
  const listener = device(url, `${wait}\nprint(event.seq, event.text)`);
  const ids = [await push(url, "orders", 1), await push(url, "orders", 2), await push(url, "orders", 3)];
  for (const id of ids) await until(async () => (await rowsOf(url, id))[0]!.status === "received", "received");
  writeFileSync(gate, "");
  for (const id of ids) await until(async () => (await rowsOf(url, id))[0]!.status === "done", "done");
  expect(listener.said).toBe("1 1\n2 2\n3 3\n");
});

pythonTest("listen: ended by SIGTERM it finishes what it works on, and gives the receipt", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const gate = join(temporary(), "gate");
  const command = `while [ ! -e '${gate}' ]; do sleep 0.02; done; echo '{"printed": true}'`;
  const listener = new Python(["listen", url, "orders", "--device", "till-7", "--exec", command]);
  const id = await push(url, "orders", 1);
  await until(async () => (await rowsOf(url, id))[0]!.status === "received", "received");
  listener.child.kill("SIGTERM");
  writeFileSync(gate, "");
  expect(await listener.ended()).toBe(0);
  expect(await rowsOf(url, id)).toMatchObject([{ status: "done", detail: { printed: true } }]);
});

pythonTest("listen: receipts that are refused for good are reported and let go, and hold up no others", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const state = join(temporary(), "state");
  const unsent = (event: string, channel: string): string =>
    `${JSON.stringify({ event, channel, status: "done", detail: null })}\n`;
  // Unknown, no event at all, of a channel that can't be, and a line that a crash left unfinished.
  writeFileSync(
    state,
    `${unsent("zzzzzzzz-1", "orders")}${unsent("?", "orders")}${unsent("a-1", "no channel")}{"event":`,
  );
  const listener = new Python(["listen", url, "orders", "--device", "till-7", "--state", state, "--exec", "cat"]);
  const id = await push(url, "orders", { table: 7 });
  await until(async () => (await rowsOf(url, id))[0]!.status === "done", "done");
  await until(
    () => listener.complained.match(/was rejected/g)?.length === 3,
    () => listener.complained,
  );
  listener.child.kill("SIGTERM");
  expect(await listener.ended()).toBe(0);
  expect(readFileSync(state, "utf8")).toContain('{"given": "zzzzzzzz-1"}');
  expect(await rowsOf(url, id)).toMatchObject([{ detail: { table: 7 } }]);
});

pythonTest("listen: one who is not let in, and has no other token, says why and ends", async () => {
  const pere = await startWith();
  cleanup.push(() => pere.stop());
  const token = (feed: string[]) => issueToken({ secret: SECRET }, { sub: "till-7", push: [], feed, days: 1 });
  for (const [given, pattern] of [
    ["", /token/],
    ["nonsense", /token/],
    [await token(["others"]), /orders/],
  ] as const) {
    const listener = new Python(["listen", pere.url, "orders", "--device", "till-7"], { PERE_TOKEN: given });
    expect(await listener.ended()).toBe(1);
    expect(listener.complained).toMatch(pattern);
    if (given.length > 20) expect(listener.complained).not.toContain(given);
  }
});

pythonTest("listen: a stream that stays held back is tried less and less", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  proxy.weather = ({ errand }) => (errand === "sse" ? "buffer" : "pass");
  new Python(["listen", proxy.url, "orders", "--device", "till-7", "--first-byte", "0.2", "--return", "0.5"]);
  const tries = () => proxy.seen.filter(({ errand }) => errand === "sse").map(({ at }) => at);
  await until(() => tries().length === 4, "four tries");
  const [first, , , fourth] = tries();
  // 0.2 s for a byte, and 0.5, 1 and 2 s until it is tried again: 4.1 s, less what we saw late. Without more and more it would be 2.1 s.
  expect(fourth! - first!).toBeGreaterThan(2_600);
});

pythonTest("its lines: the same however they are cut", async () => {
  const script = `import pere
text = "id: é😀\\r\\nx\\ry\\n\\n:\\r\\n\\r\\nlast\\nunfinished".encode()
expected = ["id: é😀", "x", "y", "", ":", "", "last"]
for first in range(len(text) + 1):
    for second in range(first, len(text) + 1):
        lines = pere._LineDecoder()
        got = [line for part in (text[:first], text[first:second], text[second:]) for line in lines.feed(part)]
        assert got == expected, (first, second, got)
print("well")`;
  const run = new Python(["-c", script]);
  await run.ended();
  expect([run.said, run.complained]).toEqual(["well\n", ""]);
});

pythonTest("its file: cut off at any byte it is read, and a line that was whole counts", async () => {
  const file = join(temporary(), "state");
  const script = `import pere, sys, os
path = sys.argv[1]
memory = pere._OutcomeStore(path)
for n in range(3): memory.record("e-%d" % n, pere._Outcome("orders", "done", {"n": n}))
memory.mark_answered([("e-0", 1), ("e-1", 2)])
memory.close()
whole = open(path, "rb").read()
outcome = pere._Outcome("orders", "failed", None, round=3, after=5.5, retry=False)
for size in range(len(whole) + 1):
    with open(path, "wb") as out: out.write(whole[:size])
    memory = pere._OutcomeStore(path)
    lines = whole[:size].count(b"\\n")
    known = [memory.outcome("e-%d" % n) is not None for n in range(3)]
    assert known == [lines > n for n in range(3)], (size, known)
    assert len(memory.unanswered()) == min(lines, 3) - (lines > 3), size
    memory.record("more", outcome)
    memory.close()
    memory = pere._OutcomeStore(path)
    assert memory.outcome("more") == outcome
    memory.close()
pere.OUTCOMES_MAX = 10
memory = pere._OutcomeStore(path)
for n in range(100):
    memory.record("f-%d" % n, pere._Outcome("orders", "done", "x" * 100))
    if n != 7: memory.mark_answered([("f-%d" % n, 1)])
assert os.path.getsize(path) < 10_000, os.path.getsize(path)
memory.close()
memory = pere._OutcomeStore(path)
assert memory.outcome("f-99") and memory.outcome("f-7") and not memory.outcome("f-8")
assert "f-7" in [one[0] for one in memory.unanswered()]
print("well")`;
  const run = new Python(["-c", script, file]);
  await run.ended();
  expect([run.said, run.complained]).toEqual(["well\n", ""]);
});
