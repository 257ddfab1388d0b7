/**
 * What pages weigh on the wire, and how their files are negotiated: compressed in one of the ways that a browser accepts, cached by their names, asked
 * for again by their ETags.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { brotliDecompressSync, gunzipSync } from "node:zlib";
import type { Service } from "../index.ts";
import { buildPages } from "../web/build.ts";
import { start, temporary } from "./support/harness.ts";

let pere: Service;
beforeAll(async () => void (pere = await start()));
afterAll(() => pere.stop());

interface Raw {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | undefined>>;
  /** As it came, still compressed. */
  readonly body: Buffer;
  /** Bytes of the whole answer on the wire. */
  readonly bytes: number;
}

/** Asks without decompressing. */
function raw(path: string, headers: Record<string, string> = {}, method = "GET"): Promise<Raw> {
  const { promise, resolve, reject } = Promise.withResolvers<Raw>();
  const asked = request(pere.url + path, { method, headers, agent: false }, (response) => {
    const parts: Buffer[] = [];
    response.on("data", (part: Buffer) => parts.push(part));
    response.on("end", () => {
      const head = response.rawHeaders.join("").length + 4 * response.rawHeaders.length;
      const body = Buffer.concat(parts);
      const named = response.headers as Record<string, string | undefined>;
      resolve({ status: response.statusCode!, headers: named, body, bytes: head + body.length });
    });
  });
  asked.on("error", reject);
  asked.end();
  return promise;
}

/** What a page loads at once. The icon for a home screen is loaded when the page is put there. */
const filesOf = async (path: string): Promise<string[]> => {
  const text = (await raw(path)).body.toString().replace(/<link rel="(?:prefetch|apple-touch-icon)"[^>]*>/g, "");
  const names = [...text.matchAll(/<(?:link|script)[^>]* (?:href|src)="([^"]+)"/g)].map(([, name]) => name!);
  return names.map((name) => new URL(name, pere.url + path).pathname);
};

const DECODE = { br: brotliDecompressSync, gzip: gunzipSync } as const;

test("each file comes in the encoding that the request prefers, with an ETag of its own, and is the same once decoded", async () => {
  const paths = ["/", "/weblistener.html", "/swagger", "/swagger/", "/swagger/json", "/asyncapi.json", "/pere.js"];
  for (const path of [...paths, "/weblistener-worker.js", ...(await filesOf("/"))]) {
    const plain = await raw(path);
    expect([path, plain.status, plain.headers["content-encoding"]]).toEqual([path, 200, undefined]);
    const etags = new Set([plain.headers.etag]);
    for (const [accepts, encoding] of [
      ["br", "br"],
      ["gzip", "gzip"],
      ["gzip, deflate, br, zstd", "br"],
      ["br;q=0.5, gzip;q=0.9", "gzip"],
      ["br;q=0, *", "gzip"],
      ["GZIP", "gzip"],
    ] as const) {
      const packed = await raw(path, { "Accept-Encoding": accepts });
      expect([path, accepts, packed.headers["content-encoding"]]).toEqual([path, accepts, encoding]);
      expect(packed.headers.vary, path).toBe("Accept-Encoding");
      expect(packed.headers["content-type"]).toBe(plain.headers["content-type"]);
      expect(packed.body.length).toBeLessThan(plain.body.length);
      expect(DECODE[encoding](packed.body).equals(plain.body), path).toBe(true);
      etags.add(packed.headers.etag);
    }
    expect(etags.size).toBe(3);
    for (const none of ["identity", "deflate", "br;q=0, gzip;q=0", "", "br;q=x"])
      expect((await raw(path, { "Accept-Encoding": none })).headers["content-encoding"], none).toBeUndefined();
  }
  // Images are compressed already.
  const [image] = /pages\/icon-192-\w+\.png/.exec((await raw("/weblistener.html")).body.toString())!;
  expect((await raw(`/${image}`, { "Accept-Encoding": "br" })).headers).not.toHaveProperty("content-encoding");
});

