/**
 * Draws the delivery board: events down, devices across, on one canvas of the size of the visible part.
 *
 * There are two looks: `tallies` shows each event as one bar of its tally, however many devices it has; `cells` shows each device, with a sign
 * and a colour per state. Only the visible part is drawn, so a frame costs the same for ten devices as for ten thousand.
 */
import type { EventHead, State } from "./api.ts";
import type { Board, Window } from "./board-data.ts";
import { addRect } from "./floor.ts";
import { markOf, STATES, statesIn, tallyText, timeText } from "./words.ts";

export type Look = "tallies" | "cells";

/** Sizes in CSS pixels. */
export const ROW = 26;
export const COLUMN = 26;
/** The first column has the events' names; with cells, the first row has the devices' names, rotated. */
export const namesWidth = (width: number): number => (width < 520 ? 126 : 216);
export const headHeight = (look: Look): number => (look === "cells" ? 96 : 0);

/** The view's size and scroll position, in CSS pixels. */
export interface View {
  readonly look: Look;
  readonly width: number;
  readonly height: number;
  readonly scrollLeft: number;
  readonly scrollTop: number;
}

export interface Place {
  readonly row: number;
  readonly column: number;
}

/** The page's current colours, light or dark. */
export interface Palette {
  readonly text: string;
  readonly muted: string;
  readonly line: string;
  readonly ground: string;
  readonly raised: string;
  readonly focus: string;
  readonly ink: string;
  readonly states: Record<State, string>;
}

export function readPalette(element: Element): Palette {
  const style = getComputedStyle(element);
  const of = (name: string): string => style.getPropertyValue(name).trim();
  return {
    ...{ text: of("--text"), muted: of("--muted"), line: of("--line"), ground: of("--ground"), raised: of("--raised") },
    ...{ focus: of("--focus"), ink: of("--ink") },
    states: Object.fromEntries(STATES.map((state) => [state, of(`--${state}`)])) as Record<State, string>,
  };
}

/** The rows and columns that are visible, at least in part. */
export function windowOf({ look, width, height, scrollLeft, scrollTop }: View, rows: number, columns: number): Window {
  const top = Math.max(0, Math.floor(scrollTop / ROW));
  const bottom = Math.min(rows, Math.ceil((scrollTop + height - headHeight(look)) / ROW));
  if (look === "tallies") return { top, bottom, left: 0, right: 0 };
  const left = Math.max(0, Math.floor(scrollLeft / COLUMN));
  return { top, bottom, left, right: Math.min(columns, Math.ceil((scrollLeft + width - namesWidth(width)) / COLUMN)) };
}

/** The cell at a point of the view; null: a name, or nothing. */
export function placeAt(view: View, x: number, y: number): Place | null {
  const row = Math.floor((y - headHeight(view.look) + view.scrollTop) / ROW);
  if (y < headHeight(view.look)) return null;
  const column = view.look === "tallies" ? -1 : Math.floor((x - namesWidth(view.width) + view.scrollLeft) / COLUMN);
  return x < namesWidth(view.width) ? { row, column: -1 } : { row, column };
}

const FONT = "12px system-ui, sans-serif";
const MONO = "11px ui-monospace, monospace";
const paths = new Map<State, Path2D>();
const pathOf = (state: State): Path2D => {
  let path = paths.get(state);
  if (!path) paths.set(state, (path = new Path2D(markOf(state))));
  return path;
};

/** Draws the visible part. @returns the number of cells and bars drawn */
export function paint(
  context: CanvasRenderingContext2D,
  board: Board,
  view: View,
  focus: Place | null,
  palette: Palette,
): number {
  const { look, width, height } = view;
  const window = windowOf(view, board.lines.length, board.deviceCount);
  const names = namesWidth(width);
  const top = headHeight(look);
  context.clearRect(0, 0, width, height);
  context.textBaseline = "middle";
  let drawn = 0;

  for (let row = window.top; row < window.bottom; row++) {
    const line = board.lines[row]!;
    const y = top + row * ROW - view.scrollTop;
    if (look === "tallies") drawn += paintBar(context, line.head, names, y, width - names, palette);
    for (let column = window.left; column < window.right; column++) {
      const x = names + column * COLUMN - view.scrollLeft;
      const cell = board.cell(line, column);
      drawn++;
      paintCell(context, x, y, cell === undefined ? "unknown" : (cell?.status ?? "none"), cell?.late ?? false, palette);
    }
  }
  paintNames(context, board, view, window, focus, palette);
  if (look === "cells") paintDevices(context, board, view, window, focus, palette);
  if (focus) paintFocus(context, view, focus, palette);
  return drawn;
}

/** Draws the sign of one cell. Not addressed: a dash. Not loaded yet: a dot. */
function paintCell(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  state: State | "unknown" | "none",
  isLate: boolean,
  palette: Palette,
): void {
  const [left, top, size] = [x + 3, y + 3, COLUMN - 6];
  if (state === "unknown" || state === "none") {
    context.fillStyle = palette.line;
    const width = state === "none" ? 8 : 3;
    return context.fillRect(x + (COLUMN - width) / 2, y + ROW / 2 - 1, width, 2);
  }
  context.beginPath();
  addRect(context, left + 0.5, top + 0.5, size - 1, size - 1, 4);
  if (state === "pending") {
    context.strokeStyle = palette.states.pending;
    context.lineWidth = 1;
    return context.stroke();
  }
  context.fillStyle = palette.states[state];
  context.fill();
  context.save();
  context.translate(left + 2, top + 2);
  context.strokeStyle = palette.ink;
  context.lineWidth = state === "working" ? 2.6 : 1.8;
  context.lineCap = context.lineJoin = "round";
  context.stroke(pathOf(state));
  context.restore();
  if (!isLate) return;
  // Late: a folded corner.
  context.fillStyle = palette.ground;
  context.beginPath();
  context.moveTo(left + size - 6, top);
  context.lineTo(left + size, top);
  context.lineTo(left + size, top + 6);
  context.fill();
}

