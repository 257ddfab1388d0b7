/**
 * Loaded into a service that tests look at from outside (`bun --preload`): at SIGUSR2 it collects what is garbage, and adds the bytes that are
 * left on its heap to the file `HEAP_FILE`, a line each.
 */
import { heapStats } from "bun:jsc";
import { appendFileSync } from "node:fs";

process.on("SIGUSR2", () => {
  Bun.gc(true);
  // What is closed in this turn is let go of in the next.
  setTimeout(() => {
    Bun.gc(true);
    appendFileSync(process.env.HEAP_FILE!, `${heapStats().heapSize}\n`);
  }, 5);
});
