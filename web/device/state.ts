/**
 * The device page's state: that of its feed, and its events as cards, each with its receipt. The SDK (`clients/sdk/`) does the work: it follows,
 * changes transports, remembers, and sends receipts until they are recorded. A card is one call of `onEvent`, which ends when a button is pressed.
 *
 * Components only read signals; everything that changes them is here.
 */
import { batch, computed, signal } from "@preact/signals";
import { browserStorage, type Context, Deferred, type Gap, listen, type Listener } from "../../clients/sdk/index.ts";
import type { PushedEvent, Receipt, Status, Transport, Withdrawal } from "../../clients/sdk/index.ts";
import { clockText, type Content, contentOf } from "./content.ts";
import { faultOf, HERE, isKeeping, keepSetup, nameInAddress, readSetup } from "./setup.ts";
import { KeptEvents } from "./kept.ts";
import { announce, retract } from "./notices.ts";

/** Maximum number of events that wait for an answer; the SDK holds further ones back. */
const CARDS_MAX = 200;
/** Maximum number of answered events that are listed, without those whose answer was not sent yet. */
const ANSWERED_MAX = 20;
/** The delay of an automatic answer in milliseconds, from and to: the event is visible for a moment, and many devices don't answer at once. */
const AUTO_MS = [300, 1_000] as const;

export type Word = "received" | "done" | "failed";

/** An event and this device's receipt for it. */
export interface Card {
  readonly event: PushedEvent;
  readonly content: Content;
  readonly word: Word;
  /** When it was answered here, in milliseconds since 1970. */
  readonly answeredAt: number | null;
  /** The service has recorded the receipt. */
  readonly isSent: boolean;
  /** Why the service rejected the receipt; it would reject any other one too. */
  readonly refusal: string | null;
  /** How it ended for everybody, if it was withdrawn after it was answered here. */
  readonly ending: string | null;
  /** Sends the final receipt, once. */
  answer(word: "done" | "failed", note: string): void;
  /** Puts it off: the service sends it again after so many seconds. */
  putOff(seconds: number): void;
}

export const setup = readSetup();

export const status = signal<Status | null>(null);
export const isOnline = signal(navigator.onLine);
/** Open and answered ones, newest first. */
export const cards = signal<readonly Card[]>([]);
/** What happened last, for screen readers. */
export const announcement = signal("");
/** What was withdrawn just now, in sentences, by the event's id. Each goes by itself. */
export const farewells = signal<readonly (readonly [id: string, text: string])[]>([]);
/** Messages that stay until they are dismissed. */
export const notices = signal<readonly string[]>([]);
/** The current time, updated once a second, for deadlines. */
export const now = signal(Date.now());

/** Of this device on its channels. */
const remembered = new KeptEvents(`${setup.channel} ${setup.device}`);

/** Whether the event still needs an answer here. */
export const isOpen = ({ word, refusal }: Card): boolean => word === "received" && refusal === null;

const dueAt = ({ event }: Card): number =>
  event.deadline === undefined ? Number.POSITIVE_INFINITY : Date.parse(event.deadline);

/** What is to be done: the one that is overdue longest first, then by deadline, then in the order of their arrival. */
export const open = computed(() =>
  cards.value
    .filter(isOpen)
    .reverse()
    .sort((one, other) => (dueAt(one) === dueAt(other) ? 0 : dueAt(one) - dueAt(other))),
);
/** What was done here lately, newest first. */
export const answered = computed(() =>
  cards.value.filter((card) => !isOpen(card)).sort((one, other) => other.answeredAt! - one.answeredAt!),
);
/** What was put off, by when it comes back. */
export const later = computed(() =>
  [...remembered.events.value]
    .flatMap(([id, { title, until, isSent = true }]) => (until === undefined ? [] : [{ id, title, until, isSent }]))
    .sort((one, other) => one.until - other.until),
);
export const overdue = computed(() => open.value.filter((card) => dueAt(card) < now.value).length);
/** The device's name, as the service knows it. */
export const device = computed(() => status.value?.device ?? setup.device);

// ------------------------------------------------------------------------------------------------------------- the big state

export type State = "connecting" | "connected" | "behind" | "offline" | "elsewhere";

export const TRANSPORTS: Record<Transport, string> = {
  sse: "Server-Sent Events",
  websocket: "WebSocket",
  longpoll: "long-polling",
};

const KEPT = "What you do is kept and sent later.";

interface BigState {
  readonly state: State;
  /** The state in words, and what it means for the person in front of it. */
  readonly word: string;
  readonly why: string;
}

