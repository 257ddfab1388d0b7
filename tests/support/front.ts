/**
 * Real proxies before the service: nginx and Caddy as Debian has them, each in a folder and a process of its own.
 */
import { join } from "node:path";
import { temporary, until } from "./harness.ts";

export const NGINX = Bun.which("nginx") ?? Bun.which("/usr/sbin/nginx");
export const CADDY = Bun.which("caddy");

export interface Front {
  readonly url: string;
  end(): Promise<void>;
}

/** Starts a command and waits until something answers behind it. @throws Error with what it said when it ends */
async function start(command: readonly string[], folder: string, port: number): Promise<Front> {
  const child = Bun.spawn([...command], {
    cwd: folder,
    env: { PATH: process.env.PATH, HOME: folder, XDG_DATA_HOME: folder, XDG_CONFIG_HOME: folder },
    stdin: "ignore",
    stdout: "ignore",
    stderr: Bun.file(join(folder, "stderr")),
  });
  const url = `http://127.0.0.1:${port}`;
  const isUp = () =>
    fetch(`${url}/health`).then(
      ({ ok }) => ok,
      () => false,
    );
  await until(async () => {
    if (child.exitCode !== null) throw new Error(await Bun.file(join(folder, "stderr")).text());
    return isUp();
  }, "the proxy");
  return {
    url,
    async end() {
      child.kill("SIGTERM");
      await child.exited;
    },
  };
}

/** nginx with a whole configuration, `events` and `http`; it listens where that says. What it would write elsewhere is in its folder. */
export async function startNginx(text: string, port: number): Promise<Front> {
  const folder = temporary();
  const folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(
    (name) => `${name}_temp_path ${join(folder, name)};`,
  );
  const file = join(folder, "nginx.conf");
  await Bun.write(file, text.replace("http {", `http { access_log off; ${folders.join(" ")}\n`));
  const globals = `daemon off; pid ${join(folder, "pid")}; error_log stderr;`;
  return start([NGINX!, "-p", folder, "-c", file, "-g", globals], folder, port);
}

/** Caddy with a Caddyfile; it listens where that says. */
export async function startCaddy(text: string, port: number): Promise<Front> {
  const folder = temporary();
  const file = join(folder, "Caddyfile");
  await Bun.write(file, `{\n\tadmin off\n\tauto_https off\n\tgrace_period 1s\n}\n${text}`);
  return start([CADDY!, "run", "--config", file, "--adapter", "caddyfile"], folder, port);
}
