/**
 * Receivers of webhooks on loopback, which behave or don't, and one call to them.
 */
import { createServer, type Server, type Socket } from "node:net";
import { readRanges } from "../../engine/addresses.ts";
import { callHook, type HookAnswer, makeSecret } from "../../engine/hooks/call.ts";
import { PereError } from "../../engine/model.ts";

export const LOOPBACK = readRanges("127.0.0.0/8, ::1/128");

export const NONE = readRanges("");

export const SECRET = makeSecret();

export const BODY = '{"type":"pere.receipt","data":"Grüße 🎉"}';

const servers: Server[] = [];

const sockets = new Set<Socket>();

/** Ends what the tests of a file left open. */
export function closeReceivers(): void {
  for (const server of servers) server.close();
  for (const socket of sockets) socket.destroy();
}

/** A receiver that says `answer` to a whole request, or does with the connection what it likes. */
export interface Receiver {
  readonly port: number;
  /** How many connections it took. */
  connections: number;
  /** How many of them ended. */
  ended: number;
  /** What was sent to it. */
  heard: string;
}

export type Behaviour = string | ((socket: Socket) => void);

export async function listen(
  server: Server,
  event: string,
  behaviour: Behaviour,
  host: string,
  port = 0,
): Promise<Receiver> {
  const receiver = { port: 0, connections: 0, ended: 0, heard: "" };
  server.on(event, (socket: Socket) => {
    receiver.connections++;
    sockets.add(socket);
    let answered = false;
    socket.on("error", () => {}).on("close", () => receiver.ended++);
    socket.on("data", (bytes) => {
      receiver.heard += bytes.toString();
      if (answered || !receiver.heard.includes(BODY)) return;
      answered = true;
      if (typeof behaviour === "string") socket.write(behaviour);
      else behaviour(socket);
    });
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(port, host, resolve));
  const address = server.address();
  if (typeof address === "object" && address) receiver.port = address.port;
  return receiver;
}

export const receive = (behaviour: Behaviour, host = "127.0.0.1", port = 0): Promise<Receiver> =>
  listen(createServer(), "connection", behaviour, host, port);

/** What came of a call; how long it took differs each time, and the answer's body has tests of its own. */
export type Outcome = Omit<HookAnswer, "ms" | "body">;

/** Makes a call. */
export async function outcome(...asked: Parameters<typeof callHook>): Promise<Outcome> {
  const { ms: _, body: __, ...came } = await callHook(...asked);
  return came;
}

/** A call of `host` at the receiver's port; the name, where it is one, leads to `addresses`. */
export const call = (
  { port }: { readonly port: number },
  { host = "127.0.0.1", addresses = ["127.0.0.1"], allowed = LOOPBACK, timeoutMs = 5_000, protocol = "http" } = {},
): Promise<Outcome> =>
  outcome(
    { id: "msg_1", url: `${protocol}://${host}:${port}/hook?for=me`, secret: SECRET, body: BODY, at: Date.now() },
    allowed,
    { timeoutMs, resolve: async () => addresses },
  );

export const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/** What `read` refused, as the machine and the person see it. */
export function refusal(read: () => unknown): string {
  try {
    read();
  } catch (error) {
    if (error instanceof PereError) return `${error.code} ${error.faults[0]?.path}: ${error.faults[0]?.message}`;
    throw error;
  }
  return "taken";
}
