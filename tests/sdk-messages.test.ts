/**
 * What the SDK believes of rounds, withdrawals, tallies and late receipts: each field is checked, and what services of earlier versions lack has a default.
 */
import { describe, expect, test } from "bun:test";
import { answerOf, controlOf, entryOf, pollOf, tallyOf } from "../clients/sdk/messages.ts";
import { publish, readRows, receipts, withdraw } from "../clients/sdk/index.ts";

const AT = "2026-11-22T10:00:00.000Z";
const EVENT = { id: "k3x9-42", channel: "orders", seq: 42, at: AT, data: 1 };
const TALLY = { pending: 1, received: 0, working: 0, done: 2, failed: 0, missing: 0 };
const NOTE = { id: "k3x9-7", event: "k3x9-42", channel: "orders", at: AT, receipts: TALLY };
const WITHDRAWAL = { id: "k3x9-43", channel: "orders", seq: 43, at: AT, withdrawn: "k3x9-42", reason: "withdrawn" };

const event = (more: object) =>
  entryOf("feed", JSON.stringify({ ...EVENT, ...more }), { ...EVENT, ...more }, ["orders"]);
const notFromPere = /not from PERE/;

test("an event may have a round, a key and a schedule, and each is what it must be", () => {
  expect(event({})).toMatchObject({ id: "k3x9-42", text: "1" });
  expect(event({ round: 2, key: "config", scheduled: "s-1" })).toMatchObject({ round: 2, key: "config" });
  for (const more of [{ round: 0 }, { round: "2" }, { round: 1.5 }, { round: null }, { key: 5 }, { scheduled: {} }])
    expect(() => event(more)).toThrow(notFromPere);
});

test("a tally has all counts; those that an earlier service has not are 0", () => {
  expect(tallyOf(TALLY)).toEqual({ ...TALLY, deferred: 0, withdrawn: 0 });
  expect(tallyOf({ ...TALLY, deferred: 3, withdrawn: 4 })).toEqual({ ...TALLY, deferred: 3, withdrawn: 4 });
  for (const wrong of [null, {}, { ...TALLY, done: "2" }, { ...TALLY, deferred: -1 }, { ...TALLY, withdrawn: null }])
    expect(() => tallyOf(wrong)).toThrow(notFromPere);
});

describe("control messages", () => {
  test("of a feed of events: a withdrawal", () => {
    expect(controlOf("feed", "withdrawn", WITHDRAWAL, ["orders"])).toEqual(WITHDRAWAL);
    for (const wrong of [
      { ...WITHDRAWAL, channel: "others" },
      { ...WITHDRAWAL, withdrawn: undefined },
      { ...WITHDRAWAL, reason: 5 },
      { ...WITHDRAWAL, by: 7 },
      { ...WITHDRAWAL, note: {} },
      { ...WITHDRAWAL, id: "" },
    ])
      expect(() => controlOf("feed", "withdrawn", wrong, ["orders"])).toThrow(notFromPere);
  });

  test("of a feed of receipts: complete, settled, withdrawn", () => {
    for (const name of ["complete", "settled"])
      expect(controlOf("feedback", name, { ...NOTE, complete: true }, ["orders"])).toMatchObject({
        receipts: { deferred: 0, withdrawn: 0, done: 2 },
      });
    expect(
      controlOf("feedback", "withdrawn", { ...NOTE, reason: "superseded", by: "k3x9-44" }, ["orders"]),
    ).toBeDefined();
    for (const [name, wrong] of [
      ["complete", { ...NOTE, receipts: [] }],
      ["settled", { ...NOTE, receipts: { ...TALLY, missing: "0" } }],
      ["settled", { ...NOTE, id: 5 }],
      ["withdrawn", NOTE],
      ["withdrawn", { ...NOTE, reason: "withdrawn", note: 5 }],
      ["complete", { ...NOTE, channel: "others" }],
    ] as const)
      expect(() => controlOf("feedback", name, wrong, ["orders"])).toThrow(notFromPere);
  });

  test("that a later service may have are left alone", () => {
    expect(controlOf("feed", "weather", { nice: true }, ["orders"])).toEqual({ nice: true });
  });
});

