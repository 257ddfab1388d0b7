/** The first page: this instance's activity per second, and the channels. */
import { useComputed } from "@preact/signals";
import type { ChannelState } from "./api.ts";
import { type Line, Plot } from "./plots.tsx";
import { linkTo } from "./router.ts";
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

export function OverviewPage() {
  const rates = useComputed(() => {
    const [at = [], pushes = [], deliveries = [], receipts = []] = history.value.rates;
    return [at, deliveries, receipts, pushes];
  });
  const latency = useComputed(() => history.value.latency);
  const owed = useComputed(() => history.value.owed);
  const known = overview.value;
  if (known === null) return <Skeleton />;
  if (known.channels.length === 0) return <Welcome />;
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
      <Channels channels={known.channels} />
      {known.more && <p class="muted">These are the first {known.channels.length} channels by name; there are more.</p>}
    </>
  );
}

function Channels({ channels }: { readonly channels: readonly ChannelState[] }) {
  return (
    <section aria-labelledby="channels">
      <h2 id="channels">Channels</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Channels">
        <table>
          <thead>
            <tr>
              <th scope="col">Channel</th>
              <th scope="col" class="number">
                Connected
              </th>
              <th scope="col" class="number">
                Devices
              </th>
              <th scope="col" class="number">
                Events
              </th>
              <th scope="col" class="number">
                Open
              </th>
              <th scope="col" class="number">
                Missing
              </th>
            </tr>
          </thead>
          <tbody>
            {channels.map(({ channel, connected, devices, events, open, missing }) => (
              <tr key={channel}>
                <th scope="row">
                  <a href={linkTo(channel)}>{channel}</a>
                </th>
                <td class="number">{count(connected)}</td>
                <td class="number">{count(devices)}</td>
                <td class="number">{count(events)}</td>
                <td class="number">{open === null ? "…" : count(open)}</td>
                <td class={`number${missing ? " bad" : ""}`}>{missing === null ? "…" : count(missing)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

/** What to do first, while there is no channel. */
const Welcome = () => (
  <section class="welcome">
    <h2>Nothing here yet</h2>
    <p>A channel is created by its first event or its first device. Three steps show what PERE does:</p>
    <ol>
      <li>
        <a href="weblistener.html?channel=orders" target="_blank" rel="noreferrer">
          Open a device
        </a>{" "}
        in another tab; it follows the channel <code>orders</code>.
      </li>
      <li>
        <a href="#/orders/push">Push an event</a> to it.
      </li>
      <li>
        Press <em>Done</em> there and look at the <a href="#/orders">board</a> here.
      </li>
    </ol>
  </section>
);
