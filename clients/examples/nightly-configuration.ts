#!/usr/bin/env bun
/**
 * Pushes a configuration to all kiosks, now and every night. It supersedes the older one, and its schedule takes the place of the older schedule. See
 * docs/recipes/nightly-configuration.md.
 *
 *   bun clients/examples/nightly-configuration.ts FILE [url] [channel] [cron] [zone]
 */
import { cancelScheduled, publish, readScheduled, schedule } from "../sdk/index.ts";

const [file, url = "http://127.0.0.1:4567", channel = "kiosks", every = "0 3 * * *", tz = "UTC"] =
  process.argv.slice(2);
if (file === undefined)
  throw new Error("usage: bun clients/examples/nightly-configuration.ts FILE [url] [channel] [cron] [zone]");
const token = process.env.PERE_TOKEN;
const configuration = await Bun.file(file).text();
const options = { token, type: "configuration", eventKey: "configuration", attempts: 5, isJson: true };

const { audience } = await publish(url, channel, configuration, options);
console.log(`pushed to ${audience.addressed} kiosks, ${audience.connected} of them connected`);

// The new schedule first: no night is left out.
const { id, next } = await schedule(url, channel, configuration, { ...options, every, tz });
for await (const older of readScheduled({ url, channel, token }))
  if (older.every !== null && older.id !== id) await cancelScheduled({ url, channel, token, id: older.id });
console.log(`again at ${next}, and so on: ${every} (${tz})`);
