/**
 * `bun run bench --peers`: PERE beside nginx with nchan, a C module that many use for the same work, beside `ceiling.c` and `floor.ts`, which
 * do no more than anybody must (write in C, sync and write on Bun), and beside brokers that store: Centrifugo, NATS, Mercure, where they are installed.
 *
 * PERE is on its durable default: it commits each push to a disk before it answers, and so do the brokers. nchan and `ceiling.c` keep what they have in
 * memory. Each server has core 0 for itself and the Redis that it uses, the generator core 1, and one alone is started at a time. Every push waits for
 * its server's acknowledgement, and every feed must be given every event once. Figures of a shared machine drift, so each row is measured in rounds,
 * in each of them every server once and in another order; a ratio is taken within a round, and the middle one is told with the lowest and the highest.
 */
import { durablePeers } from "./durable-peers.ts";
import { fanOut, type Figures, GENERATOR_SHARE_MAX, percent, quantile } from "./measure.ts";
import { type Peer, smallPeers } from "./peer-servers.ts";
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
  /** Names of servers beside PERE; null: all. */
  readonly servers: readonly string[] | null;
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

/** One measure of one server, over all rounds. Ratios are taken within each round; null where there is nothing to compare with. */
interface Cell extends Spread {
  /** This server's as a part of nchan's. */
  readonly toNchan: Spread | null;
  /** PERE's as a part of this server's. */
  readonly pereTo: Spread | null;
}

/** What the rounds of one row came to. */
export interface Comparison {
  readonly row: string;
  readonly what: string;
  readonly measures: readonly {
    readonly name: string;
    readonly servers: Readonly<Record<string, Cell>>;
    readonly goal: string;
  }[];
  /** Why a server has no figures, by its name. */
  readonly errors: Readonly<Record<string, string>>;
}

/** A run beside the peers. */
export interface Compared {
  /** What each server does with a push, by its name, in the order of the table. */
  readonly settings: Readonly<Record<string, string>>;
  /** What is not installed. */
  readonly missing: readonly string[];
  readonly rows: readonly Comparison[];
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
        { name: "CPU µs per delivery", of: cost, atMost: 0.8 },
      ],
    },
    {
      name: "fan-out-16",
      what: "the same, 16 pushes in flight",
      run: (service) => deliveries(service, 16),
      measures: [
        { name: "deliveries/s", of: figure, atLeast: 8 },
        { name: "CPU µs per delivery", of: cost },
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
        { name: "CPU µs per push", of: cost },
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
      measures: [{ name: "kB per feed", of: figure, atMost: 0.7 }],
    },
  ];
};

const SERVER = "server, % of its core";
const GENERATOR = "generator, % of its core";
const NCHAN = "nchan";
const percentOf = (share: number | null | undefined): number | null | undefined => share && share * 100;

const spread = (values: readonly number[]): Spread => ({
  middle: quantile(values, 0.5),
  least: Math.min(...values),
  most: Math.max(...values),
});

function goalOf({ atLeast, atMost }: Measure, ratio: Spread | null | undefined): string {
  if (!ratio || (atLeast === undefined && atMost === undefined)) return "";
  const met =
    ratio.middle >= (atLeast ?? Number.NEGATIVE_INFINITY) && ratio.middle <= (atMost ?? Number.POSITIVE_INFINITY);
  return `${atLeast === undefined ? `≤ ${atMost}` : `≥ ${atLeast}`} ${met ? "met" : "missed"}`;
}

/** Each measure of a row, from the figures of all its rounds by server. */
function compare({ measures }: Row, rounds: ReadonlyMap<string, readonly Figures[]>): Comparison["measures"] {
  const told: readonly Measure[] = [
    ...measures,
    { name: SERVER, of: ({ serviceCore }) => percentOf(serviceCore) },
    { name: GENERATOR, of: ({ generatorCore }) => percentOf(generatorCore) },
  ];
  return told.flatMap((measure) => {
    const numbers = new Map(
      [...rounds].map(([server, figures]) => [server, figures.map((one) => measure.of(one) ?? Number.NaN)] as const),
    );
    if ([...numbers.values()].flat().some(Number.isNaN)) return [];
    const ratio = (above: string, below: string): Spread | null => {
      const [values, base] = [numbers.get(above), numbers.get(below)];
      if (!measures.includes(measure) || above === below || !values || !base) return null;
      const ratios = values.map((value, round) => value / base[round]!);
      // CPU time has a resolution of 10 ms: a short run may have none.
      return ratios.every(Number.isFinite) ? spread(ratios) : null;
    };
    const servers = Object.fromEntries(
      [...numbers].map(([server, values]) => [
        server,
        { ...spread(values), toNchan: ratio(server, NCHAN), pereTo: ratio(PERE.name, server) },
      ]),
    );
    return [{ name: measure.name, servers, goal: goalOf(measure, servers[PERE.name]?.toNchan) }];
  });
}

