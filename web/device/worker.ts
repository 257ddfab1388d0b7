/**
 * The device page's service worker: it caches the page and its files, so that the page starts without a network, and opens the page when a
 * notification is clicked.
 *
 * If the service answers in time, its page is used and cached with its files. Their names contain a hash of their content, so they are never
 * outdated. All other requests (feeds, receipts, other pages) are not touched and never cached, nor is any URL with a query.
 */
export {};

interface Waiting extends Event {
  waitUntil(work: Promise<unknown>): void;
}
interface Fetched extends Waiting {
  readonly request: Request;
  respondWith(response: Promise<Response>): void;
}
interface Clicked extends Waiting {
  readonly notification: Notification;
}
interface Tab {
  focus(): Promise<unknown>;
}
/** The parts of the service worker API used here, which the page's types lack. */
declare const self: {
  readonly location: Location;
  readonly clients: {
    claim(): Promise<void>;
    matchAll(of: { type: "window" }): Promise<Tab[]>;
    openWindow(url: string): Promise<unknown>;
  };
  skipWaiting(): Promise<void>;
  addEventListener(name: "install" | "activate", run: (event: Waiting) => void): void;
  addEventListener(name: "fetch", run: (event: Fetched) => void): void;
  addEventListener(name: "notificationclick", run: (event: Clicked) => void): void;
};

const KEPT = "pere device";
const PAGE = new URL("weblistener.html", self.location.href);
/** How long to wait for the service if the page is cached, in milliseconds: a network that drops everything is as good as none. */
const PATIENCE_MS = 3_000;

/** The files that PERE's page refers to; a captive portal's page has none of them. */
const filesOf = (html: string): string[] =>
  [...html.matchAll(/(?:href|src)="([^"]*\/pages\/[^"]+)"/g)].map(([, name]) => new URL(name!, PAGE).href);

/** Caches a page: first its files, so that the cache is complete, then the page; then removes other files. */
async function keep(page: Response): Promise<void> {
  const files = filesOf(await page.clone().text());
  if (files.length === 0) return;
  const cache = await caches.open(KEPT);
  for (const file of files) if (!(await cache.match(file))) await cache.add(file);
  await cache.put(PAGE, page);
  for (const { url } of await cache.keys()) if (url !== PAGE.href && !files.includes(url)) await cache.delete(url);
}

/** The service's current page, or the cached one. */
async function page(fresh: Promise<Response>): Promise<Response> {
  const kept = await caches.match(PAGE, { cacheName: KEPT });
  if (!kept) return fresh;
  const late = new Promise<Response>((resolve) => setTimeout(resolve, PATIENCE_MS, kept));
  const good = fresh.then(
    (response) => (response.ok || response.type === "opaqueredirect" ? response : kept),
    () => kept,
  );
  return Promise.race([good, late]);
}

self.addEventListener("install", (event) => {
  event.waitUntil(fetch(PAGE, { cache: "no-cache" }).then(keep).then(self.skipWaiting.bind(self)));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname } = new URL(request.url);
  if (request.method !== "GET" || origin !== PAGE.origin) return;
  if (pathname === PAGE.pathname && request.mode === "navigate") {
    const fresh = fetch(request);
    event.respondWith(page(fresh));
    event.waitUntil(fresh.then((response) => (response.ok ? keep(response.clone()) : undefined)).catch(() => {}));
  } else if (pathname.includes("/pages/"))
    event.respondWith(
      caches.match(request, { cacheName: KEPT, ignoreVary: true }).then((kept) => kept ?? fetch(request)),
    );
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  const show = async (): Promise<void> => {
    const [tab] = await self.clients.matchAll({ type: "window" });
    await (tab ? tab.focus() : self.clients.openWindow(PAGE.href));
  };
  event.waitUntil(show());
});
