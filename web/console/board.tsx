/**
 * The delivery board. `board-paint.ts` draws it on a canvas; this file handles the keyboard, the mouse and screen readers.
 *
 * It is a grid (WAI-ARIA, "grid") of which only the focused cell is in the document. Arrow keys move the focus, Enter opens the event, and Home,
 * End, Page Up and Page Down move further. A line below the board describes the focused cell.
 */
import { type ReadonlySignal, signal, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Board, Cell } from "./board-data.ts";
import {
  COLUMN,
  headHeight,
  type Look,
  namesWidth,
  paint,
  type Place,
  placeAt,
  readPalette,
  ROW,
  rowText,
  type View,
  windowOf,
} from "./board-paint.ts";
import { onResize } from "./floor.ts";
import { Legend, Mark } from "./marks.tsx";
import { linkTo, useKept } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { timeText } from "./words.ts";

/** With more devices than this, or with none, the board starts with tallies. */
const CELLS_AT_ONCE = 60;

/** The look that the user chose last; null: it depends on the number of devices. */
const chosen = signal<Look | null>(null);

export function BoardPage({ shown }: { readonly shown: Board }) {
  void shown.version.value;
  const isFew = shown.deviceCount > 0 && shown.deviceCount <= CELLS_AT_ONCE;
  const look = chosen.value ?? (isFew ? "cells" : "tallies");
  const isTrouble = useSignal("");
  if (!shown.isKnown) return <Skeleton />;
  if (shown.lines.length === 0)
    return (
      <p class="empty">
        No events yet. <a href={linkTo(shown.channel, "push")}>Push the first one</a>, or follow the channel with{" "}
        <a href={`weblistener.html?channel=${shown.channel}`}>a device in another tab</a>.
      </p>
    );
  const older = (): void => {
    isTrouble.value = "";
    shown.older().catch((error: Error) => (isTrouble.value = error.message));
  };
  return (
    <section aria-label="Delivery board" class="board">
      <div class="tools">
        <fieldset class="switch">
          <legend class="unseen">What a row shows</legend>
          {(["cells", "tallies"] as const).map((one) => (
            <label key={one}>
              <input type="radio" name="look" checked={look === one} onChange={() => (chosen.value = one)} />
              {one === "cells" ? "each device" : "tallies"}
            </label>
          ))}
        </fieldset>
        <Legend />
      </div>
      <Grid shown={shown} look={look} />
      {shown.isOlder && (
        <p class="more">
          <button type="button" class="plain" onClick={older}>
            Show older events
          </button>{" "}
          {isTrouble}
        </p>
      )}
    </section>
  );
}

