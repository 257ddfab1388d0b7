/**
 * Generates the table in `docs/configuration.md` and `.env.example` from the table of settings in `engine/ops/settings.ts`.
 *
 *   bun tests/settings-texts.ts     writes both again; `settings.test.ts` holds them to it
 */
import { join } from "node:path";
import { usualOf } from "../engine/ops/commands.ts";
import { type Setting, SETTINGS } from "../engine/ops/settings.ts";

const ROOT = join(import.meta.dir, "..");
export const CONFIGURATION = join(ROOT, "docs", "configuration.md");
export const EXAMPLE = join(ROOT, ".env.example");

const settings: readonly (readonly [string, Setting])[] = Object.entries(SETTINGS);

/** Two lines between which the table is. */
const BEFORE = "<!-- Made from engine/ops/settings.ts by tests/settings-texts.ts: change it there. -->";
const AFTER = "<!-- The end of what is made. -->";

/** A row of Markdown, padded as the formatter pads it. */
const row = (cells: readonly string[], widths: readonly number[]): string =>
  `| ${cells.map((cell, n) => cell.padEnd(widths[n]!)).join(" | ")} |`;

function table(): string {
  const rows = settings.map(([name, setting]) => {
    const usual = setting.usual === "" ? "–" : usualOf(setting).replace(setting.usual, `\`${setting.usual}\``);
    return [`\`${name}\``, usual, setting.meaning];
  });
  const all = [["name", "default", ""], ...rows];
  const widths = [0, 1, 2].map((column) => Math.max(3, ...all.map((cells) => cells[column]!.length)));
  const [head, ...body] = all.map((cells) => row(cells, widths));
  return [head, `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`, ...body].join("\n");
}

/** The document as it is, with the table as it must be. */
export function configuration(text: string): string {
  const [from, to] = [text.indexOf(BEFORE), text.indexOf(AFTER)];
  if (from === -1 || to === -1) throw new Error("docs/configuration.md has no place for the table of settings");
  return `${text.slice(0, from)}${BEFORE}\n\n${table()}\n\n${text.slice(to)}`;
}

/** A file for `--env-file`, Compose or a unit, in which nothing is set yet. */
export function example(): string {
  const lines = settings.map(([name, setting]) => {
    const usual = setting.usual === "" ? "" : ` Default: ${usualOf(setting)}.`;
    return `# ${setting.meaning.replaceAll("`", "")}.${usual}\n#${name}=${setting.usual}\n`;
  });
  return `# Settings of PERE. Copy this file to .env in the folder where PERE is started, or pass it to your supervisor. Remove the # from the settings that you change.\n\n${lines.join("\n")}`;
}

if (import.meta.main) {
  await Bun.write(CONFIGURATION, configuration(await Bun.file(CONFIGURATION).text()));
  await Bun.write(EXAMPLE, example());
}
