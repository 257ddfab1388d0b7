/**
 * The parser of Server-Sent Events. It is our own, because `EventSource` sends no `Authorization` header and hides status codes.
 */

/** The longest line or message, in characters. An event of PERE is at most 64 KiB. */
const LINE_CHARACTERS_MAX = 1024 * 1024;

/**
 * Parses an event stream chunk by chunk (WHATWG HTML, 9.2.6). `dispatch` is called with each message and the last event id; and with `data` null for an
 * id that came without a message. Lines end with LF, CR LF or CR, and a chunk may end between CR and LF.
 */
export class EventStreamReader {
  readonly #dispatch: (event: string, data: string | null, id: string) => void;
  readonly #retry: (ms: number) => void;
  #rest = "";
  #isAfterCr = false;
  #id = "";
  #dispatchedId = "";
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
      throw new Error(`a message of the event stream is longer than ${LINE_CHARACTERS_MAX} characters`);
  }

  #line(line: string): void {
    if (line === "") return this.#endMessage();
    const colon = line.indexOf(":");
    const field = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") this.#data = this.#data === null ? value : `${this.#data}\n${value}`;
    else if (field === "event") this.#event = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^[0-9]+$/.test(value)) this.#retry(Number(value));
  }

  #endMessage(): void {
    const [event, data] = [this.#event, this.#data];
    this.#event = "";
    this.#data = null;
    if (data === null && this.#id === this.#dispatchedId) return;
    this.#dispatchedId = this.#id;
    this.#dispatch(event, data, this.#id);
  }
}