function Grid({ shown, look }: { readonly shown: Board; readonly look: Look }) {
  void shown.version.value;
  const frame = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const size = useSignal({ width: 0, height: 0 });
  const focus = useKept<Place | null>("focus", null);
  const scrolled = useKept("scrolled", { left: 0, top: 0 });
  const isFocused = useSignal(false);
  const columns = look === "cells" ? shown.deviceCount : 0;
  const viewOf = (element: HTMLDivElement): View => ({
    look,
    ...size.peek(),
    scrollLeft: element.scrollLeft,
    scrollTop: element.scrollTop,
  });
  const draw = usePainter(frame, canvas, shown, viewOf, focus);

  useEffect(() => {
    const element = frame.current!;
    return onResize(element, () => {
      size.value = { width: element.clientWidth, height: element.clientHeight };
      draw();
    });
  }, [look]);
  // Draw again when the board, its size or the focus changes.
  useSignalEffect(() => {
    void [shown.version.value, size.value, focus.value];
    draw();
  });
  useEffect(draw, [look, shown]);
  // Back returns to the same part of the board. Its size is known after its first frame.
  useEffect(() => {
    const { left, top } = scrolled.peek();
    const again = requestAnimationFrame(() => frame.current?.scrollTo(left, top));
    return () => cancelAnimationFrame(again);
  }, []);
  const onScroll = (): void => {
    const { scrollLeft: left, scrollTop: top } = frame.current!;
    scrolled.value = { left, top };
    draw();
  };
  useStay(frame, shown, focus);

  const go = (row: number, column: number): void => {
    const place = {
      row: Math.min(Math.max(0, row), shown.lines.length - 1),
      column: Math.min(Math.max(-1, column), columns - 1),
    };
    focus.value = place;
    reveal(frame.current!, look, place);
  };
  const open = ({ row }: Place): void => {
    const line = shown.lines[row];
    if (line) location.hash = linkTo(shown.channel, "event", line.head.id);
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    const { row, column } = focus.value ?? { row: 0, column: -1 };
    const page = Math.max(1, Math.floor((size.value.height - headHeight(look)) / ROW) - 1);
    const moves: Record<string, () => void> = {
      ArrowDown: () => go(row + 1, column),
      ArrowUp: () => go(row - 1, column),
      ArrowRight: () => go(row, column + 1),
      ArrowLeft: () => go(row, column - 1),
      PageDown: () => go(row + page, column),
      PageUp: () => go(row - page, column),
      Home: () => go(event.ctrlKey ? 0 : row, -1),
      End: () => go(event.ctrlKey ? shown.lines.length - 1 : row, columns - 1),
      Enter: () => open({ row, column }),
    };
    const move = moves[event.key];
    if (!move || event.altKey || event.metaKey) return;
    event.preventDefault();
    move();
  };
  const at = (event: MouseEvent): Place | null => {
    const element = frame.current!;
    const box = element.getBoundingClientRect();
    const place = placeAt(viewOf(element), event.clientX - box.left, event.clientY - box.top);
    return place && shown.lines[place.row] && place.column < columns ? place : null;
  };
  return (
    <>
      <div
        ref={frame}
        id="grid"
        class="grid"
        role="grid"
        tabIndex={0}
        aria-label={`Events down, newest first${look === "cells" ? "; devices across" : ""}. Arrow keys move, Enter opens the event.`}
        aria-rowcount={shown.lines.length}
        aria-colcount={columns + 1}
        aria-activedescendant={focus.value ? "cell-in-focus" : undefined}
        onScroll={onScroll}
        onKeyDown={onKeyDown}
        onFocus={() => {
          isFocused.value = true;
          focus.value ??= { row: 0, column: -1 };
        }}
        onBlur={() => (isFocused.value = false)}
        onPointerMove={(event) => {
          const place = event.pointerType === "mouse" && !isFocused.value ? at(event) : null;
          if (place && (place.row !== focus.value?.row || place.column !== focus.value.column)) focus.value = place;
        }}
        onPointerLeave={() => !isFocused.value && (focus.value = null)}
        onClick={(event) => {
          const place = at(event);
          if (!place) return;
          if (place.column < 0) open(place);
          else focus.value = place;
        }}
        onDblClick={(event) => {
          const place = at(event);
          if (place) open(place);
        }}
      >
        <div
          class="extent"
          style={{
            width: look === "cells" ? `${namesWidth(size.value.width) + columns * COLUMN}px` : "100%",
            height: `${headHeight(look) + shown.lines.length * ROW}px`,
          }}
        >
          <canvas ref={canvas} aria-hidden="true" />
        </div>
        <InFocus shown={shown} place={focus} columns={columns} />
      </div>
      <FocusLine shown={shown} place={focus} />
    </>
  );
}

/** Draws at most once per frame. @returns a function that requests it */
function usePainter(
  frame: { readonly current: HTMLDivElement | null },
  canvas: { readonly current: HTMLCanvasElement | null },
  shown: Board,
  viewOf: (element: HTMLDivElement) => View,
  focus: ReadonlySignal<Place | null>,
): () => void {
  const waiting = useRef(0);
  const latest = useRef<() => void>(() => {});
  latest.current = () => {
    waiting.current = 0;
    const [element, surface] = [frame.current, canvas.current];
    if (!element || !surface) return;
    const view = viewOf(element);
    const ratio = devicePixelRatio;
    const [width, height] = [Math.round(view.width * ratio), Math.round(view.height * ratio)];
    if (surface.width !== width || surface.height !== height) {
      [surface.width, surface.height] = [width, height];
      Object.assign(surface.style, { width: `${view.width}px`, height: `${view.height}px` });
    }
    const context = surface.getContext("2d")!;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const drawn = paint(context, shown, view, focus.peek(), readPalette(element));
    surface.dataset.drawn = String(drawn); // For tests: the cost of a frame.
    shown.show(windowOf(view, shown.lines.length, shown.deviceCount));
  };
  useEffect(() => {
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const again = (): void => latest.current();
    scheme.addEventListener("change", again);
    return () => {
      scheme.removeEventListener("change", again);
      cancelAnimationFrame(waiting.current);
    };
  }, []);
  return () => {
    if (waiting.current === 0) waiting.current = requestAnimationFrame(() => latest.current());
  };
}

