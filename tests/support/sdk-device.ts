/**
 * A device on the SDK that notes what it worked on, and what may stand between it and the service.
 */
import { listen, type ListenOptions } from "../../clients/sdk/index.ts";
import { ask, until } from "./harness.ts";

/** A test here waits for several things, each with the harness's patience. */
export const LIMIT_MS = 60_000;

/** Short pauses; what counts as silence is long enough for a busy machine. */
export const TIMING = { pauseMsMax: 50, againMs: 600_000 };

export type Fetch = NonNullable<ListenOptions["fetch"]>;

/** What is remembered for as long as the test runs. */
export function memory() {
  const kept = new Map<string, string>();
  return { get: (name: string) => kept.get(name), set: (name: string, text: string) => kept.set(name, text) };
}

/** A device that notes what it worked on. */
export function device(options: Partial<ListenOptions> & { url: string }) {
  const worked: unknown[] = [];
  const listener = listen({
    channels: "orders",
    device: "till-7",
    timing: TIMING,
    onEvent: ({ data }) => void worked.push(data),
    ...options,
  });
  return {
    worked,
    listener,
    status: () => listener.status().get(),
    by: (transport: string): Promise<unknown> =>
      until(
        () => listener.status().get().state === "connected" && listener.status().get().transport === transport,
        () => `${transport}: ${JSON.stringify(listener.status().get())}`,
      ),
  };
}

export const counting = (count: number, from = 0): number[] =>
  Array.from({ length: count }, (_, index) => from + index);

/** Waits until the service has a final receipt for all its events, and gives the tallies. */
export const settled = (url: string, count: number): Promise<Record<string, number>[]> => {
  let events: { complete: boolean; receipts: Record<string, number> }[] = [];
  return until(
    async () => {
      ({ events } = (await ask(`${url}/events/orders?limit=1000`)).body as { events: typeof events });
      return (
        events.length === count && events.every(({ complete }) => complete) && events.map(({ receipts }) => receipts)
      );
    },
    () => `${count} complete events: ${JSON.stringify(events.filter(({ complete }) => !complete).slice(0, 3))}`,
  );
};

export const accepts = (init: RequestInit): string => (init.headers as Record<string, string>).Accept ?? "";

/** What is between device and service: event streams are held back while `holds`, receipts that go by POST are counted. */
export class Between {
  holds = true;
  posts = 0;
  /** Answers that were 401. */
  refusals = 0;
  readonly fetch: Fetch = async (url, init) => {
    if (init.method === "POST") this.posts++;
    if (accepts(init) !== "text/event-stream" || !this.holds) {
      const response = await fetch(url, init);
      if (response.status === 401) this.refusals++;
      return response;
    }
    // The proxy has it all, and keeps it to itself until it ends.
    return new Promise((_, reject) => init.signal!.addEventListener("abort", () => reject(new Error("aborted"))));
  };
}

/** The transports of a feed. */
export const TRANSPORTS = ["sse", "websocket", "longpoll"] as const;

/** Options with which a client can use this transport only. */
export const only = (transport: (typeof TRANSPORTS)[number]): Partial<ListenOptions> => ({
  ...(transport === "longpoll" ? { WebSocket: null } : {}),
  ...(transport === "sse"
    ? {}
    : {
        fetch: async (url, init) =>
          accepts(init) === "text/event-stream" ? new Response("no", { status: 406 }) : fetch(url, init),
      }),
});

/** A device's row on an event. */
export async function rowOf(url: string, event: string, device = "till-7"): Promise<Record<string, unknown>> {
  const rows = (await ask(`${url}/events/orders/${event}/receipts`)).body.receipts as Record<string, unknown>[];
  return rows.find((row) => row.device === device) ?? {};
}
