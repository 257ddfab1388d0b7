/**
 * Serves the pages: bundled on the first request, with headers that protect them.
 */
import { PereError } from "../engine/model.ts";
import { BUILT, buildPages, SDK, SDK_TYPES } from "./build.ts";
import { EncodedFile } from "./encoded.ts";

/** Pages load only from this service, can't be framed, and send no referrer. */
export const PAGE = {
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};

/** Serves a page at a path, or a file that it loads. @throws PereError unknown, away */
export type Pages = (path: string, request: Request) => Promise<Response>;

/** The pages of a folder, bundled on the first request. If bundling fails, the next request tries again. */
export function pagesOf(folder: string): Pages {
  let pages: Promise<ReadonlyMap<string, EncodedFile>> | undefined;
  return async (path, request) => {
    pages ??= buildPages(folder).catch((error: unknown) => {
      pages = undefined;
      throw new PereError("away", "the page can't be built now", [], error);
    });
    const found = (await pages).get(path);
    if (!found) throw new PereError("unknown", `there is nothing at ${path}`);
    // The name of such a file contains a hash of its content, so it may be cached indefinitely.
    const caching = path.startsWith(BUILT) ? "public, max-age=31536000, immutable" : "no-cache";
    const headers: Record<string, string> = { "Cache-Control": caching, ...PAGE };
    // Deno asks for types this way.
    if (path === SDK) headers["X-TypeScript-Types"] = `.${SDK_TYPES}`;
    return found.respond(request, headers);
  };
}

/** Serves a document that never changes while the service runs. @param make makes it, when it is asked for the first time */
export function documentOf(make: () => unknown): (request: Request) => Promise<Response> {
  let made: EncodedFile | undefined;
  return async (request) => {
    made ??= new EncodedFile("application/json", new TextEncoder().encode(JSON.stringify(await make())));
    return made.respond(request, { "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff" });
  };
}
