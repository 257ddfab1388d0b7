/**
 * One service or two on one memory, with devices that follow and pushes that wait: what the cases of an outcome are played on.
 */
import type { EngineOptions } from "../../engine/engine.ts";
import type { Service } from "../../index.ts";
import { type Answer, ask, give, listen, push, type Stream, until } from "../support/harness.ts";

export const T = Date.UTC(2026, 10, 22, 10);

export const NOBODY = {
  pending: 0,
  received: 0,
  working: 0,
  deferred: 0,
  done: 0,
  failed: 0,
  missing: 0,
  withdrawn: 0,
};

/** How a service is started on the memory of one test. */
export type Start = (options: EngineOptions) => Promise<Service>;

/** The services of one test, on one memory and by one clock. */
export class Fleet implements AsyncDisposable {
  now = T;
  readonly #start: Start;
  readonly #count: number;
  readonly #options: EngineOptions;
  #services: Service[] = [];

  constructor(start: Start, count: number, options: EngineOptions) {
    this.#start = start;
    this.#count = count;
    this.#options = options;
  }

  async start(): Promise<this> {
    for (let n = 0; n < this.#count; n++)
      this.#services.push(await this.#start({ now: () => this.now, ...this.#options }));
    return this;
  }

  async stop(): Promise<void> {
    await Promise.all(this.#services.splice(0).map((service) => service.stop()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /** Where the publisher is. */
  get here(): Service {
    return this.#services[0]!;
  }
  /** Where the devices are. */
  get there(): Service {
    return this.#services.at(-1)!;
  }

  enrol(channel: string, ...devices: string[]): Promise<Answer[]> {
    return Promise.all(
      devices.map((device) => ask(`${this.there.url}/devices/${channel}/${device}`, { method: "PUT" })),
    );
  }
  retire(channel: string, device: string): Promise<Answer> {
    return ask(`${this.there.url}/devices/${channel}/${device}`, { method: "DELETE" });
  }
  push(channel: string, query = "", data: unknown = 1): Promise<string> {
    return push(this.here.url, channel, data, query);
  }
  /** A push that waits. */
  wait(channel: string, prefer: string, more: Parameters<typeof ask>[1] & { query?: string } = {}): Promise<Answer> {
    const { query = "", headers = {}, ...init } = more;
    return ask(`${this.here.url}/push/${channel}${query}`, {
      body: "1",
      ...init,
      headers: { Prefer: prefer, ...headers },
    });
  }
  /** Until so many channels have somebody who waits, or so many feeds are open where the publisher is. */
  async waiting(feeds = 1): Promise<void> {
    await until(() => this.here.engine.held.live === feeds);
  }
  give(channel: string, event: string, device: string, status: string): Promise<Answer> {
    return give(this.there.url, channel, event, device, status);
  }
  async state(channel: string, event: string): Promise<{ receipts: Record<string, number>; complete: boolean }> {
    return (await ask(`${this.here.url}/events/${channel}/${event}`)).body;
  }
  /** Every device's state on an event. */
  async rows(channel: string, event: string): Promise<Record<string, string>> {
    const { receipts } = (await ask(`${this.here.url}/events/${channel}/${event}/receipts?limit=1000`)).body;
    return Object.fromEntries(receipts.map((row: { device: string; status: string }) => [row.device, row.status]));
  }
  /** Everything in a channel's receipts log. */
  async told(channel: string, query = "?since=earliest"): Promise<Answer["body"]> {
    return (await poll(`${this.here.url}/feedback/${channel}${query}`)).body;
  }
  async missing(channel: string): Promise<string[]> {
    const { events } = await this.told(channel);
    return events.filter(({ status }: { status: string }) => status === "missing").map(deviceOf);
  }
  /** Listens for a device, where devices are. */
  device(channel: string, device: string, headers: Record<string, string> = {}): Promise<Stream> {
    return listen(`${this.there.url}/feed/${channel}?device=${device}`, headers);
  }
}

export const poll = (url: string): Promise<Answer> => ask(url, { headers: { Accept: "application/json" } });

export const deviceOf = ({ device }: { device: string }): string => device;

/** Starts the fleet of one test. */
export type Open = (options?: EngineOptions) => Promise<Fleet>;
