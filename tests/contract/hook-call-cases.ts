/**
 * A hook as it is stored, and what it is called with.
 */
import { describe, expect, spyOn, test } from "bun:test";
import { makeSecret } from "../../engine/hooks/call.ts";
import { PereError } from "../../engine/model.ts";
import { ask, give, push } from "../support/harness.ts";
import { NOBODY } from "./fleet.ts";
import {
  begin,
  heldClock,
  hook,
  hookUrl,
  list,
  names,
  put,
  reached,
  receive,
  Receiver,
  SECOND,
  well,
  type World,
} from "./hook-world.ts";

export function storedHookCases(name: string, makeWorld: () => World): void {
  describe(`${name}: a hook`, () => {
    test("is stored, listed, changed and removed", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      const first = await put(pere.url, { url: receiver.url });
      expect(first.status).toBe(201);
      const { secret, ...shown } = first.body;
      expect(secret).toMatch(/^whsec_/);
      expect(shown).toEqual({
        ...{ channel: "c", name: "h", url: receiver.url, on: ["receipt", "complete", "missing"] },
        ...{ createdAt: expect.stringMatching(/^\d{4}-.*Z$/), disabled: null },
      });
      const again = await put(pere.url, { url: `${receiver.url}?new`, on: ["missing", "receipt", "missing"] });
      expect(again.status).toBe(200);
      expect(again.body).toEqual({ ...shown, url: `${receiver.url}?new`, on: ["receipt", "missing"] });
      expect(await list(pere.url)).toEqual([
        {
          ...again.body,
          position: expect.stringMatching(/^[0-9a-z]+-0$/),
          lastDelivered: null,
          retrying: [],
          failed: [],
        },
      ]);
      expect((await ask(hookUrl(pere.url), { method: "DELETE" })).status).toBe(204);
      expect(await list(pere.url)).toEqual([]);
      expect((await ask(hookUrl(pere.url), { method: "DELETE" })).status).toBe(404);
      expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).status).toBe(404);
    });

    test("shows a generated secret once, and never again", async () => {
      const pere = await begin(makeWorld());
      const made = (await put(pere.url, { url: "http://127.0.0.1:1/" })).body.secret as string;
      const own = makeSecret();
      const texts = [
        (await put(pere.url, { url: "http://127.0.0.1:1/" })).text,
        (await put(pere.url, { url: "http://127.0.0.1:1/", secret: own }, "own")).text,
        (await put(pere.url, { url: "http://127.0.0.1:1/", secret: null }, "own")).text,
        (await ask(`${pere.url}/hooks/c`)).text,
      ].join();
      expect(texts).toContain('"name":"own"');
      expect(texts).not.toContain("whsec_");
      expect(texts).not.toContain(made.slice(6));
      expect(texts).not.toContain(own.slice(6));

      // A hook that is stored again without a secret keeps its own: the receiver verifies with the first.
      const receiver = new Receiver(well, made);
      await put(pere.url, { url: receiver.url });
      await receive(pere.url, ["d"]);
      expect((await receiver.have(1))[0]!.body.type).toBe("pere.receipt");
    });

    const fine = { url: "http://127.0.0.1:1/" };
    test.each([
      [{ body: "{" }, 400, "body"],
      [{ body: "[]" }, 400, "body"],
      [{ body: "null" }, 400, "body"],
      [{ body: {} }, 400, "url"],
      [{ body: { url: "ftp://shop.example/" } }, 400, "url"],
      [{ body: { url: "/hook" } }, 400, "url"],
      [{ body: { url: 1 } }, 400, "url"],
      [{ body: { ...fine, on: [] } }, 400, "on"],
      [{ body: { ...fine, on: "receipt" } }, 400, "on"],
      [{ body: { ...fine, on: ["receipts"] } }, 400, "on"],
      [{ body: { ...fine, secret: "password" } }, 400, "secret"],
      [{ body: { ...fine, secret: 1 } }, 400, "secret"],
      [{ body: { ...fine, events: ["receipt"] } }, 400, "events"],
      [{ body: fine, name: "-x" }, 400, "name"],
      [{ body: fine, channel: "-x" }, 400, "channel"],
      [{ body: new Uint8Array([0x22, 0xff, 0x22]) }, 400, "body"],
      [{ body: { url: `http://127.0.0.1/${"x".repeat(2_048)}` } }, 422, "url"],
      [{ body: { url: "http://user:password@127.0.0.1/" } }, 422, "url"],
      [{ body: { ...fine, secret: "x".repeat(9_000) } }, 413, null],
      [{ body: fine, type: "text/plain" }, 415, null],
    ] as const)("%j is answered %d, naming %s", async (asked, status, path) => {
      const pere = await begin(makeWorld());
      const { body, name: named = "h", channel = "c", type } = asked as Record<string, any>;
      const answer = await ask(hookUrl(pere.url, named, channel), { method: "PUT", body, ...(type ? { type } : {}) });
      expect(`${answer.status} ${answer.text}`).toStartWith(`${status} `);
      expect(answer.headers.get("content-type")).toBe("application/problem+json");
      expect(answer.body.errors?.[0].path ?? null).toBe(path);
      expect(await list(pere.url)).toEqual([]);
    });

    test("may not call a private address, however it is written, unless the operator allowed it", async () => {
      const pere = await begin(makeWorld(), {
        hooksAllowed: [],
        hookCall: { resolve: async (host) => (host === "inside.example" ? ["93.184.216.34", "10.0.0.1"] : []) },
      });
      for (const host of [
        ...[
          "127.0.0.1",
          "localhost",
          "localhost.",
          "pere.localhost",
          "2130706433",
          "0x7f000001",
          "0177.0.0.1",
          "127.1",
        ],
        ...["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255"],
        ...["[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]"],
        ...["[2002:7f00:1::]", "[::127.0.0.1]", "inside.example", "nowhere.example"],
      ]) {
        const answer = await put(pere.url, { url: `http://${host}:${new URL(pere.url).port}/hooks/c` });
        expect(`${host} ${answer.status} ${answer.body.errors?.[0].path}`).toBe(`${host} 422 url`);
      }
      expect(await list(pere.url)).toEqual([]);
    });

    test("is one of at most 16 per channel", async () => {
      const pere = await begin(makeWorld());
      for (let n = 0; n < 16; n++) expect((await put(pere.url, fine, `h${n}`)).status).toBe(201);
      const answer = await put(pere.url, fine, "h16");
      expect([answer.status, answer.body.type]).toEqual([422, "urn:pere:refused"]);
      expect((await put(pere.url, fine, "h7")).status).toBe(200);
      expect((await put(pere.url, fine, "h16", "other")).status).toBe(201);
      expect((await list(pere.url)).map((known) => known.name)).toEqual(
        Array.from({ length: 16 }, (_, n) => `h${n}`).sort(),
      );
    });
  });
}

