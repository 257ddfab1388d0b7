/**
 * The promises of the contract, held against what a world came to: what its publishers, devices and followers were told, and what the store has.
 *
 * The model is naive: an event's standing is the last word of each device in the receipts log, and a tally is a count of those.
 */
import { type Event, isControl, isFinal, type Receipt, type State, type Tally } from "../../engine/model.ts";
import { progress } from "../support/progress.ts";
import type { Push, World } from "./world.ts";

/** What the store has of a channel, read whole. */
async function readAll(world: World, channel: string) {
  const instance = world.instances.find(({ isUp }) => isUp)!;
  const { store } = instance;
  const heads = await store.heads(channel);
  if (!heads) return null;
  const { epoch } = heads;
  const log = (await store.events(channel, epoch, heads.events.floor, 1_000)) ?? [];
  const events = log.filter((entry): entry is Event => !isControl(entry));
  const receipts: Receipt[] = [];
  for (let after = heads.receipts.floor; ;) {
    const some = (await store.receipts(channel, epoch, after, 500)) ?? [];
    if (some.length === 0) break;
    receipts.push(...some);
    after = some.at(-1)!.seq;
  }
  const tallies =
    (await store.tallies(channel, epoch, heads.events.floor, heads.events.head)) ?? new Map<number, Tally>();
  const rows = new Map<number, Map<string, State>>();
  for (const { seq } of events) {
    const page = await store.rows(channel, epoch, seq, null, "", 1_000, instance.now());
    rows.set(seq, new Map((page?.items ?? []).map(({ device, status }) => [device, status])));
  }
  const enrolled = (await store.devices(channel, "", 1_000, instance.now())).items.map(({ device }) => device);
  return { now: instance.now(), epoch, heads, events, receipts, tallies, rows, enrolled };
}

type Found = NonNullable<Awaited<ReturnType<typeof readAll>>>;

/** @returns a sentence for each promise that was broken, `name: what` */
export async function brokenPromises(world: World, channel: string): Promise<string[]> {
  const found = await readAll(world, channel);
  if (!found) {
    const acknowledged = world.pushes.filter((push) => push.channel === channel && push.id !== null);
    const isLost = acknowledged.some((push) => !isForgiven(world, push.startedAt, push.answeredAt));
    return isLost ? [`lost: channel ${channel} is gone`] : [];
  }
  return [
    ...stored(world, channel, found),
    ...words(world, channel, found),
    ...missing(world, found),
    ...standings(world, channel, found),
    ...waits(world, channel, found),
    ...followers(world, channel, found),
    ...hooks(world, channel, found),
  ];
}

/** Whether an operator may have taken away what this was part of. */
const isForgiven = ({ flushedAt, savedAt, putBackAt }: World, from: number, to: number): boolean =>
  (flushedAt !== null && from <= flushedAt) || (putBackAt !== null && from <= putBackAt && to >= savedAt!);

/**
 * Whether a number may be given out twice: after Redis was put back, an instance can't know what another one was given, unless it heard of an entry that
 * is gone. All instances follow the receipts here, so they know where a receipt came in between.
 */
const isUnheardOf = ({ plan, savedAt, putBackAt, witness }: World, id: string): boolean =>
  plan.store === "redis" &&
  plan.instances > 1 &&
  putBackAt !== null &&
  !witness.acknowledged.some(
    ({ event, at }) => event.startsWith(id.slice(0, id.lastIndexOf("-") + 1)) && at > savedAt! && at <= putBackAt,
  );

/** A clock was wrong at times. */
const isLeapt = ({ plan }: World): boolean => plan.steps.some(({ kind }) => kind === "leap");

function* stored(world: World, channel: string, { epoch, heads, events }: Found): Generator<string> {
  const byId = new Map(events.map((event) => [`${epoch}-${event.seq}`, event]));
  const markers = new Map<number, number>();
  for (const { seq, data } of events) {
    const { marker } = JSON.parse(data) as { marker: number };
    // An idempotency key is remembered for a day, by the clock that a start believes.
    if (markers.has(marker) && !isLeapt(world))
      yield `twice: event ${marker} is stored as ${markers.get(marker)} and as ${seq}`;
    markers.set(marker, seq);
  }
  // Whoever is started again believes the clock; retention by number is its own matter.
  const mayDrop = world.plan.keptEvents < 10_000 || world.instances.some(({ lives }) => lives.length > 1);
  if (heads.events.floor > 0 && !mayDrop) yield `dropped: ${heads.events.floor} events, by a clock that leapt`;
  const ids = new Map<string, number>();
  for (const push of world.pushes) {
    if (push.channel !== channel) continue;
    if (push.error !== null) yield `push: event ${push.marker} was never answered: ${push.error}`;
    if (push.id === null) continue;
    const before = ids.get(push.id);
    if (before !== undefined && !isUnheardOf(world, push.id))
      yield `ids: ${push.id} was given to event ${before} and to event ${push.marker}`;
    ids.set(push.id, push.marker);
    const event = byId.get(push.id);
    const seq = Number(push.id.split("-")[1]);
    const isTrimmed = push.id.startsWith(`${epoch}-`) && seq <= heads.events.floor;
    // What was put back goes on under other ids.
    const isRenamed = world.putBackAt !== null && markers.has(push.marker);
    if (!event && !isTrimmed && !isRenamed && !isForgiven(world, push.startedAt, push.answeredAt))
      yield `lost: event ${push.marker} was acknowledged as ${push.id} and is not kept`;
    if (event && JSON.parse(event.data).marker !== push.marker && !isUnheardOf(world, push.id))
      yield `ids: ${push.id} is not event ${push.marker}`;
  }
}

