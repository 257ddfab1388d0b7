/**
 * Hooks on SQLite: the cases that hold on any memory, and what happens when the store makes trouble.
 */
import { afterEach, describe, expect, spyOn, test } from "bun:test";
import { join } from "node:path";
import { PereError } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Service } from "../index.ts";
import { ask, start, temporary, until } from "./support/harness.ts";
import { hookCases } from "./contract/hook-cases.ts";
import {
  door,
  failing,
  hook,
  hookUrl,
  listed,
  LOOPBACK,
  names,
  reached,
  Receiver,
  receive,
  services,
  tidyUp,
  well,
  type World,
} from "./contract/hook-world.ts";

afterEach(tidyUp);

function sqliteWorld(): World {
  const path = join(temporary(), "pere.db");
  return { start: (options) => start(options, path), env: { PERE_DB: path } };
}

hookCases("SQLite", sqliteWorld);

test("a hook with 1,000 given-up calls is disabled, until it is retried", async () => {
  const path = join(temporary(), "pere.db");
  const receiver = new Receiver(failing);
  const store = new SqliteStore({ path });
  const { hook: known } = await store.putHook(
    "c",
    { name: "h", url: receiver.url, secret: null, on: ["receipt"] },
    receiver.secret,
    1,
  );
  const body = '{"type":"pere.receipt","data":{"receipts":[]}}';
  const delivery = { body, createdAt: 1, attempts: 7, nextAt: null, status: 500, error: "HTTP 500", tries: [] };
  const given = Array.from({ length: 999 }, (_, n) => ({ ...delivery, id: `msg_${n}` }));
  await store.progress("c", known.name, null, {
    keep: [...given, { ...delivery, id: "msg_last", attempts: 6, nextAt: 1 }],
  });
  await store.close();
  const pere = await start({ hooksAllowed: LOOPBACK }, path);
  services.push(pere);
  await until(async () => (await listed(pere.url)).disabled, "its end");
  expect((await listed(pere.url)).disabled).toStartWith("1000 calls were given up");
  expect((await listed(pere.url)).failed).toHaveLength(1_000);
  expect(receiver.calls).toHaveLength(1);
  receiver.behaviour = well;
  expect((await ask(`${hookUrl(pere.url)}/retry`, { method: "POST" })).body).toEqual({ retried: 1_000 });
  await receiver.have(1_001);
  await until(async () => (await listed(pere.url)).retrying.length === 0, "nothing that waits");
  expect(await listed(pere.url)).toMatchObject({ disabled: null, failed: [] });
});

describe("trouble with the store", () => {
  const away = new PereError("away", "the store is away");
  const begin = async (): Promise<Service> => {
    const service = await start({ hooksAllowed: LOOPBACK });
    services.push(service);
    return service;
  };

  test("delivered calls are not repeated while their result can't be stored", async () => {
    const pere = await begin();
    const receiver = new Receiver();
    await hook(pere.url, receiver);
    const progress = spyOn(SqliteStore.prototype, "progress").mockRejectedValueOnce(away).mockRejectedValueOnce(away);
    try {
      await receive(pere.url, ["a"]);
      await reached(pere.url, 1);
      expect(progress).toHaveBeenCalledTimes(3);
    } finally {
      progress.mockRestore();
    }
    await receive(pere.url, ["b"]);
    await receiver.hear(["b received"]);
    expect(receiver.receipts).toEqual(["a received", "b received"]);
  });

  test("a broken feed is opened again, and continues from the cursor", async () => {
    const pere = await begin();
    const receiver = new Receiver();
    await hook(pere.url, receiver);
    await receive(pere.url, ["a"]);
    await reached(pere.url, 1);
    const open = spyOn(SqliteStore.prototype, "open").mockRejectedValueOnce(away);
    try {
      await hook(pere.url, receiver); // Whoever runs it begins anew, and finds no log.
      await until(() => open.mock.calls.length > 0, "the feed to break");
      await receive(pere.url, ["b"]);
      await receiver.hear(["b received"]);
    } finally {
      open.mockRestore();
    }
    await receive(pere.url, ["c"]);
    await receiver.hear(["c received"]);
    expect(receiver.receipts).toEqual(["a received", "b received", "c received"]);
  });

  test("no call is made after the lease expired, and none is left out when it is held again", async () => {
    const pere = await begin();
    const slow = door();
    const receiver = new Receiver(slow.behaviour);
    await hook(pere.url, receiver);
    const said = await receive(pere.url, names(300));
    await receiver.have(1);
    const lease = spyOn(SqliteStore.prototype, "lease").mockRejectedValue(away);
    const later = performance.now.bind(performance);
    const clock = spyOn(performance, "now").mockImplementation(() => later() + 6_000);
    try {
      slow.open();
      await reached(pere.url, receiver.receipts.length);
      // Looked at twice more without the lease: whoever wanted to call has seen by then that he may not.
      const looks = lease.mock.calls.length;
      await until(() => lease.mock.calls.length >= looks + 2, "two looks");
      expect(receiver.calls).toHaveLength(1);
    } finally {
      lease.mockRestore();
      clock.mockRestore();
    }
    await receiver.hear(said);
    expect(receiver.receipts).toEqual(said);
  });

  test("an instance without the lease makes no calls; one that gets it misses nothing", async () => {
    const lease = spyOn(SqliteStore.prototype, "lease").mockResolvedValue(null);
    const receiver = new Receiver();
    let said: string[] = [];
    try {
      const pere = await begin();
      await hook(pere.url, receiver);
      said = await receive(pere.url, ["a", "b"]);
      const looks = lease.mock.calls.length;
      await until(() => lease.mock.calls.length >= looks + 2, "two looks");
      expect(receiver.calls).toEqual([]);
    } finally {
      lease.mockRestore();
    }
    await receiver.hear(said);
    expect(receiver.receipts).toEqual(said);
  });

  test("an instance that gets the lease again uses its new number", async () => {
    const pere = await begin();
    const receiver = new Receiver();
    await hook(pere.url, receiver);
    await receive(pere.url, ["a"]);
    await reached(pere.url, 1);
    const progress = spyOn(SqliteStore.prototype, "progress");
    const lease = spyOn(SqliteStore.prototype, "lease").mockResolvedValue(2);
    try {
      await until(() => lease.mock.calls.length >= 2, "two looks");
      await receive(pere.url, ["b"]);
      await reached(pere.url, 2);
      expect(progress.mock.calls.map(([, , fence]) => fence)).toEqual([2]);
      expect(receiver.receipts).toEqual(["a received", "b received"]);
    } finally {
      progress.mockRestore();
      lease.mockRestore();
    }
  });

  test("a replaced runner stores nothing, and makes no further call", async () => {
    const pere = await begin();
    const receiver = new Receiver(failing);
    await hook(pere.url, receiver, { on: ["receipt"] });
    // As if another had run the hook with a later lease meanwhile.
    const progress = spyOn(SqliteStore.prototype, "progress").mockResolvedValueOnce(false);
    const lease = spyOn(SqliteStore.prototype, "lease").mockResolvedValue(null);
    try {
      await receive(pere.url, ["a"]);
      await receiver.have(1);
      await until(() => progress.mock.calls.length > 0, "its word");
      await receive(pere.url, ["b"]);
      const looks = lease.mock.calls.length;
      await until(() => lease.mock.calls.length >= looks + 2, "two looks");
      expect(receiver.calls).toHaveLength(1);
      expect(await listed(pere.url)).toMatchObject({ position: expect.stringMatching(/-0$/), retrying: [] });
    } finally {
      progress.mockRestore();
      lease.mockRestore();
    }
  });
});
