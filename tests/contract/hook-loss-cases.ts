/**
 * No hook's call is lost or repeated by slow receivers, restarts and changes in mid-call.
 */
import { describe, expect, test } from "bun:test";
import type { Service } from "../../index.ts";
import { ask, type Process, spawn, until } from "../support/harness.ts";
import {
  begin,
  type Call,
  door,
  failing,
  heldClock,
  hook,
  hookUrl,
  listed,
  names,
  never,
  reached,
  receive,
  Receiver,
  services,
  well,
  type World,
} from "./hook-world.ts";

const end = async (service: Service): Promise<void> => {
  services.splice(services.indexOf(service), 1);
  await service.stop();
};

export function nothingLostCases(name: string, makeWorld: () => World): void {
  describe(`${name}: nothing is lost`, () => {
    test("if a receiver is slow, and new receipts wait in the log", async () => {
      const pere = await begin(makeWorld());
      const slow = door();
      const receiver = new Receiver(slow.behaviour);
      await hook(pere.url, receiver);
      const said: string[] = [];
      for (let n = 0; n < 10; n++) said.push(...(await receive(pere.url, names(1_000, n * 1_000))));
      expect(receiver.calls).toHaveLength(1);
      slow.open();
      await receiver.hear(said);
      expect(receiver.receipts).toEqual(said);
    });

    test("if a receiver is slower than retention: receipts wait in the log, not in memory, and the hook is told of the gap", async () => {
      const pere = await begin(makeWorld(), { limits: { keptEvents: 2, trimMs: 20 } });
      const slow = door();
      const receiver = new Receiver(slow.behaviour);
      await hook(pere.url, receiver);
      let last: string[] = [];
      for (let n = 0; n < 10; n++) last = await receive(pere.url, names(1_000, n * 1_000));
      await until(async () => (await ask(`${pere.url}/channels`)).body.channels[0].events <= 2, "retention");
      slow.open();
      await receiver.hear(last);
      // Retention may go on while the hook reads: each hole is told, and nothing is both in a hole and told.
      const seqOf = (text: string): number => Number(text.split("-")[1]);
      const covered = receiver.calls.flatMap(({ body: { type, data } }) => {
        if (type !== "pere.gap") return data.receipts?.map(({ id }: { id: string }) => seqOf(id)) ?? [];
        const [after, from] = [seqOf(data.after), seqOf(data.from)];
        return Array.from({ length: from - after - 1 }, (_, n) => after + 1 + n);
      });
      expect(covered.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 10_000 }, (_, n) => n + 1));
      expect(receiver.receipts.length).toBeLessThan(6_000);
    });

    test("if retention overtook the hook: it is told of the gap", async () => {
      const pere = await begin(makeWorld(), { limits: { keptEvents: 2, trimMs: 20 } });
      const receiver = new Receiver(() => new Response("", { status: 410 }));
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["a"]);
      await until(async () => (await listed(pere.url)).disabled, "its end");
      for (const device of ["b", "c", "d"]) await receive(pere.url, [device]);
      const log = async (): Promise<any> =>
        (await ask(`${pere.url}/feedback/c?since=earliest`, { headers: { Accept: "application/json" } })).body;
      await until(async () => (await log()).events.length === 2, "retention");
      receiver.calls.length = 0;
      receiver.behaviour = well;
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receiver.hear(["c received", "d received"]);
      const [gap, ...rest] = receiver.calls;
      const from = (await log()).events[0].id as string;
      expect(gap!.body).toEqual({
        type: "pere.gap",
        timestamp: expect.any(String),
        data: { channel: "c", after: from.replace(/\d+$/, "0"), from },
      });
      expect(rest.every(({ body }) => body.type === "pere.receipt")).toBe(true);
      expect(receiver.receipts).toEqual(["c received", "d received"]);
    });

    test("and nothing is repeated if a service stops with a call in flight, and another continues", async () => {
      const world = makeWorld();
      const first = await begin(world);
      const slow = door();
      const receiver = new Receiver(slow.behaviour);
      await hook(first.url, receiver);
      // The last receipt completes the event: a second call is due after the one in flight.
      await receive(first.url, ["a"], "done");
      await receiver.have(1);
      const stopped = end(first);
      receiver.behaviour = well;
      setTimeout(slow.open, 700); // Who does not wait for it is gone by then.
      await stopped;
      const second = await begin(world);
      await receive(second.url, ["b"], "working");
      await receiver.hear(["b working"]);
      await until(() => receiver.calls.some(({ body }) => body.type === "pere.complete"), "the second call");
      expect(receiver.receipts).toEqual(["a done", "b working"]);
      expect(receiver.calls).toHaveLength(3);
    });

    test("if a service does not wait for a receiver that hangs: the call is repeated", async () => {
      const world = makeWorld();
      // Who waits for it is still waiting when this test's time is up.
      const first = await begin(world, { hookCall: { timeoutMs: 600_000 } });
      const receiver = new Receiver(never);
      await hook(first.url, receiver);
      await receive(first.url, ["a"]);
      await receiver.have(1);
      await end(first);
      receiver.behaviour = well;
      await begin(world);
      const [before, after] = await receiver.have(2);
      expect(after).toMatchObject({ id: before!.id, text: before!.text });
    });

    test("if a process is killed between receipts and calls", async () => {
      const world = makeWorld();
      const env = { ...world.env, PERE_HOOKS_ALLOW: "127.0.0.0/8" };
      const spawned = async (): Promise<Process> => {
        const pere = await spawn(env);
        services.push({ stop: () => pere.end("SIGKILL") });
        return pere;
      };
      const first = await spawned();
      const receiver = new Receiver(never);
      await hook(first.url, receiver, { on: ["receipt"] });
      const said = await receive(first.url, names(500));
      await receiver.have(1);
      await first.end("SIGKILL");

      // What was kept for another try survives as well, with its id and its body.
      const failed = new Map<string, Call>();
      const failsThree = (call: Call): Response | Promise<Response> => {
        if (failed.size < 3) failed.set(call.id, call);
        return failed.has(call.id) ? failing(call, 0) : well(call, 0);
      };
      receiver.behaviour = failsThree;
      receiver.calls.length = 0;
      const second = await spawned();
      await until(async () => (await listed(second.url)).retrying.length === 3, "three failures");
      await receiver.hear(said);
      await reached(second.url, 500);
      await second.end("SIGKILL");

      // However long that took: they may have been due, and failed again.
      const third = await spawned();
      expect((await listed(third.url)).retrying).toHaveLength(3);
      const delivered: Call[] = [];
      receiver.behaviour = (call) => (delivered.push(call), well(call, 0));
      expect((await ask(`${hookUrl(third.url)}/retry`, { method: "POST" })).status).toBe(200);
      await until(() => delivered.length === 3, "the three");
      const sorted = (calls: readonly Call[]) => calls.map(({ id, text }) => `${id} ${text}`).sort();
      expect(sorted(delivered)).toEqual(sorted([...failed.values()]));
      await receive(third.url, ["e"]);
      await receiver.hear(["e received"]);
      expect(delivered).toHaveLength(4);
    });
  });
}

