/**
 * A store's model that is obviously right: plain arrays and maps, every audience a list of names, every count counted anew.
 */
import {
  type ControlEntry,
  type EndReason,
  type EventDraft,
  type EventNote,
  KEY_MEMORY_MS,
  type LateReason,
  type LogEntry,
  NOTE,
  type Receipt,
  type ReceiptDraft,
  remindedUntil,
  type Row,
  type State,
  type Status,
  type Tally,
} from "../../engine/model.ts";
import { OVERDUE_MS } from "../../engine/attention.ts";
import type {
  Appended,
  BegunRound,
  DeviceState,
  Heads,
  Joined,
  Reminder,
  Verdict,
  Withdrawn,
} from "../../engine/store.ts";
import type { TagChange, Tags } from "../../engine/tags.ts";
import { absence, SECOND } from "./calls.ts";
import { isFitting, type ModelDevice, type ModelEvent } from "./model-types.ts";

/** Why a device is missing whose event went before its deadline. */
const EXPIRED = '{"reason":"expired"}';

const NO_WORD = { result: "duplicate", state: null, late: null, due: null } as const satisfies Verdict;

export class ModelChannel {
  readonly name: string;
  epoch = "";
  floor = 0;
  /** All entries of the events log that ever were; `floor` says which are kept. */
  readonly entries: (ModelEvent | ControlEntry)[] = [];
  readonly receipts: Receipt[] = [];
  readonly devices = new Map<string, ModelDevice>();
  /** Of those who have been given some. */
  readonly tags = new Map<string, Tags>();
  /** The `joined` of those who left. */
  readonly left = new Map<string, number>();
  /** Events up to here trouble those no more who left, whatever they said. */
  readonly forgiven = new Map<string, number>();
  readonly keys = new Map<string, { digest: string; answer: Appended; expires: number }>();

  constructor(name: string) {
    this.name = name;
  }

  get head(): number {
    return this.entries.length;
  }
  get heads(): Pick<Heads, "epoch" | "events"> {
    const controls = this.entries.slice(this.floor).length - this.kept.length;
    return { epoch: this.epoch, events: { head: this.head, floor: this.floor, controls } };
  }
  /** The kept events. */
  get kept(): ModelEvent[] {
    return this.entries.slice(this.floor).filter((entry) => "audience" in entry);
  }

  /** An event by its number, if it is kept. */
  at(seq: number): ModelEvent | null {
    const entry = this.entries[seq - 1];
    return entry && "audience" in entry && seq > this.floor ? entry : null;
  }

  /** An entry of the log as it is read. */
  read(entry: ModelEvent | ControlEntry): LogEntry {
    if ("audience" in entry) return { ...entry.event, withdrawn: entry.withdrawal };
    const isGone = this.at(entry.withdraws) === null;
    return isGone && entry.to !== null ? { ...entry, to: [] } : entry;
  }

  // ------------------------------------------------------------------------------------------------------------- states

  /** Where a device stands now, the server's words included. */
  state(
    entry: ModelEvent,
    device: string,
    now: number,
  ): { state: State; round: number; attempt: number; isHeld: boolean } {
    const said = entry.words.get(device);
    const { withdrawal } = entry;
    const { state = "pending", round = 1, attempt = 0, due = null } = said ?? {};
    const isOpen = state === "pending" || state === "received" || state === "working" || state === "deferred";
    const hasBegun = due !== null && due <= (withdrawal?.at ?? now);
    return {
      state: withdrawal !== null && isOpen ? "withdrawn" : state,
      round: hasBegun ? round + 1 : round,
      attempt,
      isHeld: state === "deferred" && !hasBegun,
    };
  }

  isFinal({ words }: ModelEvent, device: string): boolean {
    const state = words.get(device)?.state;
    return state === "done" || state === "failed";
  }

  /** Who has neither a final word nor is missing. */
  isOpen(entry: ModelEvent, device: string): boolean {
    return !this.isFinal(entry, device) && entry.words.get(device)?.state !== "missing";
  }

