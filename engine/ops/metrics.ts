/**
 * Metrics in the format of Prometheus.
 *
 * Nothing is measured on an event's path: the numbers are those of `counters.ts`, and current state is counted when it is requested. Without scrapes
 * there is no cost, and this file is loaded with the first one.
 *
 * Never labels by device, or by a channel that the operator did not name, so the number of series is bounded.
 */
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { type Counters, Distribution, STORE_SECONDS, type ChannelCounters } from "../counters.ts";
import type { Engine } from "../engine.ts";
import { OutstandingReceipts } from "./outstanding.ts";
import type { Store } from "../store.ts";

/** Interval of the check for late timers: short enough to detect a stall, long enough to cost nothing. */
const LAG_MS = 100;

type Labels = Record<string, string>;
type Sample = readonly [labels: Labels, value: number];

/** A histogram whose buckets are filled elsewhere. */
class Filled extends Histogram {
  readonly #read: () => readonly (readonly [Labels, Distribution])[];

  constructor(
    registry: Registry,
    name: string,
    help: string,
    read: () => readonly (readonly [Labels, Distribution])[],
  ) {
    super({ name, help, registers: [registry] });
    this.#read = read;
  }

  override async get() {
    const values = this.#read().flatMap(([labels, { bounds, counts, sum, count }]) => {
      let upTo = 0;
      const buckets = [...bounds, "+Inf"].map((le, place) => {
        upTo += counts[place]!;
        return { metricName: `${this.name}_bucket`, labels: { ...labels, le }, value: upTo };
      });
      return [
        ...buckets,
        { metricName: `${this.name}_sum`, labels, value: sum },
        { metricName: `${this.name}_count`, labels, value: count },
      ];
    });
    return { name: this.name, help: this.help, type: "histogram", values, aggregator: "sum" } as never;
  }

  /** The library calls this instead of `get` when it writes the text. */
  getForPromString() {
    return this.get();
  }
}
/** Missing in the library's types. */
interface Filled {
  readonly name: string;
  readonly help: string;
}

export interface MetricsOptions {
  readonly engine: Engine;
  readonly store: Store;
  readonly version: string;
}

/** The metrics of one running service. */
export class Metrics {
  readonly #registry = new Registry();
  readonly #outstanding: OutstandingReceipts;
  readonly #engine: Engine;
  /** As of the current scrape. */
  #held: Engine["held"];
  #readers: Engine["readers"];
  readonly #lag = new Distribution(STORE_SECONDS);
  readonly #timer: Timer;

