/**
 * The device page's state: that of its feed, and its events as cards, each with its receipt. The SDK (`clients/sdk/`) does the work: it follows,
 * changes transports, remembers, and sends receipts until they are recorded. A card is one call of `onEvent`, which ends when a button is pressed.
 *
 * Components only read signals; everything that changes them is here.
 */
import { batch, computed, signal } from "@preact/signals";
import { browserStorage, type Context, type Gap, listen, type Listener } from "../../clients/sdk/index.ts";
import type { PushedEvent, Receipt, Status, Transport } from "../../clients/sdk/index.ts";
import { some } from "../console/words.ts";
import { faultOf, HERE, isKeeping, keepSetup, nameInAddress, readSetup } from "./setup.ts";
import { announce } from "./notices.ts";

/** Maximum number of cards, and so of events that wait for an answer; the SDK holds further ones back. */
const CARDS_MAX = 200;
/** The delay of an automatic answer in milliseconds, from and to: the event is visible for a moment, and many devices don't answer at once. */
const AUTO_MS = [300, 1_000] as const;

export type Word = "received" | "done" | "failed";

/** An event and this device's receipt for it. */
export interface Card {
  readonly event: PushedEvent;
  readonly word: Word;
  /** The service has recorded the receipt. */
  readonly isSent: boolean;
  /** Why the service rejected the receipt; it would reject any other one too. */
  readonly refusal: string | null;
  /** Sends the final receipt, once. */
  answer(word: "done" | "failed", note: string): void;
}

export const setup = readSetup();

export const status = signal<Status | null>(null);
export const isOnline = signal(navigator.onLine);
/** Newest first. */
export const cards = signal<readonly Card[]>([]);
/** Messages that stay until they are dismissed. */
export const notices = signal<readonly string[]>([]);
/** The current time, updated once a second, for deadlines. */
export const now = signal(Date.now());

/** Whether the event still needs an answer here. */
export const isOpen = ({ word, refusal }: Card): boolean => word === "received" && refusal === null;
export const open = computed(() => cards.value.filter(isOpen));
export const overdue = computed(
  () => open.value.filter(({ event }) => event.deadline && Date.parse(event.deadline) < now.value).length,
);
/** The device's name, as the service knows it. */
export const device = computed(() => status.value?.device ?? setup.device);

// ------------------------------------------------------------------------------------------------------------- the big state

export type State = "connecting" | "connected" | "behind" | "offline" | "elsewhere";

export const TRANSPORTS: Record<Transport, string> = {
  sse: "Server-Sent Events",
  websocket: "WebSocket",
  longpoll: "long-polling",
};

/** The status, and the reason in a few words. */
export const state = computed((): { readonly state: State; readonly why: string } => {
  const fault = faultOf(setup);
  if (fault) return { state: "offline", why: fault };
  const { value } = status;
  if (value === null) return { state: "connecting", why: "" };
  if (value.state === "closed") return { state: "offline", why: value.error ?? "" };
  if (value.isElsewhere) return { state: "elsewhere", why: "this device is open in another tab or window" };
  if (value.state === "offline")
    return { state: "offline", why: isOnline.value ? "the service can't be reached" : "there is no network" };
  if (value.state === "connecting") return { state: "connecting", why: "" };
  if (value.waiting > 0 || value.state === "behind")
    return { state: "behind", why: `${some(value.waiting, "more event")} will appear when you answer some of these` };
  if (overdue.value > 0) return { state: "behind", why: `${some(overdue.value, "event")} past the deadline` };
  return { state: "connected", why: "" };
});

/** Whether receipts can't be sent now. */
export const isStuck = computed(
  () =>
    status.value !== null && status.value.unsent > 0 && (status.value.state !== "connected" || !!status.value.error),
);

// -------------------------------------------------------------------------------------------------------------------- cards

/** Shows a message; the same one only once. */
function notice(text: string): void {
  if (!notices.peek().includes(text)) notices.value = [...notices.peek(), text];
}
export const dismiss = (text: string): void => void (notices.value = notices.peek().filter((one) => one !== text));

const change = (id: string, part: Partial<Card>): void =>
  void (cards.value = cards.peek().map((card) => (card.event.id === id ? { ...card, ...part } : card)));

const find = (id: string): Card | undefined => cards.peek().find(({ event }) => event.id === id);

/** Adds an event on top; if there are too many cards, removes the oldest answered one. */
function show(card: Card): void {
  const shown = cards.peek().filter(({ event }) => event.id !== card.event.id);
  const answered = shown.filter((one) => !isOpen(one));
  const gone = shown.length < CARDS_MAX ? undefined : answered[answered.length - 1];
  cards.value = [card, ...shown.filter((one) => one !== gone)];
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
      change(event.id, { word, isSent: false });
      settle(() => (word === "done" ? resolve(note || undefined) : reject(new Error(note))));
    };
    ending.addEventListener("abort", stop);
    try {
      show({ event, word: "received", isSent: early.delete(event.id), refusal: null, answer });
      const [from, to] = AUTO_MS;
      if (setup.auto) auto = setTimeout(() => answer("done", ""), from + Math.random() * (to - from));
      else void announce(event);
    } catch (error) {
      notice(
        `An event can't be shown and stays unanswered: ${String(error)}. Reload the page, or use another browser.`,
      );
    }
  });

/** Events without a card yet whose `received` is recorded already. */
const early = new Set<string>();

const sent = ({ event, status: word }: Receipt): void => {
  const card = find(event);
  if (card?.word === word) change(event, { isSent: true });
  else if (!card && word === "received") early.add(event);
};

const rejected = ({ event }: Receipt, reason: string): void => change(event, { refusal: reason });

const gap = ({ channel, after, from }: Gap): void =>
  notice(`Events on ${channel} were lost: those after ${after} and before ${from} are no longer kept.`);

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
  setInterval(() => (now.value = Date.now()), 1_000);
  for (const name of ["online", "offline"]) addEventListener(name, () => (isOnline.value = navigator.onLine));
  addEventListener("appinstalled", () => keepSetup(setup));
  if (faultOf(setup)) return;
  if (!isKeeping()) notice("This browser stores nothing for this page: unsent receipts are lost when it is closed.");
  follow();
}
