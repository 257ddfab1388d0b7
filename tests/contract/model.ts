/**
 * A store's model that is obviously right: plain arrays and maps, every audience a list of names, every count counted anew.
 */
import {
  type Event,
  type EventDraft,
  FINAL,
  KEY_MEMORY_MS,
  type Outcome,
  rank,
  type Receipt,
  type ReceiptDraft,
  remindedUntil,
  type Row,
} from "../../engine/model.ts";
import { OVERDUE_MS } from "../../engine/attention.ts";
import type { Appended, Heads, Joined, Reminder, Verdict } from "../../engine/store.ts";
import { SECOND } from "./calls.ts";

/** Why a device is missing whose event went before its deadline. */
const EXPIRED = '{"reason":"expired"}';

const MISSING = rank("missing");

const absence = (event: number, device: string, detail: string | null, at: number): Omit<Receipt, "seq"> => ({
  ...{ event, device, status: "missing", detail, at, deviceAt: null, late: false, completes: null },
});

interface ModelEvent {
  readonly event: Event;
  /** Names; who is released leaves. */
  readonly audience: Set<string>;
  readonly words: Map<string, Receipt>;
}

interface ModelDevice {
  readonly joined: number;
  readonly enrolledAt: number;
  /** It left and came back with no push between: whether its past stays its own is the store's choice. */
  readonly returned: boolean;
  seenAt: number | null;
  lostSeq: number;
  lostNotifiedSeq: number;
}

export class ModelChannel {
  readonly name: string;
  epoch = "";
  floor = 0;
  /** All that ever were; `floor` says which are kept. */
  readonly events: ModelEvent[] = [];
  readonly receipts: Receipt[] = [];
  readonly devices = new Map<string, ModelDevice>();
  /** The `joined` of those who left. */
  readonly left = new Map<string, number>();
  /** Events up to here trouble those no more who left, whatever they said. */
  readonly forgiven = new Map<string, number>();
  readonly keys = new Map<string, { digest: string; answer: Appended; expires: number }>();

  constructor(name: string) {
    this.name = name;
  }

  get heads(): Pick<Heads, "epoch" | "events"> {
    return { epoch: this.epoch, events: { head: this.events.length, floor: this.floor } };
  }
  get kept(): ModelEvent[] {
    return this.events.slice(this.floor);
  }

  isFinal({ words }: ModelEvent, device: string): boolean {
    return rank(words.get(device)?.status ?? "pending") >= FINAL;
  }

  /** The kept, unexpired events that a device owes a final word on. */
  owed(device: string, now: number): number[] {
    return this.kept
      .filter((entry) => entry.audience.has(device) && !this.isFinal(entry, device))
      .filter(({ event }) => event.expires === null || event.expires > now)
      .map(({ event }) => event.seq);
  }

