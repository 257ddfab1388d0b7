/**
 * The three transports of a feed, as the engine sees them: how entries are framed and written, and how a slow reader shows. They differ
 * in framing only; what is delivered, and when, is decided before they are called.
 *
 * - `EventStream`: Server-Sent Events (WHATWG HTML, section 9.2). The payload is our own envelope around the publisher's bytes, so
 *   an event with line breaks between its tokens takes several `data:` lines, and nothing in it can begin another field.
 * - `Socket`: WebSocket text frames, one JSON object each.
 * - `Poll`: one answer, as soon as there is something to deliver.
 */
import type { ServerWebSocket } from "bun";
import type { Bye, Feed, Wire } from "../feeds/feed.ts";
import { id, parsePosition, type Position, positionsText } from "../model.ts";
import type { Batch, Entry, EntryNote } from "../feeds/log.ts";
import type { Screen } from "../feeds/watch.ts";

/** Roughly how many events one long-poll answer holds: it ends with the read that exceeds this. */
const POLL_EVENTS = 1_000;
/** The same, in characters. */
const POLL_CHARACTERS = 1024 * 1024;

/** Milliseconds after which a reader should reconnect, from and to. Each reader gets its own, so that a thousand do not reconnect at once. */
const RETRY_MS: Record<Bye | "start", readonly [number, number]> = {
  start: [1_000, 4_000],
  renew: [50, 500],
  drain: [250, 1_500],
  expired: [1_000, 4_000],
  busy: [5_000, 20_000],
};

/** A reconnection time in milliseconds, different for each reader. @param random from 0 up to 1 */
export function retryMs(reason: Bye | "start", random: () => number): number {
  const [from, to] = RETRY_MS[reason];
  return Math.round(from + (to - from) * random());
}

/** The first bytes of a stream. No empty line follows, so they belong to the first frame: some clients take a frame without data for an empty event. */
const firstLine = (random: () => number): string => `retry: ${retryMs("start", random)}\n`;

/** The later of two positions of a channel, as texts; the second if they are of different epochs. */
function laterOf(one: string, other: string): string {
  const [a, b] = [parsePosition(one), parsePosition(other)];
  return a && b && a.epoch === b.epoch && a.seq > b.seq ? one : other;
}

/** The body of `pere.shared`. */
const sharedBody = (device: string, addresses: readonly string[]) => ({ device, addresses });

/** The body of `pere.ready`. */
const readyBody = (device: string | null, starts: readonly { channel: string; position: Position }[]) => ({
  device,
  channels: Object.fromEntries(starts.map(({ channel, position }) => [channel, id(position.epoch, position.seq)])),
});
/** The body of `pere.gap`. */
const gapBody = (channel: string, after: Position, from: Position) => ({
  channel,
  after: id(after.epoch, after.seq),
  from: id(from.epoch, from.seq),
});

// --------------------------------------------------------------------------------------------------- Server-Sent Events

/**
 * One frame of an event stream. `data` may hold any characters; each line break in it (CR LF, CR or LF) reaches the reader as LF.
 * @param fields `id` and `event` must not hold line breaks; `parsing.ts` allows none
 */
export function frame(fields: { id?: string; event?: string | null; data: string }): string {
  const { id, event, data } = fields;
  const lines = /[\r\n]/.test(data) ? data.replace(/\r\n|\r|\n/g, "\ndata: ") : data;
  return `${id === undefined ? "" : `id: ${id}\n`}${event ? `event: ${event}\n` : ""}data: ${lines}\n\n`;
}

/**
 * The frames of an entry: one, or two for a receipt that was stored together with the completion of its event, as older versions did. The first of two
 * has the position before the entry: a reader that is cut off between them gets both again.
 * @param at makes the `id:` line for a position in the entry's log
 */
