/**
 * How figures are printed: numbers as people read them, columns that stand below each other, and how far a run is.
 */
import { now } from "./feeds.ts";
import { percent, type RowResult } from "./measure.ts";

export const whole = (value: number): string => Math.round(value).toLocaleString("en");
export const short = (value: number | null | undefined): string =>
  value === null || value === undefined ? "" : value >= 100 ? whole(value) : value.toFixed(value >= 10 ? 1 : 2);
const share = (value: number | null | undefined): string =>
  value === null || value === undefined ? "" : percent(value);

const COLUMNS = [
  "row",
  "figure",
  "unit",
  "p50 ms",
  "p99 ms",
  "service µs each",
  "service",
  "generator",
  "what",
] as const;

/** Rows below their heads. Columns named in `left` begin at the left, numbers end at the right. */
export function columns(
  heads: readonly string[],
  rows: readonly (readonly string[])[],
  left: readonly string[],
): string {
  const widths = heads.map((head, column) => Math.max(head.length, ...rows.map((row) => row[column]!.length)));
  const line = (texts: readonly string[]): string =>
    texts
      .map((text, column) =>
        left.includes(heads[column]!) ? text.padEnd(widths[column]!) : text.padStart(widths[column]!),
      )
      .join("  ")
      .trimEnd();
  return [line(heads), line(widths.map((width) => "-".repeat(width))), ...rows.map(line)].join("\n");
}

/** The rows of a run, and below them what is to be said of each. */
export function table(results: readonly RowResult[]): string {
  const cells = results.map((row) => [
    row.name,
    row.error === undefined ? short(row.figure) : "ERROR",
    row.unit ?? "",
    short(row.p50Ms),
    short(row.p99Ms),
    short(row.serviceUs),
    share(row.serviceCore),
    share(row.generatorCore),
    row.what,
  ]);
  const remarks = results.flatMap(({ name, error, notes = [] }) =>
    [...(error === undefined ? [] : [`ERROR: ${error}`]), ...notes].map((text) => `${name}: ${text}`),
  );
  return [columns(COLUMNS, cells, ["row", "unit", "what"]), "", ...remarks].join("\n");
}

const BAR_CELLS = 24;

/** Draws how far it is, when somebody looks; gives what ends it. */
export function progress(row: string, done: number, total: number): () => void {
  if (!process.stderr.isTTY) return () => {};
  const started = now();
  const draw = (): void => {
    const full = Math.round((done / total) * BAR_CELLS);
    const seconds = ((now() - started) / 1000).toFixed(0);
    process.stderr.write(
      `\r\x1b[K[${"#".repeat(full)}${".".repeat(BAR_CELLS - full)}] ${done + 1}/${total} ${row} ${seconds} s`,
    );
  };
  draw();
  const timer = setInterval(draw, 500);
  return () => {
    clearInterval(timer);
    process.stderr.write("\r\x1b[K");
  };
}
