/**
 * The delivery board: what is shown of it, and the tools above it. `board-grid.tsx` shows events down and devices across, `board-line.tsx` describes
 * the cell in focus.
 */
import { signal, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { attention, listed, LISTED_MAX, troubleOf } from "./attention.ts";
import type { Order } from "./board-columns.ts";
import { type Board, isOverdue } from "./board-data.ts";
import { Grid } from "./board-grid.tsx";
import type { Look } from "./board-paint.ts";
import { Legend } from "./marks.tsx";
import { linkTo, replaceQuery, route, useKept } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { count, openOf, some, STATES, statesIn } from "./words.ts";

/** With more devices than this, or with none, the board starts with tallies. */
const CELLS_AT_ONCE = 60;

/** What the user chose last, for all boards. Null: it depends on the number of devices. */
const chosenLook = signal<Look | null>(null);
const chosenOrder = signal<Order>("worst");

const LOOKS: readonly (readonly [Look, string])[] = [
  ["cells", "each device"],
  ["tallies", "tallies"],
];
const ORDERS: readonly (readonly [Order, string])[] = [
  ["worst", "worst first"],
  ["name", "by name"],
  ["group", "by prefix"],
];

/** States that are in every legend; others are while an event has them. */
const ALWAYS = new Set(["failed", "missing", "working", "received", "pending", "done"]);

export function BoardPage({ shown }: { readonly shown: Board }) {
  void shown.version.value;
  const isTroubleOnly = route.value.query.get("only") === "trouble";
  const order = chosenOrder.value;
  const { isBusy, troubled } = useTroubled(shown.channel);
  useEffect(() => shown.arrange(troubled, { order, isTroubleOnly }), [shown, troubled, order, isTroubleOnly]);
  if (!shown.isKnown) return <Skeleton />;
  if (shown.lines.length === 0)
    return (
      <p class="empty">
        No events yet. <a href={linkTo(shown.channel, "push")}>Push the first one</a>, or follow the channel with{" "}
        <a href={`weblistener.html?channel=${shown.channel}`}>a device in another tab</a>.
      </p>
    );
  const columns = shown.columns.count;
  const isFew = columns > 0 && columns <= CELLS_AT_ONCE;
  const look = chosenLook.value ?? (isFew || (isTroubleOnly && columns > 0) ? "cells" : "tallies");
  const isEmpty = isTroubleOnly && shown.rows.length === 0;
  return (
    <section aria-label="Delivery board" class="board">
      <div class="tools">
        <fieldset class="switch">
          <legend class="unseen">What a row shows</legend>
          {LOOKS.map(([one, label]) => (
            <label key={one}>
              <input type="radio" name="look" checked={look === one} onChange={() => (chosenLook.value = one)} />
              {label}
            </label>
          ))}
        </fieldset>
        <label class="inline">
          <input
            type="checkbox"
            name="trouble-only"
            checked={isTroubleOnly}
            onChange={({ currentTarget }) => replaceQuery({ only: currentTarget.checked ? "trouble" : null })}
          />
          trouble only
        </label>
        {look === "cells" && (
          <label class="inline">
            Devices{" "}
            <select
              name="order"
              value={order}
              onChange={({ currentTarget }) => (chosenOrder.value = currentTarget.value as Order)}
            >
              {ORDERS.map(([one, label]) => (
                <option key={one} value={one}>
                  {label}
                </option>
              ))}
            </select>
          </label>
        )}
      </div>
      <Legend states={legendOf(shown)} />
      {isEmpty ? (
        <p class="empty small">
          {shown.lines.length === 1 ? "The event here is" : `None of the ${count(shown.lines.length)} events here is`}
          {shown.lines.length === 1 ? " not" : ""} in trouble.{" "}
          <button type="button" class="plain" onClick={() => replaceQuery({})}>
            Show all
          </button>
        </p>
      ) : (
        <Grid shown={shown} look={look} isBusy={isBusy} />
      )}
      <Truncated channel={shown.channel} known={troubled.length} />
      <Older shown={shown} />
    </section>
  );
}

/** The channel's devices in trouble. They stay as they are while one points at a cell or has it in focus: nothing moves then. */
function useTroubled(channel: string) {
  const isBusy = useSignal(false);
  const known = attention.value;
  const held = useKept<{ of: typeof known; devices: NonNullable<typeof known>["devices"] }>("troubled", {
    of: null,
    devices: [],
  });
  const total = troubleOf(channel)?.devices ?? 0;
  useEffect(() => {
    if (known === null || held.peek().of === known || (isBusy.value && held.peek().of !== null)) return;
    held.value = { of: known, devices: known.devices.filter((one) => one.channel === channel) };
  }, [known, isBusy.value]);
  const { devices } = held.value;
  // More of this channel's may be in a longer list.
  useEffect(() => {
    if (known && total > devices.length && known.devices.length === listed.peek()) listed.value = LISTED_MAX;
  }, [known, total > devices.length]);
  return { isBusy, troubled: devices };
}

function legendOf({ lines }: Board): string[] {
  const there = new Set<string>(ALWAYS);
  let late = false;
  for (const { head } of lines) {
    for (const state of statesIn(head.receipts)) there.add(state);
    late ||= isOverdue(head) && openOf(head.receipts) > 0;
  }
  const known = STATES.filter((state) => there.has(state));
  const unknown = [...there].filter((state) => !(STATES as readonly string[]).includes(state));
  return [...known.slice(0, 2), ...(late ? ["overdue"] : []), ...known.slice(2), ...unknown];
}

/** Says that there are more devices in trouble than the service lists. */
function Truncated({ channel, known }: { readonly channel: string; readonly known: number }) {
  const total = troubleOf(channel)?.devices ?? 0;
  if (total <= known || listed.value < LISTED_MAX) return null;
  return (
    <p class="muted small">
      The worst {count(known)} of {some(total, "device")} in trouble are shown as such.
    </p>
  );
}

function Older({ shown }: { readonly shown: Board }) {
  void shown.version.value;
  const trouble = useSignal("");
  if (!shown.isOlder) return null;
  const older = (): void => {
    trouble.value = "";
    shown.older().catch((error: Error) => (trouble.value = error.message));
  };
  return (
    <p class="more">
      <button type="button" class="plain" onClick={older}>
        Show older events
      </button>{" "}
      {trouble}
    </p>
  );
}