  tally(entry: ModelEvent): Tally {
    const states = [...entry.audience].map((device) => this.state(entry, device, 0).state);
    const count = (state: State): number => states.filter((one) => one === state).length;
    return {
      addressed: states.length,
      received: count("received"),
      working: count("working"),
      deferred: count("deferred"),
      missing: count("missing"),
      done: count("done"),
      failed: count("failed"),
      withdrawn: count("withdrawn"),
      isOver: entry.withdrawal !== null,
    };
  }

  isComplete(entry: ModelEvent): boolean {
    return entry.withdrawal !== null || [...entry.audience].every((device) => this.isFinal(entry, device));
  }

  isAlive({ event: { expires } }: ModelEvent, now: number): boolean {
    return expires === null || expires > now;
  }

  /** The kept, unexpired events that a device owes a final word on. */
  owed(device: string, now: number): number[] {
    return this.kept
      .filter((entry) => entry.audience.has(device) && !this.isFinal(entry, device) && entry.withdrawal === null)
      .filter((entry) => this.isAlive(entry, now))
      .map(({ event }) => event.seq);
  }

  deviceState(entry: ModelEvent, device: string, now: number): DeviceState | null {
    if (!entry.words.has(device)) return null;
    const { state, round, isHeld } = this.state(entry, device, now);
    return { state, round, due: state === "deferred" && isHeld ? entry.words.get(device)!.due : null };
  }

  begunRounds(device: string, now: number): BegunRound[] {
    return this.kept.flatMap((entry) => {
      const { seq, deadline } = entry.event;
      if (!entry.audience.has(device) || !this.isAlive(entry, now) || (deadline !== null && deadline <= now)) return [];
      const { state, round, isHeld } = this.state(entry, device, now);
      return state === "deferred" && !isHeld ? [{ event: seq, round }] : [];
    });
  }

  latestOfKeys(device: string | null, now: number): number[] {
    const found = this.kept.filter(
      (entry) =>
        entry.event.key !== null &&
        entry.withdrawal === null &&
        this.isAlive(entry, now) &&
        (device === null ? entry.event.to === null && entry.event.where === null : this.isFor(entry, device)),
    );
    return found
      .filter(({ event }) => !found.some((other) => other.event.key === event.key && other.event.seq > event.seq))
      .map(({ event }) => event.seq);
  }

  isFor({ event, audience }: ModelEvent, device: string): boolean {
    return event.to === null && event.where === null
      ? event.seq > this.devices.get(device)!.joined
      : audience.has(device);
  }

  // ------------------------------------------------------------------------------------------------------------- pushing

  append(
    drafts: readonly EventDraft[],
    now: number,
    key: { key: string; digest: string } | null,
  ): Appended | "refused" {
    const known = key && this.keys.get(key.key);
    if (known && known.expires > now)
      return known.digest === key.digest ? { ...known.answer, replayed: true } : "refused";
    for (const older of this.superseded(drafts[0]!.key)) this.miss(older, null, now);
    const first = this.head + 1;
    const superseded = this.superseded(drafts[0]!.key);
    for (const { type, data, to, ttl, deadline: until, remind: every, ...draft } of drafts) {
      const [expires, deadline] = [ttl, until].map((s) => (s === null ? null : now + s * SECOND));
      const remind = every === null ? null : every * SECOND;
      const event = { seq: this.head + 1, at: now, type, data, to, expires: expires!, deadline: deadline!, remind };
      this.entries.push({
        event: { ...event, ...draft, withdrawn: null },
        audience: new Set(
          to ?? [...this.devices.keys()].filter((device) => isFitting(draft.where, this.tags.get(device))),
        ),
        words: new Map(),
        withdrawal: null,
        isSettled: false,
      });
    }
    const { event, audience } = this.at(first)!;
    for (const older of superseded) this.end(older, "superseded", first, null, now);
    const answer: Appended = {
      epoch: this.epoch,
      first,
      count: drafts.length,
      at: now,
      addressed: audience.size,
      type: event.type,
      replayed: false,
    };
    if (key) this.keys.set(key.key, { digest: key.digest, answer, expires: now + KEY_MEMORY_MS });
    return answer;
  }

