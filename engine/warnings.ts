/**
 * What the answer to a push warns of: it was stored, but perhaps not as its publisher meant it.
 */
import type { Appended } from "./store.ts";

/** Names per warning. */
const NAMED_MAX = 10;

/**
 * Sentences on whom a push was addressed to.
 * @param strangers the devices that it names and that are not enrolled
 * @param where which devices it is for; null: all, or those that it names
 */
export function warningsOf(
  channel: string,
  pushed: Appended,
  strangers: readonly string[],
  where: string | null = null,
): string[] {
  const { addressed, first, count } = pushed;
  const it = count === 1 ? "the event" : "the events";
  if (strangers.length === 1)
    return [
      `Device ${strangers[0]} is not enrolled in channel ${channel}: check its name. It gets ${it} if it opens a feed in time.`,
    ];
  if (strangers.length > 1) {
    const more = strangers.length - NAMED_MAX;
    const list = strangers.slice(0, NAMED_MAX).join(", ") + (more > 0 ? ` and ${more} more` : "");
    return [
      `${strangers.length} of the named devices are not enrolled in channel ${channel}: ${list}. Check their names. They get ${it} if they open a feed in time.`,
    ];
  }
  if (addressed > 0) return [];
  if (where !== null)
    return [
      `No device in channel ${channel} fits ${JSON.stringify(where)}, so ${it} went to nobody: check the tags, for example with GET /devices/${channel}.`,
    ];
  const nobody = `No device is enrolled in channel ${channel}, so ${it} went to nobody.`;
  return [first === 1 ? `${nobody} The channel had no events before: check its name.` : nobody];
}
