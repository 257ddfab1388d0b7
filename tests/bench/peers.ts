/**
 * `bun run bench --peers`: PERE beside nginx with nchan, a C module that many use for the same work, and beside `ceiling.c` and `floor.ts`, which
 * do no more than anybody must: write in C, sync and write on Bun.
 *
 * PERE is on its durable default: it commits each push to a disk before it answers. nchan and `ceiling.c` keep what they have in memory. Each server has
 * core 0 for itself, the generator core 1, and one alone is started at a time. Figures of a shared machine drift, so each row is measured in rounds,
 * in each of them every server once and in another order; a ratio is taken within a round, and the middle one is told with the lowest and the highest.
 */
import { fanOut, type Figures, GENERATOR_SHARE_MAX, percent, quantile } from "./measure.ts";
import { ceiling, floor, nchan, type Start } from "./peer-servers.ts";
import { PACED_EVENTS_A_SECOND, quiet } from "./rows.ts";
import { type Service, startService } from "./service.ts";
import { columns, short } from "./table.ts";

interface Stage {
  /** On a disk; removed at the end. */
  readonly folder: string;
  readonly pinned: boolean;
  readonly say: (text: string) => void;
}

interface Options {
  readonly only: readonly string[] | null;
  readonly devices: number;
  readonly channels: number;
  readonly events: number | null;
  readonly quiet: number;
  readonly seconds: number;
  readonly rounds: number;
}

/** One number of a row that servers are compared by. */
interface Measure {
  readonly name: string;
  readonly of: (figures: Figures) => number | null | undefined;
  /** What PERE's share of nchan's is meant to be: at least, or at most. */
  readonly atLeast?: number;
  readonly atMost?: number;
}

interface Row {
  readonly name: string;
  readonly what: string;
  readonly run: (service: Service) => Promise<Figures>;
  readonly measures: readonly Measure[];
}

/** The middle of the rounds, and how far they lie apart. */
interface Spread {
  readonly middle: number;
  readonly least: number;
  readonly most: number;
}

/** What the rounds of one row came to. */
export interface Comparison {
  readonly row: string;
  readonly measure: string;
  readonly what: string;
  readonly servers: Readonly<Record<string, Spread>>;
  /** Of nchan's, within each round. */
  readonly ratios: Readonly<Record<string, Spread>>;
  readonly goal: string;
  readonly error?: string;
}

/** All rows that there are, in the order that they are measured in. */
export const peerRows = (options: Options): Row[] => {
  const { devices, channels } = options;
  const deliveries = async (service: Service, atOnce: number, perSecond?: number): Promise<Figures> => {
    const run = { channels: 1, devices, atOnce, ...(perSecond === undefined ? {} : { perSecond }) };
    const { deliveriesPerSecond, pushesPerSecond: _, ...rest } = await fanOut(service, options, run);
    return { figure: deliveriesPerSecond, unit: "deliveries/s", ...rest };
  };
  const figure = ({ figure }: Figures): number => figure;
  const cost = ({ serviceUs }: Figures): number | null | undefined => serviceUs;
  return [
    {
      name: "fan-out",
      what: `1 channel, ${devices} devices, 1 push in flight`,
      run: (service) => deliveries(service, 1),
      measures: [
        { name: "deliveries/s", of: figure, atLeast: 1.2 },
        { name: "CPU µs a delivery", of: cost, atMost: 0.8 },
      ],
    },
    {
      name: "fan-out-16",
      what: "the same, 16 pushes in flight",
      run: (service) => deliveries(service, 16),
      measures: [
        { name: "deliveries/s", of: figure, atLeast: 8 },
        { name: "CPU µs a delivery", of: cost },
      ],
    },
    {
      name: "channels",
      what: `${channels} channels, 1 device each, 16 pushes in flight`,
      run: async (service) => {
        const run = { channels, devices: channels, atOnce: 16 };
        const { pushesPerSecond, deliveriesPerSecond: _, ...rest } = await fanOut(service, options, run);
        return { figure: pushesPerSecond, unit: "pushes/s", ...rest };
      },
      measures: [
        { name: "pushes/s", of: figure, atLeast: 0.8 },
        { name: "CPU µs a push", of: cost },
      ],
    },
    {
      name: "paced",
      what: `1 channel, ${devices} devices, ${PACED_EVENTS_A_SECOND} pushes/s, from push to device`,
      run: (service) => deliveries(service, 1, PACED_EVENTS_A_SECOND),
      measures: [
        { name: "p50 ms", of: ({ p50Ms }) => p50Ms, atMost: 1 },
        { name: "p99 ms", of: ({ p99Ms }) => p99Ms, atMost: 1 },
      ],
    },
    {
      name: "quiet",
      what: `memory of a quiet feed with a device's name, ${options.quiet} open`,
      run: (service) => quiet(service, options),
      measures: [{ name: "kB a feed", of: figure, atMost: 0.7 }],
    },
  ];
};

const GENERATOR = "generator, % of its core";
const percentOf = (share: number | null | undefined): number | null | undefined => share && share * 100;

const spread = (values: readonly number[]): Spread => ({
  middle: quantile(values, 0.5),
  least: Math.min(...values),
  most: Math.max(...values),
});

function goalOf({ atLeast, atMost }: Measure, ratio: Spread | undefined): string {
  if (!ratio || (atLeast === undefined && atMost === undefined)) return "";
  const met =
    ratio.middle >= (atLeast ?? Number.NEGATIVE_INFINITY) && ratio.middle <= (atMost ?? Number.POSITIVE_INFINITY);
  return `${atLeast === undefined ? `≤ ${atMost}` : `≥ ${atLeast}`} ${met ? "met" : "missed"}`;
}

