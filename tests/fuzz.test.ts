/**
 * The feed against a naive model: random pushes, receipts, disconnections in the middle of a frame, slow readers, all three transports.
 * Whatever happens, each device ends up with every event that was for it, in order, nothing twice at a join, and nothing that it had
 * already given a final word on when it joined.
 *
 * The model is a list of events and, for each device, what it has seen. The seed is printed; `SEED=n bun test tests/fuzz.test.ts`
 * plays the same decisions again (the network's timing stays its own).
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { connect as dial, type Socket } from "node:net";
import { createParser } from "eventsource-parser";
import type { Service } from "../index.ts";
import { chance, seed } from "./support/chance.ts";
import { ask, give, until } from "./support/harness.ts";

let pere: Service;
beforeAll(async () => {
  const { start } = await import("./support/harness.ts");
  pere = await start({ limits: { beatMs: 50, renewMs: 400 } });
});
afterAll(() => pere.stop());

interface Pushed {
  readonly id: string;
  readonly seq: number;
  readonly to: readonly string[] | null;
}

/** A device on a bad line: it reads a raw socket, in gulps or not at all, and is cut at random bytes. */
class Device {
  readonly name: string;
  /** All ids that it was given since it first listened, in the order in which they came. */
  readonly seen: string[] = [];
  readonly #random: () => number;
  readonly #channel: string;
  /** Where to resume: the last `id:` of a whole frame. */
  #position = "";
  #socket: Socket | undefined;
  ready = false;
  /** Of each connection: the ids in the order in which they came. */
  readonly connections: string[][] = [];

  constructor(name: string, channel: string, random: () => number) {
    this.name = name;
    this.#channel = channel;
    this.#random = random;
  }