function frames({ id, seq, text, type, note }: Entry, at = (place: string): string => place): string {
  if (note === null) return frame({ id: at(id), event: type, data: text });
  const before = `${id.slice(0, id.lastIndexOf("-"))}-${seq - 1}`;
  const said = text === "" ? "" : frame({ id: at(before), event: type, data: text });
  return said + frame({ id: at(id), event: `pere.${note.kind}`, data: note.text });
}

const utf8 = new TextEncoder();

/** Bun's controller of a stream of `type: "direct"`. `write` returns a promise when the peer reads slowly, and 0 when it is gone. */
export interface DirectController {
  write(chunk: string | Uint8Array): number | Promise<number>;
  /** With an error the connection is cut at once, and unread bytes are lost. */
  close(error?: Error): void;
}

/** How long a peer that does not read may hold a stream that was ended. */
const LINGER_MS = 10_000;

/** Writes the last frame of a stream and closes it. */
export function closeStream(out: DirectController, reason: Bye, random: () => number, lingerMs = LINGER_MS): void {
  const result = out.write(
    `retry: ${retryMs(reason, random)}\n${frame({ event: "pere.bye", data: JSON.stringify({ reason }) })}`,
  );
  if (typeof result === "number") return out.close();
  const timer = setTimeout(() => out.close(new Error("the reader of an ended stream does not read")), lingerMs);
  const read = (): void => {
    clearTimeout(timer);
    out.close();
  };
  result.then(read, read);
}

export class EventStream implements Wire {
  readonly transport = "sse";
  readonly #out: DirectController;
  readonly #random: () => number;
  /** The position in each channel, in the order of the request; the `id:` line holds them all. Null: the feed has one channel. */
  #positions: Map<string, string> | null = null;
  #lastId = "";

  constructor(out: DirectController, random: () => number) {
    this.#out = out;
    this.#random = random;
    out.write(firstLine(random));
  }

  /** The feed's id after one of its channels moved to this position. */
  #id(channel: string, position: string): string {
    this.#positions?.set(channel, position);
    return (this.#lastId = this.#positions ? [...this.#positions.values()].join(".") : position);
  }

  ready(device: string | null, starts: readonly { channel: string; position: Position }[]): void {
    const positions = starts.map(({ channel, position }) => [channel, id(position.epoch, position.seq)] as const);
    if (positions.length > 1) this.#positions = new Map(positions);
    const data = JSON.stringify(readyBody(device, starts));
    this.#out.write(frame({ id: this.#id(...positions[0]!), event: "pere.ready", data }));
  }

  write(channel: string, batch: Batch): Promise<unknown> | undefined {
    const result = this.#out.write(this.#positions ? this.#own(channel, batch.entries) : this.#shared(batch));
    return typeof result === "number" ? undefined : result;
  }

  /** A feed of one channel: the bytes are the same for all followers, and made once. */
  #shared(batch: Batch): Uint8Array {
    this.#lastId = batch.entries.at(-1)!.id;
    batch.encoded ??= utf8.encode(batch.entries.map((entry) => frames(entry)).join(""));
    return batch.encoded as Uint8Array;
  }

  #own(channel: string, entries: readonly Entry[]): string {
    let text = "";
    for (const entry of entries) text += frames(entry, (place) => this.#id(channel, place));
    return text;
  }

  gap(channel: string, after: Position, from: Position): void {
    // A feed may start after the gap that it reports; its position does not move back for that.
    const before = this.#positions?.get(channel) ?? this.#lastId;
    const next = this.#id(channel, laterOf(before, id(from.epoch, from.seq - 1)));
    this.#out.write(frame({ id: next, event: "pere.gap", data: JSON.stringify(gapBody(channel, after, from)) }));
  }

  remind(batch: Batch): Promise<unknown> | undefined {
    const { type, text } = batch.entries[0]!;
    const result = this.#out.write((batch.encoded ??= utf8.encode(frame({ event: type, data: text }))) as Uint8Array);
    return typeof result === "number" ? undefined : result;
  }

  rest(): void {}

  shared(device: string, addresses: readonly string[]): void {
    this.#out.write(frame({ event: "pere.shared", data: JSON.stringify(sharedBody(device, addresses)) }));
  }

  /** A comment, with the new position after entries that were not for this reader, so that it does not ask for them again. */
  beat(positions: readonly Position[]): void {
    const text = positionsText(positions);
    this.#out.write(text === this.#lastId ? ":\n\n" : `:\nid: ${text}\n\n`);
    this.#lastId = text;
  }

  bye(reason: Bye): void {
    closeStream(this.#out, reason, this.#random);
  }
}