/** Draws an event's tally as shares of a bar, each with its number if there is room. */
function paintBar(
  context: CanvasRenderingContext2D,
  { receipts, addressed }: EventHead,
  left: number,
  y: number,
  width: number,
  palette: Palette,
): number {
  const [top, height, full] = [y + 4, ROW - 8, width - 14];
  context.font = FONT;
  if (addressed === 0) {
    context.fillStyle = palette.muted;
    context.fillText("addressed to no device", left + 2, y + ROW / 2);
    return 1;
  }
  let x = left;
  let drawn = 0;
  for (const state of statesIn(receipts)) {
    const part = Math.max(3, (full * receipts[state]) / addressed);
    const end = Math.min(left + full, x + part);
    drawn++;
    context.beginPath();
    addRect(context, x, top, Math.max(1, end - x - 1), height, 3);
    context.fillStyle = palette.states[state];
    if (state === "pending") {
      context.strokeStyle = palette.states.pending;
      context.lineWidth = 1;
      context.stroke();
    } else context.fill();
    const said = end - x > 90 ? `${receipts[state]} ${state}` : String(receipts[state]);
    context.fillStyle = state === "pending" ? palette.muted : palette.ink;
    if (end - x > context.measureText(said).width + 10) context.fillText(said, x + 6, y + ROW / 2 + 0.5);
    x = end;
  }
  return drawn;
}

/** A name, cut to this many characters. */
const shortened = (name: string, most: number): string => (name.length <= most ? name : `${name.slice(0, most - 1)}…`);

/** Draws the events' names, over what was scrolled under them. */
function paintNames(
  context: CanvasRenderingContext2D,
  board: Board,
  { look, width, height, scrollTop }: View,
  window: Window,
  focus: Place | null,
  palette: Palette,
): void {
  const names = namesWidth(width);
  context.fillStyle = palette.raised;
  context.fillRect(0, 0, names - 6, height);
  context.save();
  context.beginPath();
  context.rect(0, 0, names - 10, height);
  context.clip();
  for (let row = window.top; row < window.bottom; row++) {
    const { seq, type, at } = board.lines[row]!.head;
    const y = headHeight(look) + row * ROW - scrollTop + ROW / 2;
    context.font = MONO;
    context.fillStyle = palette.muted;
    context.textAlign = "right";
    context.fillText(String(seq), 40, y);
    context.textAlign = "left";
    if (names > 150) context.fillText(timeText(at).slice(-8), 50, y);
    context.font = FONT;
    context.fillStyle = focus?.row === row ? palette.focus : palette.text;
    const left = names > 150 ? 112 : 48;
    context.fillText(shortened(type ?? "event", Math.floor((names - left - 10) / 7)), left, y);
  }
  context.restore();
}

/** Draws the devices' names, rotated, over what was scrolled under them. */
function paintDevices(
  context: CanvasRenderingContext2D,
  board: Board,
  { look, width, scrollLeft }: View,
  window: Window,
  focus: Place | null,
  palette: Palette,
): void {
  const [names, height] = [namesWidth(width), headHeight(look)];
  context.fillStyle = palette.raised;
  context.fillRect(0, 0, width, height - 4);
  context.save();
  context.beginPath();
  context.rect(names - 4, 0, width, height);
  context.clip();
  for (let column = window.left; column < window.right; column++) {
    const device = board.devices[column];
    if (!device) continue;
    context.save();
    context.translate(names + column * COLUMN - scrollLeft + COLUMN / 2, height - 22);
    // A full dot: the device has a feed open; an empty one: it has none.
    context.beginPath();
    context.arc(0, 9, 3, 0, 2 * Math.PI);
    context.strokeStyle = context.fillStyle = device.connected ? palette.states.done : palette.muted;
    context.lineWidth = 1;
    if (device.connected) context.fill();
    else context.stroke();
    context.rotate(-Math.PI / 2);
    context.font = MONO;
    context.fillStyle = focus?.column === column ? palette.focus : palette.text;
    const name = device.device;
    context.fillText(name.length > 10 ? `${name.slice(0, 4)}…${name.slice(-5)}` : name, 0, 0);
    context.restore();
  }
  context.restore();
}

function paintFocus(context: CanvasRenderingContext2D, view: View, { row, column }: Place, palette: Palette): void {
  const names = namesWidth(view.width);
  const y = headHeight(view.look) + row * ROW - view.scrollTop;
  if (y < headHeight(view.look) - ROW / 2) return;
  context.strokeStyle = palette.focus;
  context.lineWidth = 2;
  context.beginPath();
  const x = names + column * COLUMN - view.scrollLeft;
  if (column < 0) addRect(context, 2, y + 1, view.width - 8, ROW - 2, 4);
  else if (x >= names - COLUMN / 2) addRect(context, x + 1, y + 1, COLUMN - 2, ROW - 2, 5);
  context.stroke();
}

/** The text of a row for screen readers. */
export const rowText = ({ seq, type, at, receipts, addressed }: EventHead): string =>
  `event ${seq}${type === null ? "" : `, ${type}`}, ${timeText(at)}: ${tallyText(receipts, addressed)}`;
