/**
 * What the publisher shows: each event with the last status of its devices, as a table that is redrawn in place or as one line per change.
 */
import type { DeviceReceipt } from "./sdk/index.ts";

/** Rows of the table; older events scroll away. */
const SHOWN_MAX = 10;
/** The table needs a terminal of this width; a narrower one gets lines. */
export const TABLE_COLUMNS = 104;
/** The width of a bar: what the terminal has room for. */
const BAR_CELLS = Math.min(40, Math.max(0, (process.stdout.columns || 0) - TABLE_COLUMNS) + 4);

/** What devices say of an event. */
export interface Answers {
  /** The last status of each device that has answered, and was not withdrawn then. */
  readonly statuses: Map<string, DeviceReceipt["status"]>;
  /** From how many devices the event was withdrawn; null: it was not. */
  withdrawn: number | null;
}

/** An event that was pushed. */
export interface Pushed extends Answers {
  readonly id: string;
  readonly addressed: number;
}

export const STATUSES = ["received", "working", "deferred", "done", "failed", "missing", "withdrawn"] as const;
/** Colours of a terminal: blue, yellow, cyan, green, red, magenta, grey. */
const COLOURS: Record<(typeof STATUSES)[number], number> = {
  received: 34,
  working: 33,
  deferred: 36,
  done: 32,
  failed: 31,
  missing: 35,
  withdrawn: 90,
};
/** In the order of a bar: those that nothing follows first. */
const IN_BAR = ["done", "failed", "missing", "withdrawn", "working", "received", "deferred"] as const;

const count = ({ statuses, withdrawn }: Answers, status: (typeof STATUSES)[number]): number =>
  status === "withdrawn" ? (withdrawn ?? 0) : [...statuses.values()].filter((other) => other === status).length;
export const isComplete = (event: Pushed): boolean =>
  event.withdrawn !== null || count(event, "done") + count(event, "failed") >= event.addressed;

/** The event was withdrawn from devices that had said anything but a final word, and from those that had said nothing. */
export function withdrawFrom(answers: Answers, count: number): void {
  answers.withdrawn = count;
  for (const [device, status] of answers.statuses)
    if (!["done", "failed", "missing"].includes(status)) answers.statuses.delete(device);
}

export function addAnswer(answers: Answers, { device, status, late }: DeviceReceipt): void {
  // A device that answers after the withdrawal was counted there.
  if (late && answers.withdrawn !== null && !answers.statuses.has(device)) answers.withdrawn--;
  answers.statuses.set(device, status);
}

function lineOf(event: Pushed): string {
  if (event.addressed === 0) return `${event.id}: addressed to nobody, because no device is enrolled`;
  const counts = STATUSES.map((status) => [status, count(event, status)] as const).filter(([, number]) => number > 0);
  const answers = counts.map(([status, number]) => `${number} ${status}`).join(", ") || "no answer";
  return `${event.id}: ${event.statuses.size} of ${event.addressed} answered: ${answers}${isComplete(event) ? ", complete" : ""}`;
}

/** A bar with one part per status, final ones first; its length is the share of devices. */
function barOf(event: Pushed): string {
  let [reached, cells] = [0, 0];
  const parts = IN_BAR.map((status) => {
    reached += count(event, status);
    const length = Math.round((reached / Math.max(1, event.addressed)) * BAR_CELLS) - cells;
    cells += length;
    return `\x1b[${COLOURS[status]}m${"█".repeat(Math.max(0, length))}\x1b[39m`;
  });
  return `${parts.join("")}\x1b[2m${"░".repeat(Math.max(0, BAR_CELLS - cells))}\x1b[22m`;
}

function rowOf(event: Pushed): string {
  const numbers = STATUSES.map(
    (status) => `\x1b[${COLOURS[status]}m${String(count(event, status)).padStart(10)}\x1b[39m`,
  ).join("");
  return `${event.id.padEnd(16)} ${barOf(event)} ${`${event.statuses.size}/${event.addressed}`.padStart(9)}${numbers} ${isComplete(event) ? "✓" : ""}`;
}

const HEADING = `\x1b[1m${"event".padEnd(16)} ${"".padEnd(BAR_CELLS)} ${"answered".padStart(9)}${STATUSES.map((status) => status.padStart(10)).join("")}\x1b[22m`;

/** Shows events: the last ones in a table that is redrawn in place, or one line per change. */
export class Board {
  readonly #isTable: boolean;
  readonly #print: (text: string) => void;
  #shown: Pushed[] = [];
  #lines = 0;

  constructor(isTable: boolean, print: (text: string) => void) {
    this.#isTable = isTable;
    this.#print = print;
  }

  /** @param warnings of its push, which stay above a table */
  update(event: Pushed, warnings: readonly string[] = []): void {
    if (!this.#isTable) {
      for (const warning of warnings) console.error(`publisher: ${warning}`);
      return this.#print(`${lineOf(event)}\n`);
    }
    if (!this.#shown.includes(event)) this.#shown.push(event);
    // Rows that scroll away stay above the table.
    const gone = this.#shown.splice(0, Math.max(0, this.#shown.length - SHOWN_MAX));
    const up = this.#lines === 0 ? "" : `\x1b[${this.#lines}A`;
    const above = [...gone.map(rowOf), ...warnings.map((warning) => `\x1b[33m${warning}\x1b[39m`)];
    const lines = [...above, HEADING, ...this.#shown.map(rowOf)];
    this.#print(`${up}${lines.map((line) => `\x1b[2K${line}\n`).join("")}`);
    this.#lines = lines.length - above.length;
  }
}