/** `GET /watch` as an event stream: only the server's own events, without positions. */
export class WatchStream implements Screen {
  readonly #out: DirectController;
  readonly #random: () => number;

  constructor(out: DirectController, random: () => number) {
    this.#out = out;
    this.#random = random;
    out.write(firstLine(random));
  }

  show(name: string, body: object): Promise<unknown> | undefined {
    const result = this.#out.write(frame({ event: `pere.${name}`, data: JSON.stringify(body) }));
    return typeof result === "number" ? undefined : result;
  }

  beat(): void {
    this.#out.write(":\n\n");
  }

  bye(reason: Bye): void {
    closeStream(this.#out, reason, this.#random);
  }
}

// -------------------------------------------------------------------------------------------------------------- WebSocket

/** The data of an upgraded connection: the handlers that the server calls for it. */
export interface SocketData {
  open(socket: ServerWebSocket<SocketData>): void;
  message(socket: ServerWebSocket<SocketData>, message: string | Buffer): void;
  drain(): void;
  pong(): void;
  close(): void;
}

/** WebSocket close codes (RFC 6455, section 7.4.1, and IANA's registry): reconnect soon, later, or not at all. */
const CLOSE: Record<Bye, number> = { drain: 1012, renew: 1012, busy: 1013, expired: 1008 };

export class Socket implements Wire {
  readonly transport = "websocket";
  readonly #socket: ServerWebSocket<SocketData>;
  readonly #onReady: () => void;
  #drained: (() => void) | undefined;

  /** @param onReady called after the reader got `ready` */
  constructor(socket: ServerWebSocket<SocketData>, onReady: () => void) {
    this.#socket = socket;
    this.#onReady = onReady;
  }

  /** Sends a message of the server's own. */
  say(pere: string, body: object): void {
    this.#socket.send(JSON.stringify({ pere, ...body }));
  }

  ready(device: string | null, starts: readonly { channel: string; position: Position }[]): void {
    this.say("ready", readyBody(device, starts));
    this.#onReady();
  }

