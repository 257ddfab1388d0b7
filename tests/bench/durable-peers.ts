/**
 * Brokers that store what they deliver, each set so that a push is on a disk before it is answered: Centrifugo on a Redis that syncs each
 * write, NATS with a JetStream on files that does, and Mercure on Bolt. `docs/benchmarks.md` has the settings and how to see the syncs.
 *
 * They are found on the PATH and never installed. Each listens on the loopback only, keeps its files in the benchmark's temporary folder, and is
 * asked by PERE's paths (`/push/cN`, `/feed/cN`), which its dialect and its protocol turn into its own requests.
 */
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SignJWT } from "jose";
import { lastingPort } from "../support/ports.ts";
import { type Dialect, eventStream, now } from "./feeds.ts";
import { type Peer, PLAIN, type Start } from "./peer-servers.ts";
import { startRedis } from "./redis.ts";
import { type Ask, HTTP, type Protocol, Requests } from "./requests.ts";
import { HOST, onCore, type Service, startService } from "./service.ts";

const START_MS = 10_000;
/** Events that Centrifugo keeps for a channel, and nchan too. */
const HISTORY_EVENTS = 10;

let started = 0;

/** The channel and the device of a path that PERE would be asked for: `/feed/c1?device=device-7`, `/push/c1`. */
function named(path: string): { channel: string; device: string } {
  const [, channel, device = ""] = /^\/(?:feed|push)\/(\w+)(?:\?device=([\w-]+))?$/.exec(path) ?? [];
  if (channel === undefined) throw new Error(`no peer knows ${path}`);
  return { channel, device };
}

/** A program with a folder of its own, once it listens at `port`. @throws Error with what it said when it does not */
async function run(name: string, port: number, folder: string, command: readonly string[]): Promise<Service> {
  const log = join(folder, "log");
  const file = openSync(log, "w");
  const child = Bun.spawn([...command], {
    env: { PATH: process.env.PATH, HOME: folder },
    cwd: folder,
    stdin: "ignore",
    stdout: file,
    stderr: file,
  });
  closeSync(file);
  const kill = (): void => child.kill("SIGKILL");
  process.once("exit", kill);
  const listens = (): Promise<boolean> =>
    Bun.connect({ hostname: HOST, port, socket: { data() {} } }).then(
      (socket) => (socket.terminate(), true),
      () => false,
    );
  for (const until = now() + START_MS; !(await listens());) {
    if (child.exitCode === null && now() < until) await Bun.sleep(20);
    else {
      kill();
      throw new Error(`${name} did not start: ${readFileSync(log, "utf8").slice(-2000)}`);
    }
  }
  return {
    port,
    pid: child.pid,
    async stop() {
      kill();
      await child.exited;
      process.off("exit", kill);
    },
  };
}

function folderIn(parent: string, name: string): string {
  const folder = join(parent, `${name}-${++started}`);
  mkdirSync(folder);
  return folder;
}

// ------------------------------------------------------------------------------------------------------------------ on Redis

const REDIS = "redis-server with appendonly yes, appendfsync always";

/** Starts what needs a Redis beside one on the same core, which counts as a part of it. */
const onRedis =
  (start: (folder: string, core: number | null, redisUrl: string) => Promise<Service>): Start =>
  async (folder, core) => {
    const redis = await startRedis(folder, core);
    try {
      const service = await start(folder, core, redis.url);
      return {
        ...service,
        helpers: [redis.pid],
        async stop() {
          await service.stop();
          await redis.end();
        },
      };
    } catch (error) {
      await redis.end();
      throw error;
    }
  };

const redisServer = (): string | null => Bun.which("redis-server") ?? Bun.which("valkey-server");

/** PERE as several instances would share it, on the same Redis as Centrifugo. */
function pereOnRedis(): Peer {
  const start = onRedis((folder, core, redisUrl) => startService(folder, core, { env: { REDIS_URL: redisUrl } }));
  return {
    name: "PERE on Redis",
    settings: `${REDIS}, on the same core and counted with it`,
    start: redisServer() ? start : null,
    missing: "redis-server",
  };
}

/** https://centrifugal.dev/docs/server/configuration */
const centrifugoSettings = (port: number, redisUrl: string) => ({
  http_server: { address: HOST, port: String(port) },
  log: { level: "warn" },
  engine: { type: "redis", redis: { address: redisUrl } },
  client: { allow_anonymous_connect_without_token: true },
  channel: {
    without_namespace: {
      history_size: HISTORY_EVENTS,
      history_ttl: "60s",
      allow_subscribe_for_client: true,
      allow_subscribe_for_anonymous: true,
    },
  },
  // Without it a push that failed is answered 200.
  http_api: { insecure: true, error_mode: "transport" },
  uni_sse: { enabled: true },
  usage_stats: { disabled: true },
});

