/**
 * What needs attention in the whole service, `GET /attention`: read again when the service says that something changed, and now and then in any case.
 */
import { batch, computed, effect, signal } from "@preact/signals";
import type { Attention, Troubles } from "../../clients/sdk/index.ts";
import { read, withLists } from "./api.ts";
import { link, now, overview, troubled } from "./state.ts";
import { count, some } from "./words.ts";

export type { Attention, Troubles };
export type TroubledDevice = Attention["devices"][number];
export type TroubledEvent = Attention["events"][number];
type TroubledChannel = Attention["channels"][number];

/** Items per list; a page may ask for more. */
const LISTED = 100;
export const LISTED_MAX = 1_000;
export const listed = signal(LISTED);

/** The last answer; null: none yet. */
export const attention = signal<Attention | null>(null);
/** Why it could not be read; "": it was. */
export const attentionTrouble = signal("");

export const troubleSum = ({ failed, missing, overdue }: Troubles): number => failed + missing + overdue;

/** A channel's trouble, without an entry if it has none; null: not known yet. */
const byChannel = computed(
  () => attention.value && new Map(attention.value.channels.map((one) => [one.channel, one] as const)),
);
/** @returns undefined: it has none; null: not known yet */
export const troubleOf = (channel: string): TroubledChannel | undefined | null =>
  byChannel.value === null ? null : byChannel.value.get(channel);

/** "50 missed, 2 failed, 3 overdue" */
export const troubleText = ({ failed, missing, overdue }: Troubles): string =>
  [
    missing > 0 ? `${count(missing)} missed` : "",
    failed > 0 ? `${count(failed)} failed` : "",
    overdue > 0 ? `${count(overdue)} overdue` : "",
  ]
    .filter(Boolean)
    .join(", ");

/** The state of the service in a sentence: "9 devices owe 90 answers." */
export function verdict({ totals, hooks, events }: Attention): string {
  const { devices, failed, missing, overdue } = totals;
  const owed = missing + overdue;
  const who = some(devices, "device");
  const calls = hooks.length > 0 ? `${some(hooks.length, "hook")} ${hooks.length === 1 ? "needs" : "need"} help.` : "";
  const kinds = [failed, missing, overdue].filter((number) => number > 0).length;
  const detail = kinds > 1 ? `${troubleText(totals)}.` : "";
  if (devices > 0 && owed > 0 && failed > 0)
    return sentence(`${who} owe answers or failed: ${troubleText(totals)}.`, calls);
  if (devices > 0 && owed > 0)
    return sentence(`${who} ${devices === 1 ? "owes" : "owe"} ${some(owed, "answer")}.`, detail, calls);
  if (devices > 0) return sentence(`${who} reported ${some(failed, "failure")}.`, calls);
  if (events.length > 0)
    return sentence(`${some(events.length, "event")} ${events.length === 1 ? "is" : "are"} in trouble.`, calls);
  return calls || "Nothing needs attention.";
}
const sentence = (...parts: string[]): string => parts.filter(Boolean).join(" ");

/** Minimum interval between two reads, and the interval if nothing seems to have changed. */
const AGAIN_MS = 1_000;
const ANYWAY_MS = 15_000;

/** A request that takes longer is given up. */
const PATIENCE_MS = 15_000;

const readAttention = async (most: number, signal: AbortSignal): Promise<Attention> =>
  withLists(await read(`/attention?limit=${most}`, "devices", signal), ["events", "hooks", "channels"]);

/** Starts reading, as long as the stream is live. */
export function followAttention(): void {
  let seen: unknown = null;
  let size = 0;
  let readAt = -Infinity;
  let reading: AbortController | null = null;
  effect(() => {
    // A service that does not say that something else needs attention says at least that something has changed.
    const [change, most] = [troubled.value ?? overview.value, listed.value];
    void now.value;
    if (link.value.state !== "live" || change === null) return;
    const isNew = change !== seen || most !== size;
    const age = performance.now() - readAt;
    if (reading !== null || age < (isNew ? AGAIN_MS : ANYWAY_MS)) return;
    [seen, size, readAt] = [change, most, performance.now()];
    const control = (reading = new AbortController());
    const timer = setTimeout(() => control.abort(), PATIENCE_MS);
    const ended = (): void => ((reading = null), clearTimeout(timer));
    readAttention(most, control.signal).then(
      (answer) => (ended(), batch(() => ([attention.value, attentionTrouble.value] = [answer, ""]))),
      (error: Error) => (ended(), (attentionTrouble.value = error.message)),
    );
  });
}