test("the answer to a long-poll is believed whole or not at all", () => {
  const poll = (more: object) =>
    pollOf("feed", JSON.stringify({ events: [EVENT], last: "k3x9-43", ...more }), ["orders"], JSON.parse);
  expect(poll({})).toMatchObject({ entries: [{ id: "k3x9-42" }], gaps: [], notices: [] });
  expect(poll({ withdrawn: [WITHDRAWAL] }).notices).toEqual([{ name: "withdrawn", body: WITHDRAWAL }]);
  for (const more of [{ withdrawn: {} }, { withdrawn: [null] }, { withdrawn: [{}] }, { settled: 5 }])
    expect(() => poll(more)).toThrow(notFromPere);
});

test("an answer to receipts may list late ones, of this request", () => {
  const answer = { recorded: 1, duplicate: 1, rejected: [] };
  const events = ["k3x9-42", "k3x9-43"];
  expect(answerOf(answer, events)).toEqual({ rejected: [], late: [] });
  const late = [{ index: 1, event: "k3x9-43", reason: "withdrawn" }];
  expect(answerOf({ ...answer, late }, events).late).toMatchObject([{ index: 1, reason: "withdrawn" }]);
  for (const wrong of [
    null,
    {},
    [null],
    [{}],
    [{ ...late[0], event: "k3x9-42" }],
    [{ ...late[0], index: 2 }],
    [{ ...late[0], reason: 5 }],
  ])
    expect(() => answerOf({ ...answer, late: wrong }, events)).toThrow(notFromPere);
});

/** A service of the first version, as far as these requests go. */
const OLD: Record<string, unknown> = {
  "/push/orders": { ...EVENT, audience: { addressed: 1, connected: 0 }, receipts: TALLY, complete: false },
  "/events/orders/k3x9-42/receipts": {
    receipts: [{ device: "till-7", status: "done", detail: null, at: AT, deviceAt: null, late: false }],
    next: null,
  },
};

test("a service of an earlier version is understood: what it lacks has its default", async () => {
  const url = "http://127.0.0.1:1";
  const by = {
    fetch: async (to: string) => {
      const { pathname } = new URL(to);
      return pathname === "/feedback/orders"
        ? new Response(
            `event: pere.ready\ndata: {"device":null,"channels":{"orders":"k3x9-0"}}\n\nid: k3x9-1\ndata: ${JSON.stringify({ ...NOTE, device: "till-7", status: "done", detail: null })}\n\nid: k3x9-2\nevent: pere.complete\ndata: ${JSON.stringify({ ...NOTE, complete: true })}\n\n`,
            { headers: { "Content-Type": "text/event-stream" } },
          )
        : Response.json(OLD[pathname]);
    },
  };
  expect((await publish(url, "orders", 1, { ...by, wait: 1 })).receipts).toEqual({
    ...TALLY,
    deferred: 0,
    withdrawn: 0,
  });
  const rows = await Array.fromAsync(readRows({ url, ...by, channel: "orders", event: "k3x9-42" }));
  expect(rows).toMatchObject([{ device: "till-7", round: 1, attempt: 0 }]);
  const feed = receipts({ url, ...by, channel: "orders" });
  expect((await feed.next()).value).toMatchObject({ kind: "receipt", status: "done", round: 1, attempt: 0 });
  expect((await feed.next()).value).toMatchObject({ kind: "complete", receipts: { done: 2, deferred: 0 } });
  await feed.return!();
  for (const body of [
    {},
    { id: "k3x9-42", channel: "others", complete: true, receipts: TALLY },
    { ...OLD["/push/orders"]!, receipts: 5 },
  ])
    await expect(
      withdraw(url, "orders", "k3x9-42", {
        fetch: async () => Response.json(body),
        giveUpMs: 1,
        timing: { pauseMsMax: 1 },
      }),
    ).rejects.toThrow(notFromPere);
});
