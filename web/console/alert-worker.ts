/**
 * The console's service worker: it shows notifications, which on phones nothing else can, and opens the console when one is pressed. It caches nothing
 * and serves no page.
 */
export {};

/** The parts of the service worker API used here, which the page's types lack. */
interface Client {
  readonly url: string;
  focus(): Promise<Client>;
  navigate(url: string): Promise<unknown>;
}
interface Pressed extends Event {
  readonly notification: { readonly data: string; close(): void };
  waitUntil(work: Promise<unknown>): void;
}
declare const clients: {
  matchAll(options: { type: "window"; includeUncontrolled: boolean }): Promise<readonly Client[]>;
  openWindow(url: string): Promise<unknown>;
};

addEventListener("notificationclick", (event) => {
  const { notification, waitUntil } = event as Pressed;
  notification.close();
  waitUntil.call(event, open(notification.data));
});

/** Brings a console to the front, or opens one. */
async function open(address: string): Promise<void> {
  const [page] = address.split("#");
  const open = await clients.matchAll({ type: "window", includeUncontrolled: true });
  const found = open.find(({ url }) => url.split("#")[0] === page);
  if (found) await found.focus();
  else await clients.openWindow(address);
}
