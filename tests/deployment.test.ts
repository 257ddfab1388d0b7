/**
 * The files of docs/deployment.md that no other test runs: the Kubernetes manifests against the schemas that the package `kubernetes-validate` ships, the
 * systemd unit with `systemd-analyze`, and the Compose override, whose Caddyfile runs in a real Caddy in front of two real instances.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import packageJson from "../package.json";
import { readSettings, SETTINGS } from "../engine/ops/settings.ts";
import { command } from "./support/commands.ts";
import { blocksOf, textOf } from "./support/documents.ts";
import { CADDY, startCaddy } from "./support/front.ts";
import { ask, SECRET, start, startWith, temporary } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";
import { noRedis, startRedis } from "./support/redis-server.ts";

const VALIDATOR = "kubernetes-validate==1.37.0";
/** The oldest version that the document names, and the newest that the validator knows. */
const KUBERNETES = ["1.30", "1.37"] as const;
const LIMIT_MS = 240_000;
/** What a drain takes at most; `STOP_MS` of index.ts. */
const DRAIN_SECONDS = 9;

const folder = temporary();
const document = await textOf("docs/deployment.md");
const blocks = blocksOf(document);
const isCi = process.env.CI === "true";

/** The parts of a YAML block, which are separated by `---`. */
const partsOf = (text: string): unknown[] => text.split(/^---$/m).map((part) => Bun.YAML.parse(part));

/** A test of a program that others made. With `CI=true` a missing one is a failure, not a reason to skip. */
const testOf = (missing: string | null, name: string, run: () => Promise<void>): void =>
  missing === null || isCi ? test(name, run, LIMIT_MS) : test.skip(`${name} (skipped: ${missing})`, run);

async function run(...words: string[]): Promise<{ code: number; output: string }> {
  const child = Bun.spawn(words, { cwd: folder, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const output = (await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])).join("");
  return { code: await child.exited, output };
}

// Thousands of files: deleting them may take longer than a hook may by default.
afterAll(() => rm(folder, { recursive: true, force: true }), LIMIT_MS);

interface Manifest {
  readonly kind: string;
  readonly spec: {
    readonly selector?: { readonly matchLabels?: object };
    readonly template?: {
      readonly metadata: { readonly labels: object };
      readonly spec: {
        readonly terminationGracePeriodSeconds: number;
        readonly containers: readonly {
          readonly image: string;
          readonly env: readonly {
            readonly name: string;
            readonly valueFrom: { readonly secretKeyRef: { readonly key: string } };
          }[];
          readonly readinessProbe: { readonly httpGet: { readonly path: string } };
          readonly livenessProbe: { readonly httpGet: { readonly path: string } };
          readonly lifecycle?: { readonly preStop: { readonly sleep: { readonly seconds: number } } };
        }[];
      };
    };
  };
}

describe("the Kubernetes manifests", () => {
  const manifests = blocks.filter(({ language, text }) => language === "yaml" && text.startsWith("apiVersion:"));
  const all = manifests.flatMap(({ text }) => partsOf(text)) as Manifest[];

  /** Why the validator can't run; null: it can. */
  let missing: string | null = null;
  beforeAll(async () => {
    if (!Bun.which("python3")) missing = "no python3 is installed";
    for (const words of [
      ["python3", "-m", "venv", "venv"],
      [join(folder, "venv", "bin", "pip"), "install", "--quiet", VALIDATOR],
    ]) {
      if (missing !== null) break;
      const { code, output } = await run(...words);
      if (code !== 0) missing = `${words.slice(1).join(" ")} failed: ${output.trim().split("\n").at(-1)}`;
    }
    if (missing !== null && isCi) throw new Error(missing);
  }, LIMIT_MS);

  const validate = async (text: string, version: string): Promise<{ code: number; output: string }> => {
    await Bun.write(join(folder, "manifest.yaml"), text);
    return run(join(folder, "venv", "bin", "kubernetes-validate"), "--strict", "-k", version, "manifest.yaml");
  };

  test(
    "are valid for the oldest and the newest version of Kubernetes, without unknown fields",
    async () => {
      if (missing !== null) return console.warn(`skipped: ${missing}`);
      expect(all.map(({ kind }) => kind)).toEqual([
        "Deployment",
        "PodDisruptionBudget",
        "Service",
        "StatefulSet",
        "Service",
      ]);
      for (const { text } of manifests)
        for (const version of KUBERNETES) expect((await validate(text, version)).output).not.toMatch(/^ERROR/m);
      const mistaken = manifests[0]!.text.replace("readinessProbe:", "readynessProbe:");
      expect((await validate(mistaken, KUBERNETES[0])).output).toContain("readynessProbe");
    },
    LIMIT_MS,
  );

  test("fit the service: image, settings, probes, labels and the time for a drain", async () => {
    const service = await start();
    try {
      for (const { spec } of all) {
        if (!spec.template) continue;
        expect(spec.selector!.matchLabels).toEqual(spec.template.metadata.labels);
        const { containers, terminationGracePeriodSeconds } = spec.template.spec;
        const [container] = containers;
        expect(container!.image).toEndWith(`:${packageJson.version}`);
        for (const { name } of container!.env) expect(Object.keys(SETTINGS)).toContain(name);
        for (const { valueFrom } of container!.env)
          expect(document).toContain(`--from-literal=${valueFrom.secretKeyRef.key}=`);
        for (const { httpGet } of [container!.readinessProbe, container!.livenessProbe])
          expect((await ask(`${service.url}${httpGet.path}`)).status).toBe(200);
        const beforeDrain = container!.lifecycle?.preStop.sleep.seconds ?? 0;
        expect(terminationGracePeriodSeconds).toBeGreaterThan(beforeDrain + DRAIN_SECONDS);
      }
    } finally {
      await service.stop();
    }
  });
});

