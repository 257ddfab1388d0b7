/**
 * The service that is attacked, and what must hold of it afterwards: it answered nothing with a 5xx, it lives and is ready, its log has whole
 * JSON lines only, and its heap is where it was.
 */
import { afterAll, beforeAll, expect } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type Answer, ask, give, listen, type Process, push, spawn, temporary, until } from "../support/harness.ts";

export const MEBIBYTE = 1024 * 1024;

/** What the heap may have more than before: code that was compiled since. It grows by some 3 MiB in the first group, and no more. */
const HEAP_BYTES_MORE = 6 * MEBIBYTE;

export const JSON_TYPE = "application/json";

export const LINES = "application/x-ndjson";

export const FORM = "application/x-www-form-urlencoded";

export const POLL = { Accept: JSON_TYPE };

/** The service under attack: in a process of its own, one for each file of tests. */
export let pere: Process;

let heapFile: string;

let log = "";

let heapBefore: number;

/** Starts the service before the tests of a file, and stops it behind them. */
export function putUnderAttack(): void {
  beforeAll(begin);
  afterAll(() => pere.end("SIGTERM"));
}

async function begin(): Promise<void> {
  const folder = temporary();
  heapFile = join(folder, "heap");
  log = "";
  broken.length = 0;
  const env = { PERE_DB: join(folder, "pere.db"), PERE_HOOKS_ALLOW: "127.0.0.0/8", HEAP_FILE: heapFile };
  pere = await spawn(env, [], [], ["--preload", join(import.meta.dir, "..", "support", "witness.ts")]);
  void (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of pere.child.stderr) log += decoder.decode(chunk, { stream: true });
  })();
  // Once along every way, so that what is loaded and compiled at first use counts as having been there.
  const stream = await listen(`${pere.url}/feed/warm?device=d`);
  const event = await push(pere.url, "warm", 1);
  await give(pere.url, "warm", event, "d", "done");
  await ask(`${pere.url}/events/warm/${event}/receipts`, { headers: { Accept: "text/csv" } });
  stream.close();
  heapBefore = await heap();
}

/** Bytes on the service's heap when all garbage is collected. */
export async function heap(): Promise<number> {
  // Whole ones: the file is there before its first line is.
  const lines = (): string[] => {
    try {
      return readFileSync(heapFile, "utf8").split("\n").slice(0, -1);
    } catch {
      return [];
    }
  };
  const { length } = lines();
  pere.child.kill("SIGUSR2");
  await until(() => lines().length > length, "a witness of the heap");
  return Number(lines().at(-1));
}

/** Answers that no input may bring about. Bun's own 505, to a version of HTTP that it does not speak, is none. */
export const broken: string[] = [];

/** An answer to bad input: 2xx, or 4xx with a sentence. */
function holds(answer: Answer, what: string): Answer {
  if (answer.status >= 500 || answer.status < 200) broken.push(`${answer.status} ${what}`);
  expect(answer.status, what).toBeWithin(200, 500);
  if (answer.status >= 400) {
    expect(answer.headers.get("content-type"), what).toBe("application/problem+json");
    expect(answer.body.status, what).toBe(answer.status);
    expect(answer.body.detail, what).toMatch(/\w+ \w+/);
  }
  return answer;
}

/** The same, by a path and its headers. */
export const tried = async (path: string, init: Parameters<typeof ask>[1] = {}): Promise<Answer> =>
  holds(await ask(`${pere.url}${path}`, init), `${init.method ?? ""} ${path.slice(0, 200)}`);

/** The service after an attack: nothing is left of it. */
export async function unharmed(): Promise<void> {
  expect(broken).toEqual([]);
  expect(pere.child.exitCode).toBeNull();
  expect((await ask(`${pere.url}/ready`)).body.status).toBe("ready");
  for (const line of log.split("\n").slice(0, -1)) expect(JSON.parse(line)).toBeObject();
  expect(log.slice(log.lastIndexOf("\n") + 1)).toBe("");
  expect(log).not.toContain('"level":"error"');
  let left = 0;
  await until(
    async () => (left = (await heap()) - heapBefore) < HEAP_BYTES_MORE,
    () => `the heap to be as it was; ${left} bytes more`,
  );
}

/** The data of an event in the text that a reader got: the publisher's bytes. */
export const dataIn = (text: string): string => text.slice(text.indexOf('"data":') + 7, -1);

export const CHUNKED = "Transfer-Encoding: chunked\r\n";
