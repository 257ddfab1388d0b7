/**
 * Ports that last. A number that was found by listening at port 0 and let go is anybody's: the system gives it to the next connection that goes out,
 * also to one of another test's, which may hold it for minutes. What is to come back to its address, what can't say which port it took, and an address
 * that must refuse, get a port from here. All else listens at port 0.
 */
import { existsSync, readFileSync } from "node:fs";

/** Why tests that need the address ::1 are skipped, or null where they run: containers often have no IPv6. */
export const noIpv6: string | null = ((): string | null => {
  try {
    Bun.listen({ hostname: "::1", port: 0, socket: { data() {} } }).stop(true);
    return null;
  } catch {
    return "this machine has no IPv6";
  }
})();

/**
 * A name that no host has. Its first part is longer than names allow (RFC 1035, section 2.3.4), so no resolver is asked: some take half a minute to find
 * that there is no such name, and some give an address for every one.
 */
export const NO_HOST = `${"x".repeat(64)}.invalid`;

/** Ports that one test process chooses from, and how many such runs of them there are. */
const PORTS = 128;
const RUNS = 96;
/** Where Linux says which ports it gives to connections that go out, and to who listens at port 0. */
const GIVEN = "/proc/sys/net/ipv4/ip_local_port_range";
const firstGiven = existsSync(GIVEN) ? Number.parseInt(readFileSync(GIVEN, "latin1")) : 32_768;
/** The runs end here: below what is given, if there is room. Elsewhere than on Linux what is given begins far higher. */
const portsEnd = firstGiven > 1_024 + PORTS * RUNS ? firstGiven : 32_768;
/** Somewhere in the run, since a process may run several files of tests, and each begins anew here. */
let portsTaken = Math.floor(Math.random() * PORTS);

/**
 * A port where nobody listens, that the system gives to no connection, and that no other test process chooses: each has a run of its own. One process
 * is not given the same one again before its run is over.
 */
export function lastingPort(): number {
  for (let tries = 0; tries < PORTS; tries++) {
    const port = portsEnd - PORTS * (1 + (process.pid % RUNS)) + (portsTaken++ % PORTS);
    try {
      Bun.listen({ hostname: "0.0.0.0", port, socket: { data() {} } }).stop(true);
      return port;
    } catch {
      // Somebody listens there, at one of the addresses.
    }
  }
  throw new Error(`no port of ${PORTS} below ${portsEnd} is free`);
}
