/**
 * The board's grid: `board-paint.ts` draws it on a canvas; this file handles the keyboard, the mouse, fingers and screen readers.
 *
 * It is a grid (WAI-ARIA, "grid") of which only the focused cell is in the document. Arrow keys move the focus, Enter opens the event, and Home,
 * End, Page Up and Page Down move further. `board-line.tsx` describes the focused cell.
 */
import { type ReadonlySignal, type Signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Board } from "./board-data.ts";
import { cellText, FocusLine } from "./board-line.tsx";
import {
  headHeight,
  type Look,
  paint,
  type Place,
  placeAt,
  readPalette,
  rowText,
  sizesOf,
  type View,
  windowOf,
} from "./board-paint.ts";
import { onResize } from "./floor.ts";
import { linkTo, useKept } from "./router.ts";
import { sight } from "./state.ts";

/** What has the focus: an event, and one of its devices. They keep it when rows and columns move. */
interface Focus {
  readonly event: string;
  /** Null: the event itself, or a device that is not read yet. */
  readonly device: string | null;
  /** Where the device was; -1: the event itself. */
  readonly column: number;
}

/** The focus's place now; null: nothing has it, or it is no longer here. */
function placeOf(shown: Board, columns: number, focus: Focus | null): Place | null {
  if (focus === null) return null;
  const row = shown.rows.findIndex(({ head }) => head.id === focus.event);
  if (row === -1) return null;
  const column = (focus.device === null ? undefined : shown.columns.placeOf.get(focus.device)) ?? focus.column;
  return { row, column: Math.min(column, columns - 1) };
}

interface GridProps {
  readonly shown: Board;
  readonly look: Look;
  /** Whether one points at a cell, or has it in focus. */
  readonly isBusy: Signal<boolean>;
}

