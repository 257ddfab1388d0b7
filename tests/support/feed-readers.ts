/**
 * A feed of events, read on any of the three transports, as a list of what came.
 */
import { ask, connect, listen, until } from "./harness.ts";

export const WAYS = ["sse", "websocket", "poll"] as const;
export type Way = (typeof WAYS)[number];

/** What came: an event's id with its round if that is not 1, or `-` and the id of an event that was withdrawn. */
export class FeedReader implements AsyncDisposable {
  readonly told: string[] = [];
  /** The control entries. */
  readonly withdrawn: Record<string, unknown>[] = [];
  /** The server's own other messages. */
  readonly own: string[] = [];
  /** Sends receipts on a socket, and gives the answer. */
  send: (receipts: unknown) => Promise<Record<string, unknown>> = () => Promise.reject(new Error("it is no socket"));
  /** How far it has come, as the transport says. */
  last: string | undefined;
  readonly #way: Way;
  #close = (): void => {};
  #look = (): void => {};
  #ended: Promise<void> = Promise.resolve();

  constructor(way: Way) {
    this.#way = way;
  }

  /** Opens a feed and waits until it is ready. @param query without the question mark */
  static async open(way: Way, url: string, query: string): Promise<FeedReader> {
    const reader = new FeedReader(way);
    await { sse: reader.#sse, websocket: reader.#socket, poll: reader.#poll }[way].call(reader, url, query);
    return reader;
  }

  #event({ id, round }: { id: string; round?: number }): void {
    this.told.push(round === undefined ? id : `${id} #${round}`);
  }
  #control(control: Record<string, unknown>): void {
    this.withdrawn.push(control);
    this.told.push(`-${String(control.withdrawn)}`);
  }

  async #sse(url: string, query: string): Promise<void> {
    const stream = await listen(`${url}?${query}`);
    let taken = 0;
    this.#close = () => stream.close();
    this.#look = () => {
      for (const { id, event, data } of stream.messages.slice(taken)) {
        taken++;
        if (id) this.last = id;
        const body = JSON.parse(data) as { id: string; round?: number };
        if (event === "pere.withdrawn") this.#control(body);
        else if (event?.startsWith("pere.")) this.own.push(event.slice(5));
        else {
          // Only an event that moves the position has an id on an event stream.
          if (id !== undefined && id !== "" && id !== body.id) throw new Error(`frame ${id} holds ${body.id}`);
          this.#event(body);
        }
      }
    };
  }

  async #socket(url: string, query: string): Promise<void> {
    const { socket, messages } = await connect(`${url}?${query}`);
    let taken = 0;
    this.#close = () => socket.close();
    this.send = async (receipts) => {
      const before = messages.filter(({ pere }) => pere === "receipts").length;
      socket.send(JSON.stringify(receipts));
      return until(() => messages.filter(({ pere }) => pere === "receipts")[before]);
    };
    this.#look = () => {
      for (const message of messages.slice(taken)) {
        taken++;
        const { pere, ...body } = message;
        if (pere === undefined) this.#event(message as { id: string });
        else if (pere === "withdrawn") this.#control(body);
        else this.own.push(String(pere));
      }
    };
  }

  async #poll(url: string, query: string): Promise<void> {
    let isOpen = true;
    this.#close = () => (isOpen = false);
    const ask1 = async (wait: number): Promise<void> => {
      const last =
        this.last === undefined
          ? query
          : `${query.replace(/&?(since|last-event-id)=[^&]*/g, "")}&last-event-id=${this.last}`;
      const { body } = await ask(`${url}?${last}&wait=${wait}`, { headers: { Accept: "application/json" } });
      this.last = body.last;
      for (const event of body.events) this.#event(event);
      for (const control of body.withdrawn ?? []) this.#control(control);
      if (body.gaps) this.own.push("gap");
    };
    await ask1(0);
    this.#ended = (async () => {
      while (isOpen) await ask1(0.05).catch(() => {});
    })();
  }

  /** Everything that came so far. */
  get now(): readonly string[] {
    this.#look();
    return this.told;
  }

  /** Waits until this came, and nothing else; in this order, except by long-poll, where an answer has no order between events and withdrawals. */
  async has(expected: readonly string[]): Promise<void> {
    const text = (told: readonly string[]): string => JSON.stringify(this.#way === "poll" ? told.toSorted() : told);
    await until(
      () => text(this.now) === text(expected),
      () => `${JSON.stringify(expected)}; came: ${JSON.stringify(this.now.slice(-20))}`,
    );
  }

  /** Waits until the last thing that came is this. */
  async hasLast(last: string): Promise<void> {
    await until(
      () => this.now.at(-1) === last,
      () => `${last}; came: ${JSON.stringify(this.now)}`,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#close();
    await this.#ended;
  }
}
