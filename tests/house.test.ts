/**
 * The house keeps its order: imports point down, outsiders use the public contract, versions are pinned.
 */
import { expect, test } from "bun:test";
import { Glob } from "bun";
import packageJson from "../package.json";

/**
 * The floors of the house, from the ground up. A file imports from lower floors and from its own room; rooms of one floor do not know each other.
 * Files that lie in `engine/` itself are one room per floor.
 */
const FLOORS: readonly (readonly [pattern: RegExp, floor: number])[] = [
  [/^engine\/(model|attention|parsing|tags|addresses|yield|clock|descriptors|faults|due|first)\.ts$/, 0],
  [/^engine\/(store|counters|receipt-rules|retention-rules|retention-schedule|again|warnings)\.ts$/, 1],
  [/^engine\/(feeds|sqlite|redis|auth)\//, 2],
  [/^engine\/(hooks|schedule)\//, 3],
  [/^engine\/(engine|directory)\.ts$/, 4],
  [/^engine\/http\//, 5],
  [/^engine\/ops\//, 6],
];

const floorOf = (file: string): number | null => FLOORS.find(([pattern]) => pattern.test(file))?.[1] ?? null;
const roomOf = (file: string): string => {
  const folder = file.replace(/\/[^/]+$/, "");
  return folder === "engine" ? `engine, floor ${floorOf(file)}` : folder;
};

async function importsOf(file: string): Promise<string[]> {
  const { imports } = new Bun.Transpiler({ loader: file.endsWith("x") ? "tsx" : "ts" }).scan(
    await Bun.file(file).text(),
  );
  const found = imports.map(({ path }) => path);
  // Type-only imports are erased, and count all the same.
  for (const [, path] of (await Bun.file(file).text()).matchAll(/^(?:import|export) [^;]*? from "([^"]+)"/gms))
    found.push(path!);
  const folder = file.includes("/") ? file.replace(/\/[^/]+$/, "") : ".";
  return [...new Set(found)].map((path) =>
    path.startsWith(".") ? new URL(path, `file:///${folder}/`).pathname.slice(1) : path,
  );
}

const engineFiles = [...new Glob("engine/**/*.ts").scanSync(".")].sort();

test("each file of engine/ is on a floor", () => {
  expect(engineFiles.filter((file) => floorOf(file) === null)).toEqual([]);
});

test("imports in engine/ go down, or stay in their room", async () => {
  const wrong: string[] = [];
  for (const file of engineFiles)
    for (const path of await importsOf(file)) {
      if (!/^(engine|index|web|clients|tests)\b/.test(path)) continue;
      const [own, other] = [floorOf(file)!, floorOf(path)];
      if (other === null || other > own || (other === own && roomOf(path) !== roomOf(file)))
        wrong.push(`${file} → ${path}`);
    }
  expect(wrong).toEqual([]);
});

test("no imports in engine/ or in the SDK go round in a circle", async () => {
  const files = [...engineFiles, ...new Glob("clients/sdk/*.ts").scanSync(".")];
  const imports = new Map<string, string[]>();
  for (const file of files)
    imports.set(
      file,
      (await importsOf(file)).filter((path) => /^(engine|clients)\//.test(path)),
    );
  const done = new Set<string>();
  const walk = (file: string, way: readonly string[]): string[] | null => {
    if (way.includes(file)) return [...way.slice(way.indexOf(file)), file];
    if (done.has(file)) return null;
    for (const path of imports.get(file) ?? []) {
      const circle = walk(path, [...way, file]);
      if (circle) return circle;
    }
    done.add(file);
    return null;
  };
  for (const file of files) expect(walk(file, [])).toBeNull();
});

test("in engine/ only http/ names the types of HTTP", async () => {
  const wrong: string[] = [];
  for (const file of engineFiles) {
    if (file.startsWith("engine/http/")) continue;
    const code = (await Bun.file(file).text()).replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "");
    for (const [name] of code.matchAll(/\b(Request|Response|Headers|Elysia)\b/g)) wrong.push(`${file}: ${name}`);
  }
  expect(wrong).toEqual([]);
});

test("index.ts can be read in one go: at most 450 lines", async () => {
  expect((await Bun.file("index.ts").text()).split("\n").length).toBeLessThanOrEqual(450);
});

test("clients and the pages use the public contract only", async () => {
  for (const file of new Glob("clients/**/*.ts").scanSync("."))
    for (const path of await importsOf(file)) expect(`${file} → ${path}`).not.toMatch(/→ (engine|index|web|tests)/);
  for (const file of new Glob("clients/sdk/*.ts").scanSync("."))
    for (const path of await importsOf(file)) expect(`${file} → ${path}`).toMatch(/→ clients\/sdk\//);
  // Programs and examples have no more of the SDK than its users, and an example stands on its own.
  const programs = [...new Glob("clients/**/*.ts").scanSync(".")].filter((file) => !file.startsWith("clients/sdk/"));
  expect(programs).toContain("clients/examples/approve.ts");
  for (const file of programs)
    for (const path of await importsOf(file))
      expect(`${file} → ${path}`).not.toMatch(/→ clients\/sdk\/(?!index\.ts$)|examples\/\S+ → clients\/(?!sdk\/)/);
  for (const file of new Glob("web/console/*.{ts,tsx}").scanSync("."))
    for (const path of await importsOf(file))
      expect(`${file} → ${path}`).not.toMatch(/→ (?!web\/console)(engine|index|web|tests)/);
  for (const file of new Glob("web/api/*.{ts,tsx}").scanSync("."))
    for (const path of await importsOf(file))
      expect(`${file} → ${path}`).not.toMatch(/→ (?!web\/(console|api)\/)(engine|index|web|tests)/);
  for (const file of new Glob("web/device/*.{ts,tsx}").scanSync("."))
    for (const path of await importsOf(file))
      expect(`${file} → ${path}`).not.toMatch(/→ (?!web\/(console|device)\/)(engine|index|web|tests)/);
});

test("the choice of the store is made on one line", async () => {
  const lines = (await Bun.file("index.ts").text()).split("\n").filter((line) => line.includes("new SqliteStore"));
  expect(lines).toHaveLength(1);
});

test("dependencies are pinned to exact versions", () => {
  for (const version of Object.values({ ...packageJson.dependencies, ...packageJson.devDependencies }))
    expect(version).toMatch(/^\d+\.\d+\.\d+$/);
});

test("no file of clients is over 420 lines", async () => {
  for (const file of new Glob("clients/**/*.ts").scanSync(".")) {
    const lines = (await Bun.file(file).text()).split("\n").length - 1;
    expect([file, lines]).toEqual([file, Math.min(lines, 420)]);
  }
});

test("no file of tests is over 500 lines", async () => {
  for (const file of new Glob("tests/**/*.ts").scanSync(".")) {
    const lines = (await Bun.file(file).text()).split("\n").length - 1;
    expect([file, lines]).toEqual([file, Math.min(lines, 500)]);
  }
});