/** Each measure of a row, from the figures of all its rounds by server. */
function compare({ name, what, measures }: Row, rounds: ReadonlyMap<string, readonly Figures[]>): Comparison[] {
  const told: readonly Measure[] = [
    ...measures,
    { name: "server, % of its core", of: ({ serviceCore }) => percentOf(serviceCore) },
    { name: GENERATOR, of: ({ generatorCore }) => percentOf(generatorCore) },
  ];
  return told.flatMap((measure) => {
    const numbers = new Map(
      [...rounds].map(([server, figures]) => [server, figures.map((one) => measure.of(one) ?? Number.NaN)] as const),
    );
    if ([...numbers.values()].flat().some(Number.isNaN)) return [];
    const base = measures.includes(measure) ? numbers.get("nchan") : undefined;
    const ratios = Object.fromEntries(
      [...numbers]
        .filter(([server]) => base && server !== "nchan")
        .map(([server, values]) => [server, spread(values.map((value, round) => value / base![round]!))]),
    );
    const servers = Object.fromEntries([...numbers].map(([server, values]) => [server, spread(values)]));
    return [{ row: name, measure: measure.name, what, servers, ratios, goal: goalOf(measure, ratios.PERE) }];
  });
}

/** Runs a row on every server in each round; the order turns, so that none has always the warmer or the busier machine. */
async function measureRow(row: Row, servers: ReadonlyMap<string, Start>, { folder, pinned }: Stage, rounds: number) {
  const figures = new Map<string, Figures[]>([...servers.keys()].map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    const turned = [...servers.keys()].map((_, index, names) => names[(index + round) % names.length]!);
    for (const name of turned) {
      const service = await servers.get(name)!(folder, pinned ? 0 : null);
      try {
        figures.get(name)!.push(await row.run(service));
      } catch (error) {
        throw new Error(`${name}: ${(error as Error).message}`, { cause: error });
      } finally {
        await service.stop();
      }
    }
  }
  return figures;
}

/** All rows beside the peers that are installed. One that fails is an error in its place. */
export async function besidePeers(stage: Stage, options: Options): Promise<Comparison[]> {
  const rows = peerRows(options).filter(({ name }) => options.only?.includes(name) ?? true);
  const servers = new Map<string, Start>([["PERE", startService]]);
  for (const [name, start] of Object.entries({ nchan: nchan(), C: ceiling(stage.folder), floor })) {
    if (start) servers.set(name, start);
    else
      stage.say(
        `NOT INSTALLED, left out: ${name === "nchan" ? "nginx with nchan (libnginx-mod-nchan)" : "a C compiler"}`,
      );
  }
  stage.say(`${[...servers.keys()].join(", ")}, in turn, ${options.rounds} rounds of ${options.seconds} s\n`);
  const results: Comparison[] = [];
  for (const row of rows) {
    try {
      const found = compare(row, await measureRow(row, servers, stage, options.rounds));
      results.push(...found);
      stage.say(
        `${row.name}: ${found
          .map(
            ({ measure, servers }) =>
              `${measure} ${Object.values(servers)
                .map(({ middle }) => short(middle))
                .join(" · ")}`,
          )
          .join("; ")}`,
      );
    } catch (error) {
      const { name, what } = row;
      results.push({
        row: name,
        measure: "",
        what,
        servers: {},
        ratios: {},
        goal: "",
        error: (error as Error).message,
      });
    }
  }
  return results;
}

const GENERATOR_PERCENT_MAX = GENERATOR_SHARE_MAX * 100;
const cell = (value: Spread | undefined, mark = ""): string =>
  value ? `${short(value.middle)}${mark} (${short(value.least)}–${short(value.most)})` : "";

/** The comparison as text: the middle of the rounds, and the lowest and highest in brackets. */
export function peersTable(results: readonly Comparison[]): string {
  const servers = [...new Set(results.flatMap((one) => Object.keys(one.servers)))];
  const ratios = servers.filter((server) => results.some((one) => server in one.ratios));
  const isGenerator = (one: Comparison): boolean => one.measure === GENERATOR;
  const rows = results
    .filter(({ error }) => error === undefined)
    .map((one) => [
      one.row,
      one.measure,
      ...servers.map((server) => {
        const value = one.servers[server];
        return cell(value, isGenerator(one) && value && value.most > GENERATOR_PERCENT_MAX ? " !" : "");
      }),
      ...ratios.map((server) => cell(one.ratios[server])),
      one.goal,
    ]);
  const whats = [...new Map(results.map(({ row, what }) => [row, what]))].map(([row, what]) => `${row}: ${what}`);
  const errors = results.flatMap(({ row, error }) => (error === undefined ? [] : [`ERROR: ${row}: ${error}`]));
  const busy = results.some(
    (one) => isGenerator(one) && Object.values(one.servers).some(({ most }) => most > GENERATOR_PERCENT_MAX),
  );
  return [
    columns(["row", "measure", ...servers, ...ratios.map((server) => `${server} ÷ nchan`), "goal"], rows, [
      "row",
      "measure",
      "goal",
    ]),
    "",
    ...whats,
    ...(busy
      ? [`!: the generator used more than ${percent(GENERATOR_SHARE_MAX)} of its core: the server may do more`]
      : []),
    ...errors,
  ].join("\n");
}