  superseded(key: string | null): ModelEvent[] {
    return key === null ? [] : this.kept.filter((entry) => entry.event.key === key && !this.isComplete(entry));
  }

  withdraw(seq: number, note: string | null, now: number): Withdrawn {
    const entry = this.entries[seq - 1];
    if (!entry || seq <= this.floor) return "unknown";
    if (!("audience" in entry)) return "control";
    if (this.isComplete(entry)) return "complete";
    this.miss(entry, null, now);
    this.end(entry, "withdrawn", null, note, now);
    return "withdrawn";
  }

  /** Past its deadline, everyone who owes a word is missing before anything else happens to the event. */
  miss(entry: ModelEvent, detail: string | null, now: number): void {
    const { deadline } = entry.event;
    if (deadline === null || deadline > now || entry.withdrawal !== null) return;
    for (const word of this.absent(entry, detail, now)) this.note(word);
    this.settle(entry, "", now);
  }

  end(entry: ModelEvent, reason: EndReason, by: number | null, note: string | null, at: number): void {
    const { seq, to, where, expires, deadline } = entry.event;
    const hasWhere = where !== null;
    const { received, working, deferred, done, failed } = this.tally(entry);
    const isAnswered = received + working + deferred + done + failed > 0;
    const withdrawal = { seq: this.head + 1, at, reason, by, note };
    this.entries.push({ ...withdrawal, withdraws: seq, to, expires, hasWhere, isAnswered });
    entry.withdrawal = withdrawal;
    this.say(entry, "", { kind: "withdrawn", tally: this.tally(entry), withdrawal }, at);
    this.say(entry, "", { kind: "complete", tally: this.tally(entry) }, at);
    if (deadline !== null) this.settle(entry, "", at);
  }

  // ------------------------------------------------------------------------------------------------------------- receipts

  record(draft: ReceiptDraft, now: number): Verdict {
    const { event: position, device, detail, deviceAt } = draft;
    const entry = this.at(position.seq);
    if (position.epoch !== this.epoch || !entry) return { ...NO_WORD, result: "unknown" };
    if (!entry.audience.has(device)) return { ...NO_WORD, result: "unaddressed" };
    const { deadline, attempts } = entry.event;
    if (deadline !== null && deadline <= now && entry.withdrawal === null && this.isOpen(entry, device))
      this.note({ ...absence(position.seq, device, null, now) });
    const before = this.state(entry, device, now);
    const stands = entry.words.get(device)?.late ?? null;
    if (draft.round !== null && draft.round > before.round) return { ...NO_WORD, result: "early", late: stands };
    if (draft.round !== null && draft.round < before.round) return { ...NO_WORD, late: stands };
    if (this.isFinal(entry, device)) return { ...NO_WORD, late: stands };
    const isEnded = before.state === "missing" || before.state === "withdrawn";
    const attempt = before.attempt + (draft.status === "failed" ? 1 : 0);
    let status: Status = draft.status;
    let after = draft.after ?? 60;
    if (status === "failed" && !isEnded && draft.retry && attempts !== null && attempt < attempts) {
      status = "deferred";
      after = draft.after ?? Math.min(3600, 30 * 2 ** (attempt - 1));
    }
    const isFinalWord = status === "done" || status === "failed";
    if (!isFinalWord) {
      if (isEnded || before.isHeld) return NO_WORD;
      if (status === "received" && (before.state === "received" || before.state === "working")) return NO_WORD;
      if (status === "working" && before.state === "working") return NO_WORD;
    }
    const late =
      before.state === "missing" ? "missing" : before.state === "withdrawn" ? entry.withdrawal!.reason : null;
    const due = status === "deferred" ? now + after * SECOND : null;
    const receipt = { event: position.seq, device, status, detail, at: now, deviceAt, late: late !== null };
    this.note({ ...receipt, round: before.round, attempt, note: null }, { due, late });
    const known = this.devices.get(device);
    if (known && known.lostNotifiedSeq === known.lostSeq) known.lostSeq = known.lostNotifiedSeq = 0;
    return { result: "recorded", state: status, late, due };
  }

