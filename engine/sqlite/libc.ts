/**
 * Two functions of the C library that Bun lacks: a lock on an open file, and the error of the last system call, which SQLite does not expose. Linux
 * only.
 */
import { dlopen, read } from "bun:ffi";

/** Where the C library is: glibc, musl. */
const LIBRARIES = ["libc.so.6", `/lib/ld-musl-${process.arch === "arm64" ? "aarch64" : "x86_64"}.so.1`];

export interface Libc {
  /** `flock(2)`; 0: success. */
  flock(file: number, how: number): number;
  /** `errno(3)`; call right after the failure. */
  errno(): number;
}

function load(): Libc | null {
  if (process.platform !== "linux") return null;
  for (const library of LIBRARIES)
    try {
      const { symbols } = dlopen(library, {
        flock: { args: ["i32", "i32"], returns: "i32" },
        __errno_location: { args: [], returns: "ptr" },
      });
      return {
        flock: (file, how) => symbols.flock(file, how),
        errno: () => read.i32(symbols.__errno_location()!, 0),
      };
    } catch {
      // Another C library.
    }
  return null;
}

let loaded: Libc | null | undefined;
/** Null: not available here. */
export const libc = (): Libc | null => (loaded === undefined ? (loaded = load()) : loaded);
