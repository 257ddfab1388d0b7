/**
 * A thread that holds the feeds which only count. A service on one core gives a hundred thousand deliveries a second and more; read
 * by Bun's own sockets they cost the generator's core as much as the service's. Here a delivery is one `recv` into always the same memory and one look for
 * a byte, about a third less, by the system's own calls (epoll(7), recv(2)). It also keeps that work away from the thread that measures times.
 *
 * It is told what to open, counts marks for each feed in memory that both threads see, and says when all are open, when a wanted
 * number is reached, and which feed was closed. It never reads what is in an event: see `feeds.ts`.
 */
import { dlopen, ptr } from "bun:ffi";

declare var self: Worker;

/** What the thread is to do. */
export interface CounterTask {
  readonly port: number;
  /** A feed's whole request. */
  readonly requests: readonly string[];
  /** Has come when a feed is open. */
  readonly ready: RegExp;
  readonly mark: number;
  /** Feeds being opened at a time. */
  readonly openingMax: number;
  /** `TOTAL`, `WANTED`, `STOP`, `OPENED`, and then a count for each feed. */
  readonly counts: Int32Array<SharedArrayBuffer>;
}

/** What it says: `closed` is the index of a feed. */
export type CounterWord =
  { readonly word: "open" | "reached" | "ended" } | { readonly word: "closed"; readonly index: number };

export const TOTAL = 0;
/** 0: nobody waits. */
export const WANTED = 1;
export const STOP = 2;
export const OPENED = 3;
export const COUNTS = 4;

/** More than one read gives. */
const READ_BYTES = 1024 * 1024;
const READY_MAX = 512;
/** After this the thread looks whether it is to end. */
const LOOK_MS = 20;
/** The thread that measures goes first. */
const NICENESS = 5;
const [AF_INET, SOCK_STREAM_NONBLOCK, SOL_SOCKET, SO_LINGER] = [2, 1 | 0o4000, 1, 13];
const [EPOLL_ADD, EPOLL_MOD, EPOLLIN, EPOLLOUT] = [1, 3, 1, 4];
/** `struct epoll_event` in words of 4 bytes: packed on x86-64 alone. */
const [EVENT_WORDS, EVENT_FILE] = process.arch === "x64" ? [3, 1] : [4, 2];

const open = (library: string) =>
  dlopen(library, {
    socket: { args: ["i32", "i32", "i32"], returns: "i32" },
    setsockopt: { args: ["i32", "i32", "i32", "ptr", "u32"], returns: "i32" },
    connect: { args: ["i32", "ptr", "u32"], returns: "i32" },
    send: { args: ["i32", "ptr", "u64", "i32"], returns: "i32" },
    recv: { args: ["i32", "ptr", "u64", "i32"], returns: "i32" },
    close: { args: ["i32"], returns: "i32" },
    epoll_create1: { args: ["i32"], returns: "i32" },
    epoll_ctl: { args: ["i32", "i32", "i32", "ptr"], returns: "i32" },
    epoll_wait: { args: ["i32", "ptr", "i32", "i32"], returns: "i32" },
    setpriority: { args: ["i32", "i32", "i32"], returns: "i32" },
  }).symbols;