  constructor({ engine, store, version }: MetricsOptions) {
    this.#outstanding = new OutstandingReceipts(store, engine.counts.named.keys());
    this.#engine = engine;
    this.#held = engine.held;
    this.#readers = engine.readers;
    let expected = performance.now() + LAG_MS;
    this.#timer = setInterval(() => {
      const now = performance.now();
      this.#lag.note(Math.max(0, now - expected) / 1000);
      expected = now + LAG_MS;
    }, LAG_MS);
    this.#timer.unref();
    this.#work(engine.counts);
    this.#state(engine, version);
    this.#filled("pere_event_loop_lag_seconds", "How late a timer fires; other work is delayed as much", () => [
      [{}, this.#lag],
    ]);
  }

  /** All metrics in the text format 0.0.4. */
  async text(): Promise<string> {
    this.#outstanding.refresh();
    // Counted once, because they are sums over all feeds and logs.
    this.#held = this.#engine.held;
    this.#readers = this.#engine.readers;
    return this.#registry.metrics();
  }

  /** @see text */
  get contentType(): string {
    return this.#registry.contentType;
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#outstanding.stop();
  }

  // ----------------------------------------------------------------------------------------------------------------- counters

  #work(counts: Counters): void {
    /** One sample per named channel, and one without the label for all others. */
    const works: readonly (readonly [Labels, ChannelCounters])[] = [
      [{}, counts.rest],
      ...[...counts.named].map(([channel, work]) => [{ channel }, work] as const),
    ];
    const each = (read: (work: ChannelCounters) => readonly Sample[]) => (): Sample[] =>
      works.flatMap(([channel, work]) =>
        read(work).map(([labels, value]) => [{ ...channel, ...labels }, value] as const),
      );
    this.#counter(
      "pere_pushes_total",
      "Events stored",
      ["channel"],
      each(({ pushes }) => [[{}, pushes]]),
    );
    this.#counter(
      "pere_push_replays_total",
      "Pushes with a known Idempotency-Key, answered with the stored events",
      ["channel"],
      each(({ replays }) => [[{}, replays]]),
    );
    this.#counter(
      "pere_withdrawals_total",
      "Events withdrawn by request; not those that a newer event with the same key superseded",
      ["channel"],
      each(({ withdrawals }) => [[{}, withdrawals]]),
    );
    this.#counter(
      "pere_deliveries_total",
      "Events written to feeds, once per feed",
      ["channel"],
      each(({ deliveries }) => [[{}, deliveries]]),
    );
    this.#counter(
      "pere_receipts_total",
      "Receipts that advanced a device, by status",
      ["channel", "status"],
      each(({ receipts }) => Object.entries(receipts).map(([status, count]) => [{ status }, count])),
    );
    this.#counter(
      "pere_receipts_idle_total",
      "Receipts that changed nothing: duplicates, or refused",
      ["channel", "reason"],
      each(({ duplicates, rejections }) => [
        [{ reason: "duplicate" }, duplicates],
        [{ reason: "rejected" }, rejections],
      ]),
    );
    this.#counter(
      "pere_store_failures_total",
      "Requests that the store did not accept",
      ["channel", "work"],
      each(({ pushFailures, receiptFailures }) => [
        [{ work: "push" }, pushFailures],
        [{ work: "receipts" }, receiptFailures],
      ]),
    );
    this.#filled("pere_receipt_latency_seconds", "From a push to a device's received, and to its final receipt", () =>
      works.flatMap(([channel, { received, final }]) => [
        [{ ...channel, status: "received" }, received] as const,
        [{ ...channel, status: "final" }, final] as const,
      ]),
    );
    this.#filled("pere_store_seconds", "Time that the store took for a request, which its sender waits for", () => [
      [{ work: "push" }, counts.pushStored],
      [{ work: "receipts" }, counts.receiptsStored],
    ]);
    this.#filled("pere_commit_seconds", "Duration of a commit of the SQLite file, including its sync", () => [
      [{}, counts.commits],
    ]);
    this.#filled("pere_commit_changes", "Changes in one commit of the SQLite file", () => [[{}, counts.batches]]);
    this.#counter("pere_feeds_ended_total", "Feeds that PERE ended, by reason", ["reason"], () =>
      Object.entries(counts.byes).map(([reason, count]) => [{ reason }, count]),
    );
    this.#counter("pere_hook_tries_total", "Calls to hooks, by result", ["result"], () =>
      Object.entries(counts.hookTries).map(([result, count]) => [{ result }, count]),
    );
    this.#counter("pere_hook_given_up_total", "Calls to hooks that were given up after the last attempt", [], () => [
      [{}, counts.hookGivenUp],
    ]);
  }

  // ------------------------------------------------------------------------------------------------------------------ gauges

  #state(engine: Engine, version: string): void {
    this.#gauge(
      "pere_receipts_open",
      "Final receipts that devices owe for kept events, without missing ones",
      ["channel"],
      () => this.#outstanding.counts.map(({ channel, open }) => [channel, open]),
    );
    this.#gauge("pere_receipts_missing", "Devices that missed the deadline of a kept event", ["channel"], () =>
      this.#outstanding.counts.map(({ channel, missing }) => [channel, missing]),
    );
    const troubles = () => engine.troubles().catch(() => null);
    this.#gauge("pere_devices_in_trouble", "Devices that failed, are missing, or owe for too long", [], async () => {
      const found = await troubles();
      return found ? [[{}, found.devices]] : [];
    });
    this.#gauge("pere_troubles", "What devices did not do on kept events, by kind", ["kind"], async () => {
      const { devices: _, ...kinds } = (await troubles()) ?? { devices: 0 };
      return Object.entries(kinds).map(([kind, count]) => [{ kind }, count]);
    });
    this.#gauge("pere_feeds", "Open feeds, by transport", ["transport"], () =>
      Object.entries(this.#readers.transports).map(([transport, count]) => [{ transport }, count]),
    );
    this.#gauge("pere_followers", "Followers of logs: one per feed and channel", [], () => [
      [{}, this.#readers.followers],
    ]);
    this.#gauge("pere_followers_behind", "Followers that are catching up or have a slow reader", [], () => [
      [{}, this.#readers.followers - this.#held.live],
    ]);
    this.#gauge("pere_devices_connected", "Devices with a feed open here, counted once per channel", [], () => [
      [{}, this.#held.present],
    ]);
    const readiness = () => engine.ready().catch(() => null);
    this.#gauge("pere_store_up", "1: the store takes changes", [], async () => [[{}, (await readiness()) ? 1 : 0]]);
    this.#gauge("pere_store_info", "The store, and its durability", ["store", "durability"], async () => {
      const known = await readiness();
      return known ? [[{ store: known.store, durability: known.durability }, 1]] : [];
    });
    this.#gauge(
      "pere_store_log_bytes",
      "Length of the SQLite file's write-ahead log; it grows while another program reads the file",
      [],
      () => (engine.counts.logBytes === null ? [] : [[{}, engine.counts.logBytes]]),
    );
    this.#gauge(
      "pere_clock_leap_seconds",
      "How far the wall clock is ahead of PERE's time after a leap (negative: behind)",
      [],
      () => [[{}, engine.clock.leapMs / 1000]],
    );
    this.#gauge("pere_draining", "1: it is shutting down", [], () => [[{}, engine.draining ? 1 : 0]]);
    this.#gauge("pere_resident_memory_bytes", "Memory of the process", [], () => [[{}, process.memoryUsage.rss()]]);
    const startedAt = performance.timeOrigin / 1000;
    this.#gauge("pere_start_time_seconds", "When the process started, since 1970", [], () => [[{}, startedAt]]);
    this.#gauge("pere_build_info", "Version of PERE and Bun", ["version", "bun"], () => [
      [{ version, bun: Bun.version }, 1],
    ]);
  }

  #counter(name: string, help: string, labelNames: string[], read: () => readonly Sample[]): void {
    new Counter({
      ...{ name, help, labelNames, registers: [this.#registry] },
      collect() {
        this.reset();
        for (const [labels, value] of read()) this.inc(labels, value);
      },
    });
  }

  #gauge(
    name: string,
    help: string,
    labelNames: string[],
    read: () => readonly Sample[] | Promise<readonly Sample[]>,
  ): void {
    new Gauge({
      ...{ name, help, labelNames, registers: [this.#registry] },
      async collect() {
        const samples = await read();
        this.reset();
        for (const [labels, value] of samples) this.set(labels, value);
      },
    });
  }

  #filled(name: string, help: string, read: () => readonly (readonly [Labels, Distribution])[]): void {
    new Filled(this.#registry, name, help, read);
  }
}
