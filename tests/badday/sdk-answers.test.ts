/**
 * Bad answers to the SDK, `clients/sdk/`, on Bun, on Node and in a page in Chromium.
 */
import { describe } from "bun:test";
import { badAnswersDay } from "./answers.ts";
import { built, clients } from "./sdk-clients.ts";

built();
describe.concurrent("bad answers", () => {
  for (const client of clients) badAnswersDay(client, { streams: 6, polls: 3 });
});