export const state = computed((): BigState => {
  const refused = (why: string): BigState => ({ state: "offline", word: "Not connected", why });
  const fault = faultOf(setup);
  if (fault) return refused(`${fault}.`);
  const { value } = status;
  if (value === null) return { state: "connecting", word: "Connecting", why: "" };
  if (value.state === "closed")
    return refused(`${value.error ?? ""}. ${value.unsent > 0 ? `${KEPT} ` : ""}Open the page with a valid link.`);
  if (value.isElsewhere)
    return { state: "elsewhere", word: "Open elsewhere", why: "This device is open in another tab or window." };
  if (value.state === "offline") {
    const since = value.heardAt === null ? "" : ` since ${clockText(value.heardAt, now.value)}`;
    return {
      state: "offline",
      word: `No connection${since}`,
      why: `${isOnline.value ? "" : "This device has no network. "}${KEPT}`,
    };
  }
  if (value.state === "connecting") return { state: "connecting", word: "Connecting", why: "" };
  const isBehind = value.waiting > 0 || value.state === "behind" || overdue.value > 0;
  const why = [
    ...(overdue.value > 0 ? [`${overdue.value} late`] : []),
    ...(value.waiting > 0 ? [`${value.waiting} more will appear when some of these are done`] : []),
  ].join(", ");
  return { state: isBehind ? "behind" : "connected", word: "Connected", why };
});

/** How many answers can't be sent now. That an event has arrived is told as well, but is no answer. */
export const kept = computed(() => {
  const { value } = status;
  if (value === null) return 0;
  // `behind` is connected: events come faster than they are handled.
  if ((value.state === "connected" || value.state === "behind") && !value.error) return 0;
  return Math.max(0, value.unsent - open.value.filter(({ isSent }) => !isSent).length);
});

// -------------------------------------------------------------------------------------------------------------------- cards

/** Shows a message; the same one only once. */
function notice(text: string): void {
  if (!notices.peek().includes(text)) notices.value = [...notices.peek(), text];
}
export const dismiss = (text: string): void => void (notices.value = notices.peek().filter((one) => one !== text));

const change = (id: string, part: Partial<Card>): void =>
  void (cards.value = cards.peek().map((card) => (card.event.id === id ? { ...card, ...part } : card)));

const find = (id: string): Card | undefined => cards.peek().find(({ event }) => event.id === id);

/** Adds an event on top, and forgets answered ones beyond the newest. */
function show(card: Card): void {
  const shown = cards.peek().filter(({ event }) => event.id !== card.event.id);
  const old = shown.filter((one) => !isOpen(one) && one.isSent).slice(ANSWERED_MAX);
  cards.value = [card, ...shown.filter((one) => !old.includes(one))];
  announcement.value = `${card.event.round === undefined ? "New" : "Again"}: ${card.content.title}`;
  remembered.set(card.event.id, { title: card.content.title });
}

/** How long a sentence about a withdrawal is shown, while somebody can see the page. */
const FAREWELL_MS = 8_000;

/** Why it is over, for the person in front of it. */
function endingText({ reason, note }: Withdrawal): string {
  if (reason === "superseded") return "was replaced by a newer message";
  const why = reason === "met" ? "enough others have done it" : note;
  return `was cancelled${why === undefined ? "" : `: ${why}`}`;
}

/** An event was withdrawn, now or while the page was closed. */
function withdrawn(withdrawal: Withdrawal): void {
  const { withdrawn: id } = withdrawal;
  if (status.peek()?.isElsewhere) return;
  change(id, { ending: endingText(withdrawal) });
  const known = remembered.delete(id);
  if (!known) return;
  retract(id);
  const text = `“${known.title}” ${endingText(withdrawal)}`;
  const isEnded = /[.!?]$/.test(text);
  farewells.value = [...farewells.peek().filter(([one]) => one !== id), [id, isEnded ? text : `${text}.`]];
  const leave = (): void => void (farewells.value = farewells.peek().filter(([one]) => one !== id));
  const show = (): void => {
    if (document.hidden) return;
    document.removeEventListener("visibilitychange", show);
    setTimeout(leave, FAREWELL_MS);
  };
  document.addEventListener("visibilitychange", show);
  show();
}

