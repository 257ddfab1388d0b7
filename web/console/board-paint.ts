/**
 * Draws the delivery board: events down, devices across, on one canvas of the size of the visible part.
 *
 * There are two looks: `tallies` shows each event as one bar of its tally, however many devices it has; `cells` shows each device, with a sign
 * and a colour per state. Trouble is filled, what is open is outlined, and what is done is only a quiet sign. Only the visible part is drawn, so a frame
 * costs the same for ten devices as for ten thousand.
 */
import type { EventHead, State } from "./api.ts";
import { type Board, type Cell, isOverdue, type Line, shownState, type Window } from "./board-data.ts";
import type { Columns } from "./board-columns.ts";
import { addRect } from "./floor.ts";
import { endingText, markOf, statesIn, tallyText, timeText, wordsOf } from "./words.ts";

export type Look = "tallies" | "cells";

/** Sizes in CSS pixels. */
export interface Sizes {
  readonly row: number;
  readonly column: number;
  /** The first column has the events' names. */
  readonly names: number;
}
const FINE: Sizes = { row: 26, column: 26, names: 246 };
/** For fingers; names have two lines. */
const COARSE: Sizes = { row: 44, column: 44, names: 122 };
/** Views that are narrower are phones. */
const NARROW = 520;
const isCoarse = matchMedia("(pointer: coarse)");
export const sizesOf = (width: number): Sizes => (width < NARROW || isCoarse.matches ? COARSE : FINE);

/** Characters of a device's name that fit above its column, and the height of one. */
const NAME_CHARACTERS = 14;
const CHARACTER = 6.8;
/** Above the names of devices are those of groups. */
const GROUPS = 20;
/** The height of the first row, which has the devices' names, rotated; 0: there is none. */
export function headHeight(look: Look, { longest, groups }: Columns): number {
  if (look === "tallies") return 0;
  return 28 + Math.ceil(Math.min(NAME_CHARACTERS, Math.max(4, longest)) * CHARACTER) + (groups.length > 0 ? GROUPS : 0);
}

/** The view's size and scroll position, in CSS pixels. */
export interface View {
  readonly look: Look;
  /** The height of the first row. */
  readonly head: number;
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
  readonly quiet: string;
  readonly doneGround: string;
  readonly connected: string;
  /** The colour of a state. */
  readonly of: (state: string) => string;
}

export function readPalette(element: Element): Palette {
  const style = getComputedStyle(element);
  const named = (name: string): string => style.getPropertyValue(name).trim();
  return {
    ...{ text: named("--text"), muted: named("--muted"), line: named("--line"), ground: named("--ground") },
    ...{ raised: named("--raised"), focus: named("--focus"), ink: named("--ink"), quiet: named("--done-quiet") },
    ...{ doneGround: named("--done-ground"), connected: named("--done") },
    of: (state) => named(`--${state}`) || named("--muted"),
  };
}

/** The rows and columns that are visible, at least in part. */
export function windowOf(view: View, rows: number, columns: number): Window {
  const { look, width, height, scrollLeft, scrollTop } = view;
  const sizes = sizesOf(width);
  const top = Math.max(0, Math.floor(scrollTop / sizes.row));
  const bottom = Math.min(rows, Math.ceil((scrollTop + height - view.head) / sizes.row));
  if (look === "tallies") return { top, bottom, left: 0, right: 0 };
  const left = Math.max(0, Math.floor(scrollLeft / sizes.column));
  return { top, bottom, left, right: Math.min(columns, Math.ceil((scrollLeft + width - sizes.names) / sizes.column)) };
}

/** The cell at a point of the view; null: a name, or nothing. */
export function placeAt(view: View, x: number, y: number): Place | null {
  const sizes = sizesOf(view.width);
  if (y < view.head) return null;
  const row = Math.floor((y - view.head + view.scrollTop) / sizes.row);
  const column = view.look === "tallies" ? -1 : Math.floor((x - sizes.names + view.scrollLeft) / sizes.column);
  return x < sizes.names ? { row, column: -1 } : { row, column };
}

