/** The pages of a channel's devices and hooks: tables that are read again while they are visible. */
import { type Signal, useSignal, useSignalEffect } from "@preact/signals";
import { addressOf, type Device, read, request } from "./api.ts";
import { Sign } from "./event.tsx";
import { now } from "./state.ts";
import { ago, count, some } from "./words.ts";

/** Rows per page. */
const PAGE = 100;
/** Seconds after which a table is read again. */
const AGAIN_SECONDS = 3;

/** Reads at once, and every few seconds while the component is mounted. @param list a list that the answer must have */
function useReadings<Answer>(
  path: () => string,
  list: string,
  answer: Signal<Answer | null>,
  trouble: Signal<string>,
): void {
  const due = useSignal({ path: "", at: 0 });
  useSignalEffect(() => {
    const [next, time] = [path(), now.value];
    const { path: last, at } = due.peek();
    if (next === last && time < at) return;
    due.value = { path: next, at: time + AGAIN_SECONDS * 1000 };
    read<Answer>(next, list).then(
      (found) => {
        if (due.peek().path === next) [answer.value, trouble.value] = [found, ""];
      },
      (error: Error) => (trouble.value = error.message),
    );
  });
}

interface DevicePage {
  readonly devices: readonly Device[];
  readonly next: string | null;
}

export function DevicesPage({ channel }: { readonly channel: string }) {
  /** The start of each page so far. */
  const starts = useSignal<readonly string[]>([""]);
  const page = useSignal<DevicePage | null>(null);
  const trouble = useSignal("");
  useReadings(
    () => `/devices/${channel}?after=${starts.value[starts.value.length - 1]}&limit=${PAGE}`,
    "devices",
    page,
    trouble,
  );
  if (page.value === null) return <p class="empty">{trouble.value || "Loading…"}</p>;
  const { devices, next } = page.value;
  if (devices.length === 0)
    return (
      <p class="empty">
        No devices yet. A device joins when it first follows the channel:{" "}
        <a href={`weblistener.html?channel=${channel}`}>open one in a browser</a>.
      </p>
    );
  return (
    <section aria-label="Devices">
      {trouble.value && <p class="trouble">{trouble}</p>}
      <div class="scroll" tabIndex={0} role="region" aria-label="Devices of the channel">
        <table>
          <thead>
            <tr>
              <th scope="col">Device</th>
              <th scope="col">Last sign of life</th>
              <th scope="col" class="number">
                Owes
              </th>
              <th scope="col">Enrolled</th>
            </tr>
          </thead>
          <tbody>
            {devices.map((device) => (
              <tr key={device.device}>
                <th scope="row">{device.device}</th>
                <td class="nowrap">
                  <Sign device={device} />
                </td>
                <td class="number">{count(device.pending)}</td>
                <td class="nowrap">{ago(device.enrolledAt, now.value)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="tools">
        {starts.value.length > 1 && (
          <button type="button" class="plain" onClick={() => (starts.value = starts.value.slice(0, -1))}>
            Back
          </button>
        )}
        {next !== null && (
          <button type="button" class="plain" onClick={() => (starts.value = [...starts.value, next])}>
            More
          </button>
        )}
      </p>
    </section>
  );
}

interface Delivery {
  readonly id: string;
  readonly attempts: number;
  readonly nextAt: string | null;
  readonly status: number | null;
  readonly error: string | null;
}
interface Hook {
  readonly name: string;
  readonly url: string;
  readonly on: readonly string[];
  readonly disabled: string | null;
  readonly retrying: readonly Delivery[];
  readonly failed: readonly Delivery[];
}

export function HooksPage({ channel }: { readonly channel: string }) {
  const page = useSignal<{ readonly hooks: readonly Hook[] } | null>(null);
  const trouble = useSignal("");
  useReadings(() => `/hooks/${channel}`, "hooks", page, trouble);
  if (page.value === null) return <p class="empty">{trouble.value || "Loading…"}</p>;
  if (page.value.hooks.length === 0)
    return (
      <div class="empty">
        <p>
          No hooks. A hook is a URL that PERE calls when receipts arrive, when an event is complete, or when devices are
          missing:
        </p>
        <pre tabIndex={0} aria-label="curl command">{`curl -X PUT ${addressOf(`/hooks/${channel}/backoffice`)} \\
  -H 'Content-Type: application/json' \\
  --data-raw '{"url": "https://shop.example/pere", "on": ["complete", "missing"]}'`}</pre>
      </div>
    );
  const retry = (name: string): void => {
    request(`/hooks/${channel}/${name}/retry`, { method: "POST" }).then(
      () => (trouble.value = ""),
      (error: Error) => (trouble.value = error.message),
    );
  };
  return (
    <section aria-label="Hooks">
      {trouble.value && <p class="trouble">{trouble}</p>}
      {page.value.hooks.map((hook) => (
        <article key={hook.name} class="hook">
          <h3>{hook.name}</h3>
          <p>
            <code>{hook.url}</code> <span class="muted">on {hook.on.join(", ")}</span>
          </p>
          {hook.disabled !== null && <p class="trouble">Disabled: {hook.disabled}</p>}
          <Tries title="Being retried" deliveries={hook.retrying} />
          <Tries title="Given up" deliveries={hook.failed} />
          {hook.retrying.length + hook.failed.length === 0 ? (
            <p class="muted">No failed calls.</p>
          ) : (
            <button type="button" class="plain" onClick={() => retry(hook.name)}>
              Retry {some(hook.retrying.length + hook.failed.length, "call")} now
            </button>
          )}
        </article>
      ))}
    </section>
  );
}

function Tries({ title, deliveries }: { readonly title: string; readonly deliveries: readonly Delivery[] }) {
  if (deliveries.length === 0) return null;
  return (
    <table>
      <caption>{title}</caption>
      <thead>
        <tr>
          <th scope="col">Call</th>
          <th scope="col" class="number">
            Attempts
          </th>
          <th scope="col">Last answer</th>
          <th scope="col">Next attempt</th>
        </tr>
      </thead>
      <tbody>
        {deliveries.slice(-10).map(({ id, attempts, nextAt, status, error }) => (
          <tr key={id}>
            <th scope="row">
              <code>{id}</code>
            </th>
            <td class="number">{attempts}</td>
            <td>{status === null ? error : `status ${status}`}</td>
            <td>{nextAt === null ? "–" : new Date(nextAt).toLocaleTimeString("en-GB")}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
