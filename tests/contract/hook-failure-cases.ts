/**
 * A hook's call that fails: when it is made again, and when it is given up.
 */
import { describe, expect, test } from "bun:test";
import { makeSecret } from "../../engine/hooks/call.ts";
import { ask, until } from "../support/harness.ts";
import { lastingPort } from "../support/ports.ts";
import {
  begin,
  type Call,
  failing,
  heldClock,
  hook,
  hookUrl,
  list,
  listed,
  never,
  reached,
  receive,
  Receiver,
  SECOND,
  well,
  type World,
} from "./hook-world.ts";

const MINUTE = 60 * SECOND;

const HOUR = 60 * MINUTE;

/** Standard Webhooks' schedule after the first try. */
const WAITS = [5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR];

export function failingCallCases(name: string, makeWorld: () => World): void {
  describe(`${name}: a call that fails`, () => {
    test("is retried by the schedule, the same each time, and then given up; it can be retried by request", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now, random: () => 0.5 });
      const receiver = new Receiver(failing);
      await hook(pere.url, receiver, { on: ["receipt"] });
      await receive(pere.url, ["d"]);
      const begun = clock.at;
      const createdAt = new Date(begun).toISOString();
      for (const [tries, wait] of WAITS.entries()) {
        const { retrying, failed } = await until(
          async () => {
            const known = await listed(pere.url);
            return known.retrying[0]?.attempts === tries + 1 && known;
          },
          `try ${tries + 1}`,
        );
        const nextAt = new Date(clock.at + wait).toISOString();
        const id = receiver.calls[0]!.id;
        const last = { status: 500, error: "HTTP 500" };
        expect(retrying).toMatchObject([{ id, createdAt, attempts: tries + 1, nextAt, ...last }]);
        expect(retrying[0].tries).toHaveLength(tries + 1);
        expect(retrying[0].tries.at(-1)).toEqual({
          ...{ at: new Date(clock.at).toISOString(), ...last, ms: expect.any(Number), body: "no" },
        });
        expect(failed).toEqual([]);
        clock.at += wait;
        await receiver.have(tries + 2);
      }
      const known = await until(async () => {
        const { retrying, failed } = await listed(pere.url);
        return retrying.length === 0 && failed;
      }, "the end");
      const [{ id, text }] = receiver.calls as [Call];
      expect(known).toMatchObject([{ id, createdAt, attempts: 7, nextAt: null, status: 500, error: "HTTP 500" }]);
      expect(known[0].body).toBe(text);
      expect(receiver.calls.map((call) => call.id)).toEqual(Array.from({ length: 7 }, () => id));
      expect(receiver.calls.map((call) => call.text)).toEqual(Array.from({ length: 7 }, () => text));
      const ends = WAITS.map((_, index) => WAITS.slice(0, index + 1).reduce((sum, wait) => sum + wait, 0));
      expect(receiver.calls.map(({ at }) => at - begun)).toEqual([0, ...ends]);

      // Sent again it begins anew, with the first try; and is done when it went.
      const retried = await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" });
      expect([retried.status, retried.body]).toEqual([200, { retried: 1 }]);
      await receiver.have(8);
      await until(async () => (await listed(pere.url)).retrying[0]?.attempts === 1, "its first try");
      receiver.behaviour = well;
      clock.at += WAITS[0]!;
      await receiver.have(9);
      await until(async () => (await listed(pere.url)).retrying.length === 0, "an empty list");
      expect(await listed(pere.url)).toMatchObject({ retrying: [], failed: [], disabled: null });
      expect(receiver.calls[8]).toMatchObject({ id, text });
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).body).toEqual({ retried: 0 });
    });

    test("is not retried before its time, which varies by a tenth", async () => {
      const clock = heldClock();
      let chance = 0.999;
      const pere = await begin(makeWorld(), { now: clock.now, random: () => (chance = 0.999 - chance) });
      for (const hookName of ["a", "b"]) await hook(pere.url, new Receiver(failing), { on: ["receipt"] }, hookName);
      await receive(pere.url, ["d"]);
      const waits = async () =>
        (await list(pere.url)).map(({ retrying: [delivery] }) => ({
          ms: delivery ? Date.parse(delivery.nextAt) - clock.at : null,
          attempts: delivery?.attempts as number,
        }));
      const first = await until(async () => {
        const known = await waits();
        return known.every(({ ms }) => ms !== null) && known;
      }, "both to fail");
      expect(first.map(({ ms }) => ms).sort()).toEqual([4_500, 5_499]);
      const early = first.findIndex(({ ms }) => ms === 4_500);
      const tries = async (which: number): Promise<number> => (await waits())[which]!.attempts;
      // Both are looked at in one turn: when one was tried again, the other was looked at as well.
      clock.at += 4_500;
      await until(async () => (await tries(early)) === 2, "the second try of one");
      expect(await tries(1 - early)).toBe(1);
      clock.at += 999;
      await until(async () => (await tries(1 - early)) === 2, "the second try of the other");
    });

    test("delays only itself", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver((call) => (call.text.includes('"bad"') ? failing(call, 0) : well(call, 0)));
      const other = new Receiver();
      await hook(pere.url, receiver);
      await hook(pere.url, other, {}, "other");
      for (const device of ["a", "bad", "b", "c"]) await receive(pere.url, [device]);
      await receiver.hear(["b received", "c received"]);
      await other.hear(["bad received", "c received"]);
      await reached(pere.url, 4);
      expect((await listed(pere.url)).retrying).toHaveLength(1);
      expect((await list(pere.url)).find((known) => known.name === "other")!.retrying).toEqual([]);
    });

    test("is listed with its answer, or why there was none; a redirect is a failure, and not followed", async () => {
      const pere = await begin(makeWorld(), { hookCall: { timeoutMs: 2_000 } });
      const target = new Receiver();
      const cases: [Receiver, number | null, string][] = [
        [new Receiver(() => Response.redirect(target.url, 307)), 307, "HTTP 307"],
        [new Receiver(() => new Response("", { status: 404 })), 404, "HTTP 404"],
        [new Receiver(never), null, "there was no answer within 2 seconds"],
      ];
      const gone = new Receiver(well, makeSecret(), lastingPort());
      await gone.close();
      cases.push([gone, null, "the connection was refused"]);
      for (const [n, [receiver]] of cases.entries()) await hook(pere.url, receiver, {}, `h${n}`);
      await receive(pere.url, ["d"]);
      const hooks = await until(async () => {
        const known = await list(pere.url);
        return known.every(({ retrying }) => retrying.length > 0) && known;
      }, "all to fail");
      expect(hooks.map(({ retrying }) => [retrying[0].status, retrying[0].error])).toEqual(
        cases.map(([, status, error]) => [status, error]),
      );
      expect(target.calls).toEqual([]);
    });

    test("counts as delivered if its status is 2xx and the body never ends", async () => {
      const pere = await begin(makeWorld(), { hookCall: { timeoutMs: 2_000 } });
      const receiver = new Receiver(
        () =>
          new Response(
            (async function* () {
              for (;;) {
                yield "x";
                await Bun.sleep(10);
              }
            })() as unknown as BodyInit,
          ),
      );
      await hook(pere.url, receiver);
      await receive(pere.url, ["d"]);
      await reached(pere.url, 1);
      expect((await listed(pere.url)).retrying).toEqual([]);
    });

    test("disables the hook if it is answered 410, until the hook is stored or retried; nothing is lost", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver(() => new Response("", { status: 410 }));
      const witness = new Receiver();
      await hook(pere.url, receiver);
      await hook(pere.url, witness, {}, "witness");
      for (const enable of [
        () => hook(pere.url, receiver),
        () => ask(`${hookUrl(pere.url)}/retry`, { method: "POST" }),
      ]) {
        receiver.behaviour = () => new Response("", { status: 410 });
        receiver.calls.length = witness.calls.length = 0;
        await receive(pere.url, ["a"]);
        await until(async () => (await listed(pere.url)).disabled, "its end");
        expect((await listed(pere.url)).disabled).toBe("the receiver answered 410 Gone");
        await receive(pere.url, ["b"]);
        await witness.hear(["a received", "b received"]);
        expect(receiver.calls).toHaveLength(1);
        receiver.behaviour = well;
        receiver.calls.length = 0;
        await enable();
        await receiver.hear(["a received", "b received"]);
        expect((await listed(pere.url)).disabled).toBeNull();
      }
    });

    test("is one of at most 100 pending ones; then the hook stops reading, and loses nothing", async () => {
      // The clock stands: nothing is tried again before it is asked for.
      const pere = await begin(makeWorld(), { now: heldClock().now });
      const receiver = new Receiver(failing);
      await hook(pere.url, receiver, { on: ["receipt"] });
      const said: string[] = [];
      // Each is called for alone: it is waited for.
      for (let n = 0; n < 100; n++) {
        said.push(...(await receive(pere.url, [`d${n}`])));
        await receiver.have(n + 1);
      }
      await reached(pere.url, 100);
      for (let n = 100; n < 110; n++) said.push(...(await receive(pere.url, [`d${n}`])));
      const known = await listed(pere.url);
      expect([known.retrying.length, known.position.split("-")[1]]).toEqual([100, "100"]);
      receiver.behaviour = well;
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).body).toEqual({ retried: 100 });
      await receiver.hear(said);
      await reached(pere.url, 110);
      await until(async () => (await listed(pere.url)).retrying.length === 0, "nothing that waits");
    });
  });
}
