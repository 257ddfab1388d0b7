/**
 * The time for PERE: the wall clock as long as it runs normally, and PERE's own count while it does not.
 *
 * A wall clock that leaps (an empty battery, a wrong time server, a typo) would make all retention, deadlines and expiries take effect within a
 * second. So it is checked against the monotonic clock. If the two differ by more than seconds, PERE continues from the old time, second by second,
 * in everything it decides, and reports the leap. It accepts the new time when the wall clock has kept it for minutes, or after a restart. If the
 * clock comes back before, nothing has happened. Time during which the machine slept is real and not a leap.
 */

/** A clock in order is never corrected by more than this: time servers slew, and their steps are smaller. */
const LEAP_MS = 5_000;
/** A wall clock that has kept its new time for this long is right: a mistake would have been noticed. */
const STAND_MS = 5 * 60_000;

export interface ClockOptions {
  /** Milliseconds since 1970. */
  readonly wall: () => number;
  /** Milliseconds since some moment; never goes back. */
  readonly steady: () => number;
  /** Milliseconds since the machine started, to the second. Continues during sleep, unlike Linux's monotonic clock. */
  readonly uptime?: () => number;
  /** Called when a leap begins and when it ends. */
  readonly warn: (sentence: string) => void;
}

interface Leap {
  /** Milliseconds that the wall clock is ahead. */
  readonly ms: number;
  /** By the monotonic clock. */
  readonly since: number;
}

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;

export class Clock {
  readonly #options: ClockOptions;
  /** Both clocks when they last agreed. */
  #wall: number;
  #steady: number;
  #leap: Leap | null = null;
  /** How far the uptime was ahead of the monotonic clock at the last check. */
  #ahead: number;

  constructor(options: ClockOptions) {
    this.#options = options;
    this.#wall = options.wall();
    this.#steady = options.steady();
    this.#ahead = this.#uptimeAhead();
  }

  /** Milliseconds since 1970. */
  readonly now = (): number => {
    const [wall, steady] = [this.#options.wall(), this.#options.steady()];
    if (Math.abs(wall - this.#counted(steady)) > LEAP_MS) this.#wake();
    const counted = this.#counted(steady);
    const ms = wall - counted;
    if (Math.abs(ms) <= LEAP_MS) {
      if (this.#leap) this.#end("The clock is back where it was; nothing was dropped for it.");
      return this.#agree(wall, steady);
    }
    if (!this.#leap || Math.abs(ms - this.#leap.ms) > LEAP_MS) {
      this.#leap = { ms, since: steady };
      this.#options.warn(this.#sentence(ms));
    } else if (steady - this.#leap.since >= STAND_MS) {
      this.#end(`The system clock has kept its new time for ${STAND_MS / 60_000} minutes and is trusted again.`);
      return this.#agree(wall, steady);
    }
    return Math.round(counted);
  };

  #counted(steady: number): number {
    return this.#wall + (steady - this.#steady);
  }

  #uptimeAhead(): number {
    const { uptime, steady } = this.#options;
    return uptime === undefined ? 0 : uptime() - steady();
  }

  /** A laptop was closed or a virtual machine paused: that time has passed and is not a leap. */
  #wake(): void {
    const ahead = this.#uptimeAhead();
    if (ahead - this.#ahead <= LEAP_MS) return;
    this.#wall += ahead - this.#ahead;
    this.#ahead = ahead;
  }

  /**
   * The time that is written down with what begins now: an event's `at`, and what counts from there. It is never behind the wall clock, so what is
   * pushed after a wrong clock was put right is not old when that is believed.
   */
  readonly stamp = (): number => Math.max(this.now(), this.#options.wall());

  #agree(wall: number, steady: number): number {
    [this.#wall, this.#steady] = [wall, steady];
    return wall;
  }

  #end(sentence: string): void {
    this.#leap = null;
    this.#options.warn(sentence);
  }

  /** How far the wall clock is ahead of PERE's time, in milliseconds; 0 when they agree. */
  get leapMs(): number {
    this.now();
    return this.#leap?.ms ?? 0;
  }

  /** For the operator, while the leap lasts. */
  get advice(): readonly string[] {
    this.now();
    return this.#leap ? [this.#sentence(this.#leap.ms)] : [];
  }

  #sentence(ms: number): string {
    const [way, from] = [ms > 0 ? "ahead" : "back", new Date(this.#wall).toISOString()];
    return `The clock leapt ${seconds(Math.abs(ms))} ${way}. PERE continues from ${from} on its own clock, so nothing expires early. Correct the system clock; if it is right now, wait ${STAND_MS / 60_000} minutes or restart PERE.`;
  }
}
