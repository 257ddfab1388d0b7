/**
 * `clients/python/pere.py` where an event comes again, or is taken back: deferrals, attempts and rounds, withdrawals, and pushes for later; as a module,
 * in asyncio and as a program.
 */
import { expect } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ask, push, temporary, until } from "./support/harness.ts";
import { comesTo, enrol, listen, Python, pythonTest, rowOf, service } from "./support/python.ts";

const withdraw = (url: string, id: string, note = "") =>
  ask(`${url}/events/orders/${id}${note && `?note=${encodeURIComponent(note)}`}`, { method: "DELETE" });

/** A device that runs these lines for each event; `seen` tells what it was called with. */
const device = (url: string, lines: string, options = "") =>
  new Python([
    "-c",
    `import pere, sys, threading
pere.COALESCE_SECONDS = 0.01
def print(*words): sys.stdout.write(" ".join(map(str, words)) + "\\n")
def handle(event):
    print("begun", event.data, event.round)
    ${lines.replaceAll("\n", "\n    ")}
def withdrawn(withdrawal): print("withdrawn", withdrawal.withdrawn, withdrawal.reason, withdrawal.note)
pere.listen(sys.argv[1], "orders", "till-7", handle, on_withdrawn=withdrawn${options && `, ${options}`})`,
    url,
  ]);

pythonTest(
  "listen: an event that a handler defers comes again with its round, by stream and by long-poll",
  async () => {
    const { url, proxy } = await service();
    await enrol(url, "till-7");
    proxy.weather = ({ errand }) => (errand === "sse" ? "buffer" : "pass");
    for (const [address, options] of [
      [url, ""],
      [proxy.url, "first_byte_seconds=0.3"],
    ] as const) {
      const till = device(
        address,
        `if event.data == "first" and event.round < 3: raise pere.Deferred(after=1, detail={"paper": "out"})
return event.data`,
        options,
      );
      const id = await push(url, "orders", "first");
      await comesTo(url, id, "deferred");
      expect(await rowOf(url, id)).toMatchObject({ detail: { paper: "out" } });
      await comesTo(url, await push(url, "orders", "second"), "done");
      await comesTo(url, id, "done");
      expect(await rowOf(url, id)).toMatchObject({ detail: "first", round: 3, attempt: 0 });
      expect(
        till.said
          .split("\n")
          .slice(0, -1)
          .filter((line) => line.includes("first")),
      ).toEqual([...["begun first 1", "begun first 2", "begun first 3"]]);
      till.child.kill("SIGKILL");
      await till.ended();
    }
  },
);

pythonTest("listen: a failure with attempts left is tried again, unless it says that it is final", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const till = device(
    url,
    `if event.data == "hopeless": raise pere.Failed({"never": True}, retry=False)
raise pere.Failed("try %d" % event.round, after=1)`,
  );
  const hopeless = await push(url, "orders", "hopeless", "?attempts=3");
  const id = await push(url, "orders", "again", "?attempts=2");
  await comesTo(url, id, "failed");
  expect(await rowOf(url, hopeless)).toMatchObject({ status: "failed", detail: { never: true }, attempt: 1 });
  expect(await rowOf(url, id)).toMatchObject({ status: "failed", detail: "try 2", round: 2, attempt: 2 });
  expect(till.said).toBe("begun hopeless 1\nbegun again 1\nbegun again 2\n");
});

pythonTest(
  "listen: what the version before has stored is read, and a deferral is remembered over a restart",
  async () => {
    const { url, proxy } = await service();
    await enrol(url, "till-7");
    const done = await push(url, "orders", "done");
    const state = join(temporary(), "state");
    await Bun.write(state, `{"event": "${done}", "channel": "orders", "status": "done", "detail": null}\n`);
    proxy.weather = ({ errand, body }) => (errand === "receipts" && body.includes('"deferred"') ? "hold" : "pass");
    const lines = `if event.round == 1: raise pere.Deferred(1)`;
    const first = device(proxy.url, lines, `state=${JSON.stringify(state)}`);
    await comesTo(url, done, "done");
    const id = await push(url, "orders", "later");
    await first.says(/begun later 1/);
    await until(() => readFileSync(state, "utf8").includes('"deferred"'), "the deferral in the file");
    first.child.kill("SIGKILL");
    await first.ended();
    expect((await rowOf(url, id)).status).not.toBe("deferred");
    proxy.weather = () => "pass";
    const second = device(proxy.url, lines, `state=${JSON.stringify(state)}`);
    await comesTo(url, id, "done");
    expect([first.said, second.said]).toEqual(["begun later 1\n", "begun later 2\n"]);
  },
);

