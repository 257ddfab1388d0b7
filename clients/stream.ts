/**
 * Following an event stream for as long as the program runs: reads its lines, and comes back where it broke off. A token for it stands in
 * the environment, `PERE_TOKEN`.
 */

/** One message of an event stream (WHATWG HTML, section 9.2). */
export interface Message {
  readonly event: string;
  readonly data: string;
}

/** The service said no, and will say it again. */
export class Refused extends Error {}

/** Quieter than this, and a stream is dead: the service says something every 15 s. */
const DEAD_MS = 45_000;

/** Reads the lines of a body as they come: LF, CR LF or CR, also where a chunk ends between the two. */
export async function* linesOf(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of body) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    yield* lines;
  }
  if (rest !== "") yield rest;
}

/** The token in the environment, as requests carry it; nothing, where there is none. */
export const authorization = (): Record<string, string> =>
  process.env.PERE_TOKEN ? { Authorization: `Bearer ${process.env.PERE_TOKEN}` } : {};

/** Whether asking again may help: the service is away or has too much to do. */
export const passes = (status: number): boolean => status >= 500 || status === 408 || status === 429;

/**
 * Follows an event stream for ever: comes back after the `retry:` that it was told, and where it broke off.
 * @param onLoss told why, each time that the stream is gone
 * @throws Refused
 */
export async function* follow(url: string, onLoss: (why: string) => void): AsyncGenerator<Message> {
  let last = "";
  let retryMs = 1_000;
  for (;;) {
    const quiet = new AbortController();
    let timer = setTimeout(() => quiet.abort(), DEAD_MS);
    let why = "the stream ended";
    try {
      const response = await fetch(url, {
        headers: { Accept: "text/event-stream", ...authorization(), ...(last === "" ? {} : { "Last-Event-ID": last }) },
        signal: quiet.signal,
      });
      if (!response.ok && !passes(response.status)) throw new Refused(await response.text());
      if (!response.ok || !response.body) throw new Error(`status ${response.status}`);
      let [id, event, data]: [string, string, string[]] = [last, "", []];
      for await (const line of linesOf(response.body)) {
        clearTimeout(timer);
        timer = setTimeout(() => quiet.abort(), DEAD_MS);
        const [, field, value = ""] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
        if (field === "id") id = value;
        else if (field === "event") event = value;
        else if (field === "data") data.push(value);
        else if (field === "retry" && /^\d+$/.test(value)) retryMs = Number(value);
        if (line !== "") continue;
        last = id;
        if (data.length > 0) yield { event, data: data.join("\n") };
        [event, data] = ["", []];
      }
    } catch (error) {
      if (error instanceof Refused) throw error;
      why = quiet.signal.aborted ? "nothing was heard for too long" : (error as Error).message;
    } finally {
      clearTimeout(timer);
      quiet.abort();
    }
    onLoss(`${why}; coming back in ${retryMs} ms`);
    await Bun.sleep(retryMs);
  }
}
