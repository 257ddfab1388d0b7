/**
 * The store's contract: which rounds have begun, read in pages.
 */
import { describe, expect, test } from "bun:test";
import type { DueRound, RoundPosition } from "../../engine/store.ts";
import { draft, SECOND, T, word } from "./calls.ts";
import type { Ground } from "./ground.ts";

const START: RoundPosition = { at: 0, place: "" };

export function roundsContract(ground: Ground): void {
  const { append, enrol, namesOf, give } = ground;
  const defer = async (devices: readonly string[], now: number, after: number, channel = "orders"): Promise<void> => {
    const { epoch } = (await ground.store.heads(channel))!;
    const words = devices.map((device) => word(epoch, 1, device, "deferred", { after }));
    await ground.store.record(channel, words, now);
  };
  /** All rounds that have begun, page by page. */
  const read = async (now: number, limit: number, each: (page: number) => Promise<unknown> = async () => {}) => {
    const found: DueRound[] = [];
    let last = START;
    for (let page = 0; page < 500; page++) {
      const { rounds, last: to, next } = await ground.store.roundsDue(last, now, limit);
      expect(rounds.length).toBeLessThanOrEqual(limit);
      found.push(...rounds);
      last = to;
      if (next === null || next > now) return { found, last, next };
      await each(page);
    }
    throw new Error("roundsDue always says that there is more");
  };

  describe("rounds that have begun", () => {
    test("in the same millisecond are read in pages, each once, also if some get a word meanwhile", async () => {
      const devices = namesOf(100);
      await enrol(...devices);
      await append("a");
      await defer(devices, T, 10);
      expect((await read(T + 10 * SECOND - 1, 7)).found).toEqual([]);
      const { found } = await read(T + 10 * SECOND, 7, async (page) => {
        // One that was read, and one that is still to come.
        if (page === 3) for (const n of [20, 60]) await give(1, devices[n]!, "done", T + 10 * SECOND);
      });
      const names = found.map(({ device }) => device);
      expect(new Set(names).size).toBe(names.length);
      expect(devices.filter((device) => !names.includes(device) && device !== devices[60])).toEqual([]);
      expect(found[0]).toMatchObject({ channel: "orders", event: 1, round: 2 });
    });

    test("begin in the order of their times, in all channels", async () => {
      for (const channel of ["orders", "others"]) {
        await Promise.all(["a", "b", "c"].map((device) => ground.store.enrol(channel, device, T)));
        await ground.store.append(channel, [draft("x")], T);
      }
      await defer(["b"], T, 2);
      await defer(["a"], T, 1, "others");
      await defer(["c"], T, 3, "others");
      await defer(["a"], T + 1, 2);
      for (const limit of [1, 2, 10]) {
        const { found, last, next } = await read(T + 2 * SECOND, limit);
        expect(found.map(({ channel, device }) => `${channel} ${device}`)).toEqual(["others a", "orders b"]);
        expect(next).toBeLessThanOrEqual(T + 2 * SECOND + 1);
        const later = await ground.store.roundsDue(last, T + 5 * SECOND, 10);
        expect(later.rounds.map(({ channel, device }) => `${channel} ${device}`)).toEqual(["orders a", "others c"]);
        expect(later.next).toBeNull();
      }
    });

    test("are known when the store is opened again", async () => {
      await enrol("till");
      await append("a");
      await defer(["till"], T, 5);
      if (!ground.opened.reopen || ground.keepsNothing) return;
      ground.store = await ground.opened.reopen();
      expect((await read(T + 5 * SECOND, 10)).found).toMatchObject([{ device: "till", round: 2 }]);
    });

    test("of a withdrawn event count for nothing", async () => {
      await enrol("till");
      const { epoch } = await append("a");
      await defer(["till"], T, 5);
      await ground.store.withdraw("orders", { epoch, seq: 1 }, null, T + 1);
      expect((await read(T + 5 * SECOND, 10)).found).toEqual([]);
    });
  });
}
