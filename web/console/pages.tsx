/** Pages of a list that the service divides: each begins where the answer before ended. */
import type { Signal } from "@preact/signals";
import { count } from "./words.ts";

/** Where each page so far begins; the last one is shown. */
export type Starts = readonly string[];
export const FIRST_PAGE: Starts = [""];
export const startOf = (starts: Starts): string => starts[starts.length - 1]!;

/** An answer, and the page that it is. */
export interface PageOf {
  readonly starts: Starts;
  /** Where the next page begins; null: this is the last one. */
  readonly next: string | null;
}

interface PagesProps {
  readonly starts: Signal<Starts>;
  /** What is shown, which may still be the page before. */
  readonly shown: PageOf;
  /** Rows of a full page, and those that are shown. */
  readonly size: number;
  readonly rows: number;
  /** Rows of all pages; absent: not known. */
  readonly total?: number;
}

/**
 * Which rows are shown, and the ways to those before and after them. A button with nowhere to go stays in the order of the Tab key, so that whoever presses
 * it again and again does not lose the focus.
 */
export function Pages({ starts, shown, size, rows, total }: PagesProps) {
  if (starts.value.length === 1 && shown.next === null) return null;
  const { next } = shown;
  const isCurrent = shown.starts === starts.value;
  const before = shown.starts.slice(0, -1);
  const after = next === null ? [] : [...shown.starts, next];
  const button = (label: string, to: Starts) => (
    <button
      type="button"
      class="plain"
      aria-disabled={!isCurrent || to.length === 0}
      onClick={() => isCurrent && to.length > 0 && (starts.value = to)}
    >
      {label}
    </button>
  );
  const first = (shown.starts.length - 1) * size + 1;
  const last = first + rows - 1;
  return (
    <p class="pages">
      {button("Previous", before)}
      <span role="status">
        {count(first)} to {count(last)}
        {total !== undefined && ` of ${count(Math.max(total, last))}`}
      </span>
      {button("Next", after)}
    </p>
  );
}
