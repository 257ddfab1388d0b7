/**
 * The console's state: the stream's state and its last sign of life, the last overview, the shown channel, and the token.
 *
 * Components only read signals; everything that changes them is here. `router.ts` has the location, `history.ts` the plots' history.
 */
import { batch, computed, effect, signal } from "@preact/signals";
import { type Overview, type Refused, useToken, watch } from "./api.ts";
import { Board } from "./board-data.ts";
import { route } from "./router.ts";

const channel = computed(() => route.value.channel);

// --------------------------------------------------------------------------------------------------------------------- the stream

/** The stream's state, and the reason in words. */
export type Link =
  { readonly state: "connecting" | "live" } | { readonly state: "away" | "offline" | "refused"; readonly why: string };

export const link = signal<Link>({ state: "connecting" });
export const overview = signal<Overview | null>(null);
/** Another object each time that something else needs attention; null: the stream has not said yet. */
export const troubled = signal<object | null>(null);
/** The shown channel. */
export const board = signal<Board | null>(null);
/** The current time, updated once a second, for texts such as "3 s ago". */
export const now = signal(Date.now());
/** Incremented when another stream must be opened: a pasted token, a network that is back. */
const attempts = signal(0);
/** Whether the browser has put the page away, to show it again at Back. */
const isAway = signal(false);

// ------------------------------------------------------------------------------------------------------------------ signs of life

/** Without a sign of life for so long a page says when the last one was, and then dims what it shows. The service sends one every 2 s. */
const QUIET_SECONDS = 5;
const STALE_SECONDS = 15;

/** Of the last sign of life while the stream was live: milliseconds of the page's steady clock, and the time of day. */
const heard = signal<{ readonly ms: number; readonly at: number } | null>(null);
/** The page's steady clock, with `now`: the time of day may be set meanwhile. */
const steady = signal(performance.now());

/** When the service was last heard, milliseconds since 1970; null: not yet. */
export const heardAt = computed(() => heard.value?.at ?? null);
/** Seconds since then, in whole ones. */
export const silence = computed(() =>
  heard.value === null ? 0 : Math.max(0, Math.floor((steady.value - heard.value.ms) / 1000)),
);
/**
 * What the page knows: nothing yet; the current state; the state of some seconds ago; an old state.
 */
export const sight = computed<"nothing" | "current" | "recent" | "old">(() => {
  if (heard.value === null || overview.value === null) return "nothing";
  if (silence.value >= STALE_SECONDS) return "old";
  return link.value.state === "live" && silence.value < QUIET_SECONDS ? "current" : "recent";
});

const NO_NETWORK = "this device has no network";

function hear(): void {
  if (link.peek().state !== "live") return;
  const ms = performance.now();
  const before = heard.peek();
  // More often than this nobody would see it.
  if (before === null || ms - before.ms > 250)
    batch(() => ((heard.value = { ms, at: Date.now() }), (steady.value = ms)));
}

/** Updates the clocks. */
export function tick(): void {
  batch(() => ((now.value = Date.now()), (steady.value = performance.now())));
}

// ---------------------------------------------------------------------------------------------------------------- starting, tokens

/** Uses a pasted token, which stays with this tab; null: forgets it. */
export function paste(token: string | null): void {
  useToken(token);
  attempts.value++;
}

/** Starts watching, and follows the URL and the browser's network. */
export function start(): void {
  effect(() => {
    void attempts.value;
    if (isAway.value) return;
    const watched = watchChannel(channel.value);
    return () => watched.abort();
  });
  setInterval(tick, 1_000);
  addEventListener("offline", () => {
    const { state } = link.peek();
    if (state === "live" || state === "connecting") link.value = { state: "offline", why: NO_NETWORK };
  });
  addEventListener("online", () => {
    if (link.peek().state !== "live") attempts.value++;
  });
  document.addEventListener("visibilitychange", tick);
  // A page that is put away would keep its connection, and a browser opens only six to a service: a few pages later it could reach it no more.
  addEventListener("pagehide", () => void (isAway.value = true));
  addEventListener("pageshow", () => void (isAway.value = false));
}

function watchChannel(name: string | null): AbortController {
  const control = new AbortController();
  const known = board.peek();
  // A board stays when only its stream is a new one, so that nothing flickers.
  const shown =
    name === null ? null : known?.channel === name ? known.renewed(control.signal) : new Board(name, control.signal);
  board.value = shown;
  if (link.peek().state === "refused") link.value = { state: "connecting" };
  void watch(
    name,
    {
      heard: () => {
        // The browser may say that there is no network while this service, on the same computer, is heard.
        if (link.peek().state === "offline" && overview.peek() !== null) link.value = { state: "live" };
        hear();
      },
      overview: (body) =>
        batch(() => {
          overview.value = body;
          link.value = { state: "live" };
          hear();
          const listed = body.channels.find(({ channel }) => channel === name);
          shown?.counted(listed ? listed.devices : body.more ? null : 0);
        }),
      changes: (body) => batch(() => shown?.take(body)),
      trouble: (body) => (troubled.value = body),
      away: (why) => (link.value = { state: "away", why }),
      lost: (why) => (link.value = { state: "offline", why: navigator.onLine ? why : NO_NETWORK }),
      refused: (why: Refused) => (link.value = { state: "refused", why: why.message }),
    },
    control.signal,
  );
  return control;
}
