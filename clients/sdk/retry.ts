/**
 * Repeating a request until it is answered, with pauses.
 */
import { RetryableError } from "./errors.ts";
import type { ServiceClient } from "./service-client.ts";
import { jitterMs, Sleep } from "./timing.ts";

/** How long a request is repeated, in milliseconds. */
export const GIVE_UP_MS = 60_000;

/**
 * Repeats an attempt while another one may succeed. @param attempt gets the milliseconds since the first one began
 * @throws what the last attempt threw: PereError when the service refuses; RetryableError when the time is over, or the signal was aborted
 */
export async function repeat<Result>(
  service: ServiceClient,
  attempt: (elapsedMs: number) => Promise<Result>,
  giveUpMs: number,
  signal: AbortSignal | null,
): Promise<Result> {
  const startedAt = service.monotonic();
  const never = new AbortController().signal;
  const sleep = new Sleep(service.setTimer);
  for (let failures = 1; ; failures++) {
    try {
      return await attempt(service.monotonic() - startedAt);
    } catch (error) {
      const elapsedMs = service.monotonic() - startedAt;
      if (!(error instanceof RetryableError) || signal?.aborted || elapsedMs >= giveUpMs) throw error;
      const pauseMs = Math.max(
        jitterMs(service.random, failures, 250, service.timing.pauseMsMax),
        (error.pauseMs ?? 0) * (1 + service.random() / 5),
      );
      service.report(error.message);
      await sleep.sleep(Math.min(pauseMs, giveUpMs - elapsedMs), signal ?? never);
    }
  }
}