const FONT = "12px system-ui, sans-serif";
const BOLD = "600 12px system-ui, sans-serif";
const MONO = "11px ui-monospace, monospace";
const MONO_BOLD = "700 11px ui-monospace, monospace";
const paths = new Map<string, Path2D>();
const pathOf = (state: string): Path2D => {
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
  const window = windowOf(view, board.rows.length, board.columns.count);
  const sizes = sizesOf(width);
  const top = view.head;
  context.clearRect(0, 0, width, height);
  context.textBaseline = "middle";
  let drawn = 0;

  for (let row = window.top; row < window.bottom; row++) {
    const line = board.rows[row]!;
    const y = top + row * sizes.row - view.scrollTop;
    if (look === "tallies") drawn += paintBar(context, line.head, sizes, y, width - sizes.names, palette);
    for (let column = window.left; column < window.right; column++) {
      const x = sizes.names + column * sizes.column - view.scrollLeft;
      drawn++;
      paintCell(context, x, y, sizes, line, board.cell(line, column), palette);
    }
  }
  paintNames(context, board, view, window, focus, palette);
  if (look === "cells") {
    paintDevices(context, board, view, window, focus, palette);
    if (board.columns.groups.length > 0) paintGroups(context, board, view, palette);
  }
  if (focus) paintFocus(context, view, focus, palette);
  return drawn;
}

/** The side of a sign's box. */
const SIGN = 20;

/** Draws the sign of one cell. Not addressed: a dash. Not read yet: a dot. */
function paintCell(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  sizes: Sizes,
  { head }: Line,
  cell: Cell | null | undefined,
  palette: Palette,
): void {
  if (!cell) {
    context.fillStyle = palette.line;
    const width = cell === null ? 8 : 3;
    return context.fillRect(x + (sizes.column - width) / 2, y + sizes.row / 2 - 1, width, 2);
  }
  const [left, top] = [x + (sizes.column - SIGN) / 2, y + (sizes.row - SIGN) / 2];
  const state = shownState(head, cell);
  const { kind } = wordsOf(state);
  const color = kind === "done" ? palette.quiet : palette.of(state);
  context.fillStyle = context.strokeStyle = color;
  context.lineWidth = 1;
  context.beginPath();
  addRect(context, left + 0.5, top + 0.5, SIGN - 1, SIGN - 1, 4);
  if (kind === "trouble") context.fill();
  else if (kind === "open") context.stroke();
  context.save();
  context.translate(left + 2, top + 2);
  if (kind === "trouble") context.strokeStyle = palette.ink;
  context.lineWidth = state === "working" ? 2.6 : 1.8;
  context.lineCap = context.lineJoin = "round";
  context.stroke(pathOf(state));
  context.restore();
  if (!cell.late) return;
  // Late: a corner.
  context.fillStyle = kind === "trouble" ? palette.ground : palette.of("missing");
  context.beginPath();
  context.moveTo(left + SIGN - 6, top);
  context.lineTo(left + SIGN, top);
  context.lineTo(left + SIGN, top + 6);
  context.fill();
}

