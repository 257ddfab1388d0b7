/**
 * Replacements for features that some supported browsers lack. The oldest supported ones are Safari 15.4, Chrome 94 and Firefox 100; older browsers
 * keep showing the sentence in the page's HTML.
 */
import { type ComponentChild, render } from "preact";

/** Renders a page in place of the text in its HTML, or the reason why it can't start. @param page starts it and returns what to render */
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

/** Calls `run` at once and whenever an element changes its size. @returns a function that ends this */
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

/** Adds a rectangle to a path, with round corners if the browser supports them (Safari 16, Chrome 99, Firefox 112). */
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

/** A URL's query with its `?`, or "". Throws if a value can't be encoded, so that no option is silently left out. */
export function queryOf(options: Iterable<readonly [name: string, value: string]>): string {
  const parts = [...options].map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`);
  return parts.length === 0 ? "" : `?${parts.join("&")}`;
}
