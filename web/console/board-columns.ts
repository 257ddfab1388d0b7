/**
 * Which devices a board shows, and in which order: those in trouble first, by name, or by the prefix that their names share.
 *
 * Devices in trouble are known by name from `GET /attention`, however many devices the channel has; all others come by name, as far as they were read.
 */
import type { TroubledDevice } from "./attention.ts";
import type { Device } from "./api.ts";

export type Order = "worst" | "name" | "group";

/** What the user chose. */
export interface Choice {
  readonly order: Order;
  /** Only devices and events that are in trouble. */
  readonly isTroubleOnly: boolean;
}

export interface Column {
  readonly device: string;
  readonly connected: boolean;
  readonly isTroubled: boolean;
}

/** Columns next to each other whose names begin alike; `to` is exclusive. */
export interface Group {
  readonly name: string;
  readonly from: number;
  readonly to: number;
  /** Devices of it that are in trouble. */
  readonly troubled: number;
}

export interface Columns {
  /** As far as they are known. */
  readonly list: readonly Column[];
  /** How many there are, with those that are not read yet. */
  readonly count: number;
  readonly groups: readonly Group[];
  /** Characters of the longest name. */
  readonly longest: number;
  readonly placeOf: ReadonlyMap<string, number>;
}

/** What the names of a group begin with: `graz-` of graz-till-02; "": nothing. */
export const prefixOf = (device: string): string => /^[^-._:~]+[-._:~](?=.)/.exec(device)?.[0] ?? "";

const byText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/**
 * @param devices by name, as far as they were read. @param count of enrolled devices
 * @param troubled the channel's devices in trouble, worst first; they may not be enrolled
 */
export function arrange(
  devices: readonly Device[],
  count: number,
  troubled: readonly TroubledDevice[],
  { order, isTroubleOnly }: Choice,
): Columns {
  const worst = new Map(troubled.map(({ device }, place) => [device, place] as const));
  const isAll = devices.length >= count;
  const isEnrolled = new Set<string>();
  const rest: Column[] = [];
  for (const { device, connected } of devices) {
    if (worst.has(device)) isEnrolled.add(device);
    else if (!isTroubleOnly) rest.push({ device, connected, isTroubled: false });
  }
  let first = troubled.map(({ device, connected }) => ({ device, connected, isTroubled: true }));
  // By name, those behind the names that were read have no place yet.
  const last = devices[devices.length - 1]?.device ?? "";
  if (order === "name" && !isAll && !isTroubleOnly) first = first.filter(({ device }) => device <= last);
  const list = [...first, ...rest];
  if (order === "name") list.sort((a, b) => byText(a.device, b.device));
  // Until all names are known, groups would move while one looks at them.
  const groups = order === "group" && (isAll || isTroubleOnly) ? grouped(list, worst) : [];
  // Which of those in trouble are enrolled is known for those that were read; of the others it is taken for granted.
  const unread = first.length - isEnrolled.size;
  return {
    list,
    count:
      isTroubleOnly || isAll ? list.length : list.length + count - devices.length - (order === "name" ? 0 : unread),
    groups,
    longest: list.reduce((most, { device }) => Math.max(most, device.length), 0),
    placeOf: new Map(list.map(({ device }, place) => [device, place])),
  };
}

/** Sorts a list by groups, those with most trouble first, and names them. */
function grouped(list: Column[], worst: ReadonlyMap<string, number>): Group[] {
  const troubled = new Map<string, number>();
  for (const { device, isTroubled } of list)
    troubled.set(prefixOf(device), (troubled.get(prefixOf(device)) ?? 0) + (isTroubled ? 1 : 0));
  const place = ({ device }: Column): number => worst.get(device) ?? worst.size;
  list.sort((a, b) => {
    const [one, other] = [prefixOf(a.device), prefixOf(b.device)];
    if (one !== other) return troubled.get(other)! - troubled.get(one)! || byText(one, other);
    return place(a) - place(b) || byText(a.device, b.device);
  });
  const groups: Group[] = [];
  for (let from = 0; from < list.length;) {
    const name = prefixOf(list[from]!.device);
    let to = from;
    while (to < list.length && prefixOf(list[to]!.device) === name) to++;
    groups.push({ name, from, to, troubled: troubled.get(name)! });
    from = to;
  }
  return groups;
}
