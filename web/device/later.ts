/** When something can be put off to. The service puts an event off by a day at most, and what comes back behind its deadline comes too late. */
import { clockText } from "./content.ts";

/** The service's limit. */
const SECONDS_MAX = 86_400;
/** When the day begins: "tomorrow" is not the middle of the night. */
const MORNING_HOUR = 8;
/** Where the deadline comes before everything else. */
const SHORT_SECONDS = 120;
/** What is put off must come back so long before its deadline. */
const SPARE_SECONDS = 30;

export interface Choice {
  readonly label: string;
  readonly seconds: number;
}

/** Seconds until tomorrow morning, or a whole day if that is less. */
function tomorrow(now: number): number {
  const date = new Date(now);
  date.setDate(date.getDate() + 1);
  date.setHours(MORNING_HOUR, 0, 0, 0);
  return Math.min(SECONDS_MAX, Math.ceil((date.getTime() - now) / 1000));
}

/** @param deadline ISO time, if there is one @param now milliseconds since 1970 @returns none: it can't be put off any more */
export function choicesOf(deadline: string | undefined, now: number): readonly Choice[] {
  const left = deadline === undefined ? Number.POSITIVE_INFINITY : (Date.parse(deadline) - now) / 1000;
  const inDay = tomorrow(now);
  const usual: readonly Choice[] = [
    { label: "10 min", seconds: 600 },
    { label: "1 h", seconds: 3_600 },
    { label: `tomorrow ${clockText(now + inDay * 1000, now + inDay * 1000)}`, seconds: inDay },
  ];
  const fitting = ({ seconds }: Choice): boolean => seconds + SPARE_SECONDS <= left;
  const found = usual.filter(fitting);
  return found.length > 0 ? found : [{ label: "2 min", seconds: SHORT_SECONDS }].filter(fitting);
}
