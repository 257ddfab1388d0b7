/**
 * Bad answers to the SDK, `clients/sdk/`, on Bun, on Node and in a page in Chromium.
 */
import { badAnswersDay } from "./answers.ts";
import { built, clients } from "./sdk-clients.ts";

built();
// They mostly wait. A browser costs more than a process.
for (const client of clients)
  badAnswersDay(client, client.name.includes("Chromium") ? { streams: 5, polls: 3 } : { streams: 8, polls: 4 });
