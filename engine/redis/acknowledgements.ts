/**
 * Waits until every instance has heard of a withdrawal.
 *
 * A message that tells of one names a topic and a number. Whoever has processed it, so that none of its followers gets the event any more, publishes
 * the number there. The script that published the message knows how many have received it. An instance that is paused or cut off is not waited for
 * longer than `WAIT_MS`. On a Cluster a node knows only its own receivers, so the others are not waited for.
 */

/** How long an instance may take. */
const WAIT_MS = 1_000;

/** A request to be told. */
export interface Acknowledgement {
  /** The fourth word of the message: the topic and the number. */
  readonly word: string;
  /** Resolves when so many have processed the message, or when the time is up. */
  heardBy(receivers: number): Promise<void>;
}

export class Acknowledgements {
  /** The topic on which this instance is told. */
  readonly topic: string;
  readonly #waiting = new Map<string, { heard: number; check: () => void }>();
  #count = 0;

  /** @param prefix of all topics */
  constructor(prefix: string) {
    this.topic = `${prefix}heard:${crypto.randomUUID()}`;
  }

  request(): Acknowledgement {
    const number = String(++this.#count);
    const request = { heard: 0, check: () => {} };
    this.#waiting.set(number, request);
    const heardBy = async (receivers: number): Promise<void> => {
      if (request.heard < receivers) {
        const { promise, resolve } = Promise.withResolvers<void>();
        request.check = () => request.heard >= receivers && resolve();
        const timer = setTimeout(resolve, WAIT_MS);
        await promise;
        clearTimeout(timer);
      }
      this.#waiting.delete(number);
    };
    return { word: `${this.topic},${number}`, heardBy };
  }

  /** A message on the topic. */
  readonly heard = (number: string): void => {
    const request = this.#waiting.get(number);
    if (!request) return;
    request.heard++;
    request.check();
  };
}
