/**
 * Serves the pages: bundled on the first request, with headers that protect them.
 */
import { PereError } from "../engine/model.ts";
import { BUILT, buildPages, SDK, SDK_TYPES, type PageFile } from "./build.ts";

/** Pages load only from this service, can't be framed, and send no referrer. */
export const PAGE = {
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};

/** A file as it is, or a page with its relative addresses adjusted to this many folders below: `../` per folder. */
export async function file(path: string, type: string, up = ""): Promise<Response> {
  const kept = Bun.file(path);
  const body = up === "" ? kept : (await kept.text()).replace(/( (?:href|src)=")/g, `$1${up}`);
  return new Response(body, { headers: { "Content-Type": type, "Cache-Control": "max-age=3600", ...PAGE } });
}

/** Serves a page at a path, or a file that it loads. @throws PereError unknown, away */
export type Pages = (path: string, request: Request) => Promise<Response>;

/** The pages of a folder, bundled on the first request. If bundling fails, the next request tries again. */
export function pagesOf(folder: string): Pages {
  let pages: Promise<ReadonlyMap<string, PageFile>> | undefined;
  return async (path, request) => {
    pages ??= buildPages(folder).catch((error: unknown) => {
      pages = undefined;
      throw new PereError("away", "the page can't be built now", [], error);
    });
    const found = (await pages).get(path);
    if (!found) throw new PereError("unknown", `there is nothing at ${path}`);
    // The name of such a file contains a hash of its content, so it may be cached indefinitely.
    const caching = path.startsWith(BUILT) ? "public, max-age=31536000, immutable" : "no-cache";
    const headers: Record<string, string> = { ETag: found.etag, "Cache-Control": caching, ...PAGE };
    // Deno asks for types this way.
    if (path === SDK) headers["X-TypeScript-Types"] = `.${SDK_TYPES}`;
    if (request.headers.get("if-none-match") === found.etag) return new Response(null, { status: 304, headers });
    return new Response(found.bytes, { headers: { "Content-Type": found.type, ...headers } });
  };
}
