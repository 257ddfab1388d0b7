/**
 * The listening port: clear errors when it can't be opened, a certificate that can be replaced while the service runs, and a stop that lets requests
 * in progress finish.
 *
 * It starts and stops servers, and knows nothing of what they serve.
 */
import { lookup } from "node:dns/promises";
import { networkInterfaces } from "node:os";
import type { Server } from "bun";
import { type CertificateFiles, readCertificate } from "./certificate.ts";

/** Milliseconds for requests in progress to finish, and for closed feeds to read why. */
const CLOSE_TIMEOUT_MS = 1_000;

/** A listening port. */
export interface Listener {
  readonly port: number;
  /** Uses the certificate that is in the files now, for new connections. @throws Error when it can't be used; nothing changes then */
  renew(): void;
  /** Accepts no more connections, lets requests in progress finish, and cuts the rest. */
  stop(): Promise<void>;
}

/** Why the port can't be opened, by error code. */
const NO_ADDRESS = "this machine has no such address";
const LISTEN_ERRORS: Readonly<Record<string, string>> = {
  EADDRINUSE: "another program listens there; choose another port with --port",
  EACCES: "PERE has no permission for a port below 1024; choose another port with --port",
  EADDRNOTAVAIL: NO_ADDRESS,
  EINVAL: NO_ADDRESS,
};

/** Where connections are accepted, and with which certificate. */
export interface ListenAddress {
  readonly host: string;
  /** 0 chooses a free port. */
  readonly port: number;
  readonly tls: CertificateFiles | null;
}

/** What a server is started with. */
export interface Opening {
  readonly hostname: string;
  readonly port: number;
  readonly tls?: CertificateFiles;
  readonly http2?: true;
}

/**
 * The addresses to listen on for a host. `localhost` is 127.0.0.1 and ::1, where the machine has both: programs differ in which one they use, and a
 * server by itself would listen only on the one that the resolver names first.
 * @throws Error for an unknown name; Bun 1.4.5 reports an unrelated earlier error for those
 */
export async function addressesOf(host: string): Promise<readonly string[]> {
  if (host !== "localhost") {
    await lookup(host).catch((cause: unknown) => {
      throw new Error(`${host}: ${NO_ADDRESS}`, { cause });
    });
    return [host];
  }
  const own = new Set(Object.values(networkInterfaces()).flatMap((all) => all?.map(({ address }) => address) ?? []));
  const found = ["127.0.0.1", "::1"].filter((address) => own.has(address));
  return found.length > 0 ? found : [host];
}

/** How often to look for a port that is free on both addresses. */
const PORTS_TRIED = 20;

/**
 * Accepts connections. With TLS, clients that offer HTTP/2, such as browsers, get it.
 * @param addresses of the host @param open starts a server for the nth address @throws Error when the port can't be opened
 */
export function listen<Data>(
  addresses: readonly string[],
  open: (opening: Opening, nth: number) => Server<Data>,
  { host, port, tls }: ListenAddress,
): Listener {
  const serverAt = (nth: number, at: number, certificate: CertificateFiles | null): Server<Data> => {
    try {
      const hostname = addresses[nth]!;
      return open({ hostname, port: at, ...(certificate ? { tls: certificate, http2: true } : {}) }, nth);
    } catch (error) {
      const { code = "", message } = error as NodeJS.ErrnoException;
      throw new Error(`${host}, port ${at}: ${LISTEN_ERRORS[code] ?? message}`, { cause: error });
    }
  };
  /** One server per address, all on the same port. */
  const serversAt = (first: number, certificate: CertificateFiles | null): Server<Data>[] => {
    for (let tries = 1; ; tries++) {
      const servers: Server<Data>[] = [];
      try {
        for (const nth of addresses.keys()) servers.push(serverAt(nth, servers[0]?.port ?? first, certificate));
        return servers;
      } catch (error) {
        for (const server of servers) void server.stop(true);
        if (first !== 0 || servers.length === 0 || tries === PORTS_TRIED) throw error;
      }
    }
  };
  /** The servers that listen now; `servers` also holds earlier ones, with older certificates, that still have connections. */
  let current = serversAt(port, tls && readCertificate(tls));
  const servers = [...current];
  const taken = servers[0]!.port!;
  return {
    port: taken,
    renew() {
      if (tls === null) return;
      const certificate = readCertificate(tls); // Before the port is released.
      for (const server of current) void server.stop();
      current = serversAt(taken, certificate);
      servers.push(...current);
    },
    async stop() {
      for (const server of servers) void server.stop(); // This promise would wait for idle connections indefinitely.
      const isBusy = (): boolean => servers.some((server) => server.pendingRequests + server.pendingWebSockets > 0);
      for (const end = performance.now() + CLOSE_TIMEOUT_MS; isBusy() && performance.now() < end;) await Bun.sleep(5);
      await Promise.all(servers.map((server) => server.stop(true)));
    },
  };
}