/** New events are inserted above. If the user has scrolled down, keep the visible events in place. */
function useStay(
  frame: { readonly current: HTMLDivElement | null },
  shown: Board,
  focus: { value: Place | null; peek(): Place | null },
): void {
  const first = useRef(shown.lines[0]?.head.id);
  useSignalEffect(() => {
    void shown.version.value;
    const place = shown.lines.findIndex(({ head }) => head.id === first.current);
    first.current = shown.lines[0]?.head.id;
    if (place <= 0) return;
    const element = frame.current;
    const held = focus.peek();
    if (held) focus.value = { ...held, row: Math.min(held.row + place, shown.lines.length - 1) };
    if (element && element.scrollTop > 0) requestAnimationFrame(() => (element.scrollTop += place * ROW));
  });
}

/** Scrolls as little as needed to make a cell visible. */
function reveal(element: HTMLDivElement, look: Look, { row, column }: Place): void {
  const height = element.clientHeight - headHeight(look);
  const width = element.clientWidth - namesWidth(element.clientWidth);
  element.scrollTop = Math.min(Math.max(element.scrollTop, (row + 1) * ROW - height), row * ROW);
  if (column >= 0)
    element.scrollLeft = Math.min(Math.max(element.scrollLeft, (column + 1) * COLUMN - width), column * COLUMN);
}

const cellText = (cell: Cell | null | undefined): string => {
  if (cell === undefined) return "not loaded yet";
  if (cell === null) return "not addressed";
  return `${cell.status}${cell.late ? ", late" : ""}${cell.at === null ? "" : `, ${timeText(cell.at)}`}`;
};

interface FocusProps {
  readonly shown: Board;
  readonly place: ReadonlySignal<Place | null>;
}

/** The only row and cell that are in the document. */
function InFocus({ shown, place, columns }: FocusProps & { readonly columns: number }) {
  void shown.version.value;
  const at = place.value;
  const line = at && shown.lines[at.row];
  if (!at || !line)
    return (
      <div role="row" class="unseen">
        <span role="gridcell">Nothing has the focus.</span>
      </div>
    );
  const device = shown.devices[at.column];
  return (
    <div role="row" class="unseen" aria-rowindex={at.row + 1}>
      {device && at.column < columns ? (
        <span role="gridcell" id="cell-in-focus" aria-colindex={at.column + 2}>
          {device.device}: {cellText(shown.cell(line, at.column))}; {rowText(line.head)}
        </span>
      ) : (
        <span role="rowheader" id="cell-in-focus" aria-colindex={1}>
          {rowText(line.head)}
        </span>
      )}
    </div>
  );
}

/** Describes the cell under the focus or the mouse. */
function FocusLine({ shown, place }: FocusProps) {
  void shown.version.value;
  const line = place.value && shown.lines[place.value.row];
  if (!line || !place.value) return <p class="focus-line muted">Point at a cell, or use the arrow keys.</p>;
  const device = shown.devices[place.value.column];
  const cell = device && shown.cell(line, place.value.column);
  return (
    <p class="focus-line">
      {device && (
        <>
          <strong>{device.device}</strong> {cell && <Mark state={cell.status} />} {cellText(cell)}
          <span class="muted"> on </span>
        </>
      )}
      <a href={linkTo(shown.channel, "event", line.head.id)}>{rowText(line.head)}</a>
    </p>
  );
}
