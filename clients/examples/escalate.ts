#!/usr/bin/env bun
/**
 * Receives a hook: an alarm that is not answered by its deadline is pushed to the next channel. See docs/recipes/escalate-alarm.md.
 *
 *   HOOK_SECRET=whsec_… bun clients/examples/escalate.ts [url] [channel] [next channel] [port] [address that PERE calls]
 */
import { Webhook } from "standardwebhooks";
import { publish } from "../sdk/index.ts";

const [url = "http://127.0.0.1:4567", channel = "alarms", next = "on-call", port = "8080", address] =
  process.argv.slice(2);
const secret = process.env.HOOK_SECRET ?? "";
const token = process.env.PERE_TOKEN;
const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
const webhook = new Webhook(secret);

/** Pushes an alarm to the next channel. PERE calls a hook at least once; the key prevents a second push. */
async function escalate(event: string): Promise<void> {
  const response = await fetch(`${url}/events/${channel}/${event}`, { headers });
  if (response.status === 404) return; // The event is no longer kept.
  if (!response.ok) throw new Error(`GET /events/${channel}/${event} answered with status ${response.status}`);
  const { data, type } = (await response.json()) as { data: unknown; type?: string };
  const pushed = await publish(url, next, { escalated: event, alarm: data }, { key: `escalate-${event}`, type, token });
  console.log(`${event} is now ${pushed.id} in ${next}`);
}

const server = Bun.serve({
  hostname: "127.0.0.1",
  port,
  async fetch(request) {
    const text = await request.text();
    let call: { type: string; data: { receipts?: { event: string }[] } };
    try {
      call = webhook.verify(text, Object.fromEntries(request.headers)) as typeof call;
    } catch {
      return new Response("the signature is wrong", { status: 401 });
    }
    // After an exception the answer is 500, and PERE calls again.
    for (const event of new Set(call.data.receipts?.map((receipt) => receipt.event))) await escalate(event);
    return new Response(null, { status: 204 });
  },
});

const response = await fetch(`${url}/hooks/${channel}/escalation`, {
  ...{ method: "PUT", headers },
  body: JSON.stringify({ url: address ?? `${server.url}`, secret, on: ["missing"] }),
});
if (!response.ok) throw new Error(`PERE refused the hook: ${await response.text()}`);
console.log(`alarms of ${channel} that nobody answers go to ${next}`);
