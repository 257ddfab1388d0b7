/**
 * The data of one channel's board: its newest events, its devices, and the cells that were visible so far.
 *
 * Tallies arrive on the stream. Cells are read for the visible window, blocks of devices of one event at a time, and then updated by the receipts
 * on the stream. If there were more receipts than the stream lists one by one, the affected rows are read again, as far as they are visible. So
 * neither the service nor the page handles more than what is visible.
 */
import { signal } from "@preact/signals";
import { type Changes, type Device, type EventHead, read, type Row, type State, type Tally } from "./api.ts";
import type { TroubledDevice } from "./attention.ts";
import { arrange, type Choice, type Columns } from "./board-columns.ts";
import { queryOf } from "./floor.ts";
import { justBefore, openOf, reasonOf, wordsOf } from "./words.ts";

/** Events on a board; the oldest are removed when new ones arrive. */
const EVENTS_MAX = 1_000;
/** Older events per request. */
const OLDER = 100;
/** Device names per request. */
const DEVICES_PAGE = 500;
/** Devices per block of cells, and blocks per request: devices in trouble are far from each other by name. */
const BLOCK = 50;
const BLOCKS_AT_ONCE = 10;
/** Blocks that nobody asked for, which are read to save a request. */
const BLOCKS_BETWEEN = 2;
/** Concurrent requests for rows of cells. */
const READS = 4;
/** How long after a failed request the next one starts. */
const AGAIN_MS = 2_000;
/** Devices whose reasons are read for a row. */
const REASONS = 3;
/** An event without a deadline is overdue for those who owe a final receipt for so long; the service counts alike. */
const OVERDUE_MS = 3_600_000;

/** One device's status on one event. */
export interface Cell {
  readonly status: State;
  readonly at: string | null;
  readonly late: boolean;
  /** As in the event's rows; the last two are known once the row was read. */
  readonly round?: number;
  readonly attempt?: number;
  readonly due?: string | undefined;
  /** Why it failed, or what else the device said; undefined: not read. */
  readonly reason?: string | null;
}

interface RowPage {
  readonly receipts: readonly Row[];
  readonly next: string | null;
}

/** The visible rows and columns; the end is exclusive. */
export interface Window {
  readonly top: number;
  readonly bottom: number;
  readonly left: number;
  readonly right: number;
}

/** What a row says of its failures: the first ones, and how many there are. */
export interface Reasons {
  readonly rows: readonly { readonly device: string; readonly status: State; readonly reason: string | null }[];
  /** For which tally they were read. */
  readonly tally: Tally;
}

/** An event with its known cells. */
export interface Line {
  head: EventHead;
  /** By device; null: the event was not addressed to it. */
  readonly cells: Map<string, Cell | null>;
  /** Devices whose cells must be read again. */
  readonly stale: Set<string>;
  reasons: Reasons | null;
}

/** The order of states that devices reach in the same millisecond. */
const ORDER: readonly State[] = ["pending", "received", "working", "missing", "withdrawn"];
const rankOf = (state: State): number => {
  const rank = ORDER.indexOf(state);
  return rank === -1 ? ORDER.length : rank;
};

/** Takes a cell if it is newer: an answer and the stream may overtake each other. */
function move({ cells }: Line, device: string, cell: Cell): void {
  const known = cells.get(device);
  const [before, after] = [known?.at ?? "", cell.at ?? ""];
  const isSame = known?.status === cell.status && before === after;
  if (!known || before < after || (before === after && rankOf(known.status) < rankOf(cell.status)))
    cells.set(device, cell);
  else if (isSame && cell.reason !== undefined) cells.set(device, cell);
}

const isSame = (a: Tally, b: Tally): boolean => (Object.keys(b) as State[]).every((state) => a[state] === b[state]);

/** Whether devices that owe a final receipt owe it for too long. */
export const isOverdue = ({ at, deadline }: EventHead): boolean =>
  deadline === null && Date.parse(at) + OVERDUE_MS <= Date.now();

/** Whether an event is in trouble. */
export const isTroubled = (head: EventHead): boolean =>
  (head.receipts.failed ?? 0) + (head.receipts.missing ?? 0) > 0 || (isOverdue(head) && openOf(head.receipts) > 0);

/** What a cell shows: its status, or that a final receipt is overdue. */
export const shownState = (head: EventHead, { status }: Cell): State | "overdue" =>
  wordsOf(status).kind === "open" && isOverdue(head) ? "overdue" : status;

