/**
 * The other events with an event's key. The service does not search by key, so those that the board has and those near the event are found, and the one
 * that replaced it.
 */
import { read } from "./api.ts";
import type { Board } from "./board-data.ts";
import { readEvent, type Shown } from "./event-data.ts";
import { Mark } from "./marks.tsx";
import { useReading } from "./readings.ts";
import { linkTo } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { endingText, statesIn, tallyText, timeText } from "./words.ts";
import type { Tally } from "./api.ts";

/** Events before and behind it that are looked through. They come with their data, so they are not many. */
const NEAR = 50;
/** Other events that are listed. */
const LISTED = 20;

/** Another event with the key. */
interface Other {
  readonly id: string;
  readonly seq: number;
  readonly at: string;
  /** Why it was withdrawn; null: it was not. */
  readonly withdrawn: string | null;
  readonly addressed: number;
  readonly receipts: Tally;
}

type Listed = Omit<Shown, "text" | "receipts"> & { readonly seq: number; readonly receipts: Tally };

const otherOf = ({ id, seq, at, withdrawn, audience, receipts }: Listed): Other => ({
  ...{ id, seq, at, receipts },
  withdrawn: withdrawn?.reason ?? null,
  addressed: audience.addressed,
});

const seqOf = (id: string): number => Number(id.slice(id.lastIndexOf("-") + 1));

/** @throws Refused; TypeError: there was no answer */
async function readNear(channel: string, event: Shown, key: string, signal: AbortSignal): Promise<Other[]> {
  const near = (order: "asc" | "desc") =>
    read<{ events: Listed[] }>(`/events/${channel}?after=${event.id}&limit=${NEAR}&order=${order}`, "events", signal);
  const [older, newer] = await Promise.all([near("desc"), near("asc")]);
  const found = [...older.events, ...newer.events].filter((one) => one.key === key).map(otherOf);
  const by = event.withdrawn?.by;
  if (by !== undefined && !found.some(({ id }) => id === by)) {
    const replacing = await readEvent(channel, by, signal).catch(() => null); // It may no longer be kept.
    if (replacing) found.push(otherOf({ ...replacing, seq: seqOf(by), receipts: replacing.receipts as Tally }));
  }
  return found;
}

interface SameKeyProps {
  readonly channel: string;
  readonly event: Shown;
  readonly keyOf: string;
  readonly board: Board | null;
}

export function SameKey({ channel, event, keyOf: key, board }: SameKeyProps) {
  void board?.version.value;
  const near = useReading((signal) => readNear(channel, event, key, signal), Infinity);
  const others = new Map((near.answer.value ?? []).map((one) => [one.id, one] as const));
  for (const { head } of board?.lines ?? []) if (head.key === key) others.set(head.id, head);
  others.delete(event.id);
  const here = seqOf(event.id);
  const list = [...others.values()].sort((a, b) => b.seq - a.seq).slice(0, LISTED);
  return (
    <section aria-labelledby="same-key">
      <h3 id="same-key">
        Key <code>{key}</code>
      </h3>
      {near.trouble.value && <p class="trouble">{near.trouble}</p>}
      {list.length > 0 ? (
        <ul class="same-key" aria-label={`Other events with the key ${key}, newest first`}>
          {list.map(({ id, seq, at, withdrawn, addressed, receipts }) => (
            <li key={id}>
              <a href={linkTo(channel, "event", id)}>
                {seq > here ? "newer" : "older"}, event {seq}
              </a>
              <span class="muted">{timeText(at)}</span>
              <span>
                <Mark state={withdrawn === null ? (statesIn(receipts)[0] ?? "done") : "withdrawn"} />{" "}
                {withdrawn !== null && `${endingText(withdrawn)}. `}
                {tallyText(receipts, addressed)}
              </span>
            </li>
          ))}
        </ul>
      ) : near.answer.value === null && !near.trouble.value ? (
        <Skeleton rows={1} />
      ) : (
        <p class="muted">
          No other event with this key is near. The next push with this key replaces this one, unless it is complete by
          then.
        </p>
      )}
    </section>
  );
}
