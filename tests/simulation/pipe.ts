/**
 * One open stream or socket between the service and a client, whose bytes are late, break off anywhere, and stall. A writer is told to wait when a
 * little has gathered.
 */
import { type Clock, Machine, PlainResponse } from "./clock.ts";
import type { Network } from "./line.ts";

/** Bytes on their way at which a writer is told to wait. */
const PUSH_BACK_BYTES = 2_048;

/** What answers requests. */
export interface Host {
  readonly machine: Machine;
  readonly isUp: boolean;
  /** @param accept takes a socket's handlers, where the request asks for one */
  handle(request: Request, accept: (data: SocketHandlers) => void): Promise<PlainResponse | undefined>;
}

/** What a server calls for a socket: the part of `SocketData` that matters here. */
export interface SocketHandlers {
  open(socket: never): void;
  message(socket: never, message: string): void;
  drain(): void;
  close(): void;
}

/** Something that was delivered to a client, for whoever checks. */
export interface Heard {
  /** When it was asked for, as the service saw it. */
  readonly openedAt: number;
  /** When the service wrote it. */
  readonly wroteAt: number;
  readonly text: string;
}

interface Piece {
  readonly bytes: Uint8Array | string;
  readonly wroteAt: number;
}

/** One open stream or socket, from the service to a client. */
export class Pipe {
  readonly client: string;
  readonly host: Host;
  openedAt = 0;
  isCut = false;
  /** Closed by the service, when all before it was read. */
  onEnd: () => void = () => {};
  /** Broken off. */
  onCut: () => void = () => {};
  onPiece: (piece: Piece) => void = () => {};
  /** The service learns that its reader is gone. */
  onGone: () => void = () => {};
  readonly #clock: Clock;
  readonly #network: Network;
  readonly #queue: (Piece | "end")[] = [];
  #isDelivering = false;
  #waiting = 0;
  #drained: (() => void) | null = null;

  constructor(clock: Clock, network: Network, client: string, host: Host) {
    this.#clock = clock;
    this.#network = network;
    this.client = client;
    this.host = host;
  }

  get isBehind(): boolean {
    return this.#waiting > PUSH_BACK_BYTES;
  }

  /** Resolves when the reader has read. */
  drained(then: () => void): void {
    this.#drained = then;
  }

  /** @returns false: nobody reads this any more, and the service knows */
  send(bytes: Uint8Array | string): boolean {
    if (this.isCut) return !this.#isGone;
    const piece = { bytes, wroteAt: this.#clock.now };
    this.#waiting += bytes.length;
    this.#queue.push(piece);
    this.#deliver();
    return true;
  }

  end(): void {
    this.#queue.push("end");
    this.#deliver();
  }

  #isGone = false;

  #deliver(): void {
    if (this.#isDelivering || this.#queue.length === 0) return;
    this.#isDelivering = true;
    const stalledMs = Math.max(0, this.#network.stalledUntil(this.client) - this.#clock.now);
    this.#clock.set(
      () => {
        this.#isDelivering = false;
        if (this.isCut) return;
        if (this.#network.stalledUntil(this.client) > this.#clock.now) return this.#deliver();
        const piece = this.#queue.shift()!;
        if (piece === "end") return this.onEnd();
        this.#waiting -= piece.bytes.length;
        const cutAt = this.#network.cutWithin(piece.bytes);
        if (cutAt === null) this.onPiece(piece);
        else {
          if (typeof piece.bytes !== "string") this.onPiece({ ...piece, bytes: piece.bytes.subarray(0, cutAt) });
          this.cut();
        }
        if (this.#waiting === 0) this.#drain();
        this.#deliver();
      },
      stalledMs + this.#network.delayMs() / 4,
      undefined,
    );
  }

  #drain(): void {
    const then = this.#drained;
    this.#drained = null;
    if (then && this.host.isUp) this.#clock.as(this.host.machine, then);
  }

  /** Breaks. Its reader knows at once; the service learns it after a while, which may be long. */
  cut(goneMs = this.#network.goneMs()): void {
    if (this.isCut) return;
    this.isCut = true;
    this.#clock.note(`a line of ${this.client} breaks`);
    this.onCut();
    this.#network.pipes.delete(this);
    this.#clock.set(
      () => {
        this.#isGone = true;
        this.onGone();
        this.#drain();
      },
      goneMs,
      this.host.machine,
    );
  }
}
