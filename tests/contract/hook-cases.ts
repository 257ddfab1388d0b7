/**
 * What hooks promise on any memory, as cases that take a world: one memory, in which services are started, one after the other or together.
 * Each subject has a file of its own.
 *
 * Receivers are real ones on loopback, which only the tests' own PERE_HOOKS_ALLOW lets through, and each holds every call to what the
 * reference verifier of Standard Webhooks says. The clock is held where the schedule is walked through.
 */
import { callCases, storedHookCases } from "./hook-call-cases.ts";
import { failingCallCases } from "./hook-failure-cases.ts";
import { attemptCases, testCallCases } from "./hook-attempt-cases.ts";
import { callInFlightCases, nothingLostCases } from "./hook-loss-cases.ts";
import { hookTroubleCases } from "./hook-trouble-cases.ts";
import type { World } from "./hook-world.ts";

/** Registers the cases, in a file that calls `tidyUp` after each test. */
export function hookCases(name: string, makeWorld: () => World): void {
  storedHookCases(name, makeWorld);
  callCases(name, makeWorld);
  failingCallCases(name, makeWorld);
  nothingLostCases(name, makeWorld);
  callInFlightCases(name, makeWorld);
  attemptCases(name, makeWorld);
  testCallCases(name, makeWorld);
  hookTroubleCases(name, makeWorld);
}
