/**
 * HTTP and WebSocket by the byte: what no client library would send.
 */
import { connect as dial, type Socket } from "node:net";
import { PATIENCE_MS } from "./limits.ts";

/** What came back on a connection, as Latin-1, so that a character is a byte. */
export interface Heard {
  readonly text: string;
  /** The status of the first answer; 0: there was none. */
  readonly status: number;
  /** How many answers there were, interim ones left out. */
  readonly answers: number;
  /** It was closed from the other side, and not only quiet for `quietMs`. */
  readonly closed: boolean;
}

/**
 * Sends parts as they are, and reads until the other side closes or says nothing more for `quietMs`. Where it was asked to close after its
 * answer, the answer is waited for: a disk may take longer.
 */
export function say(
  url: string,
  parts: string | Buffer | readonly (string | Buffer)[],
  { quietMs = 250, end = false } = {},
): Promise<Heard> {
  const { hostname, port } = new URL(url);
  const socket = dial({ port: Number(port), host: hostname, allowHalfOpen: true });
  let text = "";
  return new Promise((resolve) => {
    const finish = (closed: boolean): void => {
      clearTimeout(timer);
      socket.destroy();
      const statuses = [...text.matchAll(/HTTP\/1\.1 (\d{3})/g)].map(([, status]) => Number(status));
      resolve({ text, status: statuses[0] ?? 0, answers: statuses.filter((status) => status >= 200).length, closed });
    };
    let timer = setTimeout(() => finish(false), PATIENCE_MS);
    const closes = end || [parts].flat().some((part) => part.includes("Connection: close"));
    const listen = (): void => {
      clearTimeout(timer);
      timer = setTimeout(() => finish(false), closes ? PATIENCE_MS : quietMs);
    };
    socket.on("data", (bytes: Buffer) => {
      text += bytes.toString("latin1");
      listen();
    });
    socket.on("error", () => {});
    socket.on("end", () => finish(true));
    socket.on("close", () => finish(true));
    for (const part of [parts].flat())
      socket.write(typeof part === "string" ? Buffer.from(part, "latin1") : part, listen);
    if (end) socket.end();
  });
}

/** The opcodes of RFC 6455, section 5.2. */
export const [MORE, TEXT, BINARY, CLOSE, PING] = [0, 1, 2, 8, 9] as const;

export interface FrameOptions {
  readonly fin?: boolean;
  readonly masked?: boolean;
  /** The three reserved bits. */
  readonly reserved?: number;
  /** The length that is announced, where it is not the payload's. */
  readonly announced?: bigint;
  /** Bits of the length's field, where not the shortest. */
  readonly bits?: 7 | 16 | 64;
}

/** One frame as a client sends it, or as it must not. */
export function frameOf(opcode: number, payload: string | Buffer = "", options: FrameOptions = {}): Buffer {
  const { fin = true, masked = true, reserved = 0 } = options;
  const bytes = Buffer.from(payload as string);
  const length = options.announced ?? BigInt(bytes.length);
  const bits = options.bits ?? (length < 126n ? 7 : length < 65_536n ? 16 : 64);
  const head = Buffer.alloc(bits === 7 ? 2 : bits === 16 ? 4 : 10);
  head[0] = (fin ? 0x80 : 0) | (reserved << 4) | opcode;
  head[1] = (masked ? 0x80 : 0) | (bits === 7 ? Number(length) : bits === 16 ? 126 : 127);
  if (bits === 16) head.writeUInt16BE(Number(length), 2);
  if (bits === 64) head.writeBigUInt64BE(length, 2);
  if (!masked) return Buffer.concat([head, bytes]);
  const mask = [0x12, 0x34, 0x56, 0x78] as const;
  return Buffer.concat([head, Buffer.from(mask), bytes.map((byte, n) => byte ^ mask[(n & 3) as 0]!)]);
}

/** The handshake, with headers of one's own in place of the usual ones; null leaves one out. */
export const handshake = (path: string, headers: Record<string, string | null> = {}, method = "GET"): string =>
  `${method} ${path} HTTP/1.1\r\n${Object.entries({
    Host: "localhost",
    Upgrade: "websocket",
    Connection: "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    ...headers,
  })
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name}: ${value}\r\n`)
    .join("")}\r\n`;

/** A WebSocket by the byte: opened and ready. */
export async function openRaw(url: string, path: string): Promise<{ socket: Socket; said: () => string }> {
  const { hostname, port } = new URL(url);
  const socket = dial(Number(port), hostname);
  let text = "";
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.on("error", reject);
  socket.on("close", () => reject(new Error(`closed: ${text}`)));
  socket.on("data", (bytes: Buffer) => {
    text += bytes.toString("latin1");
    if (text.includes('"pere":"ready"')) resolve();
  });
  socket.write(handshake(path));
  await promise;
  return { socket, said: () => text };
}

/**
 * Opens a WebSocket, sends frames when it is ready, and reads what comes back: `text` without the handshake and what `ready` said, `code` of the
 * close frame, 0 without one. It is quiet after `quietMs`, or at once when what is awaited was said.
 */
export async function sayFrames(
  url: string,
  path: string,
  frames: readonly Buffer[],
  quietMs = 250,
  awaited = "",
): Promise<{ text: string; code: number; closed: boolean }> {
  const { socket, said } = await openRaw(url, path);
  const from = said().length;
  return new Promise((resolve) => {
    const finish = (closed: boolean): void => {
      clearTimeout(timer);
      socket.destroy();
      const text = said().slice(from);
      // A close frame of the server's: opcode 8, a short length, a code of two bytes, at the very end.
      const close = /\x88([\x02-\x7d])([\s\S])([\s\S])[\s\S]*$/.exec(text);
      const code = close ? close[2]!.charCodeAt(0) * 256 + close[3]!.charCodeAt(0) : 0;
      resolve({ text, code, closed });
    };
    let timer = setTimeout(() => finish(false), PATIENCE_MS);
    const listen = (): void => {
      clearTimeout(timer);
      timer = setTimeout(() => finish(false), quietMs);
    };
    socket.removeAllListeners("close").on("close", () => finish(true));
    socket.removeAllListeners("error").on("error", () => {});
    socket.on("data", () => {
      listen();
      if (awaited !== "" && said().slice(from).includes(awaited)) finish(false);
    });
    for (const frame of frames) socket.write(frame, listen);
  });
}
