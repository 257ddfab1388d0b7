/**
 * What one WebSocket may leave unanswered: before its feed is ready, and while the store is slow. Beyond, it is told so and closed.
 */
import { afterEach, describe, expect, spyOn, test } from "bun:test";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { closeAll, closing, start } from "./support/callers.ts";
import { push, until } from "./support/harness.ts";

afterEach(closeAll);

const MEBIBYTE = 1024 * 1024;

/** Holds a method of the store back until it is told to go on. */
function held(method: "join" | "record"): () => void {
  const { promise, resolve } = Promise.withResolvers<void>();
  const original = SqliteStore.prototype[method] as (...given: unknown[]) => Promise<never>;
  const spy = spyOn(SqliteStore.prototype, method).mockImplementation(async function (
    this: SqliteStore,
    ...given: unknown[]
  ) {
    await promise;
    return original.apply(this, given);
  } as never);
  closing.push(() => spy.mockRestore(), resolve);
  return resolve;
}

/** A socket that is open, ready or not, and what it is told. */
async function open(url: string) {
  const socket = new WebSocket(url.replace(/^http/, "ws"));
  closing.push(() => socket.close());
  const messages: { pere: string; detail?: string; recorded?: number; rejected?: unknown[] }[] = [];
  socket.onmessage = ({ data }) => messages.push(JSON.parse(String(data)));
  const closed = new Promise<CloseEvent>((resolve) => (socket.onclose = resolve));
  await new Promise((resolve) => (socket.onopen = resolve));
  return { socket, messages, closed };
}

/** A message of that many characters, which says one thing. */
const padded = (characters: number, receipt: object): string => JSON.stringify(receipt).padEnd(characters, " ");

describe("one socket's unanswered messages are bounded", () => {
  test("before its feed is ready: beyond the limit it is told to wait for ready, and closed", async () => {
    const pere = await start({ access: "open" });
    held("join");
    const { socket, messages, closed } = await open(`${pere.url}/feed/orders?device=d`);
    for (let n = 0; n < 16; n++) socket.send(padded(MEBIBYTE, { event: "x-1", status: "done" }));
    expect((await closed).code).toBe(1013);
    expect(messages.map(({ pere }) => pere)).toEqual(["error", "bye"]);
    expect(messages[0]!.detail).toContain("wait for it, then send these again");
    await until(() => pere.engine.held.feeds === 0, "the feed to be let go of");
  });

  test("while the store is slow: beyond the limit it is told to wait for answers, and closed", async () => {
    const pere = await start({ access: "open" });
    const { socket, messages, closed } = await open(`${pere.url}/feed/orders?device=d`);
    await until(() => messages.some(({ pere }) => pere === "ready"), "ready");
    const event = await push(pere.url, "orders", 1);
    held("record");
    for (let n = 0; n < 100; n++) socket.send(padded(MEBIBYTE / 8, { event, status: "working" }));
    expect((await closed).code).toBe(1013);
    expect(messages.filter(({ pere }) => pere === "error")).toHaveLength(1);
    expect(messages.find(({ pere }) => pere === "error")!.detail).toContain("wait for answers");
  });

  test("and messages within the limit are answered as soon as possible", async () => {
    const pere = await start({ access: "open" });
    const goOn = held("join");
    const { socket, messages } = await open(`${pere.url}/feed/orders?device=d`);
    for (let n = 0; n < 1_000; n++) socket.send("[]");
    socket.send(padded(4 * MEBIBYTE, { event: "x-1", status: "done" }));
    goOn();
    const answers = () => messages.filter(({ pere }) => pere === "receipts").length;
    await until(
      () => answers() === 1_001,
      () => `${answers()} answers`,
    );
    // What was answered makes room.
    for (let n = 0; n < 5; n++) {
      socket.send(padded(4 * MEBIBYTE, { event: "x-1", status: "done" }));
      await until(
        () => answers() === 1_002 + n,
        () => `${answers()} answers`,
      );
    }
    expect(socket.readyState).toBe(WebSocket.OPEN);
  });
});
