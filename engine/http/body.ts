/**
 * A request's body, within bounds: so many bytes, so much time. Whoever drips one byte a second, announces one length and sends another, or leaves in
 * mid-body holds neither memory nor a connection for long.
 *
 * It knows a `Request` as the web has it, and nothing of routes or of the server behind it.
 */
import { PereError } from "../model.ts";

/** The time that a body may take on any line, and beside it what a slow one needs: bytes a millisecond. Nobody drips one for hours. */
export const BODY_MS = 30_000;
const BODY_BYTES_PER_MS = 10;
/** A server cuts a request of more than 30 s, also while its body is coming. Before that it is told to leave the time to us. */
const BODY_LEAVE_MS = 10_000;

const ignore = (): void => {};

/** The end of this turn of the event loop: one promise for all who wait for it. */
let turn: Promise<void> | undefined;
const endOfTurn = (): Promise<void> =>
  (turn ??= new Promise((resolve) =>
    setImmediate(() => {
      turn = undefined;
      resolve();
    }),
  ));

/** Reads a body of at most so many bytes. @throws PereError tooLarge, slow, malformed */
export type BodyReader = (request: Request, bytesMax: number) => Promise<Uint8Array>;

/**
 * Bodies within bounds, also where their length was not announced, and within a time: `bodyMs` and what `BODY_BYTES_PER_MS` allows
 * for the length that was announced, or else for what has come.
 * @param leave lifts the server's own limit for a request, or puts it back
 */
export const bodyReader =
  (bodyMs: number, leave: (request: Request, isLeft: boolean) => void): BodyReader =>
  async (request, bytesMax) => {
    const tooLarge = (): PereError => new PereError("tooLarge", `the body is larger than ${bytesMax} bytes`);
    const announced = request.headers.get("content-length");
    if (Number(announced ?? 0) > bytesMax) throw tooLarge();
    const whole = announced === null ? null : request.bytes();
    if (whole) {
      // Most come with the head, and need no clock; but the server gives them a moment after it. One that breaks off is told so below.
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
          new PereError("slow", "the body came too slowly; send it again, in smaller parts on a bad line"),
        );
      if (!isLeft) leave(request, true);
      isLeft = true;
      timer = setTimeout(watch, leftMs);
    };
    let timer = setTimeout(watch, Math.min(bodyMs, BODY_LEAVE_MS));
    const gather = async (): Promise<Uint8Array> => {
      // One buffer that grows: a list of chunks of a byte each would take a hundred times as much.
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
      throw new PereError("malformed", "the body ended before its end"); // Its sender is gone, and reads this no more.
    } finally {
      clearTimeout(timer);
      if (isLeft) leave(request, false);
      reader?.cancel().catch(ignore); // What still comes is dropped, not kept.
    }
  };

/** A body that is taken in unread, none of which is kept, and the time that it has for that. Larger ones are not sent by mistake. */
const UNREAD_BYTES_MAX = 1024 * 1024;
const UNREAD_MS = 1_000;

/**
 * Takes in a small body that nobody read. Over HTTP/2 an answer before its request has come to its end is cut off by Bun's server (measured with 1.4.5), and
 * many clients then report that and not the status. Resolves when the body is in, when it is larger than that, or after a moment; never rejects.
 */
export async function takeIn(request: Request): Promise<void> {
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
    // Its sender is gone.
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(ignore);
  }
}
