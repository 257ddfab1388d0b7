/**
 * Storage for what must survive a restart: in a browser's `localStorage`, or in a file.
 */
import { isObject, jsonOf } from "./values.ts";

/** Where a device stores what must survive a restart: its outbox and the events that it has finished. Any key-value store of strings will do. */
export interface DeviceStorage {
  get(name: string): string | null | undefined | Promise<string | null | undefined>;
  set(name: string, text: string): unknown;
}

/** The browser's `localStorage`; null: there is none. @throws the browser's error when it does not allow storage */
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
        return null; // Without access, nothing was stored.
      }
    },
    set(name, text) {
      const target = store ?? localStore();
      if (!target) throw new Error("there is no localStorage here; pass another storage");
      target.setItem(name, text);
    },
  };
}

/** The part of `node:fs/promises` that is used here. Bun, Node and Deno have it. */
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

/** The promise's value; null when there is no such file. */
const unlessMissing = <Value>(value: Promise<Value>): Promise<Value | null> =>
  value.catch((error: { code?: string }) => {
    if (error.code !== "ENOENT") throw error;
    return null;
  });

/** Symbolic links that are followed in a row. */
const LINKS_MAX = 20;

/** The file that a path leads to, after symbolic links, and its mode. @throws Error when it is a folder, a device or the like */
async function targetOf({ readlink, stat }: Files, path: string): Promise<{ path: string; mode: number }> {
  let target = path;
  for (let count = 0; count < LINKS_MAX; count++) {
    const to = await readlink(target).catch(() => null);
    if (to === null) break;
    target = /^([/\\]|[A-Za-z]:)/.test(to) ? to : `${target.replace(/[^/\\]*$/, "")}${to}`;
  }
  const found = await unlessMissing(stat(target));
  if (found && !found.isFile()) throw new Error(`${path} is not a file; name a file, or a new one`);
  return { path: target, mode: found ? found.mode & 0o777 : 0o600 };
}

/**
 * A file, on Bun, Node and Deno, for one process at a time. Each write goes to a new file that is synced and then renamed, so the file is complete at
 * any moment. A symbolic link stays one. Anything that is not a file of this kind is refused, and not overwritten.
 */
export function fileStorage(path: string): DeviceStorage {
  // A variable and not a literal, so that bundlers for browsers ignore the import.
  const module = "node:fs/promises";
  const files = import(module) as Promise<Files>;
  files.catch(() => {}); // Reading and writing report it.
  let texts: Record<string, unknown> = {};
  let writing: Promise<void> = Promise.resolve();
  const read = async (): Promise<Record<string, unknown>> => {
    const target = await targetOf(await files, path);
    const text = (await unlessMissing((await files).readFile(target.path, "utf8"))) ?? "";
    if (text.trim() === "") return {};
    const found = jsonOf(text);
    if (!isObject(found) || !Object.values(found).every((value) => typeof value === "string"))
      throw new Error(`${path} is not a state file of this SDK; name another file`);
    return found;
  };
  const write = async (): Promise<void> => {
    const { open, rename, rm } = await files;
    const target = await targetOf(await files, path);
    const fresh = `${target.path}.new`;
    await rm(fresh, { force: true });
    const file = await open(fresh, "wx", target.mode);
    try {
      await file.writeFile(JSON.stringify(texts));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(fresh, target.path);
  };
  return {
    async get(name) {
      texts = { ...(await read()), ...texts };
      const text = texts[name];
      return typeof text === "string" ? text : null;
    },
    set(name, text) {
      texts[name] = text;
      writing = writing.then(write, write);
      return writing;
    },
  };
}
