/**
 * The SDK in pages of a real Chromium, which come from elsewhere than the service, as a shop's pages do: with a token, through a proxy that holds
 * event streams back, and in several tabs of one device. The bad day does the rest (`badday/sdk.test.ts`).
 */
import { afterAll, expect } from "bun:test";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { publish, publishMany } from "../clients/sdk/index.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { browserTest, closeBrowser, openTab } from "./support/browser.ts";
import { ask, SECRET, startWith, until } from "./support/harness.ts";

afterAll(closeBrowser);

/** The page listens with what its address says, and shows what it hears to whoever looks at `seen`. */
const PAGE = `<!doctype html><title>till</title><button style="width: 200px; height: 100px">another tab</button>
<script type="module">
  import { browserStorage, listen } from "/pere.js";
  const query = new URLSearchParams(location.search);
  const seen = (window.seen = { worked: [], elsewhere: [], statuses: [] });
  document.querySelector("button").onclick = () => (window.other = open(location.href, "other", "popup"));
  window.begin = () => {
    window.listener = listen({
      url: query.get("url"),
      channels: "orders",
      device: query.get("device") ?? undefined,
      token: query.get("token") ?? undefined,
      storage: browserStorage(),
      timing: { firstByteMs: 1000, againMs: 3000, pauseMsMax: 100 },
      onEvent: ({ data }) => void seen.worked.push(data),
      onElsewhere: ({ data }) => void seen.elsewhere.push(data),
    });
    listener.status().subscribe((status) => (seen.status = status));
  };
  if (window.opener || query.has("at-once")) begin();
</script>`;

/** A web server with the page, elsewhere than PERE. */
async function shop(): Promise<{ origin: string; stop: () => Promise<void> }> {
  const built = await Bun.build({
    entrypoints: [join(import.meta.dir, "..", "clients", "sdk", "index.ts")],
    target: "browser",
  });
  const script = await built.outputs[0]!.text();
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    routes: {
      "/": () => new Response(PAGE, { headers: { "Content-Type": "text/html" } }),
      "/pere.js": () => new Response(script, { headers: { "Content-Type": "text/javascript" } }),
    },
  });
  return { origin: server.url.origin, stop: () => server.stop(true) };
}

/** What a tab has seen: this one, or the one that it opened. */
interface Seen {
  readonly worked: unknown[];
  readonly elsewhere: unknown[];
  readonly status?: { state: string; transport: string; isElsewhere: boolean; unsent: number; device: string | null };
}

class Tab implements Disposable {
  readonly view = openTab(500, 400);

  open = (address: string): Promise<void> => this.view.navigate(address);
  run = (script: string): Promise<unknown> => this.view.evaluate(script);
  seen = async (of = "window"): Promise<Seen | null> =>
    JSON.parse(String(await this.view.evaluate(`JSON.stringify(${of}?.seen ?? null)`))) as Seen | null;

  async sees(what: (seen: Seen) => unknown, of = "window"): Promise<Seen> {
    let seen: Seen | null = null;
    const look = async (): Promise<Seen | null> => {
      seen = await this.seen(of);
      return seen && what(seen) ? seen : null;
    };
    return until(look, () => `${what}; ${of} has ${JSON.stringify(seen)}`);
  }

  [Symbol.dispose](): void {
    this.view.close();
  }
}

browserTest(
  "a page from elsewhere listens with a token; where event streams are held back it takes a socket, and SSE when it can",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pages = cleanup.adopt(await shop(), (server) => server.stop());
    const pere = cleanup.adopt(await startWith({ origins: [pages.origin] }), (service) => service.stop());
    const proxy = cleanup.adopt(await BadProxy.to(pere.url), (proxy) => proxy.stop());
    const of = (sub: string, push: string[], feed: string[]): Promise<string> =>
      issueToken({ secret: SECRET }, { sub, push, feed, days: 1 });
    const [token, office] = [await of("till-7", [], ["orders"]), await of("office", ["orders"], [])];
    proxy.weather = ({ errand, head }) => (errand === "sse" && !head.startsWith("OPTIONS") ? "buffer" : "pass");
    using tab = new Tab();
    await tab.open(`${pages.origin}/?${new URLSearchParams({ url: proxy.url, token, "at-once": "" })}`);
    await tab.sees(
      ({ status }) => status?.state === "connected" && status.transport === "websocket" && status.device === "till-7",
    );
    const first = await publish(pere.url, "orders", 1, { token: office, wait: 10 });
    expect(first.receipts).toMatchObject({ done: 1 });
    proxy.weather = () => "pass";
    await tab.sees(({ status }) => status?.state === "connected" && status.transport === "sse");
    const second = await publish(pere.url, "orders", 2, { token: office, wait: 10 });
    expect(second.receipts).toMatchObject({ done: 1 });
    expect((await tab.seen())!.worked).toEqual([1, 2]);
  },
);

browserTest(
  "two tabs of one device share a connection: one works, the other sees it, and takes over when the first is closed",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pages = cleanup.adopt(await shop(), (server) => server.stop());
    const pere = cleanup.adopt(await startWith({ access: "open", origins: [pages.origin] }), (service) =>
      service.stop(),
    );
    using tab = new Tab();
    await tab.open(`${pages.origin}/?${new URLSearchParams({ url: pere.url, device: "till-7" })}`);
    await tab.view.click("button");
    await tab.sees(({ status }) => status?.state === "connected" && !status.isElsewhere, "window.other");
    await tab.run("begin()");
    await tab.sees(({ status }) => status?.state === "connected" && status.isElsewhere && status.transport === "sse");
    expect(pere.engine.held.feeds).toBe(1);

    await publish(pere.url, "orders", 1, { wait: 10 });
    await publish(pere.url, "orders", 2, { wait: 10 });
    await tab.sees(({ elsewhere }) => elsewhere.length === 2);
    expect((await tab.seen("window.other"))!.worked).toEqual([1, 2]);
    expect((await tab.seen())!.worked).toEqual([]);

    await tab.run("other.close()");
    await until(() => pere.engine.held.feeds === 0);
    await publishMany(pere.url, "orders", [3, 4]);
    await tab.sees(({ status, worked }) => status?.state === "connected" && !status.isElsewhere && worked.length === 2);
    expect((await tab.seen())!.worked).toEqual([3, 4]);
    await until(async () => {
      const { body } = await ask(`${pere.url}/events/orders`);
      return (body.events as { complete: boolean }[]).every(({ complete }) => complete);
    });
    expect(pere.engine.held.feeds).toBe(1);

    // Reloaded, it has nothing to do again.
    await tab.open(`${pages.origin}/?${new URLSearchParams({ url: pere.url, device: "till-7", "at-once": "" })}`);
    await tab.sees(({ status }) => status?.state === "connected" && !status.isElsewhere);
    await publish(pere.url, "orders", 5, { wait: 10 });
    expect((await tab.seen())!.worked).toEqual([5]);
  },
);
