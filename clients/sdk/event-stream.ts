/**
 * The parser of Server-Sent Events. It is our own, because `EventSource` sends no `Authorization` header and hides status codes.
 */

/** Characters of a line of an event stream. An event is at most 64 KiB, so a longer one is no event of ours. */
const LINE_CHARACTERS_MAX = 1024 * 1024;

/**
 * Reads an event stream as its characters come (WHATWG HTML, 9.2.6). `dispatch` hears each message, with the last id; and each id that came without
 * one, with `data` null. Lines end with LF, CR LF or CR, also where a chunk ends between the two.
 */
export class EventStreamReader {
  readonly #dispatch: (event: string, data: string | null, id: string) => void;
  readonly #retry: (ms: number) => void;
  #rest = "";
  #isAfterCr = false;
  #id = "";
  #told = "";
  #event = "";
  #data: string | null = null;

  constructor(dispatch: (event: string, data: string | null, id: string) => void, retry: (ms: number) => void) {
    this.#dispatch = dispatch;
    this.#retry = retry;
  }

  /** @throws Error when a line or a message is longer than any of PERE's */
  feed(chunk: string): void {
    if (chunk === "") return;
    const added = this.#isAfterCr && chunk.startsWith("\n") ? chunk.slice(1) : chunk;
    const text = this.#rest + added;
    const ends = /\r\n|\n|\r/g;
    ends.lastIndex = this.#rest.length;
    let start = 0;
    for (let end = ends.exec(text); end; end = ends.exec(text)) {
      this.#line(text.slice(start, end.index));
      start = ends.lastIndex;
    }
    this.#isAfterCr = chunk.endsWith("\r");
    this.#rest = text.slice(start);
    if (this.#rest.length > LINE_CHARACTERS_MAX || (this.#data?.length ?? 0) > LINE_CHARACTERS_MAX)
      throw new Error("a message of the event stream has no end");
  }

  #line(line: string): void {
    if (line === "") return this.#end();
    const colon = line.indexOf(":");
    const field = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") this.#data = this.#data === null ? value : `${this.#data}\n${value}`;
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^[0-9]+$/.test(value)) this.#retry(Number(value));
  }

  #end(): void {
    const [event, data] = [this.#event, this.#data];
    this.#event = "";
    this.#data = null;
    if (data === null && this.#id === this.#told) return;
    this.#told = this.#id;
    this.#dispatch(event, data, this.#id);
  }
}
