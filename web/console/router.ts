/**
 * Where the console is: the URL's fragment as a route, and what each entry of the browser's history keeps, so that Back returns to the same place.
 *
 * An entry keeps the scroll position, the focus, and what pages ask it to keep (`useKept`). All of it is in this tab's memory: a reload starts anew.
 */
import { type Signal, signal, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { queryOf } from "./floor.ts";

/** A page of a channel. */
export type Place = "board" | "devices" | "push" | "scheduled" | "hooks" | "event";
/** A page of the whole service. */
export type Page = "attention" | "channels" | "service";

export interface Route {
  /** Null: a page of the whole service. */
  readonly channel: string | null;
  readonly page: Page;
  readonly place: Place;
  /** What the place is about: an event's id; on the push page an event to push again; on the devices page a device's name. Null: nothing in particular. */
  readonly item: string | null;
  /** What stands behind `?` in the fragment. */
  readonly query: ReadonlyMap<string, string>;
}

const CHANNEL = /^[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}$/;
export const isChannel = (text: string): boolean => CHANNEL.test(text);

const PAGES: readonly Page[] = ["attention", "channels", "service"];
const PLACES: readonly Place[] = ["board", "devices", "push", "scheduled", "hooks", "event"];

/** Decodes a part of a URL; one that is not encoded correctly stays as it is. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function readRoute(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const query = new Map(new URLSearchParams(search));
  const [first = "", second = "board", third = ""] = path.split("/").map(decoded);
  const item = third === "" ? null : third;
  if (!isChannel(first)) {
    // No channel's name begins with "~".
    const page = PAGES.find((one) => first === `~${one}`) ?? "attention";
    return { channel: null, page, place: "board", item: null, query };
  }
  const place = PLACES.find((one) => one === second) ?? "board";
  if (place === "event" && item === null) return { channel: first, page: "attention", place: "board", item, query };
  return { channel: first, page: "attention", place, item, query };
}

export const route = signal(readRoute(location.hash));

/** Query parameters of a link; those without a value are left out. */
type Query = Readonly<Record<string, string | null>>;
const searchOf = (query: Query): string =>
  queryOf(Object.entries(query).filter((one): one is [string, string] => one[1] !== null && one[1] !== ""));

/** The link to a page of a channel. @param item an event's id or a device's name */
export const linkTo = (channel: string, place: Place = "board", item = "", query: Query = {}): string =>
  `#/${channel}${place === "board" ? "" : `/${place}${item && `/${encodeURIComponent(item)}`}`}${searchOf(query)}`;

/** The link to a page of the whole service. */
export const linkToPage = (page: Page, query: Query = {}): string =>
  `#/${page === "attention" ? "" : `~${page}`}${searchOf(query)}`;

/** Changes the query of the current page, such as a search, without a new entry in the history. */
export function replaceQuery(query: Query): void {
  const { channel, page, place, item } = route.peek();
  const hash = channel === null ? linkToPage(page, query) : linkTo(channel, place, item ?? "", query);
  history.replaceState(history.state, "", hash);
  route.value = readRoute(location.hash);
}

// ---------------------------------------------------------------------------------------------------------- the history's entries

/** What an entry of the history keeps. */
interface Entry {
  scroll: number;
  /** A selector of what had the focus. */
  focus: string | null;
  readonly kept: Map<string, unknown>;
}
/** What the browser keeps with an entry: its name here, and the fragment that it was reached from. */
interface Mark {
  readonly key: string;
  readonly from: string | null;
}

const entries = new Map<string, Entry>();
let last = 0;
const markOf = (): Mark | null => history.state as Mark | null;
const fresh = (): Entry => ({ scroll: 0, focus: null, kept: new Map() });

/** The entry that is shown. */
let here: Entry = fresh();
let shownHash = location.hash;

/** Makes the browser's current entry the shown one. @returns whether it was shown before */
function enter(from: string | null): boolean {
  let mark = markOf();
  if (typeof mark?.key !== "string") {
    mark = { key: `${Date.now()}-${++last}`, from };
    history.replaceState(mark, "");
  }
  const known = entries.get(mark.key);
  here = known ?? fresh();
  entries.set(mark.key, here);
  shownHash = location.hash;
  return known !== undefined;
}

/** A selector that finds an element again when its page is rendered anew; null: there is none. */
function selectorOf(element: Element | null): string | null {
  if (!element || !document.getElementById("main")?.contains(element)) return null;
  if (element.id !== "" && element.id !== "main") return `#${CSS.escape(element.id)}`;
  const href = element.getAttribute("href");
  return href === null ? null : `#main a[href="${CSS.escape(href)}"]`;
}

/** How the shown page was reached: by a link, or by Back or Forward. */
export const arrival = signal<"link" | "history" | null>(null);

/** Follows the browser's history. Call once. */
export function followHistory(): void {
  if ("scrollRestoration" in history) history.scrollRestoration = "manual";
  enter(null);
  addEventListener("hashchange", () => {
    if (location.hash === shownHash) return;
    Object.assign(here, { scroll: scrollY, focus: selectorOf(document.activeElement) });
    arrival.value = enter(shownHash) ? "history" : "link";
    route.value = readRoute(location.hash);
  });
}

/** How long the content may take to appear before its scroll position and focus are no longer restored. */
const RESTORE_MS = 4_000;

/**
 * Focuses and scrolls after the page was rendered: at its heading, or after Back where it was left. Content that is still loading is waited for until
 * the user does something.
 * @returns a function that gives up
 */
export function settle(heading: HTMLElement | null): () => void {
  const { focus, scroll } = here;
  heading?.focus({ preventScroll: true });
  if (arrival.peek() !== "history") {
    scrollTo(0, 0);
    return () => {};
  }
  const main = document.getElementById("main")!;
  const attempt = (): void => {
    const found = focus === null ? heading : document.querySelector<HTMLElement>(focus);
    if (found && document.activeElement !== found) found.focus({ preventScroll: true });
    scrollTo(0, scroll);
    if (found && Math.abs(scrollY - scroll) < 2) stop();
  };
  const watcher = new MutationObserver(attempt);
  const timer = setTimeout(stop, RESTORE_MS);
  const signs = ["pointerdown", "keydown", "wheel", "touchstart"] as const;
  function stop(): void {
    watcher.disconnect();
    clearTimeout(timer);
    for (const sign of signs) removeEventListener(sign, stop);
  }
  for (const sign of signs) addEventListener(sign, stop, { passive: true });
  watcher.observe(main, { childList: true, subtree: true });
  attempt();
  return stop;
}

/** A value of a page that Back brings back. Its page has each name once. */
export function useKept<Value>(name: string, initial: Value): Signal<Value> {
  const entry = useRef(here).current;
  const value = useSignal<Value>(entry.kept.has(name) ? (entry.kept.get(name) as Value) : initial);
  useSignalEffect(() => void entry.kept.set(name, value.value));
  return value;
}

// ------------------------------------------------------------------------------------------------------------------------- Escape

/** What Escape closes, the last one first. */
const closers: (() => void)[] = [];

/** Escape closes something as long as `close` is given. */
export function useEscape(close: (() => void) | null): void {
  const latest = useRef(close);
  latest.current = close;
  const isOpen = close !== null;
  useEffect(() => {
    if (!isOpen) return;
    const closer = (): void => latest.current?.();
    closers.push(closer);
    return () => void closers.splice(closers.indexOf(closer), 1);
  }, [isOpen]);
}

/** The page above this one; null: Escape does not leave it. */
function above({ channel, place, item }: Route): string | null {
  if (channel === null || item === null) return null;
  return place === "devices" ? linkTo(channel, "devices") : linkTo(channel);
}

/** Leaves a page: back to where the user came from, so that it is as it was, else to the page above. */
export function goUp(to: string): void {
  if (typeof markOf()?.from === "string") history.back();
  else location.hash = to;
}

/** Escape closes what is open, else it leaves an event or a device. In a field it does what the browser does. Call once. */
export function followEscape(): void {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return;
    const close = closers[closers.length - 1];
    const to = above(readRoute(location.hash));
    if (close) close();
    else if (to === null || (event.target as Element).matches("input, textarea, select")) return;
    else goUp(to);
    event.preventDefault();
  });
}

// ------------------------------------------------------------------------------------------------------------------------- titles

/** What a page calls itself; null: what its place is called. */
export const ownTitle = signal<string | null>(null);

/** Sets the page's part of the document's title while its component is mounted, such as an event's type. */
export function useTitle(text: string | null): void {
  useEffect(() => {
    ownTitle.value = text;
    return () => (ownTitle.value = null);
  }, [text]);
}