export function callInFlightCases(name: string, makeWorld: () => World): void {
  describe(`${name}: with a call in flight`, () => {
    test("a hook that is stored again continues after that call, at its new URL", async () => {
      const pere = await begin(makeWorld());
      const slow = door();
      const [before, after] = [new Receiver(slow.behaviour), new Receiver()];
      await hook(pere.url, before, { on: ["receipt"] });
      await receive(pere.url, ["a"]);
      await before.have(1);
      await receive(pere.url, ["b"]);
      await hook(pere.url, after, { on: ["receipt"] });
      slow.open(new Response("", { status: 500 }));
      await after.hear(["b received"]);
      // What failed at the old place is retried at the new one: the same call.
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).body.retried).toBeLessThanOrEqual(1);
      await after.hear(["a received"]);
      await until(async () => (await listed(pere.url)).retrying.length === 0, "nothing that waits");
      expect(after.receipts.toSorted()).toEqual(["a received", "b received"]);
      const { id, text } = before.calls[0]!;
      expect(after.calls).toContainEqual(expect.objectContaining({ id, text }));
      expect(before.calls).toHaveLength(1);
    });

    test("a hook that is stored again is not disabled by an answer of its old URL", async () => {
      const pere = await begin(makeWorld(), { now: heldClock().now });
      const slow = door();
      const [before, after] = [new Receiver(slow.behaviour), new Receiver()];
      await hook(pere.url, before);
      await receive(pere.url, ["a"]);
      await before.have(1);
      await hook(pere.url, after);
      slow.open(new Response("", { status: 410 }));
      await until(async () => (await listed(pere.url)).retrying.length === 1, "the failure");
      expect(await listed(pere.url)).toMatchObject({ disabled: null, retrying: [{ status: 410 }] });
      await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" });
      await after.hear(["a received"]);
    });

    test("a removed hook leaves nothing behind for the next one of its name", async () => {
      const pere = await begin(makeWorld());
      const slow = door();
      const [before, after] = [new Receiver(slow.behaviour), new Receiver()];
      await hook(pere.url, before);
      await receive(pere.url, ["a"]);
      await before.have(1);
      await ask(hookUrl(pere.url), { method: "DELETE" });
      await receive(pere.url, ["b"]);
      await hook(pere.url, after);
      slow.open(new Response("", { status: 500 }));
      await receive(pere.url, ["c"]);
      await after.hear(["c received"]);
      expect(after.receipts).toEqual(["c received"]);
      expect(await listed(pere.url)).toMatchObject({ retrying: [], failed: [] });
      expect(before.calls).toHaveLength(1);
    });
  });
}
