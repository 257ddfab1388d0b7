/**
 * Plots over time: uPlot draws the lines on a canvas; the last values are shown as text below. uPlot is loaded when the first plot is shown, because it is
 * a third of the console's script and most pages have no plot.
 */
import { type ReadonlySignal, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type uPlot from "uplot";
import { onResize } from "./floor.ts";
import { timeText } from "./words.ts";

export interface Line {
  readonly label: string;
  /** A colour of the page, by the name of its custom property. */
  readonly color: string;
  /** Dashes in pixels, so that lines differ by more than their colour. */
  readonly dash?: number[];
}

const HEIGHT = 150;

interface PlotProps {
  readonly title: string;
  readonly lines: readonly Line[];
  /** Seconds since 1970, then one column per line. */
  readonly data: ReadonlySignal<readonly (number | null)[][]>;
  /** Formats a value. */
  readonly say: (value: number) => string;
}

export function Plot({ title, lines, data, say }: PlotProps) {
  const frame = useRef<HTMLDivElement>(null);
  const plot = useSignal<uPlot | null>(null);
  useEffect(() => {
    const element = frame.current!;
    let Drawing: typeof uPlot | null = null;
    let isGone = false;
    const make = (): void => {
      if (isGone || Drawing === null) return;
      plot.peek()?.destroy();
      plot.value = new Drawing(optionsOf(element, lines, say), data.peek() as uPlot.AlignedData, element);
    };
    // Without it, the values are still there as text.
    import("uplot").then(
      (module) => ((Drawing = module.default), make()),
      () => {},
    );
    const stopMeasuring = onResize(element, () => plot.peek()?.setSize({ width: element.clientWidth, height: HEIGHT }));
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", make);
    return () => {
      isGone = true;
      scheme.removeEventListener("change", make);
      stopMeasuring();
      plot.peek()?.destroy();
    };
  }, []);
  useSignalEffect(() => plot.value?.setData(data.value as uPlot.AlignedData));
  return (
    <figure class="plot">
      <figcaption>
        <strong>{title}</strong>
        <ul class="legend">
          {lines.map(({ label, color, dash }, place) => (
            <li key={label}>
              <svg viewBox="0 0 18 4" class="line" aria-hidden="true">
                <path d="M0 2h18" stroke={`var(${color})`} stroke-dasharray={dash?.join(" ")} />
              </svg>{" "}
              {label} <b>{saidLast(data.value[place + 1], say)}</b>
            </li>
          ))}
        </ul>
      </figcaption>
      <div ref={frame} class="drawing" aria-hidden="true" />
    </figure>
  );
}

const saidLast = (column: readonly (number | null)[] | undefined, say: (value: number) => string): string => {
  const last = column?.[column.length - 1] ?? null;
  return last === null ? "–" : say(last);
};

/** The plot's options, in the page's current colours. */
function optionsOf(element: HTMLElement, lines: readonly Line[], say: (value: number) => string): uPlot.Options {
  const style = getComputedStyle(element);
  const color = (name: string): string => style.getPropertyValue(name).trim();
  const axis: uPlot.Axis = {
    stroke: color("--muted"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: color("--line"), width: 1 },
    ticks: { show: false },
  };
  return {
    width: element.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    scales: { y: { range: (_plot, _min, max) => [0, Math.max(max * 1.15, Number.MIN_VALUE) || 1] } },
    axes: [
      {
        ...axis,
        size: 26,
        space: 80,
        values: (_plot, ticks) => ticks.map((tick) => timeText(new Date(tick * 1000).toISOString())),
      },
      { ...axis, size: 56, space: 36, values: (_plot, ticks) => ticks.map((tick) => (tick === 0 ? "0" : say(tick))) },
    ],
    series: [
      {},
      ...lines.map((line) => ({
        stroke: color(line.color),
        width: 1.75,
        points: { show: false },
        ...(line.dash ? { dash: [...line.dash] } : {}),
      })),
    ],
  };
}
