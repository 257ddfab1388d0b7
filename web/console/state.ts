/**
 * The console's state: the current location, the stream's state, the last overview, ten minutes of history, and the shown channel.
 *
 * Components only read signals; everything that changes them is here.
 */
import { batch, computed, effect, signal } from "@preact/signals";
import { type Counts, type Overview, type Refused, useToken, watch } from "./api.ts";
import { Board } from "./board-data.ts";

// ------------------------------------------------------------------------------------------------------------------ where it is

export type Place = "board" | "devices" | "push" | "hooks" | "event";
export interface Route {
  readonly channel: string | null;
  readonly place: Place;
  /** What the place is about: an event's id; on the push page an event to push again; on the devices page a device's name. null: nothing in particular. */
  readonly item: string | null;
}

const CHANNEL = /^[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}$/;
export const isChannel = (text: string): boolean => CHANNEL.test(text);
const PLACES: readonly Place[] = ["board", "devices", "push", "hooks", "event"];

function readRoute(hash: string): Route {
  const [channel = "", named = "board", item = ""] = hash.replace(/^#\/?/, "").split("/");
  if (!isChannel(channel)) return { channel: null, place: "board", item: null };
  const place = PLACES.find((one) => one === named) ?? "board";
  if (place === "event" && item === "") return { channel, place: "board", item: null };
  return { channel, place, item: item || null };
}

export const route = signal(readRoute(location.hash));
addEventListener("hashchange", () => {
  route.value = readRoute(location.hash);
  scrollTo(0, 0);
});

/** The URL of a location. */
export const linkTo = (channel: string, place: Place = "board", item = ""): string =>
  `#/${channel}${place === "board" ? "" : `/${place}${item && `/${item}`}`}`;

const channel = computed(() => route.value.channel);

// --------------------------------------------------------------------------------------------------------------------- the stream

/** The stream's state, and the reason in words. */
export type Link =
  { readonly state: "connecting" | "live" } | { readonly state: "away" | "offline" | "refused"; readonly why: string };

export const link = signal<Link>({ state: "connecting" });
export const overview = signal<Overview | null>(null);
/** The shown channel. */
export const board = signal<Board | null>(null);
/** The current time, updated once a second, for texts such as "3 s ago". */
export const now = signal(Date.now());
/** Incremented with each pasted token. */
const tokens = signal(0);

/** Uses a pasted token, which is kept only in this page's memory. */
export function paste(token: string): void {
  useToken(token);
  tokens.value++;
}

/** Starts watching, and follows changes of the URL. */
export function start(): void {
  effect(() => {
    void tokens.value;
    const watched = watchChannel(channel.value);
    return () => watched.abort();
  });
  setInterval(second, 1_000);
}

function watchChannel(name: string | null): AbortController {
  const control = new AbortController();
  const fresh = name === null ? null : new Board(name, control.signal);
  // The previous board stays until the first frame, so that nothing flickers.
  if (board.peek()?.channel !== name) board.value = fresh;
  if (link.peek().state !== "live") link.value = { state: "connecting" };
  void watch(
    name,
    {
      overview: (body) =>
        batch(() => {
          overview.value = body;
          link.value = { state: "live" };
          const listed = body.channels.find(({ channel }) => channel === name);
          fresh?.counted(listed ? listed.devices : body.more ? null : 0);
        }),
      changes: (body) => batch(() => ((board.value = fresh), fresh!.take(body))),
      away: (why) => (link.value = { state: "away", why }),
      lost: (why) => (link.value = { state: "offline", why }),
      refused: (why: Refused) => (link.value = { state: "refused", why: why.message }),
    },
    control.signal,
  );
  return control;
}

// ----------------------------------------------------------------------------------------------------------------------- history

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
export const receiptsOf = ({ receipts }: Counts): number =>
  receipts.received + receipts.working + receipts.done + receipts.failed;

/** Adds a row of history each second. While offline there is none, which leaves a gap. */
function second(): void {
  now.value = Date.now();
  const known = overview.peek();
  if (known === null || link.peek().state !== "live") return void (before = null);
  const { counts, channels } = known;
  // After a restart, the service counts from 0.
  const rate = (of: (counts: Counts) => number): number => (before === null ? 0 : Math.max(0, of(counts) - of(before)));
  const sum = (of: "open" | "missing"): number => channels.reduce((total, one) => total + (one[of] ?? 0), 0);
  const at = Math.floor(now.value / 1000);
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