export class Board {
  readonly channel: string;
  /** Incremented with each change, which makes components draw again. */
  readonly version = signal(0);
  /** Whether the channel's events are known: a board without events is empty only then. */
  isKnown = false;
  /** Newest first. */
  lines: Line[] = [];
  /** The lines that are shown: all, or those in trouble. */
  rows: Line[] = [];
  columns: Columns = { list: [], count: 0, groups: [], longest: 0, placeOf: new Map() };
  /** The number of enrolled devices. */
  deviceCount = 0;
  /** By name, as far as they are read. */
  #devices: Device[] = [];
  #placeByName = new Map<string, number>();
  #troubled: readonly TroubledDevice[] = [];
  #choice: Choice = { order: "worst", isTroubleOnly: false };
  #signal: AbortSignal;
  readonly #byId = new Map<string, Line>();
  #window: Window = { top: 0, bottom: 0, left: 0, right: 0 };
  #reading = 0;
  readonly #inFlight = new Set<string>();
  #devicesRead: Promise<void> | undefined;
  /** No request starts before this time, after one has failed: milliseconds of the page's clock. */
  #pausedUntil = 0;

  constructor(channel: string, signal: AbortSignal) {
    this.channel = channel;
    this.#signal = signal;
  }

  /** Goes on with another stream. @param signal ends its requests */
  renewed(signal: AbortSignal): this {
    this.#signal = signal;
    return this;
  }

