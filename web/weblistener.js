// @ts-check
/**
 * A device in a browser. It follows one feed, shows each event as a card, and owes each a receipt: `received` as soon as it is here,
 * `done` or `failed` when somebody (or `?auto=1`) says so.
 *
 * The feed is the WebSocket one. An event's type is its SSE event name, and EventSource only hears names it was told beforehand; a
 * socket brings every event alike. It asks for no position: a device that comes back without one is given all that it still owes,
 * also after a reload, and what it has shown or answered already is recognised by its id.
 *
 * A receipt is written into `localStorage` before anything else happens, and leaves it only when the service has answered for it. So it
 * survives a reload, a closed tab and a night without a network. What a card shows is always computed from there, never remembered
 * beside it; two tabs of one device therefore agree. Receipts go by `POST`, whose answer tells which of them were taken.
 *
 * It never shows what a publisher sent as anything but text, and it asks nobody but the service that it came from.
 */
export {};

/** @typedef {"received" | "done" | "failed"} Word */
/** @typedef {{ channel: string, device: string, event: string, status: Word, detail?: string, at: string }} Receipt */
/** @typedef {{ id: string, channel: string, at: string, type?: string, deadline?: string, data: unknown }} PushedEvent */
/** @typedef {{ status: "done" | "failed" | "rejected", why?: string }} Outcome */
/** @typedef {{ id: string, channel: string, item: HTMLElement }} Card */

/** Cards on the page; beyond that the oldest answered one goes first. */
const CARDS_MAX = 200;
/** Outcomes kept in the browser. The service gives a finished event to nobody again, so only the last ones matter. */
const OUTCOMES_MAX = 1_000;
/** Receipts in one request. */
const BATCH_MAX = 100;
/** How long one request may take. */
const REQUEST_MS_MAX = 15_000;
/** A socket this quiet is asked for a sign of life: no receipts at all, which the service answers. */
const QUIET_MS = 15_000;
/** A socket this quiet is dead, whatever the browser believes. */
const DEAD_MS = 45_000;

// ------------------------------------------------------------------------------------------------------------- the page

/**
 * @template {Element} Kind
 * @param {string} selector @param {new () => Kind} kind @param {ParentNode} [within]
 * @returns {Kind}
 */
function find(selector, kind, within = document) {
  const element = within.querySelector(selector);
  if (!(element instanceof kind)) throw new Error(`the page has no ${selector}`);
  return element;
}

const events = find("#events", HTMLOListElement);
const settings = find("#settings", HTMLFormElement);

/** @param {string} name @param {ParentNode} [within] */
const input = (name, within = settings) => find(`input${name}`, HTMLInputElement, within);

/** @param {string} name @returns {HTMLElement} a copy of what the template holds */
function copy(name) {
  const element = find(`template#${name}`, HTMLTemplateElement).content.firstElementChild?.cloneNode(true);
  if (!(element instanceof HTMLElement)) throw new Error(`the template ${name} is empty`);
  return element;
}

/** A text that the reader must see, until he dismisses it; the same one only once. @param {string} text */
function notice(text) {
  const notices = find("#notices", HTMLElement);
  if ([...notices.children].some((shown) => shown.querySelector("span")?.textContent === text)) return;
  const element = copy("notice");
  find("span", HTMLElement, element).textContent = text;
  find("button", HTMLButtonElement, element).onclick = () => element.remove();
  notices.append(element);
}

/** @param {"connecting" | "connected" | "offline"} state @param {string} [why] */
function show(state, why = "") {
  const element = find("#state", HTMLElement);
  if (element.dataset.state !== state) element.dataset.state = state;
  find("#state-word", HTMLElement).textContent = state;
  find("#state-why", HTMLElement).textContent = why;
}

// ---------------------------------------------------------------------------------------------- what the browser keeps

/** What could not be kept, where the browser refuses to: it lasts as long as the page. @type {Map<string, string>} */
const memory = new Map();

