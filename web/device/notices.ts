/**
 * What reaches a person who does not look at the page: notifications, where they are allowed; and what makes an app of the page: its worker, and the
 * browser's offer to install it. None of it is there on a page without TLS that is not on this machine, and the page does without.
 */
import { signal } from "@preact/signals";
import type { PushedEvent } from "../../clients/sdk/index.ts";
import { prettyJson } from "../console/words.ts";
import { HERE } from "./setup.ts";

/** Characters of an event's data in a notification; phones show less. */
const BODY_CHARACTERS = 160;

const canNotify = "Notification" in globalThis && "serviceWorker" in navigator;
export const permission = signal<NotificationPermission>(canNotify ? Notification.permission : "denied");

/** Asks the reader. */
export async function allow(): Promise<void> {
  permission.value = await Notification.requestPermission().catch(() => "denied" as const);
}

/** Tells of an event, where nobody sees its card. Phones take that from a worker alone. */
export async function announce({ id, type, channel, text }: PushedEvent): Promise<void> {
  // Asked each time, since it can be taken back in the browser's settings.
  if (!canNotify || Notification.permission !== "granted" || !document.hidden) return;
  try {
    const worker = await navigator.serviceWorker.ready;
    const body = prettyJson(text, true).slice(0, BODY_CHARACTERS);
    await worker.showNotification(`${type ?? "event"} · ${channel}`, { body, tag: id, icon: `${HERE}icon-192.png` });
  } catch {
    // Its card is on the page all the same.
  }
}

/** The browser's offer, as Chromium makes it. */
interface Offer extends Event {
  prompt(): Promise<unknown>;
}

/** Installs the page as an app; null: the browser does not offer it. */
export const install = signal<(() => void) | null>(null);

addEventListener("beforeinstallprompt", (event) => {
  event.preventDefault();
  install.value = () => {
    install.value = null;
    void (event as Offer).prompt();
  };
});
addEventListener("appinstalled", () => (install.value = null));

/** The page starts without a network from now on. What the browser does not want to keep, it need not, however it says so. */
export async function keepPage(): Promise<void> {
  try {
    await navigator.serviceWorker?.register(`${HERE}weblistener-worker.js`, { scope: `${HERE}weblistener.html` });
  } catch {
    // Then it starts with a network alone.
  }
}
