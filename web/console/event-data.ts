/**
 * What the page of an event reads: the event, one page of its rows, the answers for the plot, when devices were last heard from, and the CSV export.
 *
 * The rows come page by page, so they are true for any number of devices. Only the plot takes a sample of a very large audience.
 */
import { type Device, read, Refused, request, type Row, withLists } from "./api.ts";
import { queryOf } from "./floor.ts";
import type { States } from "./verdict.ts";
import { exactJson } from "./words.ts";

/** Rows on a page. */
export const PAGE = 50;
/** Rows per request for the plot, and the most rows that it is drawn from. */
const PLOT_PAGE = 1_000;
const PLOT_MAX = 2_000;
/** Devices that are read in one request to find those of a page. */
const DEVICES_PAGE = 1_000;
/** Requests for single devices at a time. */
const READS = 4;
/** How long a browser may take to start saving a file. */
const SAVING_MS = 30_000;

/** How an event was withdrawn. `by`: the newer event that replaced it. */
export interface Withdrawal {
  readonly at: string;
  readonly reason: string;
  readonly by?: string;
  readonly note?: string;
}

/** The event as its publisher gets it, with the data as unchanged text. */
export interface Shown {
  readonly id: string;
  readonly at: string;
  readonly type?: string;
  readonly deadline?: string;
  readonly expiresAt?: string;
  readonly remind?: number;
  readonly to?: readonly string[];
  /** The event that it repeats. */
  readonly again?: string;
  /** A newer event with the same key replaces it. */
  readonly key?: string;
  /** How often a device may try. */
  readonly attempts?: number;
  /** The id of the scheduled push that it was pushed for. */
  readonly scheduled?: string;
  readonly withdrawn?: Withdrawal;
  readonly audience: { readonly addressed: number; readonly connected: number };
  readonly receipts: States;
  readonly complete: boolean;
  readonly text: string;
}

/** @throws Refused; TypeError: there was no answer */
export async function readEvent(channel: string, id: string, signal?: AbortSignal): Promise<Shown> {
  const text = await (await request(`/events/${channel}/${id}`, signal ? { signal } : {})).text();
  // `data` is the last member; nothing before it can contain these characters.
  const start = text.indexOf(',"data":') + ',"data":'.length;
  const event = JSON.parse(text) as Omit<Shown, "text"> | null;
  if (typeof event?.audience?.addressed !== "number" || typeof event.receipts !== "object")
    throw new Error("the answer does not come from PERE");
  return { ...event, text: text.slice(start, -1) };
}

export interface RowPage {
  readonly receipts: readonly Row[];
  readonly next: string | null;
}

/** @param states null: all @param after where the page begins; "": at the first device @throws Refused; TypeError: there was no answer */
export async function readRows(
  channel: string,
  id: string,
  states: readonly string[] | null,
  after: string,
  limit: number,
  signal?: AbortSignal,
): Promise<RowPage> {
  const options: [string, string][] = [
    ["after", after],
    ["limit", String(limit)],
  ];
  if (states) options.push(["status", states.join(",")]);
  const path = `/events/${channel}/${id}/receipts${queryOf(options)}`;
  return withLists<RowPage>(exactJson(await (await request(path, signal ? { signal } : {})).text()), ["receipts"]);
}

/** The final answers of the first devices by name. @throws Refused; TypeError: there was no answer */
export async function readAnswers(channel: string, id: string, signal: AbortSignal) {
  const rows: Row[] = [];
  let after: string | null = "";
  while (after !== null && rows.length < PLOT_MAX) {
    const page: RowPage = await readRows(channel, id, ["done", "failed"], after, PLOT_PAGE, signal);
    rows.push(...page.receipts);
    after = page.next;
  }
  return { rows, isAll: after === null };
}

/**
 * The devices of a page of rows, as far as they are enrolled. One request finds all of them in most channels; the others are read one by one.
 * @param after where the page of rows begins @throws Refused; TypeError: there was no answer
 */
export async function readDevices(
  channel: string,
  rows: readonly Row[],
  after: string,
  signal: AbortSignal,
): Promise<Map<string, Device>> {
  const found = new Map<string, Device>();
  if (rows.length === 0) return found;
  const path = `/devices/${channel}${queryOf([
    ["after", after],
    ["limit", String(DEVICES_PAGE)],
  ])}`;
  const page: { devices: Device[]; next: string | null } = await read(path, "devices", signal);
  const known = new Map(page.devices.map((device) => [device.device, device]));
  const last = page.next === null ? null : page.devices[page.devices.length - 1]!.device;
  const others: string[] = [];
  for (const { device } of rows) {
    const entry = known.get(device);
    if (entry) found.set(device, entry);
    else if (last !== null && device > last) others.push(device);
  }
  const one = async (): Promise<void> => {
    for (let name = others.pop(); name !== undefined; name = others.pop()) {
      const device = await readDevice(channel, name, signal);
      if (device) found.set(name, device);
    }
  };
  await Promise.all(Array.from({ length: READS }, one));
  return found;
}

/** @returns null: it is not enrolled @throws Refused; TypeError: there was no answer */
export async function readDevice(channel: string, name: string, signal?: AbortSignal): Promise<Device | null> {
  try {
    const answer = await request(`/devices/${channel}/${name}`, signal ? { signal } : {});
    return (await answer.json()) as Device;
  } catch (error) {
    if (error instanceof Refused && error.isOurs && error.status === 404) return null;
    throw error;
  }
}

/** Reads all rows as CSV and lets the browser save them as a file. @throws Refused */
export async function saveCsv(channel: string, id: string): Promise<void> {
  const answer = await request(`/events/${channel}/${id}/receipts`, { headers: { Accept: "text/csv" } });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${channel}-${id}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), SAVING_MS);
}
