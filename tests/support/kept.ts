/**
 * What a service has kept, as a publisher reads it: all events of a channel, and the state of every device.
 */
import { expect } from "bun:test";
import type { State } from "../../engine/model.ts";
import { ask } from "./harness.ts";

export interface EventState {
  readonly id: string;
  readonly seq: number;
  readonly data: unknown;
  readonly audience: { readonly addressed: number };
  readonly receipts: Record<State, number>;
}

/** All kept events of a channel, as a publisher reads them. */
export async function eventsOf(url: string, channel: string): Promise<EventState[]> {
  const events: EventState[] = [];
  for (let after: string | null = ""; after !== null;) {
    const page = await ask(`${url}/events/${channel}?limit=500${after && `&after=${after}`}`);
    expect(page.status).toBe(200);
    events.push(...(page.body.events as EventState[]));
    after = page.body.next as string | null;
  }
  return events;
}

/** The state of every addressed device, event by event; on the way, that positions have no holes and tallies equal rows. */
export async function standings(
  url: string,
  channel: string,
): Promise<{ events: EventState[]; rows: Map<string, State> }> {
  const events = await eventsOf(url, channel);
  expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: events.length }, (_, n) => n + 1));
  const rows = new Map<string, State>();
  for (const { id, audience, receipts } of events) {
    const page = await ask(`${url}/events/${channel}/${id}/receipts?limit=1000`);
    const found = page.body.receipts as { device: string; status: State }[];
    const counts = { pending: 0, received: 0, working: 0, deferred: 0, done: 0, failed: 0, missing: 0, withdrawn: 0 };
    for (const { device, status } of found) {
      counts[status]++;
      rows.set(`${id} ${device}`, status);
    }
    expect([id, found.length, counts]).toEqual([id, audience.addressed, receipts]);
  }
  return { events, rows };
}
