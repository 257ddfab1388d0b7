/**
 * What the device page knows: how its feed is, and its events as cards, each with the receipt that was given. The work is the SDK's
 * (`clients/sdk/`): it follows, falls back, remembers, and sends receipts until they have arrived. A card is one call of `onEvent`, which ends
 * when somebody presses a button.
 *
 * Components read signals; everything that changes them is here.
 */
import { batch, computed, signal } from "@preact/signals";
import { browserStorage, type Context, type Gap, listen, type Listener } from "../../clients/sdk/index.ts";
import type { PushedEvent, Receipt, Status, Transport } from "../../clients/sdk/index.ts";
import { some } from "../console/words.ts";
import { faultOf, HERE, isKeeping, keepSetup, nameInAddress, readSetup } from "./setup.ts";
import { announce } from "./notices.ts";

/** Cards on the page, and so events that may wait for an answer at once; the SDK holds the others back. */
const CARDS_MAX = 200;
/** Milliseconds after which an event is answered by itself: from, and up to. It is seen before it is gone, and a hundred devices don't answer at once. */
const AUTO_MS = [300, 1_000] as const;

export type Word = "received" | "done" | "failed";

/** An event and what this device has said of it. */
export interface Card {
  readonly event: PushedEvent;
  readonly word: Word;
  /** The service has it. */
  readonly isSent: boolean;
  /** Why the service would not take it; it takes no other either. */
  readonly refusal: string | null;
  /** Gives the final word, once. */
  answer(word: "done" | "failed", note: string): void;
}

export const setup = readSetup();

export const status = signal<Status | null>(null);
export const isOnline = signal(navigator.onLine);
/** Newest first. */
export const cards = signal<readonly Card[]>([]);
/** What must be read, until it is dismissed. */
export const notices = signal<readonly string[]>([]);
/** The time, once a second: what is due reads it. */
export const now = signal(Date.now());

/** Nothing more can be said of it here. */
export const isOpen = ({ word, refusal }: Card): boolean => word === "received" && refusal === null;
export const open = computed(() => cards.value.filter(isOpen));
export const overdue = computed(
  () => open.value.filter(({ event }) => event.deadline && Date.parse(event.deadline) < now.value).length,
);
/** As the service knows it. */
export const device = computed(() => status.value?.device ?? setup.device);

// ------------------------------------------------------------------------------------------------------------- the big state

export type State = "connecting" | "connected" | "behind" | "offline" | "elsewhere";

export const TRANSPORTS: Record<Transport, string> = {
  sse: "Server-Sent Events",
  websocket: "WebSocket",
  longpoll: "long-polling",
};

/** How it is, and why, in a few words. */
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

/** Whether receipts wait for more than their turn. */
export const isStuck = computed(
  () =>
    status.value !== null && status.value.unsent > 0 && (status.value.state !== "connected" || !!status.value.error),
);

// -------------------------------------------------------------------------------------------------------------------- cards

/** A text that the reader must see; the same one only once. */
function notice(text: string): void {
  if (!notices.peek().includes(text)) notices.value = [...notices.peek(), text];
}
export const dismiss = (text: string): void => void (notices.value = notices.peek().filter((one) => one !== text));

const change = (id: string, part: Partial<Card>): void =>
  void (cards.value = cards.peek().map((card) => (card.event.id === id ? { ...card, ...part } : card)));

const find = (id: string): Card | undefined => cards.peek().find(({ event }) => event.id === id);

/** Shows an event, on top; beyond the most that are shown the oldest answered one goes. */
function show(card: Card): void {
  const shown = cards.peek().filter(({ event }) => event.id !== card.event.id);
  const answered = shown.filter((one) => !isOpen(one));
  const gone = shown.length < CARDS_MAX ? undefined : answered[answered.length - 1];
  cards.value = [card, ...shown.filter((one) => one !== gone)];
}

/** `onEvent`: resolves or rejects with somebody's answer, and with nothing else. A page that can't show an event leaves it open. */
const work = (event: PushedEvent, { signal: ending }: Context): Promise<unknown> =>
  new Promise((resolve, reject) => {
    let auto: ReturnType<typeof setTimeout> | undefined;
    // The signal may live as long as the tab, and what listens to it keeps the event.
    const settle = (how: () => void): void => {
      ending.removeEventListener("abort", stop);
      clearTimeout(auto);
      how();
    };
    // It comes again, here or in another tab.
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

/** Events that wait for their card, and of which the service knows already that they were received. */
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
    // A token says who its bearer is.
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

/** The service's name for this device stands in the address; where a cookie gave it, the page begins anew with that name. */
function named({ device: name, state: how }: Status): void {
  if (name === null) return;
  if (setup.token !== null) return nameInAddress(name);
  if (name === setup.device || how !== "connected") return;
  nameInAddress(name);
  location.reload();
}

/** The device is used in this tab from now on, and no longer in the one that had it. */
export const take = (): void => listener?.take();

/** Follows, from now on. */
export function start(): void {
  setInterval(() => (now.value = Date.now()), 1_000);
  for (const name of ["online", "offline"]) addEventListener(name, () => (isOnline.value = navigator.onLine));
  addEventListener("appinstalled", () => keepSetup(setup));
  if (faultOf(setup)) return;
  if (!isKeeping()) notice("This browser stores nothing for this page: unsent receipts are lost when it is closed.");
  follow();
}
