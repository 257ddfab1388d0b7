/** axe on the page of a tab: what it finds that is serious, in words. */
import { join } from "node:path";

const SOURCE = join(import.meta.dir, "..", "..", "node_modules", "axe-core", "axe.min.js");

/** Something that reads a script's value from a page. */
interface Page {
  read<Value>(script: string): Promise<Value>;
}

/** Serious and critical violations, each with the elements. The script is loaded if the page has it not yet. */
export async function axe(page: Page): Promise<string[]> {
  if (!(await page.read<boolean>("typeof globalThis.axe === 'object'")))
    await page.read(`(() => {\n${await Bun.file(SOURCE).text()}\n})()`);
  // Colours that are on their way are not those that people see.
  await page.read(
    "Promise.all(document.getAnimations().map(({ finished }) => finished.catch(() => {}))).then(() => true)",
  );
  return page.read(`axe.run({ resultTypes: ["violations"] }).then(({ violations }) => violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => id + ": " + nodes.map(({ html, any }) => html.slice(0, 120) + " " + (any[0]?.message ?? "")).join("; ")))`);
}