test("a file is cached for good by its name, a page is asked for again by its ETag", async () => {
  for (const path of ["/", "/weblistener.html", "/swagger", "/swagger/json"])
    for (const accepts of ["br", "gzip", "identity"]) {
      const asks = { "Accept-Encoding": accepts };
      const { headers } = await raw(path, asks);
      expect(headers["cache-control"]).toBe("no-cache");
      for (const known of [headers.etag!, `"other", W/${headers.etag}`, "*"]) {
        const again = await raw(path, { ...asks, "If-None-Match": known });
        expect([again.status, again.body.length, again.headers.etag, again.headers.vary]).toEqual([
          304,
          0,
          headers.etag,
          "Accept-Encoding",
        ]);
      }
      expect((await raw(path, { ...asks, "If-None-Match": '"other"' })).status).toBe(200);
    }
  for (const page of ["/", "/weblistener.html", "/swagger"])
    for (const path of await filesOf(page)) {
      expect(path).toMatch(/^\/pages\/[\w-]+-[0-9a-z]{8}\.\w+$/);
      expect((await raw(path)).headers["cache-control"]).toBe("public, max-age=31536000, immutable");
    }
});

test("HEAD has the headers of GET and no body; a range gets the whole file", async () => {
  for (const path of ["/", "/swagger/json", ...(await filesOf("/"))])
    for (const accepts of ["br", "identity"]) {
      const { headers, body } = await raw(path, { "Accept-Encoding": accepts });
      const head = await raw(path, { "Accept-Encoding": accepts }, "HEAD");
      expect([head.status, head.body.length]).toEqual([200, 0]);
      for (const name of ["etag", "content-encoding", "content-type", "vary", "cache-control"])
        expect([path, name, head.headers[name]]).toEqual([path, name, headers[name]]);
      expect(Number(head.headers["content-length"])).toBe(body.length);
      const part = await raw(path, { "Accept-Encoding": accepts, Range: "bytes=0-9", "If-Range": headers.etag! });
      expect([part.status, part.body.equals(body)]).toEqual([200, true]);
    }
});

/** Bytes of a page and of all that it loads before it can be used, with the headers of the answers. */
const WEIGHTS = { "/": 58_000, "/weblistener.html": 57_000, "/swagger": 57_500 } as const;

test.each(Object.entries(WEIGHTS))(
  "%s and all that it loads at once are less than %d bytes on the wire",
  async (page, max) => {
    const loaded = [page, ...(await filesOf(page)), ...(page === "/swagger" ? ["/swagger/json"] : [])];
    for (const encoding of ["br", "gzip"]) {
      let sum = 0;
      for (const path of new Set(loaded)) sum += (await raw(path, { "Accept-Encoding": encoding })).bytes;
      console.log(`${page} ${encoding}: ${sum} bytes`);
      expect(sum).toBeLessThan(max);
    }
  },
);

test("scripts that a page's script imports are named in the page, so that they don't wait for it", async () => {
  for (const page of ["/", "/weblistener.html", "/swagger"]) {
    const files = await filesOf(page);
    for (const path of files.filter((name) => name.endsWith(".js"))) {
      const text = (await raw(path)).body.toString();
      for (const [, name] of text.matchAll(/\b(?:from|import) ?"(\.\/[\w.-]+\.js)"/g))
        expect(files).toContain(new URL(name!, pere.url + path).pathname);
    }
  }
});

test("`bun web/build.ts FOLDER` writes the files and their compressed forms, which are then served as they are", async () => {
  const web = temporary();
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "..", "web", "build.ts"), join(web, "served")]);
  expect(await child.exited).toBe(0);
  const pages = await buildPages(web);
  const bundled = await buildPages(join(import.meta.dir, "..", "web"));
  expect([...pages.keys()].toSorted()).toEqual([...bundled.keys()].toSorted());
  expect([...pages.keys()].filter((path) => /\.(br|gz)$/.test(path))).toEqual([]);
  for (const [path, file] of pages) {
    const name = path === "/" ? "console.html" : path === "/swagger" ? "api.html" : path.slice(1);
    for (const [encoding, suffix] of [
      ["br", ".br"],
      ["gzip", ".gz"],
    ] as const) {
      const built = join(web, "served", name + suffix);
      if (!existsSync(built)) continue;
      const asked = new Request("http://pere/", { headers: { "Accept-Encoding": encoding } });
      const answer = await file.respond(asked, {});
      expect(answer.headers.get("content-encoding")).toBe(encoding);
      expect(Buffer.from(await answer.arrayBuffer()).equals(await Bun.file(built).bytes())).toBe(true);
    }
  }
});
