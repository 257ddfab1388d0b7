/**
 * A log as the store has it: what followers that are behind read. There is one for each followed log, so it holds next to nothing.
 */
import type { Report } from "../faults.ts";
import { type Kind, PereError } from "../model.ts";
import type { BegunRound, DeviceState, Extent, Store } from "../store.ts";
import { type Entry, eventEntry, logEntry, type LogSource, receiptEntry } from "./log.ts";

/** What all logs share. */
export interface StoredLogContext {
  readonly store: Store;
  readonly now: () => number;
  readonly report: Report;
  /** A log has this extent. */
  readonly reached: (extent: Extent) => void;
}

export class StoredLog implements LogSource {
  readonly #context: StoredLogContext;
  readonly #kind: Kind;
  readonly #channel: string;

  constructor(context: StoredLogContext, kind: Kind, channel: string) {
    this.#context = context;
    this.#kind = kind;
    this.#channel = channel;
  }

  now(): number {
    return this.#context.now();
  }

  get report(): Report {
    return this.#context.report;
  }

  async read(after: number, limit: number, epoch: string): Promise<readonly Entry[]> {
    const [channel, { store }] = [this.#channel, this.#context];
    if (this.#kind === "events")
      return (await this.#present(await store.events(channel, epoch, after, limit))).map((entry) =>
        logEntry(channel, epoch, entry),
      );
    return (await this.#present(await store.receipts(channel, epoch, after, limit))).map((receipt) =>
      receiptEntry(channel, epoch, receipt),
    );
  }

  async states(device: string, after: number, upTo: number, epoch: string): Promise<ReadonlyMap<number, DeviceState>> {
    const { store } = this.#context;
    return this.#present(await store.deviceStates(this.#channel, epoch, device, after, upTo, this.now()));
  }

  async addressed(event: number, devices: readonly string[], epoch: string): Promise<readonly string[]> {
    return this.#present(await this.#context.store.addressed(this.#channel, epoch, event, devices));
  }

  async rounds(
    device: string,
    after: number,
    upTo: number,
    limit: number,
    epoch: string,
  ): Promise<readonly BegunRound[]> {
    const { store } = this.#context;
    return this.#present(await store.begunRounds(this.#channel, epoch, device, after, upTo, limit, this.now()));
  }

  async latest(
    reader: { readonly device: string | null; readonly joined: number },
    after: number,
    head: number,
    limit: number,
    epoch: string,
  ): Promise<{ readonly entries: readonly Entry[]; readonly upTo: number }> {
    const [channel, { store }] = [this.#channel, this.#context];
    const found = await store.latestOfKeys(channel, epoch, reader, after, head, limit, this.now());
    const { events, upTo } = await this.#present(found);
    return { entries: events.map((event) => eventEntry(channel, epoch, event)), upTo };
  }

  /** If the epoch that was read has ended, updates the log to the current one; its followers read again. */
  async #present<Result>(found: Result | null): Promise<Result> {
    if (found !== null) return found;
    const [kind, channel, { store, reached }] = [this.#kind, this.#channel, this.#context];
    const heads = await store.open(channel); // If it was deleted, with the epoch that it will have.
    reached({ kind, channel, epoch: heads.epoch, head: heads[kind].head });
    throw new PereError("away", `the log of channel ${channel} has a new epoch; read again`);
  }
}
