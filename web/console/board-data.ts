/**
 * The data of one channel's board: its newest events, its devices by name, and the cells that were visible so far.
 *
 * Tallies arrive on the stream. Cells are read for the visible window, a row and a block of devices at a time, and then updated by the receipts
 * on the stream. If there were more receipts than the stream lists one by one, the affected rows are read again, as far as they are visible. So
 * neither the service nor the page handles more than what is visible.
 */
import { signal } from "@preact/signals";
import { type Changes, type Device, type EventHead, read, type Row, type State, type Tally } from "./api.ts";

/** Events on a board; the oldest are removed when new ones arrive. */
const EVENTS_MAX = 1_000;
/** Older events per request. */
const OLDER = 100;
/** Device names per request. */
const DEVICES_PAGE = 500;
/** Devices per block of cells. */
export const BLOCK = 50;
/** Concurrent requests for rows of cells. */
const READS = 4;

/** One device's status on one event; null: the event was not addressed to it. */
export interface Cell {
  readonly status: State;
  readonly at: string | null;
  readonly late: boolean;
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

/** An event with its known cells. */
export interface Line {
  head: EventHead;
  /** The blocks of devices whose cells were read. */
  readonly blocks: Set<number>;
  readonly cells: Map<string, Cell>;
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
  if (!known || before < after || (before === after && rankOf(known.status) < rankOf(cell.status)))
    cells.set(device, cell);
}

const isSame = (a: Tally, b: Tally): boolean => (Object.keys(a) as State[]).every((state) => a[state] === b[state]);

export class Board {
  readonly channel: string;
  /** Incremented with each change, which makes components draw again. */
  readonly version = signal(0);
  /** Newest first. */
  lines: Line[] = [];
  /** By name, as far as they are loaded. */
  devices: Device[] = [];
  /** The number of enrolled devices. */
  deviceCount = 0;
  /** Whether the channel's events are known: a board without events is empty only then. */
  isKnown = false;
  readonly #signal: AbortSignal;
  readonly #byId = new Map<string, Line>();
  #window: Window = { top: 0, bottom: 0, left: 0, right: 0 };
  #reading = 0;
  readonly #inFlight = new Set<string>();
  #devicesRead: Promise<void> | undefined;
  #isTrouble = false;

  constructor(channel: string, signal: AbortSignal) {
    this.channel = channel;
    this.#signal = signal;
  }

  #changed(): void {
    this.version.value++;
  }

  /** The line of an event, if it is on the board. */
  line(id: string): Line | undefined {
    return this.#byId.get(id);
  }

  /** Applies a frame of the stream. */
  take({ reset, more, events, tallies, receipts }: Changes): void {
    this.isKnown = true;
    if (reset) {
      this.lines = [];
      this.#byId.clear();
    }
    for (const head of events) this.#add(head, "newest");
    for (const { id, receipts: tally } of tallies) {
      const line = this.#byId.get(id);
      if (!line || isSame(line.head.receipts, tally)) continue;
      line.head = { ...line.head, receipts: tally, complete: tally.done + tally.failed === line.head.addressed };
      if (more) line.blocks.clear();
    }
    for (const { event, device, ...cell } of receipts) {
      const line = this.#byId.get(event);
      if (line) move(line, device, cell);
    }
    this.#isTrouble = false;
    this.#changed();
    this.#fill();
  }

  #add(head: EventHead, where: "newest" | "oldest"): void {
    if (this.#byId.has(head.id)) return;
    const line: Line = { head, blocks: new Set(), cells: new Map() };
    this.#byId.set(head.id, line);
    if (where === "oldest") this.lines.push(line);
    else this.lines.unshift(line);
    if (this.lines.length > EVENTS_MAX && where === "newest") this.#byId.delete(this.lines.pop()!.head.id);
  }

