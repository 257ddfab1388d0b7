/**
 * Describes the cell or the event in focus: below the board, and on a phone in a sheet at the bottom of the screen, which a tap opens and Escape closes.
 */
import type { ReadonlySignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { type Board, type Cell, type Line, shownState } from "./board-data.ts";
import { type Place, rowText } from "./board-paint.ts";
import { Mark } from "./marks.tsx";
import { linkTo, useEscape } from "./router.ts";
import { now } from "./state.ts";
import { againText, endingText, tallyText, timeText } from "./words.ts";

/** "failed, late, 16:09:01: no paper" */
export function cellText({ head }: Line, cell: Cell | null | undefined): string {
  if (cell === undefined) return "not loaded yet";
  if (cell === null) return "not addressed";
  const state = shownState(head, cell);
  return [
    state === cell.status ? state : `${cell.status}, ${state} since ${timeText(overdueSince(head.at))}`,
    cell.late ? ", late" : "",
    cell.at === null ? "" : `, ${timeText(cell.at)}`,
    // Of a cell that was not read it is not known until when.
    cell.reason === undefined ? "" : againText(cell, now.value).replace(/^(?=.)/, ", "),
    cell.reason ? `: ${cell.reason}` : "",
  ].join("");
}

/** An event without a deadline is overdue an hour after it was pushed. */
const overdueSince = (at: string): string => new Date(Date.parse(at) + 3_600_000).toISOString();

interface LineProps {
  readonly shown: Board;
  readonly place: ReadonlySignal<Place | null>;
  /** On a phone it is shown only then. */
  readonly isOpen: boolean;
  readonly close: () => void;
}

export function FocusLine({ shown, place, isOpen, close }: LineProps) {
  void shown.version.value;
  const at = place.value;
  const line = at && shown.rows[at.row];
  const device = (at && shown.columns.list[at.column]?.device) ?? null;
  const cell = line && at && device !== null ? shown.cell(line, at.column) : null;
  useEscape(line && isOpen && isSheet() ? close : null);
  useEffect(() => {
    if (!line) return;
    if (device === null) shown.needReasons(line);
    else if (cell?.status === "failed" || cell?.status === "deferred") shown.needReason(line, device);
  });
  if (!line) return <p class="focus-line muted">Point at a cell, or use the arrow keys.</p>;
  const { head } = line;
  return (
    <div class={isOpen ? "focus-line open" : "focus-line"} role="group" aria-label="Selected">
      <p>
        {device !== null && (
          <>
            <strong>
              <a href={linkTo(shown.channel, "devices", device)}>{device}</a>
            </strong>{" "}
            {cell && <Mark state={shownState(head, cell)} />} {cellText(line, cell)}
            <span class="muted"> · </span>
          </>
        )}
        <a href={linkTo(shown.channel, "event", head.id)}>
          {device === null
            ? rowText(head)
            : `event ${head.seq}${head.type === null ? "" : `, ${head.type}`}, ${timeText(head.at)}${head.withdrawn === null ? "" : `, ${endingText(head.withdrawn).toLowerCase()}`}`}
        </a>
        {device !== null && <span class="muted">: {tallyText(head.receipts, head.addressed)}</span>}
      </p>
      {device === null && <Reasons failed={head.receipts.failed ?? 0} rows={line.reasons?.rows ?? []} />}
      <button type="button" class="plain" onClick={close}>
        Close
      </button>
    </div>
  );
}

/** Whether the style makes it a sheet. */
const isSheet = (): boolean => matchMedia("(max-width: 46rem)").matches;

/** What the first devices said that failed the event. */
function Reasons({ failed, rows }: { readonly failed: number; readonly rows: NonNullable<Line["reasons"]>["rows"] }) {
  if (failed === 0 || rows.length === 0) return null;
  const more = failed - rows.length;
  return (
    <p class="reasons">
      Failed: {rows.map(({ device, reason }) => (reason === null ? device : `${device} (${reason})`)).join(", ")}
      {more > 0 && `, and ${more} more`}
    </p>
  );
}
