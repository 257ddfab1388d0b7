/**
 * The port that is listened at, for as long as the service runs: what was in the way when it can't be had, a certificate that is replaced
 * under way, and an end that lets those go first who are in the middle of something.
 *
 * It starts and stops servers, and knows nothing of what they serve.
 */
import { lookup } from "node:dns/promises";
import { networkInterfaces } from "node:os";
import type { Server } from "bun";
import { type CertificateFiles, readCertificate } from "./certificate.ts";

/** Milliseconds in which requests under way may end, and feeds that were told to go may read that they were. */
const FAREWELL_MS = 1_000;

/** A port that is listened at. */
export interface Listener {
  readonly port: number;
  /** Shows the certificate that is in its files now; who is connected stays so. @throws Error when they hold none: all is as before */
  renew(): void;
  /** Takes no more connections, lets requests under way end, and cuts what is left. */
  stop(): Promise<void>;
}

/** Why nothing can be listened at, for those who set it. */
const NO_ADDRESS = "this machine has no such address";
const UNHEARD: Readonly<Record<string, string>> = {
  EADDRINUSE: "another program listens there; --port names another",
  EACCES: "a port below 1024 needs rights that PERE was not given",
  EADDRNOTAVAIL: NO_ADDRESS,
  EINVAL: NO_ADDRESS,
};

/** Where connections are taken, and with which certificate. */
export interface ListenAddress {
  readonly host: string;
  /** 0 takes a free one. */
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
 * The addresses that are listened at for a host. `localhost` is both of this machine's, where it has both: which of them a program takes for it
 * differs, and a resolver names one of them first, which is all that a server would listen at.
 * @throws Error for a name that nobody knows: what Bun 1.4.5 says of such a one is whatever went wrong before
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

/** How often a free port is taken that must be free at two addresses. */
const PORTS_TRIED = 20;

/**
 * Takes connections; with TLS those who offer it, browsers among them, get HTTP/2.
 * @param addresses those of the host @param open starts a server for the nth of them @throws Error when the port can't be had
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
      throw new Error(`${host}, port ${at}: ${UNHEARD[code] ?? message}`, { cause: error });
    }
  };
  /** One for each address, at the same port. */
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
  /** Those that listen now, and those before them that showed other certificates, and have connections left. */
  let current = serversAt(port, tls && readCertificate(tls));
  const servers = [...current];
  const taken = servers[0]!.port!;
  return {
    port: taken,
    renew() {
      if (tls === null) return;
      const certificate = readCertificate(tls); // Before the port is let go.
      for (const server of current) void server.stop();
      current = serversAt(taken, certificate);
      servers.push(...current);
    },
    async stop() {
      for (const server of servers) void server.stop(); // Connections that are idle may stay open for ever.
      const isBusy = (): boolean => servers.some((server) => server.pendingRequests + server.pendingWebSockets > 0);
      for (const end = performance.now() + FAREWELL_MS; isBusy() && performance.now() < end;) await Bun.sleep(5);
      await Promise.all(servers.map((server) => server.stop(true)));
    },
  };
}