pythonTest("listen: a withdrawn event is not begun, and a handler that works on it finds that out", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const till = device(
    url,
    `if event.data == "next": return
event.withdrawn.wait()
if event.data == "stops": raise RuntimeError("told to stop")
return "did it all the same"`,
  );
  const [stops, goesOn] = [await push(url, "orders", "stops"), await push(url, "orders", "goes on")];
  const [waiting, next] = [await push(url, "orders", "waiting"), await push(url, "orders", "next")];
  await till.says(/begun stops/);
  await until(async () => (await rowOf(url, next)).status === "received", "the last to be received");
  await withdraw(url, waiting);
  await withdraw(url, stops, "printed twice");
  await till.says(/begun goes on/);
  await withdraw(url, goesOn);
  await comesTo(url, next, "done");
  await until(async () => (await rowOf(url, goesOn)).status === "done", "the late one");
  await till.says(new RegExp(`withdrawn ${goesOn}`));
  const said = till.said.split("\n").slice(0, -1);
  expect(said.filter((line) => line.startsWith("begun"))).toEqual(["begun stops 1", "begun goes on 1", "begun next 1"]);
  expect(said.filter((line) => line.startsWith("withdrawn"))).toEqual([
    `withdrawn ${waiting} withdrawn None`,
    `withdrawn ${stops} withdrawn printed twice`,
    `withdrawn ${goesOn} withdrawn None`,
  ]);
  expect(await rowOf(url, goesOn)).toMatchObject({ status: "done", late: true, detail: "did it all the same" });
  for (const id of [stops, waiting]) expect((await rowOf(url, id)).status).toBe("withdrawn");
  await until(() => till.complained.includes("recorded, but late"), "a word on that");
  expect(till.complained).toBe(`pere: done of ${goesOn} was recorded, but late: the event had been withdrawn\n`);
});

pythonTest(
  "alisten: the handler of a withdrawn event is cancelled; deferrals and on_withdrawn work as awaited functions",
  async () => {
    const { url } = await service();
    await enrol(url, "till-7");
    const script = `import asyncio, pere, sys
async def handle(event):
    print("begun", event.data, event.round)
    if event.data == "later" and event.round == 1: raise pere.Deferred(1)
    if event.data in ("stops", "saves"):
        try: await asyncio.sleep(600)
        except asyncio.CancelledError:
            print("cancelled", event.data)
            if event.data == "saves": return "saved"
            raise
async def withdrawn(withdrawal):
    await asyncio.sleep(0)
    print("withdrawn", withdrawal.reason, withdrawal.by)
    raise ValueError("its own trouble")
asyncio.run(pere.alisten(sys.argv[1], "orders", "till-7", handle, on_withdrawn=withdrawn, workers=2))`;
    const till = new Python(["-c", script, url]);
    const [stops, saves] = [await push(url, "orders", "stops", "?key=config"), await push(url, "orders", "saves")];
    await till.says(/begun stops[^]*begun saves|begun saves[^]*begun stops/);
    await withdraw(url, saves);
    await comesTo(url, saves, "done");
    const newer = await push(url, "orders", "later", "?key=config");
    await comesTo(url, newer, "done");
    expect(await rowOf(url, saves)).toMatchObject({ status: "done", detail: "saved", late: true });
    expect((await rowOf(url, stops)).status).toBe("withdrawn");
    expect(await rowOf(url, newer)).toMatchObject({ status: "done", round: 2 });
    await till.says(new RegExp(`withdrawn superseded ${newer}`));
    expect(till.said).toContain("cancelled stops");
    await until(() => till.complained.match(/on_withdrawn failed: its own trouble/g)?.length === 2, "both reports");
  },
);

