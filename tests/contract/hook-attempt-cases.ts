/**
 * What a hook says of its calls: the attempts of each one that failed, the last one that went, and a call that tests it.
 */
import { describe, expect, test } from "bun:test";
import { ask, until } from "../support/harness.ts";
import {
  begin,
  door,
  failing,
  heldClock,
  hook,
  hookUrl,
  listed,
  reached,
  receive,
  Receiver,
  SECOND,
  well,
  type World,
} from "./hook-world.ts";

const testCall = (url: string, name = "h") => ask(`${hookUrl(url, name)}/test`, { method: "POST" });

export function attemptCases(name: string, makeWorld: () => World): void {
  describe(`${name}: the attempts of a call`, () => {
    test("are kept with it, newest last, each with the beginning of the answer; they outlive the service", async () => {
      const clock = heldClock();
      const world = makeWorld();
      const pere = await begin(world, { now: clock.now, random: () => 0.5 });
      const answers = [
        new Response("é".repeat(300), { status: 500 }),
        new Response(new Uint8Array([0x66, 0xff, 0x00]), { status: 302 }),
      ];
      const receiver = new Receiver(() => answers.shift()!);
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["d"]);
      await until(async () => (await listed(pere.url)).retrying[0]?.attempts === 1, "the first try");
      clock.at += 5 * SECOND;
      await until(async () => (await listed(pere.url)).retrying[0]?.attempts === 2, "the second try");
      const ms = expect.any(Number);
      const tries = [
        {
          at: new Date(clock.at - 5 * SECOND).toISOString(),
          status: 500,
          error: "HTTP 500",
          ms,
          body: "é".repeat(256),
        },
        { at: new Date(clock.at).toISOString(), status: 302, error: "HTTP 302", ms, body: "f\ufffd\0" },
      ];
      const known = await listed(pere.url);
      expect(known.retrying[0].tries).toEqual(tries);
      expect(known.retrying[0].body).toBe(receiver.calls[0]!.text);
      expect(known.lastDelivered).toBeNull();
      await pere.stop();

      await receiver.close();
      const again = await begin(world, { now: clock.now, random: () => 0.5 });
      expect((await listed(again.url)).retrying[0].tries).toEqual(tries);
      clock.at += 300 * SECOND;
      const third = await until(async () => (await listed(again.url)).retrying[0]?.tries[2], "the third try");
      expect(third).toEqual({
        at: new Date(clock.at).toISOString(),
        status: null,
        error: "the connection was refused",
        ms,
        body: null,
      });
    });

    test("are at most 20, however often it is retried by request", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver(failing);
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["d"]);
      const only = async () => {
        const { retrying, failed } = await listed(pere.url);
        return [...retrying, ...failed][0];
      };
      for (let n = 1; n <= 22; n++) {
        await until(async () => (await only())?.tries.length === Math.min(n, 20), `try ${n}`);
        await receiver.have(n);
        if (n < 22) await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" });
      }
    }, 120_000);

    test("end with the last one that went, which the hook shows", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now, random: () => 0.5 });
      const receiver = new Receiver(() => new Response(null, { status: 204 }));
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["d"]);
      await reached(pere.url, 1);
      const ms = expect.any(Number);
      expect((await listed(pere.url)).lastDelivered).toEqual({ at: new Date(clock.at).toISOString(), status: 204, ms });
      const first = clock.at;
      clock.at += SECOND;
      receiver.behaviour = failing;
      await receive(pere.url, ["e"]);
      await until(async () => (await listed(pere.url)).retrying.length === 1, "a failure");
      expect((await listed(pere.url)).lastDelivered.at).toBe(new Date(first).toISOString());
      receiver.behaviour = well;
      clock.at += 5 * SECOND;
      await until(async () => (await listed(pere.url)).retrying.length === 0, "its success");
      expect((await listed(pere.url)).lastDelivered).toEqual({ at: new Date(clock.at).toISOString(), status: 200, ms });
    });
  });
}