  #changed(): void {
    this.rows = this.#choice.isTroubleOnly ? this.lines.filter(({ head }) => isTroubled(head)) : this.lines;
    this.version.value++;
  }

  /** The line of an event, if it is on the board. */
  line(id: string): Line | undefined {
    return this.#byId.get(id);
  }

  /** Applies a frame of the stream. */
  take({ reset, more, events, withdrawn = [], tallies, receipts }: Changes): void {
    this.isKnown = true;
    if (reset) {
      this.lines = [];
      this.#byId.clear();
    }
    for (const head of events) this.#add(head, "newest");
    for (const id of withdrawn) this.#withdraw(id);
    for (const { id, receipts: tally } of tallies) {
      const line = this.#byId.get(id);
      if (!line || isSame(line.head.receipts, tally)) continue;
      const isOver = line.head.withdrawn !== null;
      const complete = isOver || (openOf(tally) === 0 && (tally.missing ?? 0) === 0);
      line.head = { ...line.head, receipts: tally, complete };
      if (more) for (const device of line.cells.keys()) line.stale.add(device);
    }
    for (const { event, device, ...cell } of receipts) {
      const line = this.#byId.get(event);
      if (line) move(line, device, cell);
    }
    this.#changed();
    this.#fill();
  }

  /** An event was withdrawn: so is every device that owed an answer. */
  #withdraw(id: string): void {
    const line = this.#byId.get(id);
    if (!line || line.head.withdrawn !== null) return;
    const { key, seq } = line.head;
    const isReplaced = key !== null && this.lines.some(({ head }) => head.key === key && head.seq > seq);
    line.head = { ...line.head, withdrawn: isReplaced ? "superseded" : "withdrawn", complete: true };
    for (const [device, cell] of line.cells)
      if (cell !== null && wordsOf(cell.status).kind === "open") line.stale.add(device);
  }

  #add(head: EventHead, where: "newest" | "oldest"): void {
    if (this.#byId.has(head.id)) return;
    const line: Line = { head, cells: new Map(), stale: new Set(), reasons: null };
    this.#byId.set(head.id, line);
    if (where === "oldest") this.lines.push(line);
    else this.lines.unshift(line);
    if (this.lines.length > EVENTS_MAX && where === "newest") this.#byId.delete(this.lines.pop()!.head.id);
  }

  /** Shows these devices in trouble, and what the user chose. */
  arrange(troubled: readonly TroubledDevice[], choice: Choice): void {
    [this.#troubled, this.#choice] = [troubled, choice];
    this.#arranged();
    this.#fill();
  }

  #arranged(): void {
    this.columns = arrange(this.#devices, this.deviceCount, this.#troubled, this.#choice);
    this.#changed();
  }

  /**
   * Sets the number of devices; if it changed, their names are read again.
   * @param devices null: the overview does not list the channel, and devices are counted as they are read
   */
  counted(devices: number | null): void {
    const count = devices ?? Math.max(1, this.deviceCount);
    if (count === this.deviceCount) return;
    this.deviceCount = count;
    this.#devices = [];
    this.#placeByName.clear();
    for (const line of this.lines) for (const device of line.cells.keys()) line.stale.add(device);
    this.#arranged();
    this.#fill();
  }

  /** Whether there may be events older than the oldest one here. */
  get isOlder(): boolean {
    return (this.lines[this.lines.length - 1]?.head.seq ?? 1) > 1 && this.lines.length < EVENTS_MAX;
  }

  /** Reads older events. @throws Refused */
  async older(): Promise<void> {
    const last = this.lines[this.lines.length - 1];
    if (!last) return;
    const [epoch] = last.head.id.split("-");
    const before = Math.max(0, last.head.seq - 1 - OLDER);
    type Listed = Omit<EventHead, "addressed" | "type" | "deadline" | "key" | "withdrawn"> & {
      audience: { addressed: number };
      type?: string;
      deadline?: string;
      key?: string;
      withdrawn?: { reason: string };
    };
    const { events } = await read<{ events: Listed[] }>(
      `/events/${this.channel}?after=${epoch}-${before}&limit=${OLDER}`,
      "events",
      this.#signal,
    );
    for (const { audience, type = null, deadline = null, key = null, withdrawn, ...event } of events.reverse()) {
      const more = { type, deadline, key, withdrawn: withdrawn?.reason ?? null, addressed: audience.addressed };
      if (event.seq < last.head.seq) this.#add({ ...event, ...more }, "oldest");
    }
    this.#changed();
  }

  // ------------------------------------------------------------------------------------------------------------------- cells

  #mayRead(): boolean {
    return !this.#signal.aborted && performance.now() >= this.#pausedUntil;
  }

  /** After a failed request: the stream reports what is wrong. */
  #pause(): void {
    this.#pausedUntil = performance.now() + AGAIN_MS;
    setTimeout(() => this.#fill(), AGAIN_MS + 1);
  }

  /** Sets the visible window and reads its unknown cells. */
  show(window: Window): void {
    this.#window = window;
    this.#fill();
  }

  /** A cell; undefined: not read yet; null: the event was not addressed to the device. */
  cell({ cells }: Line, column: number): Cell | null | undefined {
    const device = this.columns.list[column]?.device;
    return device === undefined ? undefined : cells.get(device);
  }

  /** Reads the visible unknown cells, some at a time. */
  #fill(): void {
    const { top, bottom, left, right } = this.#window;
    if (right <= left || !this.#mayRead()) return;
    const { list, count } = this.columns;
    const wanted = this.#choice.order === "group" ? count : Math.min(right, count);
    if (this.#devices.length < this.deviceCount && list.length < wanted) return this.#readDevices();
    for (let row = top; row < bottom && this.#reading < READS; row++) {
      const line = this.rows[row];
      if (!line || line.head.addressed === 0) continue;
      const missing: string[] = [];
      for (let column = left; column < right; column++) {
        const device = list[column]?.device;
        if (device !== undefined && (!line.cells.has(device) || line.stale.has(device))) missing.push(device);
      }
      if (missing.length > 0) this.#readCells(line, missing);
    }
  }

  /**
   * Reads cells of some devices, and of those beside them by name: a request has all of some blocks. Of devices whose place is not known, one request at
   * a time has the first one and those that follow it.
   */
  #readCells(line: Line, devices: readonly string[]): void {
    const blocks = new Set<number>();
    const unplaced: string[] = [];
    for (const device of devices) {
      const place = this.#placeByName.get(device);
      if (place === undefined) unplaced.push(device);
      else blocks.add(Math.floor(place / BLOCK));
    }
    const [near] = unplaced.sort();
    if (near !== undefined)
      this.#start(line, "near", () => this.#readRange(line, justBefore(near), near, BLOCK, unplaced));
    const sorted = [...blocks].sort((a, b) => a - b);
    for (let index = 0; index < sorted.length;) {
      const first = sorted[index]!;
      let last = first;
      for (index++; index < sorted.length; index++) {
        const next = sorted[index]!;
        if (next - last > BLOCKS_BETWEEN || next - first >= BLOCKS_AT_ONCE) break;
        last = next;
      }
      const end = Math.min((last + 1) * BLOCK, this.#devices.length) - 1;
      const before = this.#devices[first * BLOCK - 1]?.device ?? "";
      const rows = end + 1 - first * BLOCK;
      this.#start(line, `#${first}`, () => this.#readRange(line, before, this.#devices[end]!.device, rows));
    }
  }

  /** Starts a request unless it is under way, or enough are. */
  #start(line: Line, name: string, run: () => Promise<void>): void {
    const key = `${line.head.id} ${name}`;
    if (this.#inFlight.has(key) || this.#reading >= READS || !this.#mayRead()) return;
    this.#inFlight.add(key);
    this.#reading++;
    void run()
      .catch(() => this.#pause())
      .finally(() => {
        this.#inFlight.delete(key);
        this.#reading--;
        this.#changed();
        this.#fill();
      });
  }

  #readDevices(): void {
    this.#devicesRead ??= this.#nextDevices()
      .catch(() => this.#pause())
      .then(() => {
        this.#devicesRead = undefined;
        this.#arranged();
        this.#fill();
      });
  }

  async #nextDevices(): Promise<void> {
    const lastName = (): string => this.#devices[this.#devices.length - 1]?.device ?? "";
    const after = lastName();
    const page = await read<{ devices: Device[]; next: string | null }>(
      `/devices/${this.channel}?after=${after}&limit=${DEVICES_PAGE}`,
      "devices",
      this.#signal,
    );
    if (after !== lastName()) return; // The list was reset meanwhile.
    for (const device of page.devices) {
      this.#placeByName.set(device.device, this.#devices.length);
      this.#devices.push(device);
    }
    const known = this.#devices.length;
    this.deviceCount = page.next === null ? known : Math.max(this.deviceCount, known + 1);
  }

  /** Reads the rows of an event after one device's name, at least up to another's. @param asked the devices that are looked for, as far as it gets */
  async #readRange(
    line: Line,
    first: string,
    last: string,
    rows: number,
    asked: readonly string[] = this.#namesIn(first, last),
  ): Promise<void> {
    for (const device of asked) line.stale.delete(device); // A frame that arrives during the read may add it again.
    const found = new Set<string>();
    let after: string | null = first;
    try {
      // The event may be addressed to devices that are no longer enrolled: then this takes more than one page.
      while (after !== null && after < last) {
        const path: string = `/events/${this.channel}/${line.head.id}/receipts${queryOf([
          ["after", after],
          ["limit", `${rows}`],
        ])}`;
        const page: RowPage = await read<RowPage>(path, "receipts", this.#signal);
        for (const { device, detail, status, at, late, round, attempt, due } of page.receipts) {
          found.add(device);
          move(line, device, { status, at, late, round, attempt, due, reason: reasonOf(detail) });
        }
        after = page.next;
      }
    } catch (error) {
      for (const device of asked) if (line.cells.has(device)) line.stale.add(device);
      throw error;
    }
    for (const device of asked) {
      const isReached = after === null || device <= after;
      if (!isReached && line.cells.has(device)) line.stale.add(device);
      if (isReached && !found.has(device) && !line.cells.has(device)) line.cells.set(device, null);
    }
  }

  /** The known devices after one name, up to another. */
  #namesIn(after: string, last: string): string[] {
    const end = this.#placeByName.get(last);
    if (end === undefined) return [last];
    const names: string[] = [];
    for (let place = end; place >= 0 && this.#devices[place]!.device > after; place--)
      names.push(this.#devices[place]!.device);
    return names;
  }

  // ----------------------------------------------------------------------------------------------------------------- reasons

  /** Reads why a cell failed, if the stream told only that it did. */
  needReason(line: Line, device: string): void {
    const cell = line.cells.get(device);
    if (!cell || cell.reason !== undefined || cell.status === "pending") return;
    this.#start(line, device, () => this.#readRange(line, justBefore(device), device, 1));
  }

  /** Reads what the first devices said that failed an event. */
  needReasons(line: Line): void {
    const { receipts: tally, id } = line.head;
    if ((tally.failed ?? 0) === 0 || line.reasons?.tally === tally) return;
    this.#start(line, "reasons", async () => {
      const path = `/events/${this.channel}/${id}/receipts?status=failed&limit=${REASONS}`;
      const { receipts } = await read<RowPage>(path, "receipts", this.#signal);
      const rows = receipts.map(({ device, status, detail }) => ({ device, status, reason: reasonOf(detail) }));
      line.reasons = { rows, tally };
    });
  }
}