/** `onEvent`: resolves or rejects only with a person's answer. If the page can't show an event, it stays open. */
const work = (event: PushedEvent, { signal: ending }: Context): Promise<unknown> =>
  new Promise((resolve, reject) => {
    let auto: ReturnType<typeof setTimeout> | undefined;
    // The signal may live as long as the tab, and a listener on it would keep the event in memory.
    const settle = (how: () => void): void => {
      ending.removeEventListener("abort", stop);
      clearTimeout(auto);
      how();
    };
    // The event comes again, here or in another tab.
    const stop = (): void => {
      cards.value = cards.peek().filter((card) => card.event.id !== event.id || !isOpen(card));
      settle(() => reject(new Error("the page has stopped")));
    };
    const answer = (word: "done" | "failed", note: string): void => {
      const card = find(event.id);
      if (!card || !isOpen(card)) return;
      change(event.id, { word, isSent: false, answeredAt: Date.now() });
      announcement.value = `${word === "done" ? "Done" : "Not done"}: ${card.content.title}`;
      remembered.delete(event.id);
      settle(() => (word === "done" ? resolve(note || undefined) : reject(new Error(note))));
    };
    const putOff = (seconds: number): void => {
      const card = find(event.id);
      if (!card || !isOpen(card)) return;
      const { title } = card.content;
      const until = Date.now() + seconds * 1000;
      cards.value = cards.peek().filter((one) => one !== card);
      remembered.set(event.id, { title, until, isSent: false });
      announcement.value = `${title} comes back at ${clockText(until, Date.now())}`;
      settle(() => reject(new Deferred(seconds)));
    };
    ending.addEventListener("abort", stop);
    try {
      const isSent = early.delete(event.id);
      const content = contentOf(event);
      const fresh = { refusal: null, ending: null, answeredAt: null };
      show({ event, content, word: "received", isSent, ...fresh, answer, putOff });
      const [from, to] = AUTO_MS;
      if (setup.auto) auto = setTimeout(() => answer("done", ""), from + Math.random() * (to - from));
      else void announce(event);
    } catch (error) {
      notice(
        `Something can't be shown and stays to be done: ${String(error)}. Reload the page, or use another browser.`,
      );
    }
  });

/** Events without a card yet whose `received` is recorded already. */
const early = new Set<string>();

const sent = ({ event, status: word }: Receipt): void => {
  const card = find(event);
  if (word === "deferred") {
    const kept = remembered.get(event);
    if (kept?.until !== undefined) remembered.set(event, { ...kept, isSent: true });
    return;
  }
  if (card?.word === word) change(event, { isSent: true });
  else if (!card && word === "received") early.add(event);
};

function rejected({ event, status: word }: Receipt, reason: string): void {
  const card = find(event);
  if (word === "deferred") {
    const kept = remembered.get(event);
    if (kept?.until === undefined) return;
    remembered.delete(event);
    return notice(`“${kept.title}” could not be put off: ${reason}.`);
  }
  change(event, { refusal: reason, answeredAt: card?.answeredAt ?? Date.now() });
  if (card) notice(`“${card.content.title}” was not recorded: ${reason}.`);
}

const gap = ({ channel, after, from }: Gap): void =>
  notice(`Some messages of ${channel} never arrived here (after ${after}, before ${from}). Ask whoever sends them.`);

// ----------------------------------------------------------------------------------------------------------------- the feed

let listener: Listener | null = null;

function follow(): void {
  const { channel, token } = setup;
  listener = listen({
    url: HERE,
    channels: channel,
    // A token names its device.
    ...(token === null ? { device: setup.device } : { token }),
    concurrency: CARDS_MAX,
    storage: browserStorage(),
    onEvent: work,
    onReceipt: sent,
    onRejected: rejected,
    onWithdrawn: withdrawn,
    onGap: gap,
  });
  listener.status().subscribe((value) =>
    batch(() => {
      status.value = value;
      named(value);
    }),
  );
}

/** Puts the name that the service uses into the URL. If a cookie decided it, reloads the page with that name. */
function named({ device: name, state: how }: Status): void {
  if (name === null) return;
  if (setup.token !== null) return nameInAddress(name);
  if (name === setup.device || how !== "connected") return;
  nameInAddress(name);
  location.reload();
}

/** Makes this tab the active one for its device. */
export const take = (): void => listener?.take();

/** Starts following. */
export function start(): void {
  setInterval(() => {
    now.value = Date.now();
    if (state.peek().state === "connected" || state.peek().state === "behind") remembered.clean(now.peek());
  }, 1_000);
  for (const name of ["online", "offline"]) addEventListener(name, () => (isOnline.value = navigator.onLine));
  addEventListener("appinstalled", () => keepSetup(setup));
  if (faultOf(setup)) return;
  if (!isKeeping()) notice("This browser stores nothing for this page: what was not sent is lost when it is closed.");
  follow();
}
