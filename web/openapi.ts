import type { DocumentDecoration } from "elysia";
const names = [
  "push",
  "feed",
  "feedback",
  "receipts",
  "channels",
  "events",
  "event",
  "rows",
  "devices",
  "enrol",
  "retire",
  "health",
  "ready",
] as const;
export const operations = Object.fromEntries(names.map((n) => [n, {}])) as Record<
  (typeof names)[number],
  DocumentDecoration
>;
export const document = (version: string) => ({ openapi: "3.1.0", info: { title: "PERE", version } });
