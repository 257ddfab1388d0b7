/**
 * The store's contract: receipts, and the rows of an event's devices.
 */
import { describe, expect, test } from "bun:test";
import { freshTally, type State, STATUSES } from "../../engine/model.ts";
import { ADVANCES } from "../../engine/receipt-rules.ts";
import { all, draft, expectTalliesToEqualRows, noteOf, reads, results, rowsOf, T, word } from "./calls.ts";
import type { Ground } from "./ground.ts";

export function receiptContract(ground: Ground): void {
  const { heard, append, enrol, give } = ground;

  describe("a receipt", () => {
    test("counts only if it advances its device; done and failed are equal and final", async () => {
      await enrol("till");
      let event = 0;
      for (const first of STATUSES)
        for (const second of STATUSES) {
          await append([first, second]);
          event++;
          const forward = ADVANCES[first].includes(second);
          expect(await give(event, "till", first)).toBe("recorded");
          expect([first, second, await give(event, "till", second)]).toEqual([
            first,
            second,
            forward ? "recorded" : "duplicate",
          ]);
          const [row] = await rowsOf(ground.store, "orders", event);
          expect(row!.status).toBe(forward ? second : first);
        }
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("is stored unchanged, in the row and in the log", async () => {
      await enrol("till");
      const { epoch } = await append("a");
      const detail = '{"printed":true,"text":"ü \'x\'"}';
      await ground.store.record("orders", [word(epoch, 1, "till", "done", { detail, deviceAt: T - 5 })], T + 7);
      expect(await rowsOf(ground.store, "orders", 1)).toEqual([
        { device: "till", status: "done", detail, at: T + 7, deviceAt: T - 5, late: false, round: 1, attempt: 0 },
      ]);
      expect(await reads.receipts(ground.store, "orders", 0, 10)).toEqual([
        {
          seq: 1,
          event: 1,
          device: "till",
          status: "done",
          detail,
          at: T + 7,
          deviceAt: T - 5,
          late: false,
          round: 1,
          attempt: 0,
          note: null,
        },
        {
          ...{ seq: 2, event: 1, device: "till", status: "pending", detail: null, at: T + 7, deviceAt: null },
          ...{ late: false, round: 1, attempt: 0, note: { kind: "complete", tally: { ...freshTally(1), done: 1 } } },
        },
      ]);
    });

    test("for a nonexistent event is unknown: another epoch, beyond the head, no channel", async () => {
      await enrol("till");
      const { epoch } = await append("a");
      const verdicts = await ground.store.record(
        "orders",
        [
          word("another0", 1, "till", "done"),
          word(epoch, 2, "till", "done"),
          word(epoch, 0, "till", "done"),
          word(epoch, 999_999_999_999_999, "till", "done"),
        ],
        T,
      );
      expect(results(verdicts)).toEqual(["unknown", "unknown", "unknown", "unknown"]);
      expect((await ground.store.heads("orders"))!.receipts.head).toBe(0);
    });

    test("in a call with many has its own verdict, in order", async () => {
      await enrol("till", "kiosk");
      const { epoch } = await append("a");
      const verdicts = await ground.store.record(
        "orders",
        [
          word(epoch, 1, "till", "received"),
          word(epoch, 1, "till", "received"),
          word(epoch, 1, "stranger", "done"),
          word(epoch, 1, "kiosk", "failed"),
          word(epoch, 7, "kiosk", "done"),
          word(epoch, 1, "till", "done"),
          word(epoch, 1, "till", "failed"),
        ],
        T,
      );
      expect(results(verdicts)).toEqual([
        "recorded",
        "duplicate",
        "unaddressed",
        "recorded",
        "unknown",
        "recorded",
        "duplicate",
      ]);
      expect(
        (await reads.receipts(ground.store, "orders", 0, 10)).map(({ seq, device, status }) => [seq, device, status]),
      ).toEqual([
        [1, "till", "received"],
        [2, "kiosk", "failed"],
        [3, "till", "done"],
        [4, "till", "pending"],
      ]);
    });

    test("sent twice in one turn counts once", async () => {
      await enrol("till");
      await append("a");
      const verdicts = await Promise.all([give(1, "till", "done"), give(1, "till", "failed")]);
      expect(verdicts.sort()).toEqual(["duplicate", "recorded"]);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("that completes its event is followed by an entry that says so, with the outcome; no other is", async () => {
      await enrol("a", "b", "c");
      const { epoch } = await append("a");
      await append("to one", { to: ["stranger"] });
      await ground.store.record(
        "orders",
        [
          word(epoch, 1, "a", "done"),
          word(epoch, 1, "b", "received"),
          word(epoch, 1, "c", "failed"),
          word(epoch, 1, "c", "done"),
          word(epoch, 2, "stranger", "working"),
          word(epoch, 1, "b", "working"),
          word(epoch, 1, "b", "done"),
          word(epoch, 1, "b", "done"),
          word(epoch, 2, "stranger", "failed"),
        ],
        T,
      );
      expect(
        (await reads.receipts(ground.store, "orders", 0, 10)).map((entry) => [
          entry.event,
          entry.device,
          noteOf(entry),
        ]),
      ).toEqual([
        [1, "a", null],
        [1, "b", null],
        [1, "c", null],
        [2, "stranger", null],
        [1, "b", null],
        [1, "b", null],
        [1, "b", { done: 2, failed: 1 }],
        [2, "stranger", null],
        [2, "stranger", { done: 0, failed: 1 }],
      ]);
      await heard();
      expect(ground.wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []))).toEqual(
        await reads.receipts(ground.store, "orders", 0, 10),
      );
    });

    test("log is read after a position, up to a limit", async () => {
      await enrol("till");
      const { epoch } = await ground.store.append(
        "orders",
        Array.from({ length: 5 }, (_, n) => draft(n)),
        T,
      );
      await ground.store.record(
        "orders",
        [1, 2, 3, 4, 5].map((seq) => word(epoch, seq, "till", "working")),
        T,
      );
      const seqs = async (after: number, limit: number) =>
        (await reads.receipts(ground.store, "orders", after, limit)).map(({ seq }) => seq);
      expect(await seqs(0, 2)).toEqual([1, 2]);
      expect(await seqs(2, 100)).toEqual([3, 4, 5]);
      expect(await seqs(5, 100)).toEqual([]);
    });
  });
}

export function rowsContract(ground: Ground): void {
  const { append, enrol } = ground;

  describe("rows", () => {
    test("are listed by device name, page by page, of one state or of all", async () => {
      const devices = ["b", "A", "a", "a:1", "a-1", "c", "~"];
      await enrol(...devices);
      const { epoch } = await append("a");
      await ground.store.record(
        "orders",
        [
          word(epoch, 1, "a", "done"),
          word(epoch, 1, "~", "done"),
          word(epoch, 1, "b", "failed"),
          word(epoch, 1, "c", "working"),
        ],
        T,
      );
      const read = async (status: State | readonly State[] | null, limit: number): Promise<string[]> =>
        (await all((after) => reads.rows(ground.store, "orders", 1, status, after, limit))).map(({ device }) => device);
      const names = [...devices].sort();
      for (const limit of [1, 2, names.length, 100]) expect(await read(null, limit)).toEqual(names);
      for (const limit of [1, 100]) {
        expect(await read("done", limit)).toEqual(["a", "~"]);
        expect(await read("pending", limit)).toEqual(["A", "a-1", "a:1"]);
        expect(await read("missing", limit)).toEqual([]);
        expect(await read(["failed", "missing", "done"], limit)).toEqual(["a", "b", "~"]);
        expect(await read(["working", "pending"], limit)).toEqual(["A", "a-1", "a:1", "c"]);
        expect(await read([], limit)).toEqual([]);
      }
      const first = await reads.rows(ground.store, "orders", 1, null, "", 3);
      expect(first.items.length).toBe(3);
      expect(first.next).not.toBeNull();
    });

    test("of a device without receipts have only its name", async () => {
      await enrol("till");
      await append("a");
      expect(await rowsOf(ground.store, "orders", 1)).toEqual([
        {
          device: "till",
          status: "pending",
          detail: null,
          at: null,
          deviceAt: null,
          late: false,
          round: 1,
          attempt: 0,
        },
      ]);
    });

    test("of a nonexistent event are empty", async () => {
      await enrol("till");
      await append("a");
      for (const event of [0, 2]) expect(await rowsOf(ground.store, "orders", event)).toEqual([]);
    });
  });
}