/** Counts until it is told to stop. @throws Error when a socket can't be had */
function count({ port, requests, ready, mark, openingMax, counts }: CounterTask): void {
  const system = open("libc.so.6");
  system.setpriority(0, 0, NICENESS);
  const poll = system.epoll_create1(0);
  // On buffers of their own: the engine may move a small array that has none.
  const address = new Uint8Array(new ArrayBuffer(16));
  address.set([AF_INET, 0, port >> 8, port & 255, 127, 0, 0, 1]);
  const event = new Uint32Array(new ArrayBuffer(16));
  const events = new Uint32Array(new ArrayBuffer(4 * EVENT_WORDS * READY_MAX));
  // One byte more: a mark behind what was read ends every search.
  const bytes = new Uint8Array(new ArrayBuffer(READ_BYTES + 1));
  const at = { address: ptr(address), event: ptr(event), events: ptr(events), bytes: ptr(bytes) };
  const say = (word: CounterWord): void => self.postMessage(word);
  const watch = (operation: number, file: number, interest: number): void => {
    event[0] = interest;
    event[EVENT_FILE] = file;
    system.epoll_ctl(poll, operation, file, at.event);
  };

  const indexOf: number[] = []; // by file
  const opening = new Map<number, string>(); // what came before the feed was open, by file
  const files: number[] = [];
  let stride = 1;

  const openMore = (): void => {
    while (files.length < requests.length && opening.size < openingMax) {
      const file = system.socket(AF_INET, SOCK_STREAM_NONBLOCK, 0);
      if (file < 0) throw new Error("there are no more sockets: raise the limit with ulimit -n");
      indexOf[file] = files.length;
      opening.set(file, "");
      files.push(file);
      system.connect(file, at.address, address.length);
      watch(EPOLL_ADD, file, EPOLLIN | EPOLLOUT);
    }
  };
  const ask = (file: number): void => {
    const request = Buffer.from(requests[indexOf[file]!]!, "latin1");
    system.send(file, ptr(request), request.length, 0);
    watch(EPOLL_MOD, file, EPOLLIN);
  };
  /** How many marks are in what was read. */
  const marks = (from: number, read: number): number => {
    bytes[read] = mark;
    let found = 0;
    for (let index = bytes.indexOf(mark, from); index < read; found++) {
      // Frames are about as long as the one before: looking there first costs a tenth of a search.
      if (index + stride < read && bytes[index + stride] === mark) index += stride;
      else {
        const next = bytes.indexOf(mark, index + 1);
        if (next < read) stride = next - index;
        index = next;
      }
    }
    return found;
  };
  /** Where events begin in what was read, or null when the feed is not open yet. */
  const begins = (file: number, read: number): number | null => {
    const before = opening.get(file);
    if (before === undefined) return 0;
    const text = before + Buffer.from(bytes.buffer, 0, read).toString("latin1");
    const found = ready.exec(text);
    opening.set(file, text);
    if (!found) return null;
    opening.delete(file);
    if (++counts[OPENED]! === requests.length) say({ word: "open" });
    return found.index + found[0].length - before.length;
  };
  const take = (file: number): void => {
    const read = system.recv(file, at.bytes, READ_BYTES, 0);
    if (read <= 0) {
      system.close(file);
      files[indexOf[file]!] = -1;
      return say({ word: "closed", index: indexOf[file]! });
    }
    const from = begins(file, read);
    if (from === null) return;
    const found = marks(from, read);
    counts[COUNTS + indexOf[file]!]! += found;
    counts[TOTAL]! += found;
  };

  openMore();
  while (Atomics.load(counts, STOP) === 0) {
    const many = system.epoll_wait(poll, at.events, READY_MAX, LOOK_MS);
    for (let index = 0; index < many; index++) {
      const file = events[EVENT_WORDS * index + EVENT_FILE]!;
      if (opening.size > 0 && (events[EVENT_WORDS * index]! & EPOLLOUT) !== 0) ask(file);
      else take(file);
    }
    if (files.length < requests.length) openMore();
    const wanted = Atomics.load(counts, WANTED);
    if (wanted > 0 && counts[TOTAL]! >= wanted && Atomics.compareExchange(counts, WANTED, wanted, 0) === wanted)
      say({ word: "reached" });
  }
  // Gone at once, as a device that lost its line, and no port is left waiting for a minute.
  const lingers = new Int32Array(new ArrayBuffer(8));
  lingers[0] = 1;
  for (const file of files) {
    if (file < 0) continue;
    system.setsockopt(file, SOL_SOCKET, SO_LINGER, ptr(lingers), lingers.byteLength);
    system.close(file);
  }
  system.close(poll);
  say({ word: "ended" });
}

if (!Bun.isMainThread) self.onmessage = ({ data }: MessageEvent<CounterTask>) => count(data);
