#!/usr/bin/env bun
/**
 * Pushes a configuration to all kiosks that do not have it yet. It can run at any time, because it pushes nothing twice. See docs/recipes/configure-kiosks.md.
 *
 *   bun clients/examples/configure-kiosks.ts FILE [url] [channel]      FILE: JSON with a "version"
 */
import { publish } from "../sdk/index.ts";

const [file, url = "http://127.0.0.1:4567", channel = "kiosks"] = process.argv.slice(2);
if (file === undefined) throw new Error("usage: bun clients/examples/configure-kiosks.ts FILE [url] [channel]");
/** Devices named in one push: the names are in its URL. */
const NAMES_MAX = 100;
const token = process.env.PERE_TOKEN;
const configuration = await Bun.file(file).text();
const { version } = JSON.parse(configuration) as { version: unknown };

type Row = { device: string; status: string };
type Configured = { id: string; data: { version?: unknown } };

/** All items of a list, page by page. */
async function* all<Item>(path: string, name: string): AsyncGenerator<Item> {
  for (let after = ""; ;) {
    const response = await fetch(`${url}${path}?limit=1000${after === "" ? "" : `&after=${after}`}`, {
      headers: token ? { Authorization: `Bearer ${token}` } : {},
    });
    const page = (await response.json()) as { next: string | null; detail?: string };
    if (!response.ok) throw new Error(`${path} answered with status ${response.status}: ${page.detail}`);
    yield* (page as unknown as Record<string, Item[]>)[name]!;
    if (page.next === null) return;
    after = page.next;
  }
}

const kiosks = new Map<string, string>(); // The newest status of this version on each kiosk.
for await (const { device } of all<{ device: string }>(`/devices/${channel}`, "devices"))
  kiosks.set(device, "lacks it");
for await (const { id, data } of all<Configured>(`/events/${channel}`, "events"))
  if (data.version === version)
    for await (const { device, status } of all<Row>(`/events/${channel}/${id}/receipts`, "receipts"))
      if (kiosks.has(device) && kiosks.get(device) !== "done") kiosks.set(device, status);

for (const [device, status] of kiosks) console.log(`${device}: ${status}`);
const to = [...kiosks].filter(([, status]) => /lacks it|failed|missing/.test(status)).map(([device]) => device);
for (let from = 0; from < to.length; from += NAMES_MAX)
  await publish(url, channel, configuration, {
    ...{ type: "configuration", isJson: true, token },
    to: to.slice(from, from + NAMES_MAX),
  });
console.log(`version ${version} pushed to ${to.length} of ${kiosks.size} kiosks`);
