#!/usr/bin/env bun
/**
 * Pushes an order to the tills of a channel, and again to those that did not print it in time. See docs/recipes/print-orders.md.
 *
 *   bun clients/examples/print-orders.ts [url] [channel] [order, as JSON] [seconds]
 *
 * Its exit code is 0 when every till has printed the order, and 1 when some have not after three attempts.
 */
import { publish, receipts } from "../sdk/index.ts";

const [url = "http://127.0.0.1:4567", channel = "orders", order = '{"number": 4711}', seconds = "60"] =
  process.argv.slice(2);
const ATTEMPTS = 3;
const token = process.env.PERE_TOKEN;

const feed = receipts({ url, channel, token });
await feed.ready; // After this, no receipt is missed.

let to: string[] | undefined; // All tills at first.
for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
  const options = { type: "order", isJson: true, to, deadline: Number(seconds), token };
  const { id, audience } = await publish(url, channel, order, options);
  console.log(`attempt ${attempt}: event ${id} to ${audience.addressed} tills`);

  const printed = new Set<string>();
  const open = new Set<string>();
  while (printed.size + open.size < audience.addressed) {
    const { value: message } = await feed.next();
    if (message?.kind !== "receipt" || message.event !== id) continue;
    if (message.status === "done") printed.add(message.device);
    else if (message.status === "failed" || message.status === "missing") open.add(message.device);
  }
  if (open.size === 0) {
    console.log("all tills have printed it");
    process.exit(0);
  }
  to = [...open];
  console.log(`not printed at ${to.join(", ")}`);
}
process.exit(1);
