/**
 * `/metrics` as a scraper sees it, and the dashboard and alert rules that read it, held to Prometheus' own checker.
 */
import { describe, expect, test } from "bun:test";
import { readRanges } from "../engine/addresses.ts";
import { issueToken } from "../engine/auth/issue.ts";
import { Counters } from "../engine/counters.ts";
import {
  ask,
  connect,
  give,
  listen,
  push,
  SECRET,
  start,
  startOn,
  startWith,
  temporary,
  until,
} from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";
import { noRedis, startRedis } from "./support/redis-server.ts";

const PROMTOOL = Bun.which("promtool");
const noPromtool = PROMTOOL || process.env.CI === "true" ? null : "there is no promtool on this machine";

/** What promtool says of a file or of its input. */
async function promtool(args: readonly string[], input = ""): Promise<{ code: number; said: string }> {
  const child = Bun.spawn([PROMTOOL!, ...args], { stdin: new Blob([input]), stdout: "pipe", stderr: "pipe" });
  const said = (await new Response(child.stdout).text()) + (await new Response(child.stderr).text());
  return { code: await child.exited, said };
}

const scrape = async (url: string): Promise<string> => {
  const answer = await ask(`${url}/metrics`);
  expect(answer.status).toBe(200);
  return answer.text;
};

/** The value of one series, as it is written. */
const value = (text: string, series: string): number | undefined => {
  const line = text.split("\n").find((candidate) => candidate.startsWith(`${series} `));
  return line === undefined ? undefined : Number(line.slice(series.length + 1));
};

test("a scrape has counters and current state, and no device or channel", async () => {
  const service = await start();
  const { url } = service;
  const stream = await listen(`${url}/feed/orders?device=till-7`);
  const { socket } = await connect(`${url}/feed/orders?device=till-8`);
  const id = await push(url, "orders", 1, "?deadline=3600");
  await stream.have(1);
  await give(url, "orders", id, "till-7", "received");
  await give(url, "orders", id, "till-7", "done");

  await scrape(url); // The first look at what is owed begins with it.
  const text = await until(async () => {
    const found = await scrape(url);
    return value(found, "pere_receipts_open") === 1 && value(found, "pere_deliveries_total") === 2 && found;
  }, "what is owed, and both deliveries");
  for (const [series, expected] of Object.entries({
    pere_pushes_total: 1,
    pere_withdrawals_total: 0,
    'pere_receipts_total{status="done"}': 1,
    'pere_receipts_total{status="failed"}': 0,
    'pere_receipt_latency_seconds_count{status="final"}': 1,
    'pere_receipt_latency_seconds_bucket{status="received",le="+Inf"}': 1,
    'pere_store_seconds_count{work="push"}': 1,
    pere_receipts_missing: 0,
    'pere_feeds{transport="sse"}': 1,
    'pere_feeds{transport="websocket"}': 1,
    'pere_feeds{transport="poll"}': 0,
    pere_followers: 2,
    pere_followers_behind: 0,
    pere_devices_connected: 2,
    pere_store_up: 1,
    'pere_store_info{store="sqlite",durability="memory"}': 1,
    pere_draining: 0,
  }))
    expect(`${series} ${value(text, series)}`).toBe(`${series} ${expected}`);
  expect(value(text, "pere_commit_seconds_count")).toBeGreaterThan(0);
  expect(value(text, "pere_resident_memory_bytes")).toBeGreaterThan(1e6);
  expect(text).toMatch(/^pere_build_info\{version="\d+\.\d+\.\d+",bun="\d+\.\d+\.\d+"\} 1$/m);
  expect(text).not.toMatch(/till-|orders/);
  for (const line of text.split("\n")) if (line !== "" && !line.startsWith("#")) expect(line).toStartWith("pere_");
  socket.close();
  await service.stop();
});

test("a bucket counts all values up to its bound, and the last one all values", async () => {
  const counts = new Counters();
  for (const seconds of [0.0001, 0.002, 0.002, 9]) counts.commits.note(seconds);
  const service = await start({ counts });
  const text = await scrape(service.url);
  const bucket = (le: string) => value(text, `pere_commit_seconds_bucket{le="${le}"}`);
  expect(["0.0001", "0.001", "0.0025", "2.5", "+Inf"].map(bucket)).toEqual([1, 1, 3, 3, 4]);
  expect(value(text, "pere_commit_seconds_sum")).toBeCloseTo(9.0041);
  await service.stop();
});

test("channels that the operator lists have their own series, and are in no other", async () => {
  const service = await startWith({ access: "open", metricsChannels: ["orders"] });
  for (const channel of ["orders", "orders", "menu"]) await push(service.url, channel, 1);
  const text = await scrape(service.url);
  expect(value(text, 'pere_pushes_total{channel="orders"}')).toBe(2);
  expect(value(text, "pere_pushes_total")).toBe(1);
  expect(text).not.toContain("menu");
  await service.stop();
});

test("calls to hooks are counted by result", async () => {
  const answers = [204, 500, 410];
  const port = lastingPort(); // In the end nobody listens there.
  const receiver = Bun.serve({
    hostname: "127.0.0.1",
    port,
    fetch: () => new Response(null, { status: answers.shift()! }),
  });
  const service = await startWith({ access: "open", hooksAllowed: readRanges("127.0.0.0/8") });
  const { url } = service;
  const body = { url: `http://127.0.0.1:${port}/`, on: ["receipt"] };
  const hook = () => ask(`${url}/hooks/orders/h`, { method: "PUT", body });
  const tried = async (result: string, body: unknown): Promise<void> => {
    const id = await push(url, "orders", body);
    await give(url, "orders", id, "till-7", "done");
    const series = `pere_hook_tries_total{result="${result}"}`;
    // What was refused before is tried again where the hook is stored anew.
    await until(async () => (value(await scrape(url), series) ?? 0) >= 1, series);
  };
  await ask(`${url}/devices/orders/till-7`, { method: "PUT" });
  await hook();
  await tried("delivered", 1);
  await tried("refused", 2);
  await tried("gone", 3);
  await receiver.stop(true);
  await hook();
  await tried("unreachable", 4);
  await service.stop();
});

