/**
 * Files as they are served: compressed once, outside of the event loop, and chosen by `Accept-Encoding` (RFC 9110, section 12.5.3).
 *
 * A file of a build is compressed as far as it goes, which takes a fifth of a second. Without a build the first request for an encoding compresses,
 * less far and eight times as fast.
 */
import { promisify } from "node:util";
import { brotliCompress, constants, gzip } from "node:zlib";

type Bytes = Uint8Array<ArrayBuffer>;

/** Brotli's quality: 11 is its best, in a build; 9 takes an eighth of the time and makes a twentieth more bytes. */
const QUALITY = { build: constants.BROTLI_MAX_QUALITY, request: 9 } as const;

/** How a file can be encoded, in the order in which encodings are preferred, with the suffix of a file that is built. */
export const ENCODINGS = { br: ".br", gzip: ".gz" } as const;
export type Encoding = keyof typeof ENCODINGS;

const brotli = promisify(brotliCompress) as (text: Bytes, options: object) => Promise<Buffer>;
const zip = promisify(gzip) as (text: Bytes, options: object) => Promise<Buffer>;

/** Compresses, on a thread of its own. @returns null where that saves nothing */
export async function compress(bytes: Bytes, encoding: Encoding, when: keyof typeof QUALITY): Promise<Bytes | null> {
  const params = {
    [constants.BROTLI_PARAM_QUALITY]: QUALITY[when],
    [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length,
  };
  const packed = await (encoding === "br"
    ? brotli(bytes, { params })
    : zip(bytes, { level: constants.Z_BEST_COMPRESSION }));
  return packed.length < bytes.length ? new Uint8Array(packed) : null;
}

/** Whether compression is worth trying: images are compressed already. */
export const isCompressible = (type: string): boolean =>
  /^text\/|^image\/svg|^application\/(?:.*[+])?(?:json|manifest|javascript|typescript)/.test(type);

/** A file as it is served. */
export class EncodedFile {
  readonly type: string;
  readonly bytes: Bytes;
  readonly #hash: string;
  readonly #packed: Partial<Record<Encoding, Promise<Bytes | null>>>;

  /** @param packed what a build has compressed; what is missing is compressed when it is asked for */
  constructor(type: string, bytes: Bytes, packed: Partial<Record<Encoding, Bytes | null>> = {}) {
    this.type = type;
    this.bytes = bytes;
    this.#hash = Bun.hash(bytes).toString(36);
    this.#packed = Object.fromEntries(Object.entries(packed).map(([name, one]) => [name, Promise.resolve(one)]));
  }

  /**
   * Answers GET and HEAD: with the encoding that the request prefers, or 304 if it has that already. Each encoding has an ETag of its own. Ranges are
   * not supported, which is allowed (RFC 9110, section 14.2): the answer is the whole file.
   */
  async respond(request: Request, headers: Readonly<Record<string, string>>): Promise<Response> {
    const all: Record<string, string> = { ...headers, "Content-Type": this.type };
    let body: Bytes | null = null;
    let etag = `"${this.#hash}"`;
    if (isCompressible(this.type)) {
      all.Vary = "Accept-Encoding";
      for (const encoding of accepted(request.headers.get("accept-encoding") ?? "")) {
        body = await (this.#packed[encoding] ??= compress(this.bytes, encoding, "request"));
        if (body === null) continue;
        all["Content-Encoding"] = encoding;
        etag = `"${this.#hash}-${encoding}"`;
        break;
      }
    }
    all.ETag = etag;
    if (isKnown(request.headers.get("if-none-match") ?? "", etag)) {
      const { "Content-Type": _type, "Content-Encoding": _encoding, ...kept } = all;
      return new Response(null, { status: 304, headers: kept });
    }
    return new Response(body ?? this.bytes, { headers: all });
  }
}

/** The encodings of ours that a request accepts, preferred ones first. Those that it does not name are not used, unless by `*`. */
function accepted(header: string): Encoding[] {
  const weights = new Map<string, number>();
  for (const part of header.toLowerCase().split(",")) {
    const [name = "", ...parameters] = part.split(";").map((text) => text.trim());
    const weight = parameters.find((text) => text.startsWith("q="));
    weights.set(name, weight === undefined ? 1 : Number(weight.slice(2)) || 0);
  }
  const weightOf = (name: Encoding): number => weights.get(name) ?? weights.get("*") ?? 0;
  return (Object.keys(ENCODINGS) as Encoding[])
    .filter((name) => weightOf(name) > 0)
    .toSorted((one, other) => weightOf(other) - weightOf(one));
}

/** Whether an `If-None-Match` names this ETag, by the weak comparison that it demands. */
const isKnown = (header: string, etag: string): boolean =>
  header.trim() === "*" || header.split(",").some((one) => one.trim().replace(/^W\//, "") === etag);
