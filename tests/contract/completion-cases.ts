/**
 * That an event is complete is told once, on every transport, and the states of its devices always add up.
 */
import { describe, expect, test } from "bun:test";
import { iso } from "../../engine/model.ts";
import { chance, seed } from "../support/chance.ts";
import { type Answer, ask, connect, listen, type Stream, until } from "../support/harness.ts";
import { deviceOf, NOBODY, type Open, poll, T } from "./fleet.ts";

/** An id so many entries further. */
const shifted = (id: string, by: number): string => id.replace(/\d+$/, (seq) => String(Number(seq) + by));

export function completionCases(name: string, open: Open): void {
  describe(`${name}: that an event is complete`, () => {
    test("is sent on an event stream right after the last receipt, with its own id", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const stream = await listen(`${fleet.here.url}/feedback/c`);
      const id = await fleet.push("c");
      const next = await fleet.push("c", "?to=a");
      fleet.now += 1_000;
      await fleet.give("c", id, "a", "failed");
      await fleet.give("c", id, "b", "working");
      await fleet.give("c", id, "b", "done");
      await fleet.give("c", next, "a", "received");
      await stream.have(4);
      expect(stream.messages.map(({ event }) => event)).toEqual([
        "pere.ready",
        undefined,
        undefined,
        undefined,
        "pere.complete",
        undefined,
      ]);
      const { id: own, data } = stream.messages[4]!;
      expect(own).toBe(shifted(stream.messages[3]!.id!, 1));
      expect(JSON.parse(data)).toEqual({
        id: own,
        event: id,
        channel: "c",
        at: iso(fleet.now),
        receipts: { ...NOBODY, done: 1, failed: 1 },
        complete: true,
      });
      expect(stream.raw).toContain(`\n\nid: ${own}\nevent: pere.complete\ndata: ${data}\n\n`);
      stream.close();
    });

    test("is sent on a socket, and beside the events of a long-poll; a receipt that completes nothing causes none", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const url = `${fleet.here.url}/feedback/c`;
      const { socket, messages } = await connect(url);
      const id = await fleet.push("c");
      await fleet.give("c", id, "a", "done");
      const half = await fleet.told("c");
      expect(Object.keys(half)).toEqual(["events", "last"]);
      const polled = poll(`${url}?last-event-id=${half.last}&wait=60`);
      await fleet.waiting(2);
      await fleet.give("c", id, "b", "done");
      const { events, complete, last } = (await polled).body;
      expect(events.map(deviceOf)).toEqual(["b"]);
      expect(last).toBe(shifted(events[0].id, 1));
      const said = { id: last, event: id, channel: "c", at: iso(T), receipts: { ...NOBODY, done: 2 }, complete: true };
      expect(complete).toEqual([said]);
      await until(() => messages.length === 4);
      expect(messages[1]).toMatchObject({ device: "a" });
      expect(messages.slice(2)).toEqual([events[0], { pere: "complete", ...said }]);
      socket.close();
    });

    test("is sent to readers that resume before it, and not again to those that resume after it", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c");
      await fleet.give("c", id, "a", "working");
      await fleet.give("c", id, "a", "done");
      const { events, last } = await fleet.told("c");
      const headers = (place: string) => ({ "Last-Event-ID": place });
      const before = await listen(`${fleet.here.url}/feedback/c`, headers(events[0].id));
      const after = await listen(`${fleet.here.url}/feedback/c`, headers(last));
      expect(await before.own("complete")).toMatchObject({ event: id, receipts: { done: 1 } });
      const next = await fleet.push("c");
      await fleet.give("c", next, "a", "done");
      expect(await after.own("complete")).toMatchObject({ event: next });
      await until(() => before.messages.length === 5);
      const names = (stream: Stream) => stream.messages.map(({ event }) => event);
      expect(names(before)).toEqual(["pere.ready", undefined, "pere.complete", undefined, "pere.complete"]);
      expect(names(after)).toEqual(["pere.ready", undefined, "pere.complete"]);
      for (const stream of [before, after]) stream.close();
    });

    test("is sent to readers that were cut off between the last receipt and it, on every transport and on feeds of several channels", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c");
      await fleet.give("c", id, "a", "done");
      const { events, last } = await fleet.told("c");
      const url = `${fleet.here.url}/feedback`;
      const cut = events[0].id as string;
      const said = { event: id, channel: "c", receipts: { ...NOBODY, done: 1 }, complete: true };
      const stream = await listen(`${url}/c`, { "Last-Event-ID": cut });
      expect(await stream.own("complete")).toMatchObject(said);
      const { channels } = await (await listen(`${url}/d`)).own("ready");
      const both = await listen(`${url}/d,c`, { "Last-Event-ID": `${(channels as { d: string }).d}.${cut}` });
      expect(await both.own("complete")).toMatchObject(said);
      const socket = await connect(`${url}/c?last-event-id=${cut}`);
      const told = await until(() => socket.messages.find(({ pere }) => pere === "complete"));
      expect(told).toMatchObject({ ...said, id: last });
      expect(await fleet.told("c", `?last-event-id=${cut}&wait=50`)).toMatchObject({
        events: [],
        complete: [said],
        last,
      });

      // Where each of them stands now it is not told again: what comes next is the next thing that is said.
      const again = [
        await listen(`${url}/c`, { "Last-Event-ID": stream.messages.at(-1)!.id! }),
        await listen(`${url}/d,c`, { "Last-Event-ID": both.messages.at(-1)!.id! }),
      ];
      const socketAgain = await connect(`${url}/c?last-event-id=${told.id}`);
      expect(await fleet.told("c", `?last-event-id=${last}`)).toEqual({ events: [], last });
      const next = await fleet.push("c");
      await fleet.give("c", next, "a", "working");
      for (const each of again) {
        await each.have(1);
        expect(each.messages.map(({ event }) => event)).toEqual(["pere.ready", undefined]);
      }
      await until(() => socketAgain.messages.length === 2);
      expect(socketAgain.messages[1]).toMatchObject({ event: next, status: "working" });
      for (const each of [stream, both, ...again]) each.close();
      for (const each of [socket, socketAgain]) each.socket.close();
    });

    test("has its own entry if the last device that owed a receipt was retired, with an id to resume after", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a", "b");
      const url = `${fleet.here.url}/feedback/c`;
      const [stream, socket] = [await listen(url), await connect(url)];
      const both = await listen(`${fleet.here.url}/feedback/c,d`);
      const id = await fleet.push("c");
      const other = await fleet.push("c", "?to=b,z");
      await fleet.give("c", id, "a", "done");
      await stream.have(1);
      const polled = poll(`${url}?last-event-id=${stream.ids[0]}&wait=60`);
      await fleet.waiting(5);
      await fleet.retire("c", "b");
      const own = shifted(stream.ids[0]!, 1);
      const said = { id: own, event: id, channel: "c", at: iso(T), receipts: { ...NOBODY, done: 1 }, complete: true };
      expect(await stream.own("complete")).toEqual(said);
      expect(stream.messages.at(-1)!.id).toBe(own);
      await both.own("complete");
      expect(both.messages.at(-1)!.id!.split(".")).toContain(own);
      expect((await polled).body).toEqual({ events: [], last: own, complete: [said] });
      await until(() => socket.messages.length === 3);
      expect(socket.messages[2]).toEqual({ pere: "complete", ...said });
      // Who resumes before it is told it again, who resumes after it is not.
      expect((await fleet.told("c", `?last-event-id=${stream.ids[0]}&wait=50`)).complete).toEqual([said]);
      expect(await fleet.told("c", `?last-event-id=${own}`)).toEqual({ events: [], last: own });
      // It is no word of the device's: the event is not its any more, and the other one waits for somebody else.
      expect(await fleet.rows("c", id)).toEqual({ a: "done" });
      expect(await fleet.rows("c", other)).toEqual({ z: "pending" });
      expect((await fleet.state("c", other)).complete).toBeFalse();
      for (const each of [stream, both]) each.close();
      socket.socket.close();
    });
  });
}

