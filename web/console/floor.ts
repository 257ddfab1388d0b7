/**
 * What the pages do without where a browser lacks it. The oldest that they are made for are Safari 15.4, Chrome 94 and Firefox 100; one that is older
 * keeps the sentence that stands in the page's HTML.
 */
import { type ComponentChild, render } from "preact";

/** Shows a page in the place of what its HTML holds; where it can't be started, why. @param page begins it and gives what is shown */
export function show(id: string, page: () => ComponentChild): void {
  const place = document.getElementById(id)!;
  const old = place.textContent;
  try {
    const content = page();
    place.textContent = "";
    render(content, place);
  } catch (error) {
    place.textContent = `${old} (${String(error)})`;
    throw error;
  }
}

/** Calls `run` when an element has another size, and once at first. @returns ends that */
export function onResize(element: Element, run: () => void): () => void {
  if (typeof ResizeObserver === "undefined") {
    addEventListener("resize", run);
    requestAnimationFrame(run);
    return () => removeEventListener("resize", run);
  }
  const measure = new ResizeObserver(run);
  measure.observe(element);
  return () => measure.disconnect();
}

/** Adds a rectangle to a path: with round corners, where the browser can (Safari 16, Chrome 99, Firefox 112). */
export function addRect(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  width: number,
  height: number,
  radius: number,
): void {
  if (typeof context.roundRect === "function") context.roundRect(x, y, width, height, radius);
  else context.rect(x, y, width, height);
}

/** The query of an address, `?` and all; "" where it says nothing. What can't be written throws: nothing is left out. */
export function queryOf(options: Iterable<readonly [name: string, value: string]>): string {
  const parts = [...options].map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`);
  return parts.length === 0 ? "" : `?${parts.join("&")}`;
}
