/**
 * One channel as the console knows it: its newest events, its devices by name, and the cells that somebody looked at.
 *
 * Tallies come with the stream. Cells are read for the window that is shown, a row and a block of devices at a time, and then kept up by
 * the receipts that come. Where more receipts came than the stream tells one by one, the rows they touched are read again, as far as they are
 * shown. So neither the service nor the page ever handles more than what is looked at.
 */
import { signal } from "@preact/signals";
import { type Changes, type Device, type EventHead, read, type Row, type State, type Tally } from "./api.ts";

/** Events on a board; older ones go when new ones come. */
const EVENTS_MAX = 1_000;
/** Events that are read at once when older ones are asked for. */
const OLDER = 100;
/** Devices in one page of names. */
const DEVICES_PAGE = 500;
/** Devices in one block of cells. */
export const BLOCK = 50;
/** Rows of cells that are read at once. */
const READS = 4;

/** One device's standing on one event; null: the event was not addressed to it. */
export interface Cell {
  readonly status: State;
  readonly at: string | null;
  readonly late: boolean;
}

interface RowPage {
  readonly receipts: readonly Row[];
  readonly next: string | null;
}

/** What is shown: rows and columns from the first up to the last, which is not. */
export interface Window {
  readonly top: number;
  readonly bottom: number;
  readonly left: number;
  readonly right: number;
}

/** An event with the cells of it that are known. */
export interface Line {
  head: EventHead;
  /** Names of devices whose cells were read, by block. */
  readonly blocks: Set<number>;
  readonly cells: Map<string, Cell>;
}

/** How far a state is. What is read and what the stream tells may cross on their way, and a device only moves forward. */
const RANK: Record<State, number> = { pending: 0, received: 1, working: 2, missing: 3, done: 4, failed: 4 };

function move({ cells }: Line, device: string, cell: Cell): void {
  const known = cells.get(device);
  if (!known || RANK[known.status] < RANK[cell.status]) cells.set(device, cell);
}

const isSame = (a: Tally, b: Tally): boolean => (Object.keys(a) as State[]).every((state) => a[state] === b[state]);

export class Board {
  readonly channel: string;
  /** Grows with each change; whoever draws reads it. */
  readonly version = signal(0);
  /** Newest first. */
  lines: Line[] = [];
  /** By name, as far as they were read. */
  devices: Device[] = [];
  /** How many devices there are. */
  deviceCount = 0;
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

  /** The line of an event, where it is on the board. */
  line(id: string): Line | undefined {
    return this.#byId.get(id);
  }

  /** What came on the stream. */
  take({ reset, more, events, tallies, receipts }: Changes): void {
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
   * How many devices the channel has now; where that is new, their names are read again.
   * @param devices null: the overview does not name the channel, and they are counted as they are read
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

  /** Whether there may be events before the oldest one here. */
  get isOlder(): boolean {
    return (this.lines[this.lines.length - 1]?.head.seq ?? 1) > 1 && this.lines.length < EVENTS_MAX;
  }

  /** Reads events before the oldest one here. @throws Refused */
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

  /** What is shown from now on: its cells are read, unless they are known. */
  show(window: Window): void {
    this.#window = window;
    this.#isTrouble = false;
    this.#fill();
  }

  /** A cell; undefined: it is not known yet. */
  cell({ cells, blocks }: Line, column: number): Cell | null | undefined {
    const device = this.devices[column];
    if (!device) return undefined;
    return cells.get(device.device) ?? (blocks.has(Math.floor(column / BLOCK)) ? null : undefined);
  }

  /** Reads what is shown and not known, some at a time. */
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
          .catch(() => (this.#isTrouble = true)) // The stream tells what is wrong; the next frame tries again.
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
    if (after !== lastName()) return; // They were counted anew meanwhile.
    this.devices.push(...page.devices);
    const known = this.devices.length;
    this.deviceCount = page.next === null ? known : Math.max(this.deviceCount, known + 1);
  }

  async #readBlock(line: Line, block: number): Promise<void> {
    const last = this.devices[Math.min((block + 1) * BLOCK, this.devices.length) - 1]?.device ?? "";
    let after: string | null = this.devices[block * BLOCK - 1]?.device ?? "";
    line.blocks.add(block); // What comes while it is read may clear that again.
    // The event may have gone to devices that are no longer enrolled: then a block takes more than one page.
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
