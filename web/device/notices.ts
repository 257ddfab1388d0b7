/**
 * Notifications, if they are allowed, and the installation of the page as an app: its service worker and the browser's install prompt. Browsers
 * offer none of this to a page without TLS unless it is on localhost; the page works without it.
 */
import { signal } from "@preact/signals";
import type { PushedEvent } from "../../clients/sdk/index.ts";
import { contentOf, lineOf } from "./content.ts";
import { HERE } from "./setup.ts";

/** Characters of an event's data in a notification; phones show less. */
const BODY_CHARACTERS = 160;

const canNotify = "Notification" in globalThis && "serviceWorker" in navigator;
export const permission = signal<NotificationPermission>(canNotify ? Notification.permission : "denied");

/** Asks for permission. */
export async function allow(): Promise<void> {
  permission.value = await Notification.requestPermission().catch(() => "denied" as const);
}

/** Shows a notification for an event if the page is not visible. On phones only a service worker can do this. */
export async function announce(event: PushedEvent): Promise<void> {
  // Checked each time, because the permission can be revoked in the browser's settings.
  if (!canNotify || Notification.permission !== "granted" || !document.hidden) return;
  try {
    const worker = await navigator.serviceWorker.ready;
    const content = contentOf(event);
    const body = lineOf(content).slice(0, BODY_CHARACTERS);
    await worker.showNotification(content.title, { body, tag: event.id, icon: `${HERE}icon-192.png` });
  } catch {
    // The card is on the page in any case.
  }
}

/** Closes the notification for an event: it was withdrawn. */
export async function retract(id: string): Promise<void> {
  if (!canNotify || Notification.permission !== "granted") return;
  try {
    const worker = await navigator.serviceWorker.ready;
    for (const shown of await worker.getNotifications({ tag: id })) shown.close();
  } catch {
    // It stays until somebody closes it.
  }
}

/** Chromium's install prompt. */
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

/** Makes the page start without a network from now on. Any refusal by the browser is ignored. */
export async function keepPage(): Promise<void> {
  try {
    await navigator.serviceWorker?.register(`${HERE}weblistener-worker.js`, { scope: `${HERE}weblistener.html` });
  } catch {
    // Then it starts only with a network.
  }
}
