/**
 * A reminder: to whom it comes, when, and what ends it.
 */
import { describe, expect, test } from "bun:test";
import { EventSource } from "eventsource";
import { OWN, type Wire } from "../../engine/feeds/feed.ts";
import { ask, connect, listen, type Stream, until } from "../support/harness.ts";
import { Fleet, type Open, poll, T } from "./fleet.ts";

const dataOf = ({ data }: { data: string }): unknown => (JSON.parse(data) as { data: unknown }).data;

/** What came once more: frames without an id. */
const reminders = (stream: Stream): unknown[] => stream.events.filter(({ id }) => id === undefined).map(dataOf);

/** A device that is reminded of an event of its own: when that has come, whatever else was due has come as well. */
async function control(fleet: Fleet, channel: string, seconds: number) {
  const stream = await fleet.device(channel, "control");
  await fleet.push(channel, `?to=control&remind=${seconds}`, "control");
  await stream.have(1);
  return {
    stream,
    /** Lets one interval pass. */
    async pass(): Promise<void> {
      const before = stream.events.length;
      fleet.now += seconds * 1000;
      await stream.have(before + 1);
    },
  };
}

export function reminderCases(name: string, open: Open): void {
  describe(`${name}: a reminder`, () => {
    test("is sent at each interval to connected devices without a receipt, and to no others", async () => {
      await using fleet = await open();
      const names = ["silent", "received", "working", "done"];
      const streams = await Promise.all(names.map((device) => fleet.device("c", device)));
      const anonymous = await listen(`${fleet.there.url}/feed/c`);
      await fleet.enrol("c", "absent");
      const id = await fleet.push("c", "?remind=10&type=order", "it");
      await Promise.all([...streams, anonymous].map((stream) => stream.have(1)));
      for (const word of names.slice(1)) await fleet.give("c", id, word, word);
      const later = await fleet.device("c", "later");
      const { stream, pass } = await control(fleet, "c", 10);
      for (let n = 0; n < 3; n++) await pass();
      const marker = await fleet.push("c", "", "marker");
      for (const other of [...streams, anonymous, later]) await until(() => other.ids.includes(marker));
      const [silent, ...others] = streams.map(({ events }) => events.map(dataOf));
      expect(silent).toEqual(["it", "it", "it", "it", "marker"]);
      for (const other of others) expect(other).toEqual(["it", "marker"]);
      expect(anonymous.events.map(dataOf)).toEqual(["it", "marker"]);
      expect(later.events.map(dataOf)).toEqual(["marker"]);
      expect(streams[0]!.events[1]).toEqual({ ...streams[0]!.events[0]!, id: undefined });
      for (const each of [...streams, anonymous, later, stream]) each.close();
    });

    test("is sent only when the interval is over, and once if several have passed", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      await fleet.push("c", "?remind=60", "slow");
      const { stream: quick, pass } = await control(fleet, "c", 1);
      fleet.now = T + 58_000;
      await pass();
      expect(reminders(stream)).toEqual([]);
      fleet.now = T + 200_000;
      await until(() => reminders(stream).length === 1);
      await pass();
      expect(reminders(stream)).toEqual(["slow"]);
      fleet.now = T + 240_000;
      await until(() => reminders(stream).length === 2);
      for (const each of [stream, quick]) each.close();
    });

    test("has no id line, and does not move the reader's position", async () => {
      await using fleet = await open();
      const source = new EventSource(`${fleet.there.url}/feed/c?device=a`);
      const came: { data: unknown; lastEventId: string }[] = [];
      source.onmessage = ({ data, lastEventId }) => came.push({ data: dataOf({ data }), lastEventId });
      await until(() => source.readyState === EventSource.OPEN);
      const stream = await fleet.device("c", "a");
      const first = await fleet.push("c", "?remind=10", "first");
      const second = await fleet.push("c", "?to=a", "second");
      await until(() => came.length === 2);
      fleet.now += 10_000;
      await until(() => came.length === 3);
      await stream.have(3);
      expect(came).toEqual([
        { data: "first", lastEventId: first },
        { data: "second", lastEventId: second },
        { data: "first", lastEventId: second },
      ]);
      expect(stream.raw).toMatch(/\n\ndata: [^\n]*"first"[^\n]*\n\n$/);
      source.close();
      stream.close();
      const third = await fleet.push("c", "", "third");
      const resumed = await fleet.device("c", "a", { "Last-Event-ID": came[2]!.lastEventId });
      await resumed.have(1);
      expect(resumed.ids).toEqual([third]);
      resumed.close();
    });

    test("is sent on a socket like the event itself, and answers a waiting long-poll", async () => {
      await using fleet = await open();
      const { socket, messages } = await connect(`${fleet.there.url}/feed/c?device=a`);
      await fleet.enrol("c", "b");
      const id = await fleet.push("c", "?remind=10");
      const url = `${fleet.there.url}/feed/c?device=b`;
      const first = (await poll(url)).body;
      expect(first.last).toBe(id);
      const polled = poll(`${url}&last-event-id=${first.last}&wait=60`);
      await until(() => fleet.there.engine.held.present === 2);
      fleet.now += 10_000;
      expect((await polled).body).toEqual({ events: first.events, last: id });
      await until(() => messages.length === 3);
      expect(messages.slice(1)).toEqual([first.events[0], first.events[0]]);
      socket.close();
    });

    test("ends with any receipt, with the deadline, with the ttl, with the device's retirement, for that event alone", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      const retired = await fleet.device("c", "retired");
      const heard = await fleet.push("c", "?to=a&remind=10", "receipt");
      await fleet.push("c", "?to=a&remind=10&deadline=20", "deadline");
      await fleet.push("c", "?to=a&remind=10&ttl=20", "ttl");
      await fleet.push("c", "?to=retired&remind=10", "retired");
      await fleet.push("c", "?to=a&remind=10", "on and on");
      await stream.have(4);
      await retired.have(1);
      const { stream: other, pass } = await control(fleet, "c", 10);
      await pass();
      expect(reminders(stream)).toEqual(["receipt", "deadline", "ttl", "on and on"]);
      expect(reminders(retired)).toEqual(["retired"]);
      await fleet.give("c", heard, "a", "received");
      await fleet.retire("c", "retired");
      const back = await fleet.device("c", "retired");
      for (let n = 0; n < 3; n++) await pass();
      expect(reminders(stream).slice(4)).toEqual(["on and on", "on and on", "on and on"]);
      expect(reminders(retired)).toEqual(["retired"]);
      expect(back.events).toEqual([]);
      for (const each of [stream, back, other]) each.close();
    });

    test("continues after a restart, on the same schedule", async () => {
      await using fleet = await open();
      await fleet.enrol("c", "a");
      const id = await fleet.push("c", "?remind=10", "it");
      await fleet.stop();
      fleet.now += 14_000;
      await fleet.start();
      const stream = await fleet.device("c", "a");
      expect((await stream.have(1)).map((event) => event.id)).toEqual([id]);
      const { stream: other, pass } = await control(fleet, "c", 1);
      for (let n = 0; n < 5; n++) await pass();
      expect(reminders(stream)).toEqual([]);
      await pass();
      expect(reminders(stream)).toEqual(["it"]);
      for (const each of [stream, other]) each.close();
    });

    test("is sent also if the clock was set back, at most an interval later", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c", "a");
      await fleet.push("c", "?remind=10");
      await stream.have(1);
      fleet.now += 24 * 3_600_000;
      await until(() => reminders(stream).length === 1);
      fleet.now = T + 1_000;
      const other = await fleet.device("d", "b");
      await fleet.push("d", "?remind=1");
      await other.have(1);
      fleet.now += 1_000;
      await until(() => reminders(other).length === 1);
      expect(reminders(stream)).toHaveLength(1);
      fleet.now = T + 10_000;
      await until(() => reminders(stream).length === 2);
      for (const each of [stream, other]) each.close();
    });

    test("of one of many channels on a feed moves no position", async () => {
      await using fleet = await open();
      const stream = await fleet.device("c,d", "a");
      await fleet.push("c", "?remind=10", "in c");
      await stream.have(1);
      await fleet.push("d", "", "in d");
      await stream.have(2);
      const place = stream.ids[1]!;
      fleet.now += 10_000;
      await stream.have(3);
      expect(reminders(stream)).toEqual(["in c"]);
      const next = await fleet.push("d", "", "more in d");
      await stream.have(4);
      expect(stream.ids[3]!.split(".").toSorted()).toEqual([...place.split(".").slice(0, 1), next].toSorted());
      stream.close();
      const again = await fleet.device("c,d", "a", { "Last-Event-ID": place });
      await again.have(1);
      expect(again.events.map(dataOf)).toEqual(["more in d"]);
      again.close();
    });

    test("is sent on every feed of a device", async () => {
      await using fleet = await open();
      const streams = [await fleet.device("c", "a"), await fleet.device("c", "a"), await fleet.device("c,d", "a")];
      await fleet.push("c", "?remind=10", "it");
      await Promise.all(streams.map((stream) => stream.have(1)));
      fleet.now += 10_000;
      for (const stream of streams) {
        await stream.have(2);
        expect(reminders(stream)).toEqual(["it"]);
        stream.close();
      }
    });

    test("of many events at once does not block other work", async () => {
      await using fleet = await open();
      let turn = 0;
      let given = 0;
      const turns: number[] = [];
      const wire: Wire = {
        ready() {},
        write: (_channel, { entries }) => void (given += entries.length),
        remind: () => void turns.push(turn),
        gap() {},
        rest() {},
        beat() {},
        bye() {},
      };
      const request = { kind: "events", channels: ["c"], device: "a", last: null, since: "now" } as const;
      const feed = fleet.there.engine.follow({ ...OWN, ...request }, wire);
      await until(() => fleet.there.engine.held.live === 1);
      for (let n = 0; n < 3; n++)
        await ask(`${fleet.here.url}/push/c?remind=10`, { body: "1\n".repeat(1_000), type: "application/x-ndjson" });
      await until(() => given === 3_000);
      const count = (): void => void (turn++, feed.open && setImmediate(count));
      count();
      fleet.now += 10_000;
      await until(() => turns.length === 3_000);
      expect(new Set(turns).size).toBeGreaterThan(5);
      feed.stop();
    });

    test("is not sent to a reader that is behind", async () => {
      await using fleet = await open();
      const told: string[] = [];
      const wire: Wire = {
        ready: () => void told.push("ready"),
        write: () => (told.push("write"), new Promise(() => {})),
        remind: () => void told.push("remind"),
        gap() {},
        rest() {},
        beat() {},
        bye() {},
      };
      const request = { kind: "events", channels: ["c"], device: "slow", last: null, since: "now" } as const;
      const feed = fleet.there.engine.follow({ ...OWN, ...request }, wire);
      await until(() => told.length === 1);
      await fleet.push("c", "?remind=10");
      await until(() => told.length === 2);
      const { stream, pass } = await control(fleet, "c", 10);
      for (let n = 0; n < 3; n++) await pass();
      expect(told).toEqual(["ready", "write"]);
      feed.stop();
      stream.close();
    });
  });
}