const CENTRIFUGO_DIALECT: Dialect = {
  ...PLAIN,
  request(path, port) {
    const connect = JSON.stringify({ subs: { [named(path).channel]: {} } });
    return eventStream(`/connection/uni_sse?cf_connect=${encodeURIComponent(connect)}`, port);
  },
  ready: /data: \{"connect":[^\n]*\n\n/,
};

const CENTRIFUGO_PROTOCOL: Protocol = {
  ...HTTP,
  request(ask, port, connection) {
    const body = `{"channel":"${named(ask.path).channel}","data":${ask.body}}`;
    return HTTP.request({ ...ask, path: "/api/publish", body }, port, connection);
  },
};

function centrifugo(): Peer {
  const program = Bun.which("centrifugo");
  const start = onRedis(async (parent, core, redisUrl) => {
    const folder = folderIn(parent, "centrifugo");
    const port = lastingPort();
    const settings = join(folder, "config.json");
    writeFileSync(settings, JSON.stringify(centrifugoSettings(port, redisUrl)));
    const service = await run("centrifugo", port, folder, onCore(core, [program!, "--config", settings]));
    return { ...service, dialect: CENTRIFUGO_DIALECT, protocol: CENTRIFUGO_PROTOCOL };
  });
  return {
    name: "Centrifugo",
    settings: `engine redis, history of ${HISTORY_EVENTS}; ${REDIS}, on the same core and counted with it; devices over uni_sse`,
    start: program && redisServer() ? start : null,
    missing: program ? "redis-server, for Centrifugo" : "centrifugo",
  };
}

// --------------------------------------------------------------------------------------------------------------------- NATS

/** A client's first lines. https://docs.nats.io/reference/reference-protocols/nats-protocol */
const NATS_HELLO = 'CONNECT {"verbose":false}\r\n';
const STREAM = "events";
/** More than any row opens feeds; the default is 1,000. */
const CONSUMERS_MAX = 100_000;
const natsPublish = (subject: string, inbox: string, body: string): string =>
  `PUB ${subject} ${inbox} ${body.length}\r\n${body}\r\n`;

/** Each connection has an inbox, where JetStream's acknowledgement comes when the event is stored. */
const NATS_PROTOCOL: Protocol = {
  hello: (connection) => `${NATS_HELLO}SUB _INBOX.${connection} 1\r\n`,
  request({ path, body }: Ask, _port, connection) {
    const subject = path.startsWith("/push/") ? `${STREAM}.${named(path).channel}` : path;
    return natsPublish(subject, `_INBOX.${connection}`, body);
  },
  answer(text) {
    const refused = /-ERR [^\r]*/.exec(text);
    if (refused) return { isGood: false, text: refused[0] };
    const answer = /MSG _INBOX\.\d+ 1 (?<bytes>\d+)\r\n/.exec(text);
    if (!answer) return null;
    const from = answer.index + answer[0].length;
    const until = from + Number(answer.groups!.bytes);
    const body = text.slice(from, until);
    return text.length < until + 2 ? null : { isGood: !body.includes('"error":'), text: body };
  },
};

/** The subject itself: what NATS is fastest at. A message is passed on while it is being stored, and who was away does not get it. */
const NATS_SUBSCRIBERS: Dialect = {
  ...PLAIN,
  request: (path) => `${NATS_HELLO}SUB ${STREAM}.${named(path).channel} 1\r\nPING\r\n`,
  ready: /PONG\r\n/,
};

/**
 * A consumer of the stream for each device: it gets what was stored, and could go on where it stopped, as a device of PERE does. As NATS' clients set
 * their ordered consumers (in memory, without acknowledgements), and even without their flow control and heartbeats.
 */
const NATS_CONSUMERS: Dialect = {
  ...PLAIN,
  request(path) {
    const { channel, device } = named(path);
    const subject = `${STREAM}.${channel}`;
    const inbox = `_DELIVER.${channel}.${device}`;
    const config = {
      name: `${channel}-${device}`,
      deliver_subject: inbox,
      deliver_policy: "new",
      ack_policy: "none",
      filter_subject: subject,
      mem_storage: true,
      inactive_threshold: 3600e9, // nanoseconds
    };
    const create = natsPublish(
      `$JS.API.CONSUMER.CREATE.${STREAM}.${config.name}.${subject}`,
      `${inbox}.created`,
      JSON.stringify({ stream_name: STREAM, config }),
    );
    return `${NATS_HELLO}SUB ${inbox} 1\r\nSUB ${inbox}.created 2\r\n${create}`;
  },
  ready: /"type":"io\.nats\.jetstream\.api\.v1\.consumer_create_response","stream_name"[^\n]*\n/,
};

function nats(name: string, dialect: Dialect, devices: string): Peer {
  const program = Bun.which("nats-server");
  return {
    name,
    settings: `JetStream, storage file, sync_interval always; ${devices}`,
    missing: "nats-server",
    start:
      program === null
        ? null
        : async (parent, core) => {
            const folder = folderIn(parent, "nats");
            const port = lastingPort();
            const settings = join(folder, "nats.conf");
            // Devices here do not answer a PING: it is sent once an hour.
            writeFileSync(
              settings,
              `listen: "${HOST}:${port}"\njetstream { store_dir: "${folder}", sync_interval: always }\nping_interval: "1h"\n`,
            );
            const service = await run("nats-server", port, folder, onCore(core, [program, "--config", settings]));
            try {
              const requests = await Requests.open(port, 1, NATS_PROTOCOL);
              const stream = {
                name: STREAM,
                subjects: [`${STREAM}.*`],
                storage: "file",
                num_replicas: 1,
                max_consumers: CONSUMERS_MAX,
              };
              await requests.ask("POST", `$JS.API.STREAM.CREATE.${STREAM}`, JSON.stringify(stream));
              requests.close();
            } catch (error) {
              await service.stop();
              throw error;
            }
            return { ...service, dialect, protocol: NATS_PROTOCOL };
          },
  };
}

// ------------------------------------------------------------------------------------------------------------------ Mercure

const MERCURE_PATH = "/.well-known/mercure";
const MERCURE_KEY = "a key that protects nothing, because all is on the loopback";

/** https://mercure.rocks/docs/hub/config */
const caddyfile = (port: number, folder: string): string => `
{
  admin off
  auto_https off
  persist_config off
  log {
    level WARN
  }
}
http://${HOST}:${port} {
  bind ${HOST}
  mercure {
    transport bolt {
      path ${join(folder, "mercure.db")}
    }
    publisher_jwt "${MERCURE_KEY}"
    anonymous
  }
}
`;

const MERCURE_DIALECT: Dialect = {
  ...PLAIN,
  request: (path, port) => eventStream(`${MERCURE_PATH}?topic=${named(path).channel}`, port),
  ready: /\r\n\r\n(?:[0-9a-f]+\r\n)?:\n/,
};

function mercure(): Peer {
  const program = Bun.which("mercure");
  return {
    name: "Mercure",
    settings: "transport bolt, which syncs each commit; devices over SSE",
    missing: "mercure",
    start:
      program === null
        ? null
        : async (parent, core) => {
            const folder = folderIn(parent, "mercure");
            const port = lastingPort();
            const settings = join(folder, "Caddyfile");
            writeFileSync(settings, caddyfile(port, folder));
            const command = [program, "run", "--config", settings, "--adapter", "caddyfile"];
            const service = await run("mercure", port, folder, onCore(core, command));
            const token = await new SignJWT({ mercure: { publish: ["*"] } })
              .setProtectedHeader({ alg: "HS256" })
              .sign(new TextEncoder().encode(MERCURE_KEY));
            const protocol: Protocol = {
              ...HTTP,
              request(ask, port, connection) {
                const body = `topic=${named(ask.path).channel}&data=${encodeURIComponent(ask.body)}`;
                const headers = `Authorization: Bearer ${token}\r\n`;
                const type = "application/x-www-form-urlencoded";
                return HTTP.request({ method: "POST", path: MERCURE_PATH, body, type, headers }, port, connection);
              },
            };
            return { ...service, dialect: MERCURE_DIALECT, protocol };
          },
  };
}

/** All of them, also those that are not installed. */
export const durablePeers = (): Peer[] => [
  pereOnRedis(),
  centrifugo(),
  nats("NATS", NATS_SUBSCRIBERS, "devices subscribe to the subject and may have an event before it is on disk"),
  nats("NATS consumers", NATS_CONSUMERS, "a JetStream consumer per device, as an ordered consumer is"),
  mercure(),
];
