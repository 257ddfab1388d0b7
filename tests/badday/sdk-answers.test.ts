/**
 * Bad answers to the SDK, `clients/sdk/`, on Bun, on Node and in a page in Chromium.
 */
import { badAnswersDay } from "./answers.ts";
import { built, clients } from "./sdk-clients.ts";

built();
for (const client of clients) badAnswersDay(client);
