/**
 * The small servers that PERE is measured beside: nginx with nchan, as an operator would set it up, `ceiling.c`, and `floor.ts`. All hear the same
 * URLs as PERE (`/push/cN`, `/feed/cN`), so that one load generator serves them. `durable-peers.ts` has the brokers.
 *
 * None knows who is asking or takes a receipt, and only `floor.ts` writes to a disk. Each is a process of its own that ends with the benchmark, and
 * what it needs is written into the benchmark's temporary folder. What is not installed is null, never an error: the others are measured without it.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { lastingPort } from "../support/ports.ts";
import { type Dialect, now } from "./feeds.ts";
import { HOST, onCore, type Service } from "./service.ts";

/** Where distributions put the module: Debian, Fedora, Alpine. */
const NCHAN = [
  "/usr/lib/nginx/modules/ngx_nchan_module.so",
  "/usr/lib64/nginx/modules/ngx_nchan_module.so",
  "/usr/share/nginx/modules/ngx_nchan_module.so",
].find(existsSync);
const START_MS = 5_000;

/** None counts events per channel in what it sends before the event, so order is not looked at. */
export const PLAIN: Dialect = { ready: /: hi\n/, frame: /"sent":(?<sent>[\d.]+)[^!]*!/g };

/** Starts a server in `folder`, bound to `core` unless null. */
export type Start = (folder: string, core: number | null) => Promise<Service>;

/** A server that the work is done on. */
export interface Peer {
  readonly name: string;
  /** What it does with a push before it answers, and how devices follow it. */
  readonly settings: string;
  /** Null: it is not installed. */
  readonly start: Start | null;
  /** What to install for it. */
  readonly missing: string;
}

/**
 * One worker, memory only, no access log. Channels keep their last 10 messages for a minute, so that a device on a bad line finds them.
 * Limits are as high as the rows need and cost nothing by themselves. Directives: https://nchan.io
 */
const configuration = (folder: string, port: number, module: string): string => `
load_module ${module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid ${folder}/nginx.pid;
error_log ${folder}/nginx.log warn;
events { worker_connections 20000; }
http {
  access_log off;
  client_body_temp_path ${folder}/body;
  proxy_temp_path ${folder}/proxy;
  fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi;
  scgi_temp_path ${folder}/scgi;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  nchan_shared_memory_size 256M;
  server {
    listen ${HOST}:${port} backlog=4096;
    location ~ ^/push/(\\w+)$ {
      nchan_publisher;
      nchan_channel_id $1;
      nchan_message_buffer_length 10;
      nchan_message_timeout 1m;
    }
    location ~ ^/feed/(\\w+)$ {
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
    }
  }
}
`;

/** The process that does a master's work. */
const workerOf = (master: number): number | null =>
  Number(readFileSync(`/proc/${master}/task/${master}/children`, "latin1").trim().split(" ")[0]) || null;

let started = 0;

/** nginx with nchan, or null where one of them is not installed. */
function nchan(): Start | null {
  const nginx = Bun.which("nginx", { PATH: `${process.env.PATH}:/usr/sbin` });
  if (!nginx || !NCHAN) return null;
  return async (parent, core) => {
    const folder = join(parent, `nginx-${++started}`);
    mkdirSync(folder);
    const port = lastingPort();
    writeFileSync(join(folder, "nginx.conf"), configuration(folder, port, NCHAN));
    const command = [nginx, "-e", join(folder, "nginx.log"), "-p", folder, "-c", join(folder, "nginx.conf")];
    const master = Bun.spawn(onCore(core, command), { stdin: "ignore", stdout: "ignore", stderr: "ignore" });
    // Not SIGKILL: the master ends its worker.
    const end = (): void => master.kill("SIGTERM");
    process.once("exit", end);
    const answers = async (): Promise<boolean> =>
      fetch(`http://${HOST}:${port}/`).then(
        () => true,
        () => false,
      );
    for (const until = now() + START_MS; !(await answers());) {
      if (master.exitCode === null && now() < until) await Bun.sleep(20);
      else throw new Error(`nginx did not start: ${readFileSync(join(folder, "nginx.log"), "utf8")}`);
    }
    const pid = workerOf(master.pid);
    if (pid === null) throw new Error("nginx has no worker");
    return {
      port,
      pid,
      dialect: PLAIN,
      async stop() {
        end();
        await master.exited;
        process.off("exit", end);
      },
    };
  };
}

/** `ceiling.c`, or null where there is no C compiler. @throws Error with what the compiler said */
function ceiling(folder: string): Start | null {
  const compiler = Bun.which("cc");
  if (!compiler) return null;
  const program = join(folder, "ceiling");
  const built = Bun.spawnSync([compiler, "-O2", "-o", program, join(import.meta.dir, "ceiling.c")]);
  if (!built.success) throw new Error(built.stderr.toString());
  return (_, core) => printing(core, [program]);
}

/** `floor.ts`. */
const floor: Start = (folder, core) =>
  printing(core, [process.execPath, join(import.meta.dir, "floor.ts"), join(folder, `floor-${++started}`)]);

/** All of them. @param folder for the program that is compiled */
export const smallPeers = (folder: string): Peer[] => [
  {
    name: "nchan",
    settings: "nginx with nchan, in memory; devices over SSE",
    start: nchan(),
    missing: "nginx with nchan (libnginx-mod-nchan)",
  },
  {
    name: "C",
    settings: "ceiling.c: one write() per device, nothing stored",
    start: ceiling(folder),
    missing: "a C compiler",
  },
  { name: "floor", settings: "floor.ts: Bun and a sync that pushes share", start: floor, missing: "" },
];

/** A program of ours that prints its port and ends when it is told to. */
async function printing(core: number | null, command: readonly string[]): Promise<Service> {
  const child = Bun.spawn(onCore(core, command), { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
  const kill = (): void => child.kill("SIGKILL");
  process.once("exit", kill);
  const { value } = await child.stdout.getReader().read();
  return {
    port: Number(new TextDecoder().decode(value)),
    pid: child.pid,
    dialect: PLAIN,
    async stop() {
      kill();
      await child.exited;
      process.off("exit", kill);
    },
  };
}