/** Draws an event's tally as shares of a bar, trouble first, each with its number if there is room. */
function paintBar(
  context: CanvasRenderingContext2D,
  head: EventHead,
  { row, names }: Sizes,
  y: number,
  width: number,
  palette: Palette,
): number {
  const { receipts, addressed } = head;
  const [top, height, full] = [y + (row - 18) / 2, 18, width - 14];
  context.font = FONT;
  if (addressed === 0) {
    context.fillStyle = palette.muted;
    context.fillText("addressed to no device", names + 2, y + row / 2);
    return 1;
  }
  const late = isOverdue(head);
  let x = names;
  let drawn = 0;
  for (const state of statesIn(receipts)) {
    const number = receipts[state];
    const shown = late && wordsOf(state).kind === "open" ? "overdue" : state;
    const { kind } = wordsOf(shown);
    const color = palette.of(shown);
    const isTrouble = kind === "trouble";
    context.font = isTrouble ? BOLD : FONT;
    // Trouble always has room for its sign and its number.
    const least = isTrouble ? 24 + context.measureText(String(number)).width : 3;
    const end = Math.min(names + full, x + Math.max(least, (full * number) / addressed));
    drawn++;
    context.beginPath();
    addRect(context, x + 0.5, top + 0.5, Math.max(1, end - x - 2), height - 1, 3);
    context.fillStyle = kind === "done" ? palette.doneGround : color;
    context.strokeStyle = color;
    context.lineWidth = 1;
    if (isTrouble || kind === "done") context.fill();
    else context.stroke();
    if (isTrouble) {
      context.save();
      context.translate(x + 2, top + 1);
      context.strokeStyle = palette.ink;
      context.lineWidth = 1.8;
      context.lineCap = context.lineJoin = "round";
      context.stroke(pathOf(shown));
      context.restore();
    }
    const indent = isTrouble ? 19 : 6;
    const said = end - x > 100 + indent ? `${number} ${shown}` : String(number);
    context.fillStyle = isTrouble ? palette.ink : palette.muted;
    if (end - x >= context.measureText(said).width + indent + 4) context.fillText(said, x + indent, y + row / 2 + 0.5);
    x = end;
  }
  return drawn;
}

/** A text, cut in its end to fit a width. */
function fitted(context: CanvasRenderingContext2D, text: string, width: number): string {
  if (context.measureText(text).width <= width) return text;
  let length = Math.max(1, Math.floor((text.length * width) / context.measureText(text).width));
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return `${text.slice(0, length)}…`;
}

/** Draws the events' names, over what was scrolled under them. */
function paintNames(
  context: CanvasRenderingContext2D,
  board: Board,
  view: View,
  window: Window,
  focus: Place | null,
  palette: Palette,
): void {
  const { width, height, scrollTop } = view;
  const { names, row: rowHeight } = sizesOf(width);
  context.fillStyle = palette.raised;
  context.fillRect(0, 0, names - 6, height);
  context.save();
  context.beginPath();
  context.rect(0, 0, names - 8, height);
  context.clip();
  const isNarrow = names < 200;
  // With a date there is no room for seconds.
  const times = board.rows
    .slice(window.top, window.bottom)
    .map(({ head }) => timeText(head.at))
    .map((time) => (time.length > 8 ? time.slice(0, -3) : time));
  context.font = MONO;
  const typeAt = 60 + Math.max(52, ...times.map((time) => context.measureText(time).width));
  for (let row = window.top; row < window.bottom; row++) {
    const { seq, type, withdrawn } = board.rows[row]!.head;
    const y = view.head + row * rowHeight - scrollTop + rowHeight / 2;
    const time = times[row - window.top]!;
    const color = focus?.row === row ? palette.focus : withdrawn === null ? palette.text : palette.muted;
    context.textAlign = "left";
    /** The event's name; that of a withdrawn one is struck through. */
    const name = (x: number, at: number, width: number): void => {
      const said = fitted(context, type ?? "event", width);
      context.font = FONT;
      context.fillStyle = color;
      context.fillText(said, x, at);
      if (withdrawn !== null) context.fillRect(x, Math.round(at), context.measureText(said).width, 1);
    };
    if (isNarrow) {
      name(8, y - 8, names - 18);
      context.font = MONO;
      context.fillStyle = palette.muted;
      context.fillText(fitted(context, time.length > 8 ? time : `${seq} ${time.slice(0, 5)}`, names - 18), 8, y + 9);
      continue;
    }
    context.font = MONO;
    context.fillStyle = palette.muted;
    context.textAlign = "right";
    context.fillText(String(seq), 42, y);
    context.textAlign = "left";
    context.fillText(time, 52, y);
    name(typeAt, y, names - typeAt - 10);
  }
  context.restore();
}