/** @template Value @param {string} key @param {Value} otherwise @returns {Value} */
function recall(key, otherwise) {
  try {
    const text = memory.get(key) ?? localStorage.getItem(key);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** @param {string} key @param {unknown} value */
function remember(key, value) {
  const text = JSON.stringify(value);
  try {
    localStorage.setItem(key, text);
    memory.delete(key);
  } catch {
    memory.set(key, text);
    notice("This browser keeps nothing for this page: receipts that are still queued are lost when it is closed.");
  }
}

/** A UUID, also on a page without TLS, where `crypto.randomUUID` is not there. */
function newDevice() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (Number(bytes[6]) & 0x0f) | 0x40;
  bytes[8] = (Number(bytes[8]) & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

function ownDevice() {
  const name = recall("pere.device", "") || newDevice();
  remember("pere.device", name);
  return name;
}

/** @param {string | null} given @returns {string | null} */
function tabToken(given) {
  try {
    if (given) sessionStorage.setItem("pere.token", given);
    return given || sessionStorage.getItem("pere.token");
  } catch {
    return given;
  }
}

const query = new URLSearchParams(location.search);
/** A token that came in the address stays with this tab, and out of sight. Without one the browser may have a cookie of its own. */
const token = tabToken(query.get("token"));
if (query.has("token")) {
  query.delete("token");
  history.replaceState(null, "", `?${query}`);
}
const channel = query.get("channel") || "orders";
const device = query.get("device") || ownDevice();
const auto = query.get("auto") === "1";

const OUTBOX = "pere.outbox";
const OUTCOMES = `pere.outcomes.${device}`;

/** Receipts that the service has not answered for, in the order in which they were given; of every device of this browser. */
const outbox = () => recall(OUTBOX, /** @type {Receipt[]} */ ([]));
/** What became of this device's events, by id. */
const outcomes = () => new Map(recall(OUTCOMES, /** @type {[string, Outcome][]} */ ([])));

/** @param {string} id @param {Outcome} outcome */
const conclude = (id, outcome) => remember(OUTCOMES, [...outcomes().set(id, outcome)].slice(-OUTCOMES_MAX));

// ------------------------------------------------------------------------------------------------------------- receipts

let sending = false;
let failures = 0;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let again;

/** Longer each time, up to half a minute, and never the same for two. @param {number} times how often it went wrong */
const pauseMs = (times) => Math.min(30_000, 500 * 2 ** times) * (0.5 + Math.random() / 2);

/** Gives a word on an event: queues it, shows it and sends it. @param {Card} card @param {Word} status @param {string} [detail] */
function give({ id, channel }, status, detail) {
  const at = new Date().toISOString();
  remember(OUTBOX, [...outbox(), { channel, device, event: id, status, ...(detail ? { detail } : {}), at }]);
  if (status !== "received") conclude(id, { status });
  render();
  void send();
}

/** Whether the service knows this page by the device's name: with a token it is the token's. */
let isKnown = false;

/** Receipts that this page may give: a token speaks for its own device alone, and what another one queued waits for its page. */
const own = () => outbox().filter((receipt) => receipt.device === device);

/** Sends what this device has queued, until nothing is or the service is away. */
async function send() {
  if (sending || !isKnown) return;
  sending = true;
  clearTimeout(again);
  try {
    for (let [first] = own(); first; [first] = own()) {
      const to = first.channel;
      await sendBatch(own().filter(({ channel }) => channel === to));
      render();
    }
    failures = 0;
  } catch {
    again = setTimeout(send, pauseMs(++failures));
  } finally {
    sending = false;
  }
}

/**
 * Sends receipts of one channel and strikes out what was answered for.
 * @param {Receipt[]} queued
 * @throws {Error} when there was no answer that counts: they stay queued
 */
async function sendBatch(queued) {
  const batch = queued.slice(0, BATCH_MAX);
  const response = await fetch(`feedback/${encodeURIComponent(batch[0]?.channel ?? "")}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) },
    body: JSON.stringify(batch.map(({ channel: _, ...receipt }) => receipt)),
    signal: AbortSignal.timeout(REQUEST_MS_MAX),
  });
  // Signing in again, or waiting, may still help; and an answer without JSON is not from the service but from something before it.
  if (response.status >= 500 || [401, 408, 429].includes(response.status)) throw new Error(`${response.status}`);
  /** @type {{ rejected?: { index: number, reason: string }[], detail?: string }} */
  const answer = await response.json();
  if (response.ok && !answer.rejected) throw new Error("not an answer to receipts");
  const refused = batch.map((_, index) => ({ index, reason: answer.detail ?? `status ${response.status}` }));
  for (const { index, reason } of answer.rejected ?? refused) {
    const receipt = batch[index];
    if (receipt?.device === device) conclude(receipt.event, { status: "rejected", why: reason });
  }
  const key = (/** @type {Receipt} */ { device, event, status }) => `${device} ${event} ${status}`;
  const answered = new Set(batch.map(key));
  remember(
    OUTBOX,
    outbox().filter((receipt) => !answered.has(key(receipt))),
  );
}

// ---------------------------------------------------------------------------------------------------------------- cards

/** Newest first. @type {Card[]} */
const cards = [];

/** @param {Outcome | undefined} outcome @param {boolean} queued @returns {[state: string, text: string]} */
function receiptText(outcome, queued) {
  if (outcome?.status === "rejected") return ["rejected", `rejected: ${outcome.why}`];
  const word = outcome?.status ?? "received";
  return queued ? ["queued", `queued: ${word}`] : [word, word];
}

/** Brings every card, the summary and the title to what the browser keeps. */
function render() {
  const concluded = outcomes();
  const queue = outbox();
  const queued = new Set(queue.filter((receipt) => receipt.device === device).map(({ event }) => event));
  let open = 0;
  for (const { id, item } of cards) {
    const outcome = concluded.get(id);
    const [state, text] = receiptText(outcome, queued.has(id));
    const receipt = find(".receipt", HTMLElement, item);
    if (receipt.textContent !== text) receipt.textContent = text;
    item.dataset.receipt = state;
    find(".answer", HTMLElement, item).hidden = outcome !== undefined;
    if (!outcome) open++;
  }
  find("#nothing", HTMLElement).hidden = cards.length > 0;
  const parts = [`${cards.length} ${cards.length === 1 ? "event" : "events"}`, `${open} to answer`];
  if (queue.length > 0) parts.push(`${queue.length} ${queue.length === 1 ? "receipt" : "receipts"} waiting to be sent`);
  const summary = find("#summary", HTMLElement);
  if (summary.textContent !== parts.join(" · ")) summary.textContent = parts.join(" · ");
  document.title = `${open > 0 ? `(${open}) ` : ""}${channel} – PERE device`;
}

/** @param {PushedEvent} event @returns {HTMLElement} */
function fill(event) {
  const item = copy("card");
  item.id = `event-${event.id}`;
  const title = find("h2", HTMLElement, item);
  title.id = `title-${event.id}`;
  title.textContent = event.type ?? "event";
  find("article", HTMLElement, item).setAttribute("aria-labelledby", title.id);
  find("code", HTMLElement, item).textContent = event.id;
  const time = find("time", HTMLTimeElement, item);
  time.dateTime = event.at;
  time.textContent = new Date(event.at).toLocaleString();
  find("pre", HTMLElement, item).textContent = JSON.stringify(event.data, null, 2);
  return item;
}

/** An event is here. One that was seen before, or answered, is not shown again. @param {PushedEvent} event */
function arrive(event) {
  if (cards.some(({ id }) => id === event.id) || outcomes().has(event.id)) return;
  const item = fill(event);
  const card = { id: event.id, channel: event.channel, item };
  /** @param {"done" | "failed"} status */
  const finish = (status) => {
    if (outcomes().has(card.id)) return;
    const hadFocus = item.contains(document.activeElement);
    give(card, status, input("", item).value.trim());
    // The button that was pressed is gone now.
    if (hadFocus) find("article", HTMLElement, item).focus();
  };
  for (const status of /** @type {const} */ (["done", "failed"])) {
    const button = find(`button.${status}`, HTMLButtonElement, item);
    button.setAttribute("aria-describedby", `title-${event.id}`);
    button.onclick = () => finish(status);
  }
  cards.unshift(card);
  events.prepend(item);
  if (cards.length > CARDS_MAX) {
    const concluded = outcomes();
    const answered = cards.findLastIndex(({ id }) => concluded.has(id));
    for (const { item } of cards.splice(answered, 1)) item.remove();
  }
  give(card, "received");
  if (auto) setTimeout(() => finish("done"), 300 + Math.random() * 700);
}

// ------------------------------------------------------------------------------------------------------------- the feed

/** @type {WebSocket | undefined} */
let socket;
let heardAt = 0;
let losses = 0;
let why = "";
/** @type {ReturnType<typeof setTimeout> | undefined} */
let reconnect;

/** Parses a message; a number that JavaScript would round (an order's number of 20 digits) keeps its own digits. */
const exact = (/** @type {string} */ text) => {
  const { rawJSON } = /** @type {{ rawJSON?: (text: string) => unknown }} */ (/** @type {unknown} */ (JSON));
  /** @type {(key: string, value: unknown, context?: { source?: string }) => unknown} */
  const keep = (_, value, context) =>
    typeof value === "number" && context?.source && context.source !== `${value}` && rawJSON
      ? rawJSON(context.source)
      : value;
  return JSON.parse(text, /** @type {(key: string, value: unknown) => unknown} */ (keep));
};

const BYE = { drain: "the service is restarting", busy: "the service is busy", expired: "the token has expired" };

/** What the service says for itself. @param {{ pere: string, [name: string]: string }} message */
function hear({ pere, channel, after, from, reason = "", detail, device: name }) {
  if (pere === "ready") {
    // A token says who its bearer is.
    if (name && name !== device) {
      query.set("device", name);
      return location.replace(`?${query}`);
    }
    losses = 0;
    why = "";
    isKnown = true;
    show("connected");
    void send();
  } else if (pere === "gap")
    notice(`Events on ${channel} were lost: after ${after} and before ${from} they are no longer kept.`);
  else if (pere === "bye") why = Object.entries(BYE).find(([name]) => name === reason)?.[1] ?? reason;
  else if (pere === "error") notice(`The service says: ${detail}`);
}

function connect() {
  clearTimeout(reconnect);
  if (losses === 0) show("connecting");
  const url = new URL(`feed/${encodeURIComponent(channel)}`, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.searchParams.set("device", device);
  const opened = new WebSocket(url, token ? ["pere.v1", `pere.token.${token}`] : []);
  socket = opened;
  heardAt = Date.now();
  opened.onmessage = ({ data }) => {
    if (opened !== socket) return;
    heardAt = Date.now();
    const message = exact(data);
    if ("pere" in message) hear(message);
    else arrive(message);
  };
  let wasOpen = false;
  opened.onopen = () => (wasOpen = true);
  opened.onclose = () =>
    opened === socket && (wasOpen ? lose() : void refused().then((no) => opened === socket && lose(no)));
}

/**
 * Why the service does not let this page in: a browser keeps that of a socket to itself, so the same is asked without one. No and no again
 * is final; everything else passes. @returns {Promise<string>} "" when nothing speaks against another try
 */
async function refused() {
  try {
    const response = await fetch(`feed/${encodeURIComponent(channel)}?${new URLSearchParams({ device })}`, {
      headers: { Accept: "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) },
      signal: AbortSignal.timeout(REQUEST_MS_MAX),
    });
    if (response.status !== 401 && response.status !== 403) return "";
    const { detail = "" } = await response.json();
    return detail || `status ${response.status}`;
  } catch {
    return "";
  }
}

/** The feed is gone, or is given up; another one is opened in a while, unless the service said no. */
function lose(no = "") {
  const gone = socket;
  socket = undefined;
  gone?.close();
  show("offline", no || why || (navigator.onLine ? "the service can't be reached" : "there is no network"));
  clearTimeout(reconnect);
  if (no) return;
  reconnect = setTimeout(connect, pauseMs(losses++));
}

function start() {
  input("[name=channel]").value = channel;
  input("[name=device]").value = device;
  input("[name=auto]").checked = auto;
  find("#channel-name", HTMLElement).textContent = channel;
  find("#device-name", HTMLElement).textContent = device;
  render();
  if (!settings.checkValidity()) {
    show("offline", "the channel's or the device's name is not one");
    settings.reportValidity();
    return;
  }
  addEventListener("offline", () => lose());
  addEventListener("online", () => {
    losses = failures = 0;
    if (socket?.readyState !== WebSocket.OPEN) connect();
    void send();
  });
  // Another tab gave a receipt, or had one answered.
  addEventListener("storage", render);
  setInterval(() => {
    if (socket?.readyState !== WebSocket.OPEN) return;
    const quietMs = Date.now() - heardAt;
    if (quietMs > DEAD_MS) lose();
    else if (quietMs > QUIET_MS) socket.send("[]");
  }, QUIET_MS / 3);
  connect();
}

start();