testOf(
  Bun.which("systemd-analyze") ? null : "there is no systemd-analyze on this machine",
  "systemd-analyze finds nothing wrong with the unit",
  async () => {
    const unit = blocks.find(({ language }) => language === "ini")!.text;
    // The executable must exist.
    const here = unit.replace("/usr/local/bin/pere", process.execPath);
    expect(here).not.toBe(unit);
    await Bun.write(join(folder, "pere.service"), here);
    const verify = () => run("systemd-analyze", "verify", "--man=no", join(folder, "pere.service"));
    expect((await verify()).output).not.toContain("pere.service");
    await Bun.write(join(folder, "pere.service"), here.replace("Restart=on-failure", "Restart=sometimes"));
    expect((await verify()).output).toContain("sometimes");
  },
);

describe("the Compose override", () => {
  const { text } = blocks.find((block) => block.text.startsWith("# compose.override.yaml"))!;
  const override = Bun.YAML.parse(text) as {
    services: Record<string, { environment?: Record<string, string>; secrets?: string[] }>;
    secrets: Record<string, { file: string }>;
    configs: { caddy: { content: string } };
  };

  test("gives the instances of compose.yaml a secret and trusted proxies", async () => {
    const base = Bun.YAML.parse(await textOf("compose.yaml")) as typeof override;
    const secret = join(folder, "pere-jwt.secret");
    await Bun.write(secret, `${SECRET}\n`);
    for (const name of ["pere-1", "pere-2"]) {
      const { environment, secrets } = override.services[name]!;
      // Compose merges the two maps.
      const merged = { ...base.services[name]!.environment, ...environment };
      expect(merged.PERE_JWT_SECRET_FILE).toBe(`/run/secrets/${secrets![0]}`);
      expect(override.secrets).toHaveProperty(secrets![0]!);
      const settings = readSettings([], { ...merged, PERE_JWT_SECRET_FILE: secret, HOST: "0.0.0.0" });
      expect(settings).toMatchObject({ access: { secret: SECRET }, redis: ["redis://redis:6379"], unknown: [] });
      expect(settings.proxies.length).toBeGreaterThan(0);
      expect(override.configs.caddy.content).toContain(`${name}:4567`);
    }
  });

  testOf(
    noRedis ?? (CADDY ? null : "there is no Caddy on this machine"),
    "has a Caddyfile at which the doctor finds nothing wrong",
    async () => {
      const redis = await startRedis();
      const ends: (() => Promise<unknown>)[] = [() => redis.end()];
      try {
        const { proxies } = readSettings([], { PERE_PROXIES: "127.0.0.1/32", PERE_JWT_SECRET: SECRET });
        const services = await Promise.all([1, 2].map(() => startWith({ redis: [redis.url], proxies })));
        for (const service of services) ends.unshift(() => service.stop());
        const port = lastingPort();
        let caddyfile = override.configs.caddy.content.replace("push.example.com", `http://127.0.0.1:${port}`);
        services.forEach(({ url }, n) => {
          caddyfile = caddyfile.replace(`pere-${n + 1}:4567`, new URL(url).host);
        });
        const caddy = await startCaddy(caddyfile, port);
        ends.unshift(() => caddy.end());
        const args = ["token", "--sub", "till", "--feed", "*", "--push", "*"];
        const token = (await command(args, { PERE_JWT_SECRET: SECRET })).stdout.trim();
        const doctor = await command(["doctor", caddy.url, "--seconds", "2"], { PERE_TOKEN: token });
        expect(doctor.stdout + doctor.stderr).toContain("Nothing is wrong between here and there.");
        // One instance stops; Caddy tries the other.
        await services[0]!.stop();
        for (let n = 0; n < 4; n++) expect((await fetch(`${caddy.url}/health`)).status).toBe(200);
      } finally {
        for (const end of ends) await end();
      }
    },
  );
});