  write(_channel: string, { entries }: Batch): Promise<unknown> | undefined {
    let behind = false;
    const socket = this.#socket;
    const send = ({ text, note }: Entry): void => {
      if (text !== "" && socket.send(text) === -1) behind = true;
      if (note !== null && socket.send(`{"pere":"${note.kind}",${note.text.slice(1)}`) === -1) behind = true;
    };
    if (entries.length === 1) send(entries[0]!);
    else socket.cork(() => entries.forEach(send));
    return behind ? new Promise<void>((resolve) => (this.#drained = resolve)) : undefined;
  }

  /** The peer has read what was buffered, or is gone. */
  drained(): void {
    this.#drained?.();
    this.#drained = undefined;
  }

  gap(channel: string, after: Position, from: Position): void {
    this.say("gap", gapBody(channel, after, from));
  }

  remind(batch: Batch): Promise<unknown> | undefined {
    return this.write("", batch);
  }

  rest(): void {}

  shared(device: string, addresses: readonly string[]): void {
    this.say("shared", sharedBody(device, addresses));
  }

  /** Nothing: the server pings. */
  beat(): void {}

  bye(reason: Bye): void {
    this.say("bye", { reason });
    this.#socket.close(CLOSE[reason], reason);
  }
}

// -------------------------------------------------------------------------------------------------------------- long-poll

/** The answer to a long-poll. `gaps` is not empty when requested entries are no longer kept. `notes`: the server's own entries, by kind. */
export interface PollAnswer {
  readonly texts: readonly string[];
  readonly notes: ReadonlyMap<EntryNote["kind"], readonly string[]>;
  readonly last: string;
  readonly gaps: readonly { channel: string; after: string; from: string }[];
  /** Null: the device is connected from one address only. */
  readonly shared: { readonly device: string; readonly addresses: readonly string[] } | null;
}

export class Poll implements Wire {
  readonly transport = "poll";
  /** Resolves once; null: the server is draining or busy. */
  readonly answer: Promise<PollAnswer | null>;
  readonly #texts: string[] = [];
  readonly #notes = new Map<EntryNote["kind"], string[]>();
  readonly #gaps: { channel: string; after: string; from: string }[] = [];
  readonly #settle: (answer: PollAnswer | null) => void;
  #shared: PollAnswer["shared"] = null;
  /** Where it began; null: that is not known yet. */
  #from: string | null = null;
  #feed: Feed | undefined;
  #characters = 0;
  #resting = false;
  #late = false;

  constructor() {
    const { promise, resolve } = Promise.withResolvers<PollAnswer | null>();
    this.answer = promise;
    this.#settle = resolve;
  }

  /** Sets the feed that it answers for. */
  of(feed: Feed): void {
    this.#feed = feed;
  }

  /** The time is up: answers with what there is, once it is known that there is no more. */
  timeUp(): void {
    this.#late = true;
    if (this.#resting) this.#finish();
  }

  /** The store did not answer in time: answers with what there is, or else that the feed is unavailable. */
  giveUp(): void {
    // The position that was reached is an answer too: the next poll continues from there.
    const isFurther = this.#from !== null && positionsText(this.#feed!.positions()) !== this.#from;
    if (this.#hasContent || isFurther) return this.#finish();
    this.#settle(null);
    this.#feed?.stop();
  }

  get #hasContent(): boolean {
    return this.#texts.length + this.#notes.size + this.#gaps.length > 0;
  }

  #finish(): void {
    if (!this.#feed?.open) return;
    const last = positionsText(this.#feed.positions());
    this.#settle({ texts: this.#texts, notes: this.#notes, last, gaps: this.#gaps, shared: this.#shared });
    this.#feed.stop();
  }

  ready(_device: string | null, starts: readonly { readonly position: Position }[]): void {
    this.#from = positionsText(starts.map(({ position }) => position));
  }

  write(_channel: string, { entries }: Batch): undefined {
    for (const { text, note } of entries) {
      if (text !== "") this.#texts.push(text);
      if (note !== null) this.#notes.set(note.kind, [...(this.#notes.get(note.kind) ?? []), note.text]);
      this.#characters += text.length;
    }
    if (this.#resting || this.#texts.length >= POLL_EVENTS || this.#characters >= POLL_CHARACTERS) this.#finish();
  }

  gap(channel: string, after: Position, from: Position): void {
    this.#gaps.push(gapBody(channel, after, from));
  }

  rest(): void {
    this.#resting = true;
    if (this.#late || this.#hasContent) this.#finish();
  }

  /** The answer may have the event already, if the poll still reads the log. */
  remind({ entries }: Batch): undefined {
    const { text } = entries[0]!;
    if (!this.#texts.includes(text)) this.#texts.push(text);
    if (this.#resting) this.#finish();
  }

  beat(): void {}

  shared(device: string, addresses: readonly string[]): void {
    this.#shared = sharedBody(device, addresses);
  }

  /** An expired feed is answered with what there is; temporary trouble with a 503. */
  bye(reason: Bye): void {
    if (reason === "expired") this.#finish();
    else this.#settle(null);
  }
}
