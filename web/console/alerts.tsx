/**
 * Notifications of the browser when something new needs attention while the page is not looked at. They are asked for by a button, never at load, and
 * on or off per browser.
 *
 * On phones only a service worker can show one: `worker.ts` does nothing else.
 */
import { effect, signal } from "@preact/signals";
import { addressOf } from "./api.ts";
import { attention, type Attention, troubleSum, troubleText, verdict } from "./attention.ts";

const canNotify = "Notification" in globalThis;
/** Where the browser keeps whether notifications are wanted: the permission is shared with the device page. */
const KEY = "pere.console.alerts";

const permission = signal<NotificationPermission>(canNotify ? Notification.permission : "denied");
const isWanted = signal(kept() === "on");

function kept(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function want(wanted: boolean): void {
  isWanted.value = wanted;
  try {
    localStorage.setItem(KEY, wanted ? "on" : "off");
  } catch {
    // Then it is for as long as the page is open.
  }
}

async function turnOn(): Promise<void> {
  permission.value = await Notification.requestPermission().catch(() => "denied" as const);
  if (permission.value !== "granted") return;
  want(true);
  await worker();
}

/** The service worker that shows notifications, on a path where no page is, so that it has no say in any; null: the browser has or allows none. */
async function worker(): Promise<ServiceWorkerRegistration | null> {
  try {
    const scope = addressOf("/console-alerts/");
    const known = await navigator.serviceWorker.getRegistration(scope);
    return known ?? (await navigator.serviceWorker.register(addressOf("/console-worker.js"), { scope }));
  } catch {
    return null;
  }
}

/** Shows one notification, which replaces the one before. */
async function alert(title: string, body: string): Promise<void> {
  const options = { body, tag: "pere-attention", icon: addressOf("/icon-192.png"), data: addressOf("/#/") };
  try {
    const registration = await worker();
    if (registration?.active) return await registration.showNotification(title, options);
    const shown = new Notification(title, options);
    shown.onclick = () => (focus(), (location.hash = "#/"), shown.close());
  } catch {
    // The page has it in any case.
  }
}

const sumOf = ({ totals, hooks }: Attention): number =>
  troubleSum(totals) + hooks.reduce((sum, { givenUp, disabled }) => sum + givenUp + (disabled === null ? 0 : 1), 0);

/** Notifies when there is more trouble than before and the page is not looked at. */
export function followAlerts(): void {
  let before: number | null = null;
  effect(() => {
    const known = attention.value;
    if (known === null) return;
    const sum = sumOf(known);
    const isMore = before !== null && sum > before;
    before = sum;
    if (!isMore || !isWanted.peek() || document.visibilityState === "visible") return;
    if (!canNotify || Notification.permission !== "granted") return;
    const [worst] = known.devices;
    void alert(verdict(known), worst ? `${worst.device}: ${troubleText(worst)}` : "");
  });
}

export function AlertButton() {
  if (!canNotify) return null;
  if (permission.value === "denied")
    return isWanted.value ? (
      <p class="muted small">This browser blocks notifications of this page; its settings allow them.</p>
    ) : null;
  const isOn = isWanted.value && permission.value === "granted";
  return (
    <button
      type="button"
      class="plain"
      title="Shows a notification when something new needs attention and this page is not in view"
      aria-pressed={isOn}
      onClick={() => (isOn ? want(false) : void turnOn())}
    >
      {isOn ? "Notifications on" : "Notify me"}
    </button>
  );
}