export function Grid({ shown, look, isBusy }: GridProps) {
  void shown.version.value;
  const frame = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const size = useSignal({ width: 0, height: 0 });
  const focus = useKept<Focus | null>("focus", null);
  /** The description is open: by a tap, a click or a key, not by the mouse alone. */
  const isOpen = useKept("isOpen", false);
  const isFocused = useSignal(false);
  const columns = look === "cells" ? shown.columns.count : 0;
  const head = headHeight(look, shown.columns);
  const place = useComputed(() => (void shown.version.value, placeOf(shown, columns, focus.value)));
  const viewOf = (element: HTMLDivElement): View => ({
    look,
    head,
    ...size.peek(),
    scrollLeft: element.scrollLeft,
    scrollTop: element.scrollTop,
  });
  const draw = usePainter(frame, canvas, shown, viewOf, place);

  useEffect(() => {
    const element = frame.current!;
    return onResize(element, () => {
      size.value = { width: element.clientWidth, height: element.clientHeight };
      draw();
    });
  }, [look]);
  // Draw again when the board, its size, the focus or what is known changes.
  useSignalEffect(() => {
    void [shown.version.value, size.value, place.value, sight.value];
    draw();
  });
  useEffect(draw, [look, shown, head]);
  const onScroll = useScroll(frame, shown, draw);

  const { row: rowHeight, column: columnWidth, names } = sizesOf(size.value.width);
  const set = (row: number, column: number): void => {
    const line = shown.rows[row];
    if (line) focus.value = { event: line.head.id, device: shown.columns.list[column]?.device ?? null, column };
  };
  const go = (row: number, column: number): void => {
    const [to, at] = [clamp(row, 0, shown.rows.length - 1), clamp(column, -1, columns - 1)];
    set(to, at);
    isOpen.value = true;
    reveal(frame.current!, head, { row: to, column: at });
  };
  const open = ({ row }: Place): void => {
    const line = shown.rows[row];
    if (line) location.hash = linkTo(shown.channel, "event", line.head.id);
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    const { row, column } = place.value ?? { row: 0, column: -1 };
    const page = Math.max(1, Math.floor((size.value.height - head) / rowHeight) - 1);
    const moves: Record<string, () => void> = {
      ArrowDown: () => go(row + 1, column),
      ArrowUp: () => go(row - 1, column),
      ArrowRight: () => go(row, column + 1),
      ArrowLeft: () => go(row, column - 1),
      PageDown: () => go(row + page, column),
      PageUp: () => go(row - page, column),
      Home: () => go(event.ctrlKey ? 0 : row, -1),
      End: () => go(event.ctrlKey ? shown.rows.length - 1 : row, columns - 1),
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
    const found = placeAt(viewOf(element), event.clientX - box.left, event.clientY - box.top);
    return found && shown.rows[found.row] && found.column < columns ? found : null;
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
        aria-rowcount={shown.rows.length}
        aria-colcount={columns + 1}
        aria-activedescendant={place.value ? "cell-in-focus" : undefined}
        onScroll={onScroll}
        onKeyDown={onKeyDown}
        onFocus={() => {
          isFocused.value = isBusy.value = true;
          if (place.peek() === null) set(0, -1);
        }}
        onBlur={() => (isFocused.value = isBusy.value = false)}
        onPointerMove={(event) => {
          if (event.pointerType !== "mouse" || isFocused.value) return;
          isBusy.value = true;
          const found = at(event);
          if (found && (found.row !== place.value?.row || found.column !== place.value.column))
            set(found.row, found.column);
        }}
        onPointerLeave={() => {
          if (isFocused.value) return;
          focus.value = null;
          isBusy.value = false;
        }}
        onClick={(event) => {
          const found = at(event);
          if (!found) return;
          isOpen.value = true;
          if (found.column < 0) open(found);
          else set(found.row, found.column);
        }}
        onDblClick={(event) => {
          const found = at(event);
          if (found) open(found);
        }}
      >
        <div
          class="extent"
          style={{
            width: look === "cells" ? `${names + columns * columnWidth}px` : "100%",
            height: `${head + shown.rows.length * rowHeight}px`,
          }}
        >
          <canvas ref={canvas} aria-hidden="true" />
        </div>
        <InFocus shown={shown} place={place} columns={columns} />
      </div>
      <FocusLine
        shown={shown}
        place={place}
        isOpen={isOpen.value}
        close={() => {
          isOpen.value = false;
          frame.current?.focus({ preventScroll: true });
        }}
      />
    </>
  );
}

const clamp = (value: number, least: number, most: number): number => Math.min(Math.max(least, value), most);

/** Draws at most once per frame. @returns a function that requests it */
function usePainter(
  frame: { readonly current: HTMLDivElement | null },
  canvas: { readonly current: HTMLCanvasElement | null },
  shown: Board,
  viewOf: (element: HTMLDivElement) => View,
  place: ReadonlySignal<Place | null>,
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
    const drawn = paint(context, shown, view, place.peek(), readPalette(element));
    Object.assign(surface.dataset, { drawn, head: view.head }); // For tests: the cost of a frame, and where its cells are.
    shown.show(windowOf(view, shown.rows.length, shown.columns.count));
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

/**
 * Keeps the visible events in place: new ones are inserted above, and Back returns to the same part of the board.
 * @returns the handler of scroll events
 */
function useScroll(frame: { readonly current: HTMLDivElement | null }, shown: Board, draw: () => void): () => void {
  /** The scroll position, and the event in the first row at that time. */
  const kept = useKept("scrolled", { left: 0, top: 0, first: shown.rows[0]?.head.id });
  const settle = (): void => {
    const element = frame.current;
    const { left, top, first } = kept.peek();
    const now = shown.rows[0]?.head.id;
    if (!element) return;
    const rows = first === now ? 0 : shown.rows.findIndex(({ head }) => head.id === first);
    const moved = top > 0 && rows > 0 ? top + rows * sizesOf(element.clientWidth).row : top;
    if (Math.abs(element.scrollTop - moved) > 1 || Math.abs(element.scrollLeft - left) > 1)
      element.scrollTo(left, moved);
    kept.value = { left: element.scrollLeft, top: element.scrollTop, first: now };
  };
  useEffect(() => {
    // The grid has its size after its first frame.
    const again = requestAnimationFrame(settle);
    return () => cancelAnimationFrame(again);
  }, []);
  useSignalEffect(() => {
    void shown.version.value;
    if (shown.rows[0]?.head.id !== kept.peek().first) requestAnimationFrame(settle);
  });
  return () => {
    const { scrollLeft: left, scrollTop: top } = frame.current!;
    const isMoving = kept.peek().first !== shown.rows[0]?.head.id;
    if (!isMoving) kept.value = { ...kept.peek(), left, top };
    draw();
  };
}

/** Scrolls as little as needed to make a cell visible. */
function reveal(element: HTMLDivElement, head: number, { row, column }: Place): void {
  const sizes = sizesOf(element.clientWidth);
  const height = element.clientHeight - head;
  const width = element.clientWidth - sizes.names;
  element.scrollTop = Math.min(Math.max(element.scrollTop, (row + 1) * sizes.row - height), row * sizes.row);
  if (column >= 0)
    element.scrollLeft = Math.min(
      Math.max(element.scrollLeft, (column + 1) * sizes.column - width),
      column * sizes.column,
    );
}

interface FocusProps {
  readonly shown: Board;
  readonly place: ReadonlySignal<Place | null>;
}

/** The only row and cell that are in the document. */
function InFocus({ shown, place, columns }: FocusProps & { readonly columns: number }) {
  void shown.version.value;
  const at = place.value;
  const line = at && shown.rows[at.row];
  if (!at || !line)
    return (
      <div role="row" class="unseen">
        <span role="gridcell">Nothing has the focus.</span>
      </div>
    );
  const device = shown.columns.list[at.column];
  return (
    <div role="row" class="unseen" aria-rowindex={at.row + 1}>
      {device && at.column < columns ? (
        <span role="gridcell" id="cell-in-focus" aria-colindex={at.column + 2}>
          {device.device}: {cellText(line, shown.cell(line, at.column))}; {rowText(line.head)}
        </span>
      ) : (
        <span role="rowheader" id="cell-in-focus" aria-colindex={1}>
          {rowText(line.head)}
        </span>
      )}
    </div>
  );
}
