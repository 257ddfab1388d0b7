/**
 * The bad day of the SDK, `clients/sdk/`, on Bun, on Node and in a page in Chromium.
 */
import { badDay } from "./badday.ts";
import { built, clients } from "./sdk-clients.ts";

built();
for (const client of clients) badDay(client);