/** The receipts log by itself: words move forward, the first final one stands, `missing` comes before late words. */
function* words(world: World, channel: string, { epoch, heads, events, receipts }: Found): Generator<string> {
  const deadlines = new Map(events.map(({ seq, deadline }) => [seq, deadline]));
  const last = new Map<string, Receipt>();
  const missing = new Set<string>();
  for (const receipt of receipts) {
    const { event, device, status, late, at, seq } = receipt;
    if (status === "pending" || event <= heads.events.floor) continue;
    const name = `${event} ${device}`;
    const before = last.get(name);
    if (before && before.status !== "pending" && isFinal(before.status))
      yield `words: on ${event} ${device} said ${status} after ${before.status}`;
    else if (before && progress(status) <= progress(before.status))
      yield `words: on ${event} ${device} said ${status} after ${before.status}`;
    const deadline = deadlines.get(event) ?? null;
    if (status === "missing") {
      missing.add(name);
      if (deadline === null) yield `missing: ${device} on ${event}, which has no deadline`;
      else if (at < deadline && !receipt.detail?.includes("expired"))
        yield `missing: ${device} on ${event}, ${deadline - at} ms before its deadline`;
    }
    if (late !== missing.has(name) && status !== "missing")
      yield `late: entry ${seq}, ${status} of ${device} on ${event}, says late: ${late}, and missing was ${missing.has(name) ? "" : "not "}said before`;
    if (isFinal(status) && deadline !== null && at >= deadline && !late)
      yield `late: ${device} said ${status} on ${event} ${at - deadline} ms after its deadline, and that is not late`;
    last.set(name, receipt);
  }
  for (const { event, device, status, at } of world.witness.acknowledged) {
    const seq = Number(event.split("-")[1]);
    const isHere = event.startsWith(`${epoch}-`) && seq > heads.events.floor;
    if (!isHere || !deadlines.has(seq) || isForgiven(world, at, at)) continue;
    if (world.retired.some((one) => one.device === device && one.channel === channel)) continue;
    const kept = last.get(`${seq} ${device}`);
    if (!kept) yield `lost: ${status} of ${device} on ${event} was acknowledged and is not kept`;
    // A word that said nothing new is acknowledged as well: what is kept is at least as far.
    else if (
      progress(kept.status) < progress(status as State) &&
      !(!isFinal(status as State) && kept.status === "missing")
    )
      yield `lost: ${status} of ${device} on ${event} was acknowledged, and ${kept.status} is kept`;
  }
}

/** Troubles behind which nobody can say when something must have happened. */
const CLOCKS_AND_STORE: readonly string[] = [
  "leap",
  "trip",
  "redis down",
  "redis stall",
  "redis drop",
  "flush",
  "put back",
];

/** `missing` is told within two seconds where an instance is up; what goes on at Redis takes its time. */
function* missing(world: World, { events, receipts }: Found): Generator<string> {
  const { steps, store, redisCut } = world.plan;
  if (redisCut > 0 || steps.some(({ kind }) => CLOCKS_AND_STORE.includes(kind))) return;
  const withinMs = store === "sqlite" ? 2_000 : 3_500;
  const deadlines = new Map(events.map(({ seq, deadline }) => [seq, deadline]));
  const lives = world.instances.flatMap((instance) => instance.lives);
  const startedAt = world.clock.wall() - world.clock.now;
  for (const { event, device, status, at } of receipts) {
    const deadline = deadlines.get(event) ?? null;
    if (status !== "missing" || deadline === null) continue;
    const from = deadline - startedAt;
    if (at - deadline > withinMs && lives.some((life) => life.from <= from - 100 && life.to > from + withinMs))
      yield `missing: ${device} on ${event} was found missing ${at - deadline} ms after its deadline`;
  }
}

