#!/usr/bin/env bun
/**
 * Shows a person the questions of clients/examples/approve.ts and sends the answers. See docs/recipes/approve.md.
 *
 *   bun clients/examples/answer-approvals.ts [device] [url] [channel]
 *
 * An answer is a line that begins with y or n; the rest of the line is a note. It ends when its input ends; a question without an answer stays open.
 */
import { createInterface } from "node:readline";
import { listen } from "../sdk/index.ts";

const [device = "phone-1", url = "http://127.0.0.1:4567", channel = "approvals"] = process.argv.slice(2);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const listener = listen<{ question: string }>({
  url,
  channels: channel,
  device,
  token: process.env.PERE_TOKEN,
  async onEvent({ data }) {
    for (;;) {
      console.log(`${data.question} (y/n, and a note)`);
      const { done, value: line = "" } = await lines.next();
      if (done) {
        // The error is not sent as an answer, because the listener has been closed.
        void listener.close();
        throw new Error("no more input");
      }
      const [, answer, note] = /^\s*([yn])\w*\s*(.*)$/i.exec(line) ?? [];
      if (answer?.toLowerCase() === "y") return note; // Sends `done`.
      if (answer) throw new Error(note || "no"); // Sends `failed`.
    }
  },
});
await listener.closed;