export function callCases(name: string, makeWorld: () => World): void {
  describe(`${name}: a call`, () => {
    test("has the receipts as the feed of receipts has them", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now });
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      const event = await push(pere.url, "c", { order: 1 }, "?to=till-7,till-8");
      await give(pere.url, "c", event, "till-7", "done", { detail: { printed: 1e400 }, at: "2026-11-22T09:59:58Z" });
      const [call] = await receiver.have(1);
      const feed = await ask(`${pere.url}/feedback/c?since=earliest`, { headers: { Accept: "application/json" } });
      const at = new Date(clock.at).toISOString();
      expect(call!.body).toEqual({
        type: "pere.receipt",
        timestamp: at,
        data: { channel: "c", receipts: feed.body.events },
      });
      expect(call!.id).toMatch(/^msg_[A-Za-z0-9_-]{27}$/);
      expect(call!.at).toBe(clock.at);
    });

    test("has at most 100 receipts, in order, and each is sent once", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      const said = await receive(pere.url, names(950));
      await receiver.hear(said);
      await reached(pere.url, 950);
      expect(receiver.receipts).toEqual(said);
      expect(Math.max(...receiver.calls.map(({ body }) => body.data.receipts.length))).toBe(100);
      expect(new Set(receiver.calls.map(({ id }) => id)).size).toBe(receiver.calls.length);
    });

    test("has a size limit for long details", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      const devices = names(200);
      const event = await push(pere.url, "c", 1, `?to=${devices.join(",")}`);
      const detail = "x".repeat(4_000);
      await ask(`${pere.url}/feedback/c`, {
        body: devices.map((device) => ({ event, device, status: "working", detail })),
      });
      await receiver.hear(devices.map((device) => `${device} working`));
      for (const { text } of receiver.calls) expect(text.length).toBeLessThan(70_000);
    });

    test("is made for every hook of the channel with that kind, and for no other", async () => {
      const pere = await begin(makeWorld());
      const [receipts, complete, missing, elsewhere] = [new Receiver(), new Receiver(), new Receiver(), new Receiver()];
      await hook(pere.url, receipts, { on: ["receipt"] }, "a");
      await hook(pere.url, complete, { on: ["complete"] }, "b");
      await hook(pere.url, missing, { on: ["missing"] }, "h");
      await hook(pere.url, elsewhere, {}, "h", "other");
      const event = await push(pere.url, "c", 1, "?to=d");
      for (const status of ["received", "working", "done"]) await give(pere.url, "c", event, "d", status);
      await receive(pere.url, ["e"], "done", "other");
      await receipts.hear(["d done"]);
      await complete.have(1);
      await elsewhere.have(2);
      await reached(pere.url, 4);
      expect(receipts.receipts).toEqual(["d received", "d working", "d done"]);
      expect(new Set(receipts.calls.map(({ body }) => body.type))).toEqual(new Set(["pere.receipt"]));
      expect(complete.calls.map(({ body }) => body.type)).toEqual(["pere.complete"]);
      expect(missing.calls).toEqual([]);
      expect(elsewhere.calls.map(({ body }) => body.type)).toEqual(["pere.receipt", "pere.complete"]);
      expect(elsewhere.receipts).toEqual(["e done"]);
    });

    test("is made for receipts after the hook was stored", async () => {
      const pere = await begin(makeWorld());
      await receive(pere.url, ["before"]);
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      await receive(pere.url, ["after"]);
      await receiver.have(1);
      expect(receiver.receipts).toEqual(["after received"]);
    });

    test("says that an event is complete, with its state", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["complete"] });
      const event = await push(pere.url, "c", { order: 1 }, "?to=a,b&type=order.created");
      await give(pere.url, "c", event, "a", "done");
      await give(pere.url, "c", event, "b", "failed");
      const [call] = await receiver.have(1);
      const { body: state } = await ask(`${pere.url}/events/c/${event}`);
      expect(state).toMatchObject({ complete: true, receipts: { done: 1, failed: 1 } });
      expect(call!.body).toEqual({ type: "pere.complete", timestamp: expect.any(String), data: state });
    });

    test("reports completion with the tally only, if the event is no longer kept", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["complete"] });
      const event = await push(pere.url, "c", 1, "?to=d");
      // Retention took it between its receipt and the look at its state.
      const read = spyOn(pere.engine, "event").mockRejectedValueOnce(new PereError("unknown", "no longer kept"));
      await give(pere.url, "c", event, "d", "done");
      const [call] = await receiver.have(1);
      read.mockRestore();
      const receipts = { ...NOBODY, done: 1 };
      const { timestamp } = call!.body;
      expect(call!.body.data).toEqual({ event, channel: "c", at: timestamp, receipts, complete: true });
    });

    test("reports completion without a receipt if the last device that owed one was retired", async () => {
      const pere = await begin(makeWorld());
      const receiver = new Receiver();
      await hook(pere.url, receiver);
      await ask(`${pere.url}/devices/c/d`, { method: "PUT" });
      const event = await push(pere.url, "c", 1);
      await ask(`${pere.url}/devices/c/d`, { method: "DELETE" });
      await receiver.have(1);
      await receive(pere.url, ["e"], "working");
      await receiver.hear(["e working"]);
      expect(receiver.calls.map(({ body }) => body.type)).toEqual(["pere.complete", "pere.receipt"]);
      expect(receiver.calls[0]!.body.data).toMatchObject({ id: event, complete: true });
      expect(receiver.receipts).toEqual(["e working"]);
    });

    test("lists missing devices, at most 100 at once", async () => {
      const clock = heldClock();
      const pere = await begin(makeWorld(), { now: clock.now });
      const receiver = new Receiver();
      await hook(pere.url, receiver, { on: ["missing"] });
      const devices = names(230);
      const event = await push(pere.url, "c", 1, `?to=${devices.join(",")}&deadline=60`);
      await give(pere.url, "c", event, "d7", "done");
      clock.at += 61 * SECOND;
      const missing = devices.filter((device) => device !== "d7").map((device) => `${device} missing`);
      await receiver.hear(missing);
      expect(receiver.receipts.toSorted()).toEqual(missing.toSorted());
      for (const { body } of receiver.calls) {
        expect(body.type).toBe("pere.missing");
        expect(body.data.channel).toBe("c");
        expect(body.data.receipts.length).toBeLessThanOrEqual(100);
      }
    });
  });
}