export function testCallCases(name: string, makeWorld: () => World): void {
  describe(`${name}: a test call`, () => {
    test("is one signed call, and answers what came back", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now });
      const receiver = new Receiver(() => new Response(`ü${"x".repeat(2_000)}`, { status: 418 }));
      await hook(pere.url, receiver);
      const before = await listed(pere.url);
      const answer = await testCall(pere.url);
      expect([answer.status, answer.body]).toEqual([
        200,
        { status: 418, ms: expect.any(Number), body: `ü${"x".repeat(1_022)}`, error: null },
      ]);
      expect(receiver.calls).toHaveLength(1);
      expect(receiver.calls[0]!.id).toMatch(/^msg_test_/);
      expect(receiver.calls[0]!.body).toEqual({
        type: "pere.test",
        timestamp: new Date(clock.at).toISOString(),
        data: { channel: "c", hook: "h" },
      });
      // It is not repeated, and changes nothing.
      expect(await listed(pere.url)).toEqual(before);
      expect(pere.engine.counts.hookTries).toEqual({ delivered: 0, refused: 0, unreachable: 0, gone: 0 });
    });

    test("says why there was no answer", async () => {
      const pere = await begin(makeWorld(), { hookCall: { timeoutMs: 50 } });
      const receiver = new Receiver(() => new Promise<Response>(() => {}));
      await hook(pere.url, receiver);
      const late = {
        status: null,
        ms: expect.any(Number),
        body: null,
        error: "there was no answer within 0.05 seconds",
      };
      expect((await testCall(pere.url)).body).toEqual(late);
      await receiver.close();
      expect((await testCall(pere.url)).body).toMatchObject({
        status: null,
        body: null,
        error: "the connection was refused",
      });
    });

    test("reaches no address that is not public, also if its name led elsewhere when the hook was stored", async () => {
      let address = "127.0.0.1";
      const pere = await begin(makeWorld(), { hookCall: { resolve: async () => [address] } });
      const receiver = new Receiver();
      const port = new URL(receiver.url).port;
      await hook(pere.url, receiver, { url: `http://hook.example:${port}/` });
      expect((await testCall(pere.url)).body).toMatchObject({ status: 200, body: "ok" });
      address = "10.0.0.1";
      const { body } = await testCall(pere.url);
      expect(body).toMatchObject({ status: null, body: null, error: expect.stringContaining("not public") });
      expect(receiver.calls).toHaveLength(1);
    });

    test("is made of a disabled hook too, and 410 disables none", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver(() => new Response("", { status: 410 }));
      await hook(pere.url, receiver, { on: ["receipt"] });
      expect((await testCall(pere.url)).body).toMatchObject({ status: 410, error: null });
      expect((await listed(pere.url)).disabled).toBeNull();
      await receive(pere.url, ["d"]);
      await until(async () => (await listed(pere.url)).disabled, "its end");
      expect((await testCall(pere.url)).body).toMatchObject({ status: 410 });
      expect((await listed(pere.url)).disabled).not.toBeNull();
    });

    test("is made one at a time; of no hook it is refused", async () => {
      const pere = await begin(makeWorld());
      const waiting = door();
      const receiver = new Receiver(waiting.behaviour);
      await hook(pere.url, receiver);
      await hook(pere.url, new Receiver(), {}, "other");
      const first = testCall(pere.url);
      await receiver.have(1);
      const second = await testCall(pere.url);
      expect([second.status, second.body.detail]).toEqual([
        409,
        "a test call to hook h is running; wait until it is answered",
      ]);
      expect((await testCall(pere.url, "other")).status).toBe(200);
      waiting.open();
      expect((await first).body).toMatchObject({ status: 200, body: "ok" });
      expect((await testCall(pere.url)).status).toBe(200);
      expect((await testCall(pere.url, "none")).status).toBe(404);
      expect((await testCall(pere.url, "-")).status).toBe(400);
    });
  });
}