export function tallyCases(name: string, open: Open): void {
  test(`${name}: the tally always adds up to the number of addressed devices (SEED=${seed})`, async () => {
    await using fleet = await open();
    const random = chance(seed);
    const pick = <Item>(items: readonly Item[]): Item => items[Math.floor(random() * items.length)]!;
    const devices = ["a", "b", "c", "d", "e"];
    const words = ["received", "working", "done", "failed"];
    const ids: string[] = [];
    await fleet.enrol("c", ...devices.slice(0, 3));
    let isOver = false;
    let looks = 0;
    let recorded = 0;
    const look = async (): Promise<void> => {
      const { events = [] } = (await ask(`${fleet.here.url}/events/c?limit=1000`)).body;
      for (const { audience, receipts, complete } of events as Answer["body"][]) {
        const sum = Object.values(receipts as Record<string, number>).reduce((total, number) => total + number, 0);
        expect({ sum, ...receipts }).toEqual({ sum: audience.addressed, ...receipts });
        expect(Math.min(...(Object.values(receipts) as number[]))).toBeGreaterThanOrEqual(0);
        expect(complete).toBe(receipts.done + receipts.failed === audience.addressed);
      }
      looks++;
    };
    const looking = (async () => {
      while (!isOver) await look();
    })();
    // It goes on until enough was said and looked at, whatever the seed and the machine.
    for (let step = 0; step < 400 || recorded < 50 || looks < 10; step++) {
      const dice = random();
      if (ids.length === 0 || dice < 0.1)
        ids.push(await fleet.push("c", `?remind=1${pick(["", "&deadline=2", "&deadline=20", "&to=a,e"])}`));
      else if (dice < 0.75) {
        const receipts = Array.from({ length: 1 + Math.floor(random() * 8) }, () => ({
          event: pick(ids),
          device: pick(devices),
          status: pick(words),
        }));
        recorded += (await ask(`${fleet.there.url}/feedback/c`, { body: receipts })).body.recorded;
      } else if (dice < 0.85) await fleet.enrol("c", pick(devices));
      else if (dice < 0.93) await fleet.retire("c", pick(devices));
      else fleet.now += 1_000;
    }
    fleet.now += 20_000;
    const marker = await fleet.push("c", "?deadline=1&to=marker");
    fleet.now += 1_000;
    await until(async () => (await fleet.state("c", marker)).receipts.missing === 1);
    isOver = true;
    await looking;
    await look();
    // The rows say the same as the tallies, and each device is missing once an event at most.
    for (const id of ids) {
      const { receipts } = await fleet.state("c", id);
      const counted: Record<string, number> = { ...NOBODY };
      for (const state of Object.values(await fleet.rows("c", id))) counted[state]!++;
      expect(receipts).toEqual(counted);
    }
    const { events } = await fleet.told("c");
    const complete = (await fleet.told("c")).complete ?? [];
    const completed = complete.map(({ event }: { event: string }) => event);
    expect(new Set(completed).size).toBe(completed.length);
    for (const id of ids) {
      const { complete: isComplete, receipts } = await fleet.state("c", id);
      if (isComplete && receipts.done! + receipts.failed! > 0) expect(completed).toContain(id);
    }
    expect(events.filter(({ status }: { status: string }) => status !== "missing")).toHaveLength(recorded);
  });
}