/** Draws the devices' names, rotated, over what was scrolled under them. Those in trouble are bold. */
function paintDevices(
  context: CanvasRenderingContext2D,
  { columns }: Board,
  view: View,
  window: Window,
  focus: Place | null,
  palette: Palette,
): void {
  const { names, column: columnWidth } = sizesOf(view.width);
  const height = view.head;
  context.fillStyle = palette.raised;
  context.fillRect(0, 0, view.width, height - 4);
  context.save();
  context.beginPath();
  context.rect(names - 4, 0, view.width, height);
  context.clip();
  for (let column = window.left; column < window.right; column++) {
    const shown = columns.list[column];
    if (!shown) continue;
    const { device, connected, isTroubled } = shown;
    context.save();
    context.translate(names + column * columnWidth - view.scrollLeft + columnWidth / 2, height - 22);
    // A full dot: the device has a feed open; an empty one: it has none.
    context.beginPath();
    context.arc(0, 9, 3, 0, 2 * Math.PI);
    context.strokeStyle = context.fillStyle = connected ? palette.connected : palette.muted;
    context.lineWidth = 1;
    if (connected) context.fill();
    else context.stroke();
    context.rotate(-Math.PI / 2);
    context.font = isTroubled ? MONO_BOLD : MONO;
    context.fillStyle = focus?.column === column ? palette.focus : isTroubled ? palette.of("missing") : palette.text;
    context.fillText(device.length > NAME_CHARACTERS ? `${device.slice(0, 5)}…${device.slice(-8)}` : device, 0, 0);
    context.restore();
  }
  context.restore();
}

/** Draws the groups' names above their devices, and a line between groups. A name stays in view as long as one of its devices is. */
function paintGroups(context: CanvasRenderingContext2D, { columns }: Board, view: View, palette: Palette): void {
  const { names, column } = sizesOf(view.width);
  context.save();
  context.beginPath();
  context.rect(names - 4, 0, view.width, view.height);
  context.clip();
  for (const { name, from, to, troubled } of columns.groups) {
    const [left, right] = [names + from * column - view.scrollLeft, names + to * column - view.scrollLeft];
    if (right < names || left > view.width) continue;
    context.fillStyle = palette.line;
    context.fillRect(left, 4, 1, view.height);
    context.font = troubled > 0 ? BOLD : FONT;
    context.fillStyle = troubled > 0 ? palette.of("missing") : palette.muted;
    const at = Math.max(left, names) + 5;
    const text = `${name === "" ? "no prefix" : name}${troubled > 0 ? ` · ${troubled} in trouble` : ""}`;
    if (right - at > 16) context.fillText(fitted(context, text, right - at - 4), at, GROUPS / 2 + 2);
  }
  context.restore();
}

function paintFocus(context: CanvasRenderingContext2D, view: View, { row, column }: Place, palette: Palette): void {
  const sizes = sizesOf(view.width);
  const y = view.head + row * sizes.row - view.scrollTop;
  if (y < view.head - sizes.row / 2) return;
  context.strokeStyle = palette.focus;
  context.lineWidth = 2;
  context.beginPath();
  const x = sizes.names + column * sizes.column - view.scrollLeft;
  if (column < 0) addRect(context, 2, y + 1, view.width - 8, sizes.row - 2, 4);
  else if (x >= sizes.names - sizes.column / 2) addRect(context, x + 1, y + 1, sizes.column - 2, sizes.row - 2, 5);
  context.stroke();
}

/** The text of a row for screen readers. */
export const rowText = ({ seq, type, at, withdrawn, receipts, addressed }: EventHead): string =>
  [
    `event ${seq}${type === null ? "" : `, ${type}`}, ${timeText(at)}: `,
    withdrawn === null ? "" : `${endingText(withdrawn).toLowerCase()}, `,
    tallyText(receipts, addressed),
  ].join("");

/** The colour's state of a cell, for its sign beside the board. */
export type ShownState = State | "overdue";