pythonTest(
  "a publisher withdraws, supersedes, schedules and cancels, also in asyncio, and is told what became of it",
  async () => {
    const { url } = await service();
    await enrol(url, "till-7");
    const script = `import asyncio, datetime, json, pere, sys
url = sys.argv[1]
feed = pere.receipts(url, "orders", after=sys.argv[2])
old = pere.publish(url, "orders", 1, event_key="config", deadline=600)
new = pere.publish(url, "orders", 2, event_key="config", attempts=2)
told = [next(feed) for _ in range(3)]
assert [one.get("kind", one.get("complete")) for one in told] == ["withdrawn", True, "settled"], told
assert told[0]["by"] == new["id"] and told[0]["receipts"]["withdrawn"] == 1 and "complete" not in told[2], told
state = pere.withdraw(url, "orders", new["id"], note="not now")
assert state["withdrawn"]["note"] == "not now" and state["receipts"]["withdrawn"] == 1, state
async def main():
    once = await pere.aschedule(url, "orders", {"n": 1}, at=datetime.datetime(2099, 1, 1, tzinfo=datetime.timezone.utc))
    assert once["next"] == "2099-01-01T00:00:00.000Z", once
    nightly = pere.schedule(url, "orders", 1, every="30 2 * * *", tz="Europe/Rome", event_key="config")
    listed = [one async for one in pere.ascheduled(url, "orders")]
    assert {one["id"]: one["tz"] for one in listed} == {once["id"]: None, nightly["id"]: "Europe/Rome"}, listed
    await pere.acancel_scheduled(url, "orders", once["id"])
    pere.cancel_scheduled(url, "orders", nightly["id"])
    assert list(pere.scheduled(url, "orders")) == []
    again = await pere.awithdraw(url, "orders", old["id"])
    assert again["withdrawn"]["reason"] == "superseded", again
asyncio.run(main())
for wrong in ({}, {"at": "x", "every": "y"}, {"at": datetime.datetime(2099, 1, 1)}):
    try: pere.schedule(url, "orders", 1, **wrong); raise SystemExit("taken: %s" % wrong)
    except ValueError: pass
for wrong in (lambda: pere.withdraw(url, "orders", old["id"] + "9"), lambda: pere.cancel_scheduled(url, "orders", "s-none")):
    try: wrong(); raise SystemExit("no refusal")
    except pere.Refused as error: assert error.status == 404, error
print("well")`;
    const run = new Python(["-c", script, url, (await push(url, "orders", 0)).replace(/\d+$/, "0")]);
    await run.ended();
    expect([run.said, run.complained]).toEqual(["well\n", ""]);
  },
);

pythonTest("listen: from the latest, also what was finished before comes, once at each start", async () => {
  const { url } = await service();
  const state = join(temporary(), "state");
  await enrol(url, "till-7");
  const launch = () => listen(url, 'echo "seen $(cat) $PERE_ROUND" >&2; exit 0', "--state", state, "--since", "latest");
  const first = launch();
  const [one, two] = [await push(url, "orders", 1, "?key=config"), await push(url, "orders", 2, "?key=config")];
  await comesTo(url, two, "done");
  first.child.kill("SIGTERM");
  await first.ended();
  const script = `import pere, sys
pere.listen(sys.argv[1], "orders", "till-7", lambda event: print("seen", event.id), state=sys.argv[2], since="latest")`;
  const second = new Python(["-c", script, url, state]);
  await second.says(new RegExp(`seen ${two}`));
  const three = await push(url, "orders", 3, "?key=config");
  await comesTo(url, three, "done");
  expect(second.said).toBe(`seen ${two}\nseen ${three}\n`);
  expect(one).not.toBe(two);
});

