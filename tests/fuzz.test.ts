/**
 * The feed against a naive model: random pushes, receipts, disconnections in the middle of a frame, slow readers, all three transports.
 * Whatever happens, each device ends up with every event that was for it, in order, nothing twice at a join, and nothing that it had
 * already given a final word on when it joined.
 *
 * The model is a list of events and, for each device, what it has seen. The seed is printed; `SEED=n bun test tests/fuzz.test.ts`
 * plays the same decisions again (the network's timing stays its own).
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { Service } from "../index.ts";
import { BadLineDevice } from "./support/bad-line-device.ts";
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

test(`devices on bad connections lose nothing and get everything in order (SEED=${seed})`, async () => {
  const random = chance(seed);
  const channel = "fuzz";
  const pushed: Pushed[] = [];
  const finals = new Map<string, Map<string, number>>();
  const devices = Array.from({ length: 12 }, (_, n) => new BadLineDevice(() => pere.url, `d${n}`, channel, random));
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
    const { done, failed } = body.receipts;
    expect(Object.values(body.receipts as Record<string, number>).reduce((a, b) => a + b)).toBe(
      body.audience.addressed,
    );
    rows.set(id, done + failed);
  }
  for (const { id } of pushed) expect(rows.get(id)).toBe([...finals.values()].filter((said) => said.has(id)).length);
  for (const device of devices) device.cut();
  await until(() => pere.engine.held.feeds === 0);
  expect(pere.engine.held).toEqual({ feeds: 0, logs: 0, live: 0, present: 0, spokes: 0 });
}, 60_000);
