/**
 * The page's settings: channel, device, token, and whether it answers automatically.
 *
 * They come from the URL. The defaults are the channel `orders` and a UUID that this browser keeps. A token is removed from the URL at once: it is
 * kept with the tab, in `sessionStorage`, and sent in a header. The installed app starts without such a tab: the settings that it was installed with,
 * including the token, are kept in `localStorage` as long as it is installed.
 *
 * In a browser that stores nothing, the page is a new device each time.
 */

/** `channel` may be several, comma separated. Without a token the browser may have a cookie of its own. */
export interface Setup {
  readonly channel: string;
  readonly device: string;
  readonly token: string | null;
  /** Answers `done` automatically. */
  readonly auto: boolean;
  /** It was started from a home screen. */
  readonly isInstalled: boolean;
}

export const CHANNELS = "[A-Za-z0-9][A-Za-z0-9._:~,\\-]{0,2079}";
export const DEVICE = "[A-Za-z0-9._:~\\-]{1,128}";
const TOKEN = "[A-Za-z0-9._\\-]+";
const isLike = (pattern: string, text: string): boolean => new RegExp(`^(${pattern})$`).test(text);

/** The URL of the service: the folder of the page. */
export const HERE = new URL(".", location.href).href;

const INSTALLED = "pere.installed";

/** Whether the browser stores data for this page. */
export function isKeeping(): boolean {
  try {
    localStorage.setItem("pere.kept", "1");
    return localStorage.getItem("pere.kept") === "1";
  } catch {
    return false;
  }
}

/** @returns null also if the browser refuses access to storage */
function recall(store: "localStorage" | "sessionStorage", key: string): string | null {
  try {
    return globalThis[store].getItem(key) ?? null;
  } catch {
    return null;
  }
}

function remember(store: "localStorage" | "sessionStorage", key: string, text: string): void {
  try {
    globalThis[store].setItem(key, text);
  } catch {
    // Then it lasts as long as the page.
  }
}

/** A UUID of version 4, also on a page without TLS, where `crypto.randomUUID` is missing. */
function newDevice(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

function ownDevice(): string {
  const kept = recall("localStorage", "pere.device");
  const name = kept !== null && isLike(DEVICE, kept) ? kept : newDevice();
  remember("localStorage", "pere.device", name);
  return name;
}

function tabToken(given: string | null): string | null {
  const token = given?.trim();
  if (token) remember("sessionStorage", "pere.token", token);
  return token || recall("sessionStorage", "pere.token");
}

/** The settings that the app was installed with, unless the URL has settings. */
function installedQuery(query: URLSearchParams): URLSearchParams {
  if (["channel", "device", "token", "auto"].some((name) => query.has(name))) return query;
  return new URLSearchParams(`installed&${recall("localStorage", INSTALLED) ?? ""}`);
}

/** Reads the settings from the URL, and removes the token from it. */
export function readSetup(): Setup {
  const asked = new URLSearchParams(location.search);
  const isInstalled = asked.has("installed");
  const query = isInstalled ? installedQuery(asked) : asked;
  const setup = {
    channel: query.get("channel") || "orders",
    device: query.get("device") || ownDevice(),
    token: tabToken(query.get("token")),
    auto: query.get("auto") === "1",
    isInstalled,
  };
  query.delete("token");
  const rest = String(query);
  if (`?${rest}` !== location.search) history.replaceState(null, "", rest === "" ? location.pathname : `?${rest}`);
  if (isInstalled) keepSetup(setup);
  return setup;
}

/** Stores the settings for the installed app. */
export function keepSetup({ channel, device, token, auto }: Setup): void {
  const query = { channel, device, ...(token === null ? {} : { token }), ...(auto ? { auto: "1" } : {}) };
  remember("localStorage", INSTALLED, String(new URLSearchParams(query)));
}

/** Puts the device's name into the URL. */
export function nameInAddress(device: string): void {
  const query = new URLSearchParams(location.search);
  if (query.get("device") === device) return;
  query.set("device", device);
  history.replaceState(null, "", `?${query}`);
}

/** Why these settings are invalid; "": they are valid. */
export function faultOf({ channel, device, token }: Setup): string {
  if (!isLike(CHANNELS, channel)) return "invalid channel name in the address";
  if (token !== null && !isLike(TOKEN, token)) return "invalid token: a token has only letters, digits and . _ -";
  return isLike(DEVICE, device) ? "" : "invalid device name: use 1 to 128 letters, digits and . _ : ~ -";
}