  /**
   * Sets the number of devices; if it changed, their names are read again.
   * @param devices null: the overview does not list the channel, and devices are counted as they are read
   */
  counted(devices: number | null): void {
    const count = devices ?? Math.max(1, this.deviceCount);
    if (count === this.deviceCount) return;
    this.deviceCount = count;
    this.devices = [];
    for (const line of this.lines) line.blocks.clear();
    this.#changed();
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
    type Listed = Omit<EventHead, "addressed" | "type" | "deadline"> & {
      audience: { addressed: number };
      type?: string;
      deadline?: string;
    };
    const { events } = await read<{ events: Listed[] }>(
      `/events/${this.channel}?after=${epoch}-${before}&limit=${OLDER}`,
      "events",
      this.#signal,
    );
    for (const { audience, type = null, deadline = null, ...event } of events.reverse())
      if (event.seq < last.head.seq) this.#add({ ...event, type, deadline, addressed: audience.addressed }, "oldest");
    this.#changed();
  }

  // ------------------------------------------------------------------------------------------------------------------- cells

  /** Sets the visible window and reads its unknown cells. */
  show(window: Window): void {
    this.#window = window;
    this.#isTrouble = false;
    this.#fill();
  }

  /** A cell; undefined: not loaded yet. */
  cell({ cells, blocks }: Line, column: number): Cell | null | undefined {
    const device = this.devices[column];
    if (!device) return undefined;
    return cells.get(device.device) ?? (blocks.has(Math.floor(column / BLOCK)) ? null : undefined);
  }

  /** Reads the visible unknown cells, some at a time. */
  #fill(): void {
    const { top, bottom, left, right } = this.#window;
    if (right <= left || this.#signal.aborted || this.#isTrouble) return;
    if (this.devices.length < Math.min(right, this.deviceCount)) return this.#readDevices();
    for (let row = top; row < bottom && this.#reading < READS; row++) {
      const line = this.lines[row];
      if (!line || line.head.addressed === 0) continue;
      for (let block = Math.floor(left / BLOCK); block * BLOCK < right && this.#reading < READS; block++) {
        const key = `${line.head.id} ${block}`;
        if (line.blocks.has(block) || this.#inFlight.has(key)) continue;
        this.#inFlight.add(key);
        this.#reading++;
        void this.#readBlock(line, block)
          .catch(() => (this.#isTrouble = true)) // The stream reports what is wrong; the next frame tries again.
          .finally(() => {
            this.#inFlight.delete(key);
            this.#reading--;
            this.#changed();
            this.#fill();
          });
      }
    }
  }

  #readDevices(): void {
    this.#devicesRead ??= this.#nextDevices()
      .catch(() => (this.#isTrouble = true))
      .then(() => {
        this.#devicesRead = undefined;
        this.#changed();
        this.#fill();
      });
  }

  async #nextDevices(): Promise<void> {
    const lastName = (): string => this.devices[this.devices.length - 1]?.device ?? "";
    const after = lastName();
    const page = await read<{ devices: Device[]; next: string | null }>(
      `/devices/${this.channel}?after=${after}&limit=${DEVICES_PAGE}`,
      "devices",
      this.#signal,
    );
    if (after !== lastName()) return; // The list was reset meanwhile.
    this.devices.push(...page.devices);
    const known = this.devices.length;
    this.deviceCount = page.next === null ? known : Math.max(this.deviceCount, known + 1);
  }

  async #readBlock(line: Line, block: number): Promise<void> {
    const last = this.devices[Math.min((block + 1) * BLOCK, this.devices.length) - 1]?.device ?? "";
    let after: string | null = this.devices[block * BLOCK - 1]?.device ?? "";
    line.blocks.add(block); // A frame that arrives during the read may clear this again.
    // The event may be addressed to devices that are no longer enrolled: then a block takes more than one page.
    while (after !== null && after < last) {
      const path: string = `/events/${this.channel}/${line.head.id}/receipts?after=${after}&limit=${BLOCK}`;
      const page: RowPage = await read<RowPage>(path, "receipts", this.#signal).catch((error: unknown) => {
        line.blocks.delete(block);
        throw error;
      });
      for (const { device, status, at, late } of page.receipts) move(line, device, { status, at, late });
      after = page.next;
    }
  }
}
