/**
 * Reads a request's body with a limit on its size and its time. A client that sends one byte per second, sends another length than it announced, or
 * leaves before the end holds neither memory nor a connection for long.
 */
import { PereError } from "../model.ts";

/** Milliseconds that any body may take; its length adds time at the rate below, in bytes per millisecond. So no body takes hours. */
export const BODY_MS = 30_000;
const BODY_BYTES_PER_MS = 10;
/** Bun closes a request after 30 s, even while its body is arriving. Before that, this file takes over the time limit. */
const BODY_LEAVE_MS = 10_000;

const ignore = (): void => {};

/** Resolves at the end of this turn of the event loop: one promise for all callers. */
let turn: Promise<void> | undefined;
const endOfTurn = (): Promise<void> =>
  (turn ??= new Promise((resolve) =>
    setImmediate(() => {
      turn = undefined;
      resolve();
    }),
  ));

/** Reads a body of at most `bytesMax` bytes. @throws PereError tooLarge, slow, malformed */
export type BodyReader = (request: Request, bytesMax: number) => Promise<Uint8Array>;

/**
 * Makes a reader that also limits bodies of unannounced length. The time limit is `bodyMs` plus what `BODY_BYTES_PER_MS` allows for the announced
 * length, or else for the bytes that have arrived.
 * @param leave lifts the server's own time limit for a request, or restores it
 */
export const bodyReader =
  (bodyMs: number, leave: (request: Request, isLeft: boolean) => void): BodyReader =>
  async (request, bytesMax) => {
    const tooLarge = (): PereError => new PereError("tooLarge", `the request body is larger than ${bytesMax} bytes`);
    const announced = request.headers.get("content-length");
    if (Number(announced ?? 0) > bytesMax) throw tooLarge();
    const whole = announced === null ? null : request.bytes();
    if (whole) {
      // Most bodies arrive with the head and need no timer, but the server delivers them a moment later. A truncated one is reported below.
      const early = await Promise.race([whole.catch(ignore), endOfTurn()]);
      if (early) return early;
    }
    const reader = whole ? undefined : request.body?.getReader();
    let length = Number(announced ?? 0);
    const startedAt = performance.now();
    let isLeft = false;
    const slow = Promise.withResolvers<never>();
    const watch = (): void => {
      const leftMs = startedAt + bodyMs + length / BODY_BYTES_PER_MS - performance.now();
      if (leftMs <= 0)
        return slow.reject(
          new PereError(
            "slow",
            "the request body arrived too slowly; send it again, in smaller parts on a slow connection",
          ),
        );
      if (!isLeft) leave(request, true);
      isLeft = true;
      timer = setTimeout(watch, leftMs);
    };
    let timer = setTimeout(watch, Math.min(bodyMs, BODY_LEAVE_MS));
    const gather = async (): Promise<Uint8Array> => {
      // One growing buffer: a list of one-byte chunks would take a hundred times the memory.
      const bytes = new Bun.ArrayBufferSink();
      bytes.start({ asUint8Array: true });
      for (;;) {
        const { done = true, value } = (await reader?.read()) ?? {};
        if (done) return bytes.end() as Uint8Array;
        if ((length += value!.length) > bytesMax) throw tooLarge();
        bytes.write(value!);
      }
    };
    try {
      return await Promise.race([whole ?? gather(), slow.promise]);
    } catch (error) {
      if (error instanceof PereError) throw error;
      throw new PereError("malformed", "request body was truncated"); // The client is gone and won't read this.
    } finally {
      clearTimeout(timer);
      if (isLeft) leave(request, false);
      reader?.cancel().catch(ignore); // The rest is dropped.
    }
  };

/** Limits on a body that is read and dropped. Nobody sends a larger one by mistake. */
const UNREAD_BYTES_MAX = 1024 * 1024;
const UNREAD_MS = 1_000;

/**
 * Reads and drops a small body that no handler has read. Over HTTP/2, Bun's server cuts off an answer that comes before the end of its request
 * (measured with 1.4.5), and many clients then report the cut instead of the status. Resolves at the end of the body, at the limits, or at an error;
 * never rejects.
 */
export async function discardBody(request: Request): Promise<void> {
  if (request.bodyUsed || request.body === null) return;
  if (Number(request.headers.get("content-length") ?? 0) > UNREAD_BYTES_MAX) return;
  const reader = request.body.getReader();
  const late = Promise.withResolvers<{ done: true; value: undefined }>();
  const timer = setTimeout(() => late.resolve({ done: true, value: undefined }), UNREAD_MS);
  try {
    for (let left = UNREAD_BYTES_MAX; left >= 0;) {
      const { done, value } = await Promise.race([reader.read(), late.promise]);
      if (done) break;
      left -= value.length;
    }
  } catch {
    // The client is gone.
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(ignore);
  }
}
