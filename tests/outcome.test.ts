/** What becomes of an event, and how its publisher knows, on SQLite. */
import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { join } from "node:path";
import { ask, give, listen, push, start, temporary, until } from "./support/harness.ts";
import { outcomes } from "./contract/outcome-cases.ts";

outcomes("SQLite", 1, async () => {
  const path = join(temporary(), "pere.db");
  return (options) => start(options, path);
});

test("a file with receipts of the older format that complete an event: a reader cut off after one gets the completion again, and afterwards no more", async () => {
  const path = join(temporary(), "pere.db");
  const before = await start({}, path);
  await ask(`${before.url}/devices/c/a`, { method: "PUT" });
  const event = await push(before.url, "c", 1);
  await give(before.url, "c", event, "a", "done");
  await before.stop();
  const file = new Database(path);
  file.run("DELETE FROM receipts WHERE seq = 2");
  file.run("UPDATE receipts SET done = 1, failed = 0 WHERE seq = 1");
  file.run("UPDATE channels SET receiptsHead = 1");
  file.close();

  const pere = await start({}, path);
  const url = `${pere.url}/feedback/c`;
  const first = await listen(`${url}?since=earliest`);
  await until(() => first.messages.length === 3);
  const [, receipt, complete] = first.messages;
  expect([receipt!.event, complete!.event]).toEqual([undefined, "pere.complete"]);
  const cut = await listen(url, { "Last-Event-ID": receipt!.id! });
  await until(() => cut.messages.length === 3);
  expect(cut.messages.slice(1)).toEqual(first.messages.slice(1));
  const whole = await listen(url, { "Last-Event-ID": complete!.id! });
  const next = await push(pere.url, "c", 2);
  await give(pere.url, "c", next, "a", "working");
  await whole.have(1);
  expect(whole.messages.map(({ event: name }) => name)).toEqual(["pere.ready", undefined]);
  for (const stream of [first, cut, whole]) stream.close();
  await pere.stop();
});
