/**
 * What was said and heard in a world, from outside of the service: by devices, their publishers and a hook's receiver. What can be judged at once is
 * judged here; the rest at the end, by `promises.ts`.
 */
import type { Clock } from "./clock.ts";
import type { Heard } from "./pipe.ts";

/** So long a word may be on its way that was sent before another one was recorded, milliseconds. */
const ON_ITS_WAY_MS = 3_000;

/** A word of a device that the service acknowledged. */
export interface Acknowledged {
  readonly event: string;
  readonly device: string;
  readonly status: string;
  readonly at: number;
}

export class Witness {
  readonly #clock: Clock;
  readonly acknowledged: Acknowledged[] = [];
  /** Who said a final word on an event, whether or not it came through. */
  readonly saidFinal = new Map<string, Set<string>>();
  /** Calls that a hook's receiver took, by channel. */
  readonly calls: { channel: string; id: string; body: string }[] = [];
  readonly gaps: { device: string; channel: string; after: string; from: string }[] = [];
  /** What was found wrong on the way. */
  readonly wrong: string[] = [];
  /** When a device's final word was acknowledged. */
  readonly #finalAt = new Map<string, number>();
  /** Which event an id was given to. */
  readonly #markers = new Map<string, string>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** A device is about to say a final word. */
  says(event: string, device: string): void {
    const devices = this.saidFinal.get(event);
    if (devices) devices.add(device);
    else this.saidFinal.set(event, new Set([device]));
  }

  acknowledges(event: string, device: string, status: string): void {
    this.#clock.note(`${device} knows that ${status} on ${event} is kept`);
    this.acknowledged.push({ event, device, status, at: this.#clock.now });
    const name = `${event} ${device}`;
    if ((status === "done" || status === "failed") && !this.#finalAt.has(name))
      this.#finalAt.set(name, this.#clock.now);
  }

  /** An operator took away what was acknowledged. */
  forgets(): void {
    this.#finalAt.clear();
  }

  /** A device was given something. */
  hears(device: string, { openedAt, wroteAt, text }: Heard): void {
    for (const [, id, marker] of text.matchAll(/"id":"([^"]+)","channel"[^\n]*?"marker":(\d+)}/g)) {
      this.#clock.note(`${device} is given ${id}`);
      const before = this.#markers.get(id!);
      if (before !== undefined && before !== marker)
        this.wrong.push(`ids: ${id} was event ${before}, and is event ${marker}`);
      this.#markers.set(id!, marker!);
      const finalAt = this.#finalAt.get(`${id} ${device}`) ?? Number.POSITIVE_INFINITY;
      const what = `again: ${device} was given ${id}`;
      if (openedAt > finalAt) this.wrong.push(`${what} by a feed that it opened after its final word was acknowledged`);
      else if (wroteAt > finalAt + ON_ITS_WAY_MS)
        this.wrong.push(`${what} ${Math.round(wroteAt - finalAt)} ms after its final word was acknowledged`);
    }
  }
}