/** Rows, tallies and the log say the same; and in the end every device has said its final word. */
function* standings(
  world: World,
  channel: string,
  { now, events, receipts, tallies, rows, enrolled }: Found,
): Generator<string> {
  const last = new Map<string, State>();
  for (const { event, device, status } of receipts) if (status !== "pending") last.set(`${event} ${device}`, status);
  // What had expired by a clock that was ahead is expired.
  for (const { seq, deadline, expires } of events) {
    const tally = tallies.get(seq);
    const states = rows.get(seq)!;
    if (!tally) {
      yield `tally: event ${seq} has none`;
      continue;
    }
    const counted: Record<string, number> = {
      received: 0,
      working: 0,
      deferred: 0,
      missing: 0,
      done: 0,
      failed: 0,
      withdrawn: 0,
    };
    for (const [device, state] of states) {
      if (state !== "pending") counted[state] = (counted[state] ?? 0) + 1;
      const said = last.get(`${seq} ${device}`) ?? "pending";
      const wasRetired = world.retired.some((one) => one.channel === channel && one.device === device);
      if (state !== said && !wasRetired) yield `rows: ${device} stands at ${state} on ${seq}, and said ${said}`;
    }
    const { addressed } = tally;
    if (addressed !== states.size)
      yield `tally: event ${seq} is addressed to ${addressed}, and has ${states.size} rows`;
    for (const [state, count] of Object.entries(counted))
      if (tally[state as "done"] !== count)
        yield `tally: event ${seq} has ${tally[state as "done"]} ${state}, and ${count} rows that say so`;
    for (const [device, state] of states) {
      if (deadline !== null && deadline < now - 3_000 && progress(state) < progress("missing"))
        yield `missing: ${device} on ${seq} is ${state} ${now - deadline} ms after its deadline`;
      const plan = world.plan.devices.find(({ name, channels }) => name === device && channels.includes(channel));
      if (!plan || !enrolled.includes(device) || isFinal(state)) continue;
      if (
        (expires !== null && (expires <= now || isLeapt(world))) ||
        world.witness.gaps.some((gap) => gap.device === device && gap.channel === channel)
      )
        continue;
      yield `undelivered: ${device} stands at ${state} on ${seq} long after all was well`;
    }
  }
}

/** Who waited for an outcome was told that of his own event. */
function* waits(world: World, channel: string, _found: Found): Generator<string> {
  for (const push of world.pushes) {
    if (push.channel !== channel || push.id === null || push.receipts === null) continue;
    const counts = Object.values(push.receipts);
    const sum = counts.reduce((a, b) => a + b, 0);
    const isChanged =
      world.retired.some((one) => one.channel === channel) || world.plan.steps.some(({ kind }) => kind === "retire");
    if (counts.some((count) => count < 0) || sum > push.addressed || (sum < push.addressed && !isChanged))
      yield `wait: ${describe(push)} is addressed to ${push.addressed}, and its tally is ${JSON.stringify(push.receipts)}`;
    const finals = (push.receipts.done ?? 0) + (push.receipts.failed ?? 0);
    const said = world.witness.saidFinal.get(push.id)?.size ?? 0;
    // One that was put back and repeated goes on under another id.
    const isRenamed =
      world.putBackAt !== null && push.startedAt <= world.putBackAt && push.answeredAt > world.putBackAt;
    if (finals > said && !isRenamed)
      yield `wait: ${describe(push)} was answered with ${finals} final words, and ${said} devices said one`;
    if (push.complete === true && finals < sum)
      yield `wait: ${describe(push)} is complete with ${JSON.stringify(push.receipts)}`;
  }
}

const describe = ({ marker, id }: Push): string => `event ${marker} (${id})`;

/** Each follower was told each entry once, and each note on an event once, wherever its line broke. */
function* followers(world: World, channel: string, { epoch, heads, receipts }: Found): Generator<string> {
  for (const { name, channel: followed } of world.plan.followers) {
    if (followed !== channel) continue;
    const told = world.told.get(name) ?? [];
    const hasGap = told.some(({ kind }) => kind === "gap");
    const times = new Map<string, number>();
    for (const said of told)
      if (said.kind !== "gap") {
        const key = said.kind === "receipt" ? said.id : `${said.kind} ${said.event}`;
        times.set(key, (times.get(key) ?? 0) + 1);
      }
    for (const [key, count] of times) if (count > 1) yield `follower: ${name} was told ${key} ${count} times`;
    if (hasGap) continue;
    for (const { seq, status, event, note } of receipts) {
      if (event <= heads.events.floor) continue;
      if (status !== "pending" && !times.has(`${epoch}-${seq}`))
        yield `follower: ${name} was never told entry ${epoch}-${seq}`;
      if (note?.kind === "complete" && !times.has(`complete ${epoch}-${event}`))
        yield `follower: ${name} was never told that ${epoch}-${event} is complete`;
    }
  }
}

/** A hook was called at least once for what came after it was set. */
function* hooks(world: World, channel: string, { epoch, heads, receipts }: Found): Generator<string> {
  const hook = world.hooks.find((one) => one.channel === channel);
  if (
    !hook ||
    world.flushedAt !== null ||
    world.putBackAt !== null ||
    world.plan.steps.some(({ kind }) => kind === "leap")
  )
    return;
  const said = world.witness.calls.filter((call) => call.channel === channel).map(({ body }) => body);
  for (const { seq, at, status, event, note } of receipts) {
    if (at < hook.at + world.clock.wall() - world.clock.now || event <= heads.events.floor) continue;
    if (status !== "pending" && !said.some((body) => body.includes(`"id":"${epoch}-${seq}"`)))
      yield `hook: it was never called for entry ${epoch}-${seq}`;
    if (
      note?.kind === "complete" &&
      !said.some((body) => body.includes("pere.complete") && body.includes(`"${epoch}-${event}"`))
    )
      yield `hook: it was never called for ${epoch}-${event} being complete`;
  }
}