  /** Listens, resuming where it was, or, when it forgot, by its name. */
  connect(forget: boolean): void {
    this.cut();
    this.ready = false;
    const { hostname, port } = new URL(pere.url);
    const socket = dial(Number(port), hostname);
    const ids: string[] = [];
    this.connections.push(ids);
    const parser = createParser({
      onEvent: ({ id, event, data }) => {
        if (event === "pere.ready") this.ready = true;
        if (event === "pere.gap") throw new Error(`a gap, but nothing was lost: ${data}`);
        if (id) this.#position = id;
        if (event?.startsWith("pere.")) return;
        ids.push(id!);
        this.seen.push(id!);
      },
    });
    let text = "";
    const decoder = new TextDecoder();
    socket.on("data", (bytes: Buffer) => {
      text += decoder.decode(bytes, { stream: true });
      // The head, then chunks: "<hex>\r\n<bytes>\r\n". Text is ASCII here, so characters are bytes.
      for (;;) {
        if (!text.startsWith("HTTP")) {
          const length = /^([0-9a-f]+)\r\n/.exec(text);
          if (!length) return;
          const [from, size] = [length[0].length, Number.parseInt(length[1]!, 16)];
          if (text.length < from + size + 2) return;
          parser.feed(text.slice(from, from + size));
          text = text.slice(from + size + 2);
          if (size === 0) return void socket.destroy();
        } else {
          const end = text.indexOf("\r\n\r\n");
          if (end === -1) return;
          text = text.slice(end + 4);
        }
      }
    });
    socket.on("close", () => {
      if (this.#socket === socket) this.connect(false);
    });
    socket.on("error", () => {});
    const last = this.#position !== "" && !forget ? `Last-Event-ID: ${this.#position}\r\n` : "";
    socket.write(`GET /feed/${this.#channel}?device=${this.name} HTTP/1.1\r\nHost: localhost\r\n${last}\r\n`);
    this.#socket = socket;
  }

  /** Does something that happens to devices. */
  suffer(): void {
    const dice = this.#random();
    if (dice < 0.3) this.connect(dice < 0.1);
    else if (dice < 0.5) this.#socket?.pause();
    else this.#socket?.resume();
  }

  cut(): void {
    const socket = this.#socket;
    this.#socket = undefined;
    if (this.#random() < 0.5) socket?.resetAndDestroy();
    else socket?.destroy();
  }
  resume(): void {
    this.#socket?.resume();
  }
}

test(`devices on bad connections lose nothing and get everything in order (SEED=${seed})`, async () => {
  const random = chance(seed);
  const channel = "fuzz";
  const pushed: Pushed[] = [];
  const finals = new Map<string, Map<string, number>>();
  const devices = Array.from({ length: 12 }, (_, n) => new Device(`d${n}`, channel, random));
  for (const device of devices) {
    device.connect(false);
    finals.set(device.name, new Map());
  }
  await until(() => devices.every(({ ready }) => ready));

  for (let round = 0; round < 250; round++) {
    const count = random() < 0.2 ? Math.floor(random() * 40) + 2 : 1;
    const to = random() < 0.3 ? devices.filter(() => random() < 0.3).map(({ name }) => name) : [];
    const body = Array.from({ length: count }, () =>
      JSON.stringify({ pad: "x".repeat(Math.floor(random() ** 4 * 40_000)) }),
    ).join("\n");
    const query = to.length > 0 ? `?to=${to.join(",")}` : "";
    const answer = await ask(`${pere.url}/push/${channel}${query}`, { body, type: "application/x-ndjson" });
    for (const { id, seq } of answer.body.events) pushed.push({ id, seq, to: to.length > 0 ? to : null });
    for (const device of devices) {
      if (random() < 0.15) device.suffer();
      // It answers something that it was given, now and then.
      const given = device.seen[Math.floor(random() * device.seen.length)];
      if (given === undefined || random() < 0.6) continue;
      const status = random() < 0.5 ? "received" : random() < 0.5 ? "done" : "failed";
      const { body: verdict } = await give(pere.url, channel, given, device.name, status);
      expect(verdict.recorded + verdict.duplicate).toBe(1);
      if (status !== "received" && verdict.recorded === 1)
        finals.get(device.name)!.set(given, device.connections.length);
    }
  }

  for (const device of devices) {
    const mine = pushed.filter(({ to }) => to === null || to.includes(device.name)).map(({ id }) => id);
    device.resume();
    await until(
      () => mine.every((id) => device.seen.includes(id)),
      () => `${device.name} to have ${mine.filter((id) => !device.seen.includes(id)).slice(0, 3)}`,
    );
    // Nothing that was not for it.
    expect(device.seen.filter((id) => !mine.includes(id))).toEqual([]);
    const place = new Map(mine.map((id, index) => [id, index]));
    device.connections.forEach((ids, number) => {
      // In order, nothing twice, and nothing left out but what it had given a final word on before.
      const places = ids.map((id) => place.get(id)!);
      for (let n = 1; n < places.length; n++) {
        expect(places[n]!).toBeGreaterThan(places[n - 1]!);
        for (let between = places[n - 1]! + 1; between < places[n]!; between++)
          expect(finals.get(device.name)!.get(mine[between]!) ?? Number.POSITIVE_INFINITY).toBeLessThanOrEqual(
            number + 1,
          );
      }
      // What had its final word when this connection was made did not come again on it.
      for (const id of ids)
        expect(finals.get(device.name)!.get(id) ?? Number.POSITIVE_INFINITY).toBeGreaterThan(number);
    });
  }

  // And the service's books agree with what was said.
  const rows = new Map<string, number>();
  for (const { id } of pushed) {
    const { body } = await ask(`${pere.url}/events/${channel}/${id}`);
    const { pending, received, working, done, failed, missing } = body.receipts;
    expect(pending + received + working + done + failed + missing).toBe(body.audience.addressed);
    rows.set(id, done + failed);
  }
  for (const { id } of pushed) expect(rows.get(id)).toBe([...finals.values()].filter((said) => said.has(id)).length);
  for (const device of devices) device.cut();
  await until(() => pere.engine.held.feeds === 0);
  expect(pere.engine.held).toEqual({ feeds: 0, logs: 0, live: 0, present: 0, spokes: 0 });
}, 60_000);
