/**
 * The port that is listened at, for as long as the service runs: what was in the way when it can't be had, a certificate that is replaced
 * under way, and an end that lets those go first who are in the middle of something.
 *
 * It starts and stops servers, and knows nothing of what they serve.
 */
import type { Server } from "bun";
import { type CertificateFiles, readCertificate } from "./certificate.ts";

/** Milliseconds in which requests under way may end, and feeds that were told to go may read that they were. */
const FAREWELL_MS = 1_000;

/** A port that is listened at. */
export interface Listening {
  readonly port: number;
  /** Shows the certificate that is in its files now; who is connected stays so. @throws Error when they hold none: all is as before */
  renew(): void;
  /** Takes no more connections, lets requests under way end, and cuts what is left. */
  stop(): Promise<void>;
}

/** Why nothing can be listened at, for those who set it. */
const UNHEARD: Readonly<Record<string, string>> = {
  EADDRINUSE: "another program listens there; --port names another",
  EACCES: "a port below 1024 needs rights that PERE was not given",
  EADDRNOTAVAIL: "this machine has no such address",
  EINVAL: "this machine has no such address",
};

/** Where connections are taken, and with which certificate. */
export interface Place {
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
 * Takes connections; with TLS those who offer it, browsers among them, get HTTP/2.
 * @param open starts a server @throws Error when the port can't be had
 */
export function listen<Data>(open: (opening: Opening) => Server<Data>, { host, port, tls }: Place): Listening {
  const serverAt = (at: number, certificate: CertificateFiles | null): Server<Data> => {
    try {
      return open({ hostname: host, port: at, ...(certificate ? { tls: certificate, http2: true } : {}) });
    } catch (error) {
      const { code = "", message } = error as NodeJS.ErrnoException;
      throw new Error(`${host}, port ${at}: ${UNHEARD[code] ?? message}`, { cause: error });
    }
  };
  /** The last one listens; those before it showed other certificates, and have connections left. */
  const servers = [serverAt(port, tls && readCertificate(tls))];
  const taken = servers[0]!.port!;
  return {
    port: taken,
    renew() {
      if (tls === null) return;
      const certificate = readCertificate(tls); // Before the port is let go.
      void servers.at(-1)!.stop();
      servers.push(serverAt(taken, certificate));
    },
    async stop() {
      for (const server of servers) void server.stop(); // Connections that are idle may stay open for ever.
      const isBusy = (): boolean => servers.some((server) => server.pendingRequests + server.pendingWebSockets > 0);
      for (const end = performance.now() + FAREWELL_MS; isBusy() && performance.now() < end;) await Bun.sleep(5);
      await Promise.all(servers.map((server) => server.stop(true)));
    },
  };
}
