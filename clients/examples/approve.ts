#!/usr/bin/env bun
/**
 * Asks a person at a device for an approval, and waits for the answer. See docs/recipes/approve.md.
 *
 *   bun clients/examples/approve.ts QUESTION [device] [seconds, up to 120] [url] [channel]
 *
 * Its exit code is 0 when the person approved, 1 when the person denied, and 2 when nobody answered in time.
 */
import { publish } from "../sdk/index.ts";

const [question, device = "phone-1", seconds = "120", url = "http://127.0.0.1:4567", channel = "approvals"] =
  process.argv.slice(2);
if (question === undefined) throw new Error("usage: bun clients/examples/approve.ts QUESTION [device] [seconds]");
const token = process.env.PERE_TOKEN;

const time = Number(seconds);
const { id, receipts } = await publish(
  url,
  channel,
  { question },
  { type: "approval", to: [device], deadline: time, wait: time, token },
);
const headers = token ? { Authorization: `Bearer ${token}` } : undefined;
const response = await fetch(`${url}/events/${channel}/${id}/receipts`, headers ? { headers } : {});
const { receipts: rows } = (await response.json()) as { receipts: { status: string; detail: unknown }[] };
const note = JSON.stringify(rows[0]?.detail ?? null);

if (receipts?.done === 1) console.log(`approved: ${note}`);
else if (receipts?.failed === 1) console.log(`denied: ${note}`);
else console.log("no answer");
process.exit(receipts?.done === 1 ? 0 : receipts?.failed === 1 ? 1 : 2);