/**
 * Runs a row on every server in each round; the order turns, so that none has always the warmer or the busier machine. A server that fails is left out
 * of the rounds that follow, and its reason goes to `errors`.
 */
async function measureRow(row: Row, servers: readonly Peer[], { folder, pinned }: Stage, rounds: number) {
  const figures = new Map<string, Figures[]>();
  const errors: Record<string, string> = {};
  for (const { name } of servers) figures.set(name, []);
  for (let round = 0; round < rounds; round++) {
    const turned = servers.map((_, index) => servers[(index + round) % servers.length]!);
    for (const { name, start } of turned) {
      if (name in errors) continue;
      let service: Service | undefined;
      try {
        service = await start!(folder, pinned ? 0 : null);
        figures.get(name)!.push(await row.run(service));
      } catch (error) {
        errors[name] = (error as Error).message;
        figures.delete(name);
      } finally {
        await service?.stop();
      }
    }
  }
  return { figures, errors };
}

const PERE: Peer = {
  name: "PERE",
  settings: "its defaults: a file of SQLite, pushes share a sync; devices over SSE",
  start: startService,
  missing: "",
};

/** All servers, those that are not installed too. @param folder for what is compiled */
export const allServers = (folder: string): Peer[] => [PERE, ...smallPeers(folder), ...durablePeers()];

/** All rows beside the peers that are installed. @throws Error when `options.servers` has a name that no server has */
export async function besidePeers(stage: Stage, options: Options): Promise<Compared> {
  const rows = peerRows(options).filter(({ name }) => options.only?.includes(name) ?? true);
  const all = allServers(stage.folder);
  const unknown = options.servers?.find((name) => all.every((one) => one.name !== name));
  if (unknown !== undefined)
    throw new Error(`there is no server "${unknown}"; there are ${all.map(({ name }) => name).join(", ")}`);
  const wanted = all.filter((one) => one === PERE || (options.servers?.includes(one.name) ?? true));
  const servers = wanted.filter(({ start }) => start !== null);
  const missing = [...new Set(wanted.filter(({ start }) => start === null).map((one) => one.missing))];
  const compared: Compared = {
    settings: Object.fromEntries(servers.map(({ name, settings }) => [name, settings])),
    missing,
    rows: [],
  };
  stage.say(`${about(compared)}\nin turn, ${options.rounds} rounds of ${options.seconds} s\n`);
  const results: Comparison[] = [];
  for (const row of rows) {
    const { figures, errors } = await measureRow(row, servers, stage, options.rounds);
    const result = { row: row.name, what: row.what, measures: compare(row, figures), errors };
    results.push(result);
    stage.say(`${rowTable(result, servers)}\n`);
  }
  return { ...compared, rows: results };
}

// -------------------------------------------------------------------------------------------------------------------- table

/** What the servers are set to, and which are not here. */
function about({ settings, missing }: Compared): string {
  const width = Math.max(...Object.keys(settings).map(({ length }) => length));
  return [
    ...Object.entries(settings).map(([name, text]) => `${name.padEnd(width)}  ${text}`),
    ...(missing.length > 0 ? [`NOT FOUND, left out: ${missing.join(", ")}`] : []),
  ].join("\n");
}

const GENERATOR_PERCENT_MAX = GENERATOR_SHARE_MAX * 100;
const NOTHING = "–";
const withRange = (value: Spread | null): string =>
  value ? `${short(value.middle)} (${short(value.least)}–${short(value.most)})` : NOTHING;

/** A row as text, a line per server: the middle of the rounds, and the lowest and highest in brackets. */
function rowTable({ row, what, measures, errors }: Comparison, servers: readonly Pick<Peer, "name">[]): string {
  const isShare = (name: string): boolean => name === SERVER || name === GENERATOR;
  const heads = measures.flatMap(({ name }) => (isShare(name) ? [name] : [name, "÷ nchan", "PERE ÷"]));
  const busy = (name: string, cell: Spread): boolean => name === GENERATOR && cell.most > GENERATOR_PERCENT_MAX;
  const lines = servers.map(({ name: server }) => [
    server,
    ...measures.flatMap(({ name, servers }) => {
      const cell = servers[server];
      if (isShare(name)) return [cell ? `${short(cell.middle)}${busy(name, cell) ? " !" : ""}` : NOTHING];
      if (!cell) return ["failed", NOTHING, NOTHING];
      return [withRange(cell), withRange(cell.toNchan), withRange(cell.pereTo)];
    }),
  ]);
  return [
    `${row}: ${what}`,
    columns(["server", ...heads], lines, ["server"]),
    ...measures.flatMap(({ name, goal }) => (goal ? [`goal: PERE ÷ nchan, ${name} ${goal}`] : [])),
    ...(measures.some(({ name, servers }) => Object.values(servers).some((cell) => busy(name, cell)))
      ? [`!: the generator used more than ${percent(GENERATOR_SHARE_MAX)} of its core: the server may do more`]
      : []),
    ...Object.entries(errors).map(([server, text]) => `ERROR: ${server}: ${text}`),
  ].join("\n");
}
