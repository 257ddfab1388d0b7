/**
 * The health check of a container: asks the service that runs here with these settings whether it lives, and ends with 0 or 1.
 *
 *   bun clients/health.ts      and in an executable: pere health
 *
 * It needs no shell and no program beside PERE's own, and as it is asked every few seconds it loads nothing.
 */

/** A service that takes longer does not live. */
const HEALTH_MS = 2_000;

/** @returns 0 when the service lives @throws Error when it does not answer, or is asked for more */
export async function health(args: readonly string[]): Promise<number> {
  if (args.length > 0) throw new Error(`"${args[0]}": it takes no arguments`);
  const { PERE_TLS_CERT: certificate } = process.env;
  const [host, port] = [process.env.HOST || "127.0.0.1", process.env.PORT || "4567"];
  // No proxy stands before this machine's own service, whatever is set for the way out.
  process.env.NO_PROXY = process.env.no_proxy = "*";
  // What listens everywhere listens here.
  const here = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "[::1]" : host.includes(":") ? `[${host}]` : host;
  const response = await fetch(`${certificate ? "https" : "http"}://${here}:${port}/health`, {
    signal: AbortSignal.timeout(HEALTH_MS),
    tls: { rejectUnauthorized: false }, // It is this machine, whatever name its certificate has, and it is told nothing.
  });
  return response.ok ? 0 : 1;
}

if (import.meta.main && !Bun.isStandaloneExecutable) {
  const args = process.argv.slice(2);
  process.exit(
    await health(args).catch((error: Error) => {
      console.error(`health: ${error.message}`);
      return args.length > 0 ? 2 : 1;
    }),
  );
}
