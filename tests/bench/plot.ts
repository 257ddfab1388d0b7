/**
 * The plot of what a delivery costs by the number of devices: a small SVG that reads well on light and on dark, with no script and no font of its own.
 */

export interface Point {
  readonly devices: number;
  /** CPU microseconds of the service a delivery, without the push itself, and with it. */
  readonly net: number;
  readonly all: number;
}

const [WIDTH, HEIGHT] = [640, 300];
const [LEFT, RIGHT, TOP, BOTTOM] = [48, 16, 34, 44];

/** The next of 1, 2, 5, 10, 20 … that is not below `value`. */
function roundUp(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value)!;
}

/** @param points by growing number of devices, two at least */
export function plot(points: readonly Point[]): string {
  const [first, last] = [points[0]!, points.at(-1)!];
  const top = roundUp(Math.max(...points.map(({ all, net }) => Math.max(all, net))));
  const across = Math.log(last.devices / first.devices);
  const x = (devices: number): number => LEFT + ((WIDTH - LEFT - RIGHT) * Math.log(devices / first.devices)) / across;
  const y = (microseconds: number): number => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * microseconds) / top;
  const at = (value: number): string => value.toFixed(1);
  const line = (name: "net" | "all"): string => {
    const path = points.map((point) => `${at(x(point.devices))},${at(y(point[name]))}`).join(" ");
    const dots = points.map(
      (point) => `<circle class="${name}" cx="${at(x(point.devices))}" cy="${at(y(point[name]))}" r="3.5"/>`,
    );
    return `<polyline class="${name}" points="${path}"/>${dots.join("")}`;
  };
  const grid = Array.from({ length: 5 }, (_, index) => (top * index) / 4).map(
    (value) =>
      `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${at(y(value))}" y2="${at(y(value))}"/>` +
      `<text x="${LEFT - 8}" y="${at(y(value) + 4)}" text-anchor="end">${Number(value.toFixed(2))}</text>`,
  );
  const ticks = points.map(
    ({ devices }, index) =>
      `<text x="${at(x(devices))}" y="${HEIGHT - BOTTOM + 18}" text-anchor="${index === points.length - 1 ? "end" : "middle"}">${devices.toLocaleString("en")}</text>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" aria-label="CPU microseconds a delivery by number of devices">
<style>
text{font:12px system-ui,sans-serif;fill:#57606a}
.grid{stroke:#8c959f;stroke-opacity:.35}
polyline{fill:none;stroke-width:2}
polyline.net{stroke:#0969da}circle.net,text.net{fill:#0969da}
polyline.all{stroke:#bc4c00;stroke-dasharray:5 4}circle.all,text.all{fill:#bc4c00}
@media(prefers-color-scheme:dark){text{fill:#9198a1}polyline.net{stroke:#58a6ff}circle.net,text.net{fill:#58a6ff}polyline.all{stroke:#f0883e}circle.all,text.all{fill:#f0883e}}
</style>
${grid.join("\n")}
${ticks.join("\n")}
<text x="${(WIDTH + LEFT - RIGHT) / 2}" y="${HEIGHT - 8}" text-anchor="middle">devices on one channel</text>
<text x="${LEFT}" y="16">CPU µs a delivery:</text>
<text class="net" x="${LEFT + 112}" y="16">the delivery alone</text>
<text class="all" x="${LEFT + 232}" y="16">with its share of the push</text>
${line("all")}
${line("net")}
</svg>
`;
}
