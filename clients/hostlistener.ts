#!/usr/bin/env bun
/**
 * A device that is a host: it listens, works a moment on each event, and says what became of it.
 *
 *   bun clients/hostlistener.ts [url] [channel] [device] [--flaky]
 *
 * For each event it gives `received` at once and `done` after a moment; `failed` where the event's data has `"fail": true`, and with
 * `--flaky` one time in ten. Where the service asks for a token, it is taken from the environment, `PERE_TOKEN`; the device is then the
 * token's, whatever the arguments say.
 *
 * It is written against PERE's public contract alone, with nothing but what Bun has: read it as an example of what a device must do. That
 * is three things: follow the feed and come back where it broke off (`stream.ts`), keep each receipt until it was answered (`give`,
 * `deliver`), and take an event that comes twice for one (`busy`).
 */
import { hostname } from "node:os";
import { parseArgs } from "node:util";
import { authorization, follow, passes } from "./stream.ts";

/** A device's word on an event, as it goes out. */
interface Receipt {
  readonly event: string;
  readonly device: string;
  readonly status: "received" | "done" | "failed";
  readonly detail?: string;
  readonly at: string;
}

/** Receipts in one request. */
const BATCH_MAX = 100;
/** The longest pause before receipts are tried again. */
const PAUSE_MS_MAX = 10_000;

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({ options: { flaky: { type: "boolean" } }, allowPositionals: true });
  const base = (positionals[0] ?? "http://127.0.0.1:4567").replace(/\/+$/, "");
  const channel = positionals[1] ?? "orders";
  let device =
    positionals[2] ??
    (hostname()
      .replace(/[^A-Za-z0-9._:~-]/g, "-")
      .slice(0, 128) ||
      "host");
  const feed = `${base}/feed/${encodeURIComponent(channel)}?device=${encodeURIComponent(device)}`;

  /** Events that were not answered for to the end: one that comes again meanwhile is the same one. */
  const busy = new Set<string>();
  const outbox: Receipt[] = [];
  let delivering = false;

  function give(event: string, status: Receipt["status"], detail?: string): void {
    outbox.push({ event, device, status, ...(detail === undefined ? {} : { detail }), at: new Date().toISOString() });
    if (!delivering) void deliver();
  }

  /** Sends what is in the outbox, in order, and again until the service has answered for it. */
  async function deliver(): Promise<void> {
    delivering = true;
    for (let failures = 0; outbox.length > 0;) {
      const batch = outbox.slice(0, BATCH_MAX);
      try {
        const response = await fetch(`${base}/feedback/${encodeURIComponent(channel)}`, {
          method: "POST",
          headers: { "Content-Type": "application/json", ...authorization() },
          body: JSON.stringify(batch),
        });
        if (passes(response.status)) throw new Error(`status ${response.status}`);
        tell(batch, response.ok ? "" : `status ${response.status}`, await response.text());
        outbox.splice(0, batch.length);
        failures = 0;
      } catch (error) {
        const pauseMs = Math.min(PAUSE_MS_MAX, 250 * 2 ** failures++) * (0.5 + Math.random() / 2);
        console.log(`! ${outbox.length} receipts wait: ${(error as Error).message}`);
        await Bun.sleep(pauseMs);
      }
    }
    delivering = false;
  }

  function tell(batch: readonly Receipt[], trouble: string, text: string): void {
    const { rejected = [] } = JSON.parse(text) as { rejected?: { index: number; reason: string }[] };
    for (const [index, { event, status }] of batch.entries()) {
      const reason = rejected.find((rejection) => rejection.index === index)?.reason ?? trouble;
      console.log(reason === "" ? `^ ${event} ${status}` : `! ${event} ${status} was rejected: ${reason}`);
      if (status !== "received") busy.delete(event);
    }
  }

  /** The device's work: a moment that differs, and a result. */
  async function work({ id, data }: { id: string; data: unknown }): Promise<void> {
    await Bun.sleep(50 + Math.random() * 450);
    const wanted = typeof data === "object" && data !== null && "fail" in data && data.fail === true;
    if (wanted) give(id, "failed", "the event asked for it");
    else if (values.flaky && Math.random() < 0.1) give(id, "failed", "it went wrong by chance");
    else give(id, "done");
  }

  process.once("SIGINT", () => {
    console.log(`stopped; ${busy.size} events are not answered for and will come again`);
    process.exit(0);
  });
  console.log(`${device} listens to ${channel} at ${base}`);
  for await (const { event, data } of follow(feed, (why) => console.log(`! ${why}`))) {
    if (event.startsWith("pere.")) {
      console.log(`. ${event} ${data}`);
      // A token says who its bearer is.
      if (event === "pere.ready") ({ device } = JSON.parse(data) as { device: string });
      continue;
    }
    const pushed = JSON.parse(data) as { id: string; data: unknown };
    if (busy.has(pushed.id)) continue;
    busy.add(pushed.id);
    console.log(`v ${pushed.id}${event === "" ? "" : ` ${event}`} ${JSON.stringify(pushed.data)}`);
    give(pushed.id, "received");
    void work(pushed);
  }
}

if (import.meta.main)
  await main().catch((error: Error) => {
    console.error(`hostlistener: ${error.message}`);
    process.exit(1);
  });