  /** A word, as it enters the log; behind it what it completes. A device that was deferred is missing in the round that had begun by the deadline. */
  note(
    word: Omit<Receipt, "seq">,
    more: { due: number | null; late: LateReason | null } = { due: null, late: null },
  ): void {
    const entry = this.at(word.event)!;
    const { device, at } = word;
    const receipt: Receipt = { ...word, seq: this.receipts.length + 1 };
    const before = entry.words.get(device);
    if (word.status === "missing" && before) {
      const by = Math.min(at, entry.event.deadline ?? at);
      const hasBegun = before.due !== null && before.due <= by;
      Object.assign(receipt, { round: before.round + (hasBegun ? 1 : 0), attempt: before.attempt });
    }
    const { status: state, round, attempt } = receipt;
    entry.words.set(device, { state, round, attempt, ...more, said: receipt });
    this.receipts.push(receipt);
    if (this.isFinal(entry, device)) this.complete(entry, device, at);
  }

  /** If the event is complete now and was not withdrawn, the log says so. */
  complete(entry: ModelEvent, device: string, at: number): void {
    if (entry.withdrawal !== null || !this.isComplete(entry)) return;
    this.say(entry, device, { kind: "complete", tally: this.tally(entry) }, at);
    if (entry.event.deadline !== null) this.settle(entry, device, at);
  }

  /** The log says that the event is settled, once. */
  settle(entry: ModelEvent, device: string, at: number): void {
    if (entry.isSettled) return;
    entry.isSettled = true;
    this.say(entry, device, { kind: "settled", tally: this.tally(entry) }, at);
  }

  say(entry: ModelEvent, device: string, note: EventNote, at: number): void {
    this.receipts.push({ ...NOTE, seq: this.receipts.length + 1, event: entry.event.seq, device, at, note });
  }

  /** Who owes a final word on an event and is not missing yet, as the log would have it, by name. */
  absent(entry: ModelEvent, detail: string | null, now: number): Omit<Receipt, "seq">[] {
    if (entry.withdrawal !== null) return [];
    return [...entry.audience]
      .sort()
      .filter((device) => this.isOpen(entry, device))
      .map((device) => absence(entry.event.seq, device, detail, now));
  }

  /** Whether the log must say that an event is settled, where all who owe it a word are missing. */
  isToSettle(entry: ModelEvent): boolean {
    return !entry.isSettled && entry.audience.size > 0 && !this.isComplete(entry);
  }

  /** Events whose deadline has passed, as far as there is something to say of them. */
  due(now: number): ModelEvent[] {
    return this.kept.filter(
      (entry) => entry.event.deadline !== null && entry.event.deadline <= now && this.isToSettle(entry),
    );
  }

  /** Deadlines ahead, of kept events, at which somebody would be missing as things stand. */
  ahead(now: number): number[] {
    return this.kept
      .filter((entry) => this.absent(entry, null, now).length > 0)
      .map(({ event }) => event.deadline ?? 0)
      .filter((deadline) => deadline > now);
  }

  reminders(now: number): Reminder[] {
    return this.kept.flatMap(({ event, withdrawal }) => {
      const { seq, at, remind } = event;
      const until = remindedUntil(event);
      return remind === null || withdrawal !== null || (until !== null && until <= now)
        ? []
        : [{ epoch: this.epoch, seq, at, every: remind, until }];
    });
  }

  // ------------------------------------------------------------------------------------------------------------- devices

  enrol(device: string, now: number): boolean {
    if (this.devices.has(device)) return false;
    const joined = this.head;
    const returned = this.left.get(device) === joined;
    this.devices.set(device, { joined, enrolledAt: now, returned, seenAt: null, lostSeq: 0, lostNotifiedSeq: 0 });
    return true;
  }

  tag(device: string, change: TagChange, enrols: boolean, now: number): { tags: Tags; isNew: boolean } | null {
    if (!enrols && !this.devices.has(device)) return null;
    const isNew = enrols && this.enrol(device, now);
    const tags = new Map(change.isAll ? [] : this.tags.get(device));
    for (const [name, value] of change.tags)
      if (value === null) tags.delete(name);
      else tags.set(name, value);
    this.tags.set(device, tags);
    return { tags, isNew };
  }