test("where tokens are required, only one with push on all channels reads metrics", async () => {
  const service = await startWith();
  const status = async (rights: { push?: string[]; feed?: string[] } | null): Promise<number> => {
    const token =
      rights && (await issueToken({ secret: SECRET }, { sub: "prometheus", push: [], feed: [], days: 1, ...rights }));
    const headers: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
    return (await ask(`${service.url}/metrics`, { headers })).status;
  };
  expect(await status({ push: ["*"] })).toBe(200);
  expect(await status({ push: ["orders", "shop.*"], feed: ["*"] })).toBe(403);
  expect(await status(null)).toBe(401);
  await service.stop();
});

test.skipIf(noRedis !== null)(
  `a Redis that is away is reported, and its return too${noRedis ? `: ${noRedis}` : ""}`,
  async () => {
    const redis = await startRedis();
    const service = await startOn(redis.url);
    const up = async (): Promise<number | undefined> => value(await scrape(service.url), "pere_store_up");
    expect(await scrape(service.url)).toContain('pere_store_info{store="redis",durability="memory"} 1');
    expect(await up()).toBe(1);
    redis.pause();
    await until(async () => (await up()) === 0, "0");
    expect((await ask(`${service.url}/push/orders`, { body: 1 })).status).toBe(503);
    expect(value(await scrape(service.url), 'pere_store_failures_total{work="push"}')).toBe(1);
    redis.resume();
    await until(async () => (await up()) === 1, "1");
    await service.stop();
    await redis.end();
  },
);

describe.skipIf(noPromtool !== null)(`Prometheus' own checker${noPromtool ? `: ${noPromtool}` : ""}`, () => {
  const FOLDER = `${import.meta.dir}/../web/monitoring`;

  test("accepts every series and name, and finds all series that rules and dashboard use", async () => {
    const service = await startWith({ access: "open", metricsChannels: ["orders"] });
    const stream = await listen(`${service.url}/feed/orders`);
    const text = await scrape(service.url);
    expect(await promtool(["check", "metrics"], text)).toEqual({ code: 0, said: "" });
    stream.close();
    await service.stop();
    for (const name of ["alerts.yaml", "grafana.json"])
      for (const [metric] of (await Bun.file(`${FOLDER}/${name}`).text()).matchAll(/\bpere_[a-z_]+[a-z]/g))
        expect(`${metric} ${text.includes(`\n# TYPE ${metric.replace(/_(?:bucket|sum|count)$/, "")} `)}`).toBe(
          `${metric} true`,
        );
  });

  test("loads the alert rules", async () => {
    const { code, said } = await promtool(["check", "rules", `${FOLDER}/alerts.yaml`]);
    expect(said).toContain("SUCCESS: 10 rules found");
    expect(code).toBe(0);
  });

  test("fires the alerts when it should, and only then", async () => {
    const folder = temporary();
    const series = (name: string, values: string) => ({ series: `${name}{instance="a:4567"}`, values });
    const alert = (alertname: string, eval_time: string, labels?: Record<string, string>) => ({
      ...{ alertname, eval_time },
      exp_alerts: labels ? [{ exp_labels: { instance: "a:4567", ...labels } }] : [],
    });
    const rules = {
      rule_files: [`${FOLDER}/alerts.yaml`],
      evaluation_interval: "15s",
      tests: [
        {
          interval: "15s",
          input_series: [
            series("pere_store_up", "1x20 0x20"),
            series("pere_followers", "1000x100"),
            series("pere_followers_behind", "50x100"),
          ],
          alert_rule_test: [
            alert("PereStoreAway", "5m"),
            alert("PereStoreAway", "7m", { severity: "critical" }),
            alert("PereFollowersBehind", "20m"),
          ].map((given) => ({
            ...given,
            exp_alerts: given.exp_alerts.map((one) => ({ ...one, exp_annotations: ANNOTATED })),
          })),
        },
      ],
    };
    await Bun.write(`${folder}/test.json`, JSON.stringify(rules));
    expect(await promtool(["test", "rules", `${folder}/test.json`])).toMatchObject({ code: 0 });
  });

  test("parses every query of the dashboard", async () => {
    const { panels } = (await Bun.file(`${FOLDER}/grafana.json`).json()) as {
      panels: { targets?: { expr: string }[]; gridPos: { x: number; w: number } }[];
    };
    const asked = panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));
    expect(asked.length).toBeGreaterThan(20);
    const rules = asked.map((expr, n) => ({
      record: `asked:${n}`,
      expr: expr.replaceAll("$__rate_interval", "1m").replaceAll("$instance", ".*"),
    }));
    const file = `${temporary()}/asked.json`;
    await Bun.write(file, JSON.stringify({ groups: [{ name: "asked", rules }] }));
    expect(await promtool(["check", "rules", file])).toMatchObject({ code: 0 });
  });
});

/** What the alert of a store that is away says. */
const ANNOTATED = {
  summary: "a:4567 can't reach its store: pushes and receipts are refused",
  description: "/ready says why. Feeds stay open and continue by themselves when the store is back.",
};