  append(
    drafts: readonly EventDraft[],
    now: number,
    key: { key: string; digest: string } | null,
  ): Appended | "refused" {
    const known = key && this.keys.get(key.key);
    if (known && known.expires > now)
      return known.digest === key.digest ? { ...known.answer, replayed: true } : "refused";
    const first = this.events.length + 1;
    for (const { type, data, to, ...draft } of drafts) {
      const [expires, deadline] = [draft.ttl, draft.deadline].map((s) => (s === null ? null : now + s * SECOND));
      const remind = draft.remind === null ? null : draft.remind * SECOND;
      const seq = this.events.length + 1;
      const event = { seq, at: now, type, data, to, expires: expires!, deadline: deadline!, remind };
      this.events.push({ event, audience: new Set(to ?? this.devices.keys()), words: new Map() });
    }
    const { event, audience } = this.events[first - 1]!;
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

  record({ event: position, device, status, detail, deviceAt }: ReceiptDraft, now: number): Verdict {
    const entry = this.events[position.seq - 1];
    if (position.epoch !== this.epoch || !entry || position.seq <= this.floor) return "unknown";
    if (!entry.audience.has(device)) return "unaddressed";
    this.judge(entry, device, now);
    const before = entry.words.get(device)?.status ?? "pending";
    if (rank(before) >= FINAL || rank(status) <= rank(before)) return "duplicate";
    const receipt = { event: position.seq, device, status, detail, at: now, deviceAt, late: before === "missing" };
    this.note({ ...receipt, completes: null });
    const known = this.devices.get(device);
    if (known && known.lostNotifiedSeq === known.lostSeq) known.lostSeq = known.lostNotifiedSeq = 0;
    return "recorded";
  }

  /** Past its deadline an event makes missing who owes it a word, before anything else is said of the two. */
  judge(entry: ModelEvent, device: string, now: number): void {
    const { seq, deadline } = entry.event;
    if (deadline === null || deadline > now || rank(entry.words.get(device)?.status ?? "pending") >= MISSING) return;
    this.note(absence(seq, device, null, now));
  }

  /** A word, as it enters the log; behind it an entry that says that the event is complete, if it is so now. `pending`: its device left. */
  note(word: Omit<Receipt, "seq">): void {
    const entry = this.events[word.event - 1]!;
    const { event, device, status, at } = word;
    if (status !== "pending") {
      const receipt = { ...word, seq: this.receipts.length + 1 };
      entry.words.set(device, receipt);
      this.receipts.push(receipt);
      if (rank(status) < FINAL) return;
    }
    const completes = this.outcome(entry);
    const nothing = { status: "pending", detail: null, deviceAt: null, late: false } as const;
    if (completes) this.receipts.push({ seq: this.receipts.length + 1, event, device, ...nothing, at, completes });
  }

  /** What all said, or null: somebody owes a final word. */
  outcome(entry: ModelEvent): Outcome | null {
    const said = [...entry.audience].map((device) => entry.words.get(device)?.status);
    const [done, failed] = (["done", "failed"] as const).map((final) => said.filter((s) => s === final).length);
    return done! + failed! === said.length ? { done: done!, failed: failed! } : null;
  }

  /** Who owes a final word on an event and is not missing yet, as the log would have it; and in what order is the store's choice. */
  absent({ event: { seq }, audience, words }: ModelEvent, detail: string | null, now: number): Omit<Receipt, "seq">[] {
    return [...audience]
      .filter((device) => rank(words.get(device)?.status ?? "pending") < rank("missing"))
      .map((device) => absence(seq, device, detail, now));
  }

  /** Who is missing now, for deadlines that have passed. */
  due(now: number): Omit<Receipt, "seq">[] {
    return this.kept
      .filter(({ event: { deadline } }) => deadline !== null && deadline <= now)
      .flatMap((entry) => this.absent(entry, null, now));
  }

  /** Deadlines ahead, of kept events, at which somebody would be missing as things stand. */
  ahead(now: number): number[] {
    return this.kept
      .filter((entry) => this.absent(entry, null, now).length > 0)
      .map(({ event }) => event.deadline ?? 0)
      .filter((deadline) => deadline > now);
  }

  reminders(now: number): Reminder[] {
    return this.kept.flatMap(({ event }) => {
      const { seq, at, remind } = event;
      const until = remindedUntil(event);
      return remind === null || (until !== null && until <= now)
        ? []
        : [{ epoch: this.epoch, seq, at, every: remind, until }];
    });
  }

  enrol(device: string, now: number): boolean {
    if (this.devices.has(device)) return false;
    const joined = this.events.length;
    const returned = this.left.get(device) === joined;
    this.devices.set(device, { joined, enrolledAt: now, returned, seenAt: null, lostSeq: 0, lostNotifiedSeq: 0 });
    return true;
  }

  retire(device: string, now: number): boolean {
    const known = this.devices.get(device);
    if (!known) return false;
    this.devices.delete(device);
    this.left.set(device, known.joined);
    this.forgiven.set(device, this.events.length);
    for (const entry of this.kept)
      if (!this.isFinal(entry, device) && entry.audience.has(device)) {
        this.judge(entry, device, now);
        entry.audience.delete(device);
        const nothing = { status: "pending", detail: null, deviceAt: null, late: false, completes: null } as const;
        this.note({ event: entry.event.seq, device, at: now, ...nothing });
      }
    return true;
  }

  join(device: string, now: number): Omit<Joined, "receipts"> {
    const enrolled = !this.enrol(device, now);
    const known = this.devices.get(device)!;
    known.lostNotifiedSeq = known.lostSeq;
    const settled = (this.owed(device, now)[0] ?? this.events.length + 1) - 1;
    return { ...this.heads, enrolled, joined: known.joined, settled, lostSeq: known.lostSeq };
  }

  /** @returns who is missing before the events go */
  trim(count: number, before: number, now: number): Omit<Receipt, "seq">[] {
    const missing: Omit<Receipt, "seq">[] = [];
    for (const entry of this.kept) {
      const { seq, at, expires, deadline } = entry.event;
      if (seq > this.events.length - count && at >= before) break;
      if (deadline !== null) missing.push(...this.absent(entry, deadline > now ? EXPIRED : null, now));
      for (const [device, known] of this.devices)
        if (entry.audience.has(device) && !this.isFinal(entry, device) && (expires === null || expires > now))
          known.lostSeq = seq;
      this.floor = seq;
    }
    return missing;
  }

  /** What is wrong with an event for a device, if anything. @param agedAt when it was last looked for what is overdue */
  trouble(entry: ModelEvent, device: string, agedAt: number): "failed" | "missing" | "overdue" | null {
    const { at, seq, deadline } = entry.event;
    if (!entry.audience.has(device) || seq <= (this.forgiven.get(device) ?? 0)) return null;
    const status = entry.words.get(device)?.status ?? "pending";
    if (status === "failed" || status === "missing") return status;
    return !this.isFinal(entry, device) && deadline === null && at + OVERDUE_MS <= agedAt ? "overdue" : null;
  }

  rows({ audience, words }: ModelEvent): Row[] {
    return [...audience].sort().map((device) => {
      const said = words.get(device);
      return {
        device,
        status: said?.status ?? "pending",
        detail: said?.detail ?? null,
        at: said?.at ?? null,
        deviceAt: said?.deviceAt ?? null,
        late: said?.late ?? false,
      };
    });
  }
}
