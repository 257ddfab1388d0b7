/**
 * What the naive model of a store remembers of an event and of a device.
 */
import type { Event, LateReason, Receipt, State, Withdrawal } from "../../engine/model.ts";
import type { Tags } from "../../engine/tags.ts";

/** What a device has said, and where that left it. */
export interface Standing {
  state: State;
  round: number;
  attempt: number;
  due: number | null;
  late: LateReason | null;
  said: Receipt;
}

export interface ModelEvent {
  readonly event: Event;
  /** Names; who is released leaves. */
  readonly audience: Set<string>;
  readonly words: Map<string, Standing>;
  withdrawal: Withdrawal | null;
  /** The log says that it is settled. */
  isSettled: boolean;
}

export interface ModelDevice {
  readonly joined: number;
  readonly enrolledAt: number;
  /** It left and came back with no push between: whether its past stays its own is the store's choice. */
  readonly returned: boolean;
  seenAt: number | null;
  lostSeq: number;
  lostNotifiedSeq: number;
}

/** Whether a `where` is for a device with these tags. */
export function isFitting(where: string | null, tags: Tags = new Map()): boolean {
  return (where?.split(",") ?? []).every((term) => {
    const [name, values] = term.replace("!", "").split(":") as [string, string?];
    const value = tags.get(name);
    const has = value !== undefined && (values === undefined || values.split("|").includes(value));
    return term.startsWith("!") ? !has : has;
  });
}
