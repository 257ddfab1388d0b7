/**
 * The health check of a container: asks the service on this machine, by the same settings, whether it is alive, and ends with 0 or 1.
 *
 *   bun clients/health.ts      and in an executable: pere health
 *
 * It needs no shell and no other program. It imports nothing, because it runs every few seconds.
 */

/** A service that takes longer counts as dead. */
const HEALTH_MS = 2_000;

/** @returns the exit code: 0 when the service is alive @throws Error when it does not answer, or for any argument */
export async function health(args: readonly string[]): Promise<number> {
  if (args.length > 0) throw new Error(`health takes no arguments: remove "${args[0]}"`);
  const { PERE_TLS_CERT: certificate } = process.env;
  const [host, port] = [process.env.HOST || "127.0.0.1", process.env.PORT || "4567"];
  // A proxy of the environment is not for the service on this machine.
  process.env.NO_PROXY = process.env.no_proxy = "*";
  // A service that listens on all addresses also listens on loopback.
  const here = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "[::1]" : host.includes(":") ? `[${host}]` : host;
  const response = await fetch(`${certificate ? "https" : "http"}://${here}:${port}/health`, {
    signal: AbortSignal.timeout(HEALTH_MS),
    tls: { rejectUnauthorized: false }, // It is this machine, whatever name its certificate has, and the request holds no secret.
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
