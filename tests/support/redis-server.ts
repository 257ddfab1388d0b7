/**
 * A real Redis of a test's own: on a port and in a folder of its own, ended with the test. Its settings can be chosen, and it can be
 * stopped, woken, killed and started again on the same port with what it kept.
 */
import { temporary, until } from "./harness.ts";
import { lastingPort } from "./ports.ts";

const PROGRAM = Bun.which("redis-server") ?? Bun.which("valkey-server");

/** Why tests that need Redis are skipped, or null where they run. With `CI=true` a missing server is a failure, not a reason. */
export const noRedis: string | null =
  PROGRAM || process.env.CI === "true" ? null : "there is no redis-server on this machine";

export interface RedisServer {
  readonly url: string;
  readonly port: number;
  /** Asks it something by `redis-cli`'s protocol, on a connection of its own. */
  ask(...command: string[]): Promise<string>;
  /** Stalls it; its connections stay open. */
  pause(): void;
  resume(): void;
  /** Ends it as a power cut does, and starts it again on the same port. */
  restart(): Promise<void>;
  end(): Promise<void>;
}

/** One command in one connection; the raw answer. */
async function ask(port: number, command: readonly string[]): Promise<string> {
  let said = "";
  const { promise, resolve } = Promise.withResolvers<void>();
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      data(_, bytes) {
        said += bytes.toString();
        resolve();
      },
      close: () => resolve(),
    },
  });
  const parts = command.map((part) => `$${Buffer.byteLength(part)}\r\n${part}\r\n`);
  socket.write(`*${command.length}\r\n${parts.join("")}`);
  await promise;
  socket.end();
  return said.trim();
}

/** @param settings as on the command line of redis-server: `{ appendonly: "yes" }` */
export async function startRedis(settings: Record<string, string> = {}): Promise<RedisServer> {
  if (!PROGRAM) throw new Error("redis-server is not installed");
  const port = lastingPort();
  const folder = temporary();
  const flags = Object.entries({ save: "", ...settings }).flatMap(([name, value]) => [`--${name}`, value]);
  const start = async () => {
    const child = Bun.spawn([PROGRAM, "--port", String(port), "--bind", "127.0.0.1", "--dir", folder, ...flags], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "ignore",
    });
    const isUp = () =>
      ask(port, ["PING"]).then(
        (answer) => answer === "+PONG",
        () => false,
      );
    await until(isUp, "redis-server");
    return child;
  };
  let child = await start();
  return {
    url: `redis://127.0.0.1:${port}`,
    port,
    ask: (...command) => ask(port, command),
    pause: () => child.kill("SIGSTOP"),
    resume: () => child.kill("SIGCONT"),
    async restart() {
      child.kill("SIGKILL");
      await child.exited;
      child = await start();
    },
    async end() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}
