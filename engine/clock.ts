/**
 * What time it is, for PERE: the wall clock as long as it goes on as time does, and its own count while it does not.
 *
 * A wall clock that leaps (a battery that is empty, a wrong time server, a hand that slips) would drop everything that is kept, let each deadline
 * pass and each event expire, in a second. So it is held against the monotonic clock. Where the two part by more than seconds, PERE goes on from where
 * it was, second by second, in all that it judges, and says so; the leap is believed when the wall clock has stood by it for minutes,
 * or when PERE is started again. Where it comes back before, nothing has happened. Time that the machine slept for has passed, and is no leap.
 */

/** Further than this no clock is set while it is in order: time servers slew, and step by less. */
const LEAP_MS = 5_000;
/** A wall clock that has stood so long by what it leapt to is right: whoever set it wrong has had time to see. */
const STAND_MS = 5 * 60_000;

export interface ClockOptions {
  /** Milliseconds since 1970. */
  readonly wall: () => number;
  /** Milliseconds since some moment, and never back. */
  readonly steady: () => number;
  /** Milliseconds since the machine started, to the second. It goes on while the machine sleeps; the monotonic clock of Linux does not. */
  readonly uptime?: () => number;
  /** Told of a leap, and of its end. */
  readonly tell: (sentence: string) => void;
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
  /** Where both clocks stood when they last agreed. */
  #wall: number;
  #steady: number;
  #leap: Leap | null = null;
  /** How far the uptime was ahead of the monotonic clock when that was last looked at. */
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
      this.#options.tell(this.#sentence(ms));
    } else if (steady - this.#leap.since >= STAND_MS) {
      this.#end(`The clock has stood for ${STAND_MS / 60_000} minutes by what it leapt to, and is believed.`);
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

  /** A laptop that was closed, a virtual machine that was paused: that time has passed, and is no leap. */
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
    this.#options.tell(sentence);
  }

  /** How far the wall clock is ahead of what PERE goes by, in milliseconds; 0: not at all. */
  get leapMs(): number {
    this.now();
    return this.#leap?.ms ?? 0;
  }

  /** For the operator, while it matters. */
  get advice(): readonly string[] {
    this.now();
    return this.#leap ? [this.#sentence(this.#leap.ms)] : [];
  }

  #sentence(ms: number): string {
    const [way, from] = [ms > 0 ? "ahead" : "back", new Date(this.#wall).toISOString()];
    return `The clock leapt ${seconds(Math.abs(ms))} ${way}. PERE counts on from ${from} by itself and lets nothing expire for it. Set the clock right; where it is right now, wait ${STAND_MS / 60_000} minutes or start PERE again.`;
  }
}
