/**
 * Storage for what must survive a restart: in a browser's `localStorage`, or in a file.
 */
import { isObject, jsonOf } from "./values.ts";

/** Where a device stores what must survive a restart: its outbox and the events that it has finished. Any key-value store of strings will do. */
export interface DeviceStorage {
  get(name: string): string | null | undefined | Promise<string | null | undefined>;
  set(name: string, text: string): unknown;
}

/** The browser's `localStorage`, as far as there is one. @throws what a browser throws that allows none */
const localStore = (): Pick<Storage, "getItem" | "setItem"> | null => globalThis.localStorage ?? null;

/**
 * The browser's `localStorage`. Where a browser allows no storage, the listener still works, and `status().error` says so.
 * @param store another `Storage`, such as `sessionStorage`
 */
export function browserStorage(store?: Pick<Storage, "getItem" | "setItem">): DeviceStorage {
  return {
    get(name) {
      try {
        return (store ?? localStore())?.getItem(name);
      } catch {
        return null; // What allows no look has kept nothing.
      }
    },
    set(name, text) {
      const kept = store ?? localStore();
      if (!kept) throw new Error("this browser keeps nothing");
      kept.setItem(name, text);
    },
  };
}

/** What is used here of Bun's, Node's and Deno's files. */
interface Files {
  readFile(path: string, encoding: "utf8"): Promise<string>;
  readlink(path: string): Promise<string>;
  stat(path: string): Promise<{ isFile(): boolean; mode: number }>;
  rename(from: string, to: string): Promise<void>;
  rm(path: string, options: { force: boolean }): Promise<void>;
  open(
    path: string,
    flags: string,
    mode: number,
  ): Promise<{ writeFile(text: string): Promise<void>; sync(): Promise<void>; close(): Promise<void> }>;
}

/** What a promise gives, or null where there is no such file. */
const unlessMissing = <Value>(asked: Promise<Value>): Promise<Value | null> =>
  asked.catch((error: { code?: string }) => {
    if (error.code !== "ENOENT") throw error;
    return null;
  });

/** Links in a row that lead to a file. */
const LINKS_MAX = 20;

/** The file that a path leads to, by links too, which stay what they are; and its mode. @throws Error: it is a folder, a device or the like */
async function placeOf({ readlink, stat }: Files, path: string): Promise<{ path: string; mode: number }> {
  let place = path;
  for (let count = 0; count < LINKS_MAX; count++) {
    const to = await readlink(place).catch(() => null);
    if (to === null) break;
    place = /^([/\\]|[A-Za-z]:)/.test(to) ? to : `${place.replace(/[^/\\]*$/, "")}${to}`;
  }
  const found = await unlessMissing(stat(place));
  if (found && !found.isFile()) throw new Error(`${path} is no file`);
  return { path: place, mode: found ? found.mode & 0o777 : 0o600 };
}

/**
 * A file, on Bun, Node and Deno, for one process at a time. Each write goes to a new file that is synced and then renamed, so the file is complete at
 * any moment. A symbolic link stays one. Anything that is not a file of this kind is refused, and not overwritten.
 */
export function fileStorage(path: string): DeviceStorage {
  // The name is no literal, so that bundlers for browsers leave it alone.
  const module = "node:fs/promises";
  const files = import(module) as Promise<Files>;
  files.catch(() => {}); // Told to whoever reads or writes.
  let kept: Record<string, unknown> = {};
  let writing: Promise<void> = Promise.resolve();
  const read = async (): Promise<Record<string, unknown>> => {
    const place = await placeOf(await files, path);
    const text = (await unlessMissing((await files).readFile(place.path, "utf8"))) ?? "";
    if (text.trim() === "") return {};
    const found = jsonOf(text);
    if (!isObject(found) || !Object.values(found).every((value) => typeof value === "string"))
      throw new Error(`${path} holds something else`);
    return found;
  };
  const write = async (): Promise<void> => {
    const { open, rename, rm } = await files;
    const place = await placeOf(await files, path);
    const fresh = `${place.path}.new`;
    await rm(fresh, { force: true });
    const file = await open(fresh, "wx", place.mode);
    try {
      await file.writeFile(JSON.stringify(kept));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(fresh, place.path);
  };
  return {
    async get(name) {
      kept = { ...(await read()), ...kept };
      const text = kept[name];
      return typeof text === "string" ? text : null;
    },
    set(name, text) {
      kept[name] = text;
      writing = writing.then(write, write);
      return writing;
    },
  };
}
