/**
 * What the oldest browsers that are promised (Safari 15.4, Chrome 94, Firefox 100) lack of what today's have, as a script that takes it away; and what
 * else browsers refuse, by their settings or where a page is framed.
 */

/** Of each of the three something is missing; all of it together is older than any of them. */
export const WITHOUT = `
for (const [of, names] of [
  [URL, ["canParse", "parse"]],
  [Promise, ["withResolvers", "try"]],
  [AbortSignal, ["any", "timeout"]],
  [AbortSignal.prototype, ["throwIfAborted"]],
  [URLSearchParams.prototype, ["size"]],
  [Array, ["fromAsync"]],
  [Object.getPrototypeOf(Int8Array.prototype), ["at", "findLast", "findLastIndex", "toReversed", "toSorted", "with"]],
  [Object, ["groupBy"]],
  [Map, ["groupBy"]],
  [JSON, ["rawJSON", "isRawJSON"]],
  [Set.prototype, ["union", "intersection", "difference"]],
  // Node's own fetch needs these.
  ...(globalThis.document
    ? [
        [ReadableStream, ["from"]],
        [ReadableStream.prototype, [Symbol.asyncIterator, "values"]],
        [Object, ["hasOwn"]],
        [globalThis, ["WeakRef", "FinalizationRegistry"]],
        [String.prototype, ["at", "isWellFormed", "toWellFormed"]],
        [Array.prototype, ["at", "findLast", "findLastIndex", "toReversed", "toSorted", "toSpliced", "with"]],
      ]
    : [[Array.prototype, ["toReversed", "toSorted", "toSpliced", "with"]]]),
  [Response, ["json"]],
  [globalThis.Crypto?.prototype ?? {}, ["randomUUID"]],
  [globalThis.CanvasRenderingContext2D?.prototype ?? {}, ["roundRect", "reset"]],
  [globalThis.Element?.prototype ?? {}, ["checkVisibility", "setHTMLUnsafe"]],
  [globalThis, ["structuredClone", "TextDecoderStream", "TextEncoderStream", "CompressionStream", "scheduler",
    "navigation", "Iterator", "reportError", "SharedWorker"]],
])
  for (const name of names) Reflect.deleteProperty(of, name);
`;

/** What a browser may refuse, each as a script; by what it is. */
export const REFUSALS: Readonly<Record<string, string>> = {
  "no Web Locks": `Object.defineProperty(Navigator.prototype, "locks", { value: undefined });`,
  "Web Locks that throw": `LockManager.prototype.request = () => { throw new DOMException("no", "SecurityError"); };`,
  "Web Locks that refuse": `LockManager.prototype.request = async () => { throw new DOMException("no", "SecurityError"); };`,
  "Web Locks that can't be looked at": `Object.defineProperty(Navigator.prototype, "locks", { get() { throw new DOMException("no", "SecurityError"); } });`,
  "no BroadcastChannel": `delete globalThis.BroadcastChannel;`,
  "a BroadcastChannel that throws": `globalThis.BroadcastChannel = class { constructor() { throw new DOMException("no", "SecurityError"); } };`,
  "a localStorage that is null": `for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(globalThis, name, { value: null });`,
  "a localStorage that throws": `for (const name of ["localStorage", "sessionStorage"])
    Object.defineProperty(globalThis, name, { get() { throw new DOMException("no", "SecurityError"); } });`,
  "a localStorage that is full": `Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };`,
  "a service worker that throws": `ServiceWorkerContainer.prototype.register = () => { throw new TypeError("no"); };`,
  "a service worker that can't be looked at": `Object.defineProperty(Navigator.prototype, "serviceWorker", { get() { throw new DOMException("no", "SecurityError"); } });`,
  "no service worker": `delete Navigator.prototype.serviceWorker;`,
  "no ResizeObserver": `delete globalThis.ResizeObserver;`,
  "no WebSocket and no Notification": `delete globalThis.WebSocket; delete globalThis.Notification;`,
};