  /** Whether an event is addressed to a device now: one that left after its final word was addressed. */
  isSeated({ event }: ModelEvent, device: string): boolean {
    const known = this.devices.get(device);
    return event.to !== null || event.where !== null || (known !== undefined && known.joined < event.seq);
  }

  retire(device: string, now: number): boolean {
    const known = this.devices.get(device);
    if (!known) return false;
    this.devices.delete(device);
    this.tags.delete(device);
    this.left.set(device, known.joined);
    this.forgiven.set(device, this.head);
    for (const entry of this.kept)
      if (!this.isFinal(entry, device) && entry.audience.has(device)) {
        const { deadline, seq } = entry.event;
        if (deadline !== null && deadline <= now && entry.withdrawal === null && this.isOpen(entry, device))
          this.note(absence(seq, device, null, now));
        entry.audience.delete(device);
        entry.words.delete(device);
        this.complete(entry, device, now);
      }
    return true;
  }

  join(device: string, now: number): Omit<Joined, "receipts" | "hasDeferred"> {
    const enrolled = !this.enrol(device, now);
    const known = this.devices.get(device)!;
    known.lostNotifiedSeq = known.lostSeq;
    const settled = (this.owed(device, now)[0] ?? this.head + 1) - 1;
    return { ...this.heads, enrolled, joined: known.joined, settled, lostSeq: known.lostSeq };
  }

  /** Which of a device's events are deferred, whether their next round has begun or not. */
  hasDeferred(device: string, now: number): boolean {
    return this.kept.some((entry) => entry.audience.has(device) && this.state(entry, device, now).state === "deferred");
  }

  /** What is wrong with an event for a device, if anything. @param agedAt when it was last looked for what is overdue */
  trouble(entry: ModelEvent, device: string, agedAt: number): "failed" | "missing" | "overdue" | null {
    const { at, seq, deadline } = entry.event;
    if (!entry.audience.has(device) || seq <= (this.forgiven.get(device) ?? 0)) return null;
    const { state } = this.state(entry, device, agedAt);
    if (state === "failed" || state === "missing") return state;
    const isOwed = state !== "done" && state !== "withdrawn";
    return isOwed && deadline === null && at + OVERDUE_MS <= agedAt ? "overdue" : null;
  }

  /** @returns the events that go although somebody owed them a word before their deadline, or past it */
  trim(count: number, before: number, now: number): { entry: ModelEvent; detail: string | null }[] {
    const missed: { entry: ModelEvent; detail: string | null }[] = [];
    let events = this.kept.length;
    let floor = this.floor;
    for (const entry of this.entries.slice(this.floor)) {
      const at = "audience" in entry ? entry.event.at : entry.at;
      if (events <= count && at >= before) break;
      floor++;
      if (!("audience" in entry)) continue;
      events--;
      const { seq, deadline } = entry.event;
      if (deadline !== null && this.isToSettle(entry)) missed.push({ entry, detail: deadline > now ? EXPIRED : null });
      for (const [device, known] of this.devices)
        if (
          entry.audience.has(device) &&
          entry.withdrawal === null &&
          !this.isFinal(entry, device) &&
          this.isAlive(entry, now)
        )
          known.lostSeq = seq;
    }
    this.trimmedTo = floor;
    return missed;
  }
  /** How far `trim` goes, once the log has what it says before. */
  trimmedTo = 0;

  rows(entry: ModelEvent, now: number): Row[] {
    return [...entry.audience].sort().map((device) => {
      const { state, round, attempt, isHeld } = this.state(entry, device, now);
      const { said, due = null } = entry.words.get(device) ?? {};
      if (state === "withdrawn") {
        const { at } = entry.withdrawal!;
        return { device, status: state, detail: null, at, deviceAt: null, late: false, round, attempt };
      }
      const { detail = null, at = null, deviceAt = null, late = false } = said ?? {};
      const row = { device, status: state, detail, at, deviceAt, late, round, attempt };
      return isHeld && due !== null ? { ...row, due } : row;
    });
  }
}
