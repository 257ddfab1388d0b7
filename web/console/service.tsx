/** The page "Service": this instance's activity per second. */
import { useComputed } from "@preact/signals";
import { type Line, Plot } from "./plots.tsx";
import { Skeleton } from "./skeleton.tsx";
import { history } from "./history.ts";
import { overview } from "./state.ts";
import { count, span } from "./words.ts";

const RATES: readonly Line[] = [
  { label: "deliveries", color: "--line-1" },
  { label: "receipts", color: "--line-2", dash: [6, 3] },
  { label: "pushes", color: "--line-3", dash: [2, 3] },
];
const LATENCY: readonly Line[] = [
  { label: "median", color: "--line-1" },
  { label: "99th percentile", color: "--line-2", dash: [6, 3] },
];
const OWED: readonly Line[] = [
  { label: "open", color: "--line-1" },
  { label: "missing", color: "--line-2", dash: [6, 3] },
];

export function ServicePage() {
  const rates = useComputed(() => {
    const [at = [], pushes = [], deliveries = [], receipts = []] = history.value.rates;
    return [at, deliveries, receipts, pushes];
  });
  const latency = useComputed(() => history.value.latency);
  const owed = useComputed(() => history.value.owed);
  const known = overview.value;
  if (known === null) return <Skeleton />;
  return (
    <>
      <section class="plots" aria-label="Activity of this instance">
        <Plot title="Per second" lines={RATES} data={rates} say={(value) => count(Math.round(value * 10) / 10)} />
        <Plot title="From push to final receipt" lines={LATENCY} data={latency} say={span} />
        <Plot title="Receipts owed" lines={OWED} data={owed} say={(value) => count(Math.round(value * 10) / 10)} />
      </section>
      <p class="muted small">
        Since this page was opened, at most ten minutes. The figures are those of the instance that serves this page.
        Receipts owed are counted for each channel's newest 200 events.
      </p>
    </>
  );
}