pythonTest(
  "the program: status 75 defers, the last line of the output says for how long, TERM ends what is withdrawn",
  async () => {
    const { url } = await service();
    await enrol(url, "till-7");
    const folder = temporary();
    const till = listen(
      url,
      `case $(cat) in
*later*) [ "$PERE_ROUND" = 1 ] || { echo "round $PERE_ROUND"; exit; }; echo '{"paper":"out"}'; echo PERE_AFTER=1; exit 75 ;;
*long*) echo "no paper" >&2; exit 75 ;;
*never*) echo 'in vain' >&2; echo PERE_RETRY=no; exit 3 ;;
*soon*) echo PERE_AFTER=1; exit 3 ;;
*stops*) trap 'touch ${folder}/told; exit 9' TERM; touch ${folder}/begun; while :; do sleep 0.05; done ;;
*dies*) touch ${folder}/dies; while :; do sleep 0.05; done ;;
esac`,
    );
    const later = await push(url, "orders", "later");
    const long = await push(url, "orders", "long");
    await comesTo(url, later, "done");
    expect(await rowOf(url, later)).toMatchObject({ detail: "round 2", round: 2 });
    expect(await rowOf(url, long)).toMatchObject({ status: "deferred", detail: "no paper" });
    const never = await push(url, "orders", "never", "?attempts=3");
    await comesTo(url, never, "failed");
    expect(await rowOf(url, never)).toMatchObject({ detail: "in vain", attempt: 1 });
    const soon = await push(url, "orders", "soon", "?attempts=2");
    await comesTo(url, soon, "failed");
    expect(await rowOf(url, soon)).toMatchObject({ attempt: 2 });
    for (const what of ["stops", "dies"]) {
      const id = await push(url, "orders", what);
      await until(() => existsSync(join(folder, what === "stops" ? "begun" : what)), what);
      await withdraw(url, id, "printed twice");
      await comesTo(url, await push(url, "orders", "next"), "done");
      expect(await rowOf(url, id)).toMatchObject({ status: "withdrawn", detail: null });
      expect(till.complained).toContain(`pere: ${id} was withdrawn: withdrawn: printed twice\n`);
    }
    expect(existsSync(join(folder, "told"))).toBe(true);
    expect(till.complained).not.toMatch(/stays open|rejected/);
    // The publisher's commands.
    const run = async (...args: string[]) => {
      const program = new Python(args);
      await program.ended();
      return program;
    };
    const made = JSON.parse(
      (await run("publish", url, "orders", "1", "--every", "0 3 * * *", "--tz", "Europe/Rome", "--event-key", "x"))
        .said,
    ) as { id: string };
    expect((await run("scheduled", url, "orders")).said).toContain(`{"id": "${made.id}"`);
    expect(await (await run("cancel", url, "orders", made.id)).ended()).toBe(0);
    expect((await run("scheduled", url, "orders")).said).toBe("");
    const id = await push(url, "orders", "long");
    expect((await run("withdraw", url, "orders", id, "--note", "a note")).said).toContain('"note": "a note"');
    for (const [args, complaint] of [
      [["publish", url, "orders", "1", "--tz", "Europe/Rome"], "--tz needs --every"],
      [
        ["publish", url, "orders", "1", "--at", "2099-01-01T00:00:00Z", "--wait", "1"],
        "--wait is for what is pushed now",
      ],
      [["withdraw", url, "orders", "a b"], "must be the id of an event"],
    ] as const) {
      const wrong = await run(...args);
      expect([await wrong.ended(), wrong.complained]).toEqual([2, expect.stringContaining(complaint)]);
    }
  },
);

pythonTest(
  "listen: a service that knows no deferral rejects it, and the event is worked on when it comes again",
  async () => {
    const { url, proxy } = await service();
    await enrol(url, "till-7");
    const id = await push(url, "orders", "later");
    const state = join(temporary(), "state");
    proxy.weather = ({ errand, body }) => {
      if (errand !== "receipts" || !body.includes('"deferred"')) return "pass";
      const sent = JSON.parse(body) as { status: string }[];
      const reason = "status: must be received, working, done or failed";
      const rejected = sent.flatMap(({ status }, index) =>
        status === "deferred" ? [{ index, event: id, reason }] : [],
      );
      const answer = JSON.stringify({ recorded: sent.length - 1, duplicate: 0, rejected });
      const head = `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ${answer.length}\r\n\r\n`;
      return { bytes: head + answer, stays: false };
    };
    const first = device(proxy.url, "raise pere.Deferred(1)", `state=${JSON.stringify(state)}`);
    await until(
      () => first.complained.includes("was rejected"),
      () => `a rejection: ${first.complained}`,
    );
    await until(() => readFileSync(state, "utf8").includes("forgotten"), "a note in the file");
    first.child.kill("SIGKILL");
    await first.ended();
    device(url, "return 1", `state=${JSON.stringify(state)}`);
    await comesTo(url, id, "done");
  },
);
