/** The last ten minutes, for the plots: a row per second. */
import { signal } from "@preact/signals";
import type { Counts } from "./api.ts";
import { link, now, overview } from "./state.ts";

/** Seconds of history in the plots. */
const HISTORY_SECONDS = 600;

/** Columns of values, one row per second: seconds since 1970, then one column per line. */
export interface History {
  readonly rates: readonly number[][];
  readonly latency: readonly (number | null)[][];
  readonly owed: readonly number[][];
}

export const history = signal<History>({ rates: [[], [], [], []], latency: [[], [], []], owed: [[], [], []] });
let before: Counts | null = null;

/** Receipts of all statuses. */
const receiptsOf = ({ receipts }: Counts): number => Object.values(receipts).reduce((sum, number) => sum + number, 0);

/** Adds a row of history each second. While offline there is none, which leaves a gap. */
function second(): void {
  const known = overview.peek();
  if (known === null || link.peek().state !== "live") return void (before = null);
  const { counts, channels } = known;
  // After a restart, the service counts from 0.
  const rate = (of: (counts: Counts) => number): number => (before === null ? 0 : Math.max(0, of(counts) - of(before)));
  const sum = (of: "open" | "missing"): number => channels.reduce((total, one) => total + (one[of] ?? 0), 0);
  const at = Math.floor(now.peek() / 1000);
  const grown = <Value>(columns: readonly Value[][], row: readonly Value[]): Value[][] =>
    columns.map((column, place) => [...column.slice(1 - HISTORY_SECONDS), row[place]!]);
  const { rates, latency, owed } = history.peek();
  history.value = {
    rates: grown(rates, [at, rate(({ pushes }) => pushes), rate(({ deliveries }) => deliveries), rate(receiptsOf)]),
    latency: grown(latency, [at, counts.latency?.p50 ?? null, counts.latency?.p99 ?? null]),
    owed: grown(owed, [at, sum("open"), sum("missing")]),
  };
  before = counts;
}

/** Starts recording. */
export const record = (): unknown => setInterval(second, 1_000);
