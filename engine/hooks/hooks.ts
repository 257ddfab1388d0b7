/**
 * Hooks: call the publisher when there are receipts, when devices failed or are missing, or when an event is complete or settled.
 *
 * This file stores hooks and assigns them to an instance; `runner.ts` runs one hook, `call.ts` makes one call.
 *
 * A lease makes sure that one instance at a time runs the hooks. Its number is stored with every change, so the store refuses changes from a runner
 * that was replaced while it was suspended. When a hook is changed, the current call finishes and its result is stored; only then does the next
 * runner read where to continue.
 */
import type { AddressRange } from "../addresses.ts";
import { callHook, checkHookUrl, type HookAnswer, makeSecret, readHookUrl, readSecret } from "./call.ts";
import { attempt, unexpected } from "../faults.ts";
import { bodyOf, CALL_ROWS, formerSecretsOf, type HookOptions, nameOf, Runner } from "./runner.ts";
import { CHANNEL, id, iso, PereError } from "../model.ts";
import { yieldToEventLoop } from "../yield.ts";
import {
  DEFAULT_HOOK_KINDS,
  type Delivery,
  HOOK_KINDS,
  type Hook,
  type HookDraft,
  type HookKind,
  type Store,
} from "../store.ts";

/** How often the lease is renewed and the list of hooks is read. */
const LOOK_MS = 1_000;
/** After this time another instance takes over from one that died. */
const LEASE_MS = 5_000;
/** How often due deliveries are looked for. */
const TICK_MS = 250;
/** Runners that look for due deliveries in one step. */
const TICK_RUNNERS = 500;
/** How long a stopping service waits for calls in flight, so that delivered calls are not repeated. */
const CLOSE_TIMEOUT_MS = 2_000;

/** What a delivery in the list counts: its text is made, and its attempts are. */
const DELIVERY_ROWS = 4;
/** Characters of a delivery's body in the list: a hook may have a thousand of them. */
const BODY_CHARACTERS = 1_024;

/** @throws PereError malformed */
export function readHookName(text: string): string {
  if (CHANNEL.test(text)) return text;
  throw malformed("name", "a hook's name is 1 to 128 of A-Z a-z 0-9 . _ : ~ - and begins with a letter or digit");
}

/** A publisher's hook settings. @throws PereError malformed or refused */
export function readHook(name: string, body: unknown, allowed: readonly AddressRange[]): HookDraft {
  const fail = (path: string, message: string): never => {
    throw malformed(path, message);
  };
  if (typeof body !== "object" || body === null || Array.isArray(body)) return fail("body", "must be a JSON object");
  const { url, secret = null, on = DEFAULT_HOOK_KINDS, ...rest } = body as Record<string, unknown>;
  for (const path of Object.keys(rest)) fail(path, "unknown field");
  if (typeof url !== "string") return fail("url", "must be a string");
  if (secret !== null && typeof secret !== "string") return fail("secret", "must be a string, or left out");
  const isKind = (kind: unknown): kind is HookKind => (HOOK_KINDS as readonly unknown[]).includes(kind);
  if (!Array.isArray(on) || on.length === 0 || !on.every(isKind))
    return fail("on", `must be a list of ${HOOK_KINDS.join(", ")}`);
  return {
    name,
    url: readHookUrl(url, allowed).href,
    secret: secret === null ? null : readSecret(secret),
    on: HOOK_KINDS.filter((kind) => on.includes(kind)),
  };
}

export class Hooks {
  readonly #store: Store;
  readonly #options: HookOptions;
  readonly #holder = crypto.randomUUID();
  readonly #runners = new Map<string, Runner>();
  readonly #timers: Timer[];
  /** Hooks that are being tested. */
  readonly #tests = new Set<string>();
  #looking: Promise<void> | undefined;
  #isHolder = false;
  #isTicking = false;
  #stopped = false;

  constructor(store: Store, options: HookOptions) {
    this.#store = store;
    this.#options = options;
    this.#timers = [setInterval(() => void this.#look(), LOOK_MS), setInterval(() => void this.#tick(), TICK_MS)];
    for (const timer of this.#timers) timer.unref();
    void this.#look();
  }

  // ------------------------------------------------------------------------------------------------------------------ requests

  /** Stores a hook. The secret is returned only if it was created here. @throws PereError malformed, refused, away */
  async put(channel: string, name: string, body: unknown) {
    const draft = readHook(name, body, this.#options.allowed);
    await checkHookUrl(new URL(draft.url), this.#options.allowed, this.#options.call);
    const fresh = makeSecret();
    const { hook, created } = await this.#store.putHook(channel, draft, fresh, this.#options.now());
    await this.#changed();
    return { created, hook: { ...about(hook), ...(hook.secret === fresh ? { secret: fresh } : {}) } };
  }

  /** @throws PereError unknown */
  async drop(channel: string, name: string): Promise<void> {
    if (!(await this.#store.dropHook(channel, name, this.#options.now()))) throw unknown(channel, name);
    await this.#changed();
  }

  /** A channel's hooks as JSON texts, each with its pending and given-up deliveries, one hook after the other: a thousand deliveries are megabytes. */
  async list(channel: string): Promise<string[]> {
    const texts: string[] = [];
    for (const hook of await this.#store.hooks(channel)) {
      const deliveries = await this.#store.deliveries(channel, hook.name);
      await yieldToEventLoop("hooks", DELIVERY_ROWS * deliveries.length);
      const state = {
        ...about(hook),
        position: id(hook.cursor.epoch, hook.cursor.seq),
        lastDelivered: hook.lastDelivered && { ...hook.lastDelivered, at: iso(hook.lastDelivered.at) },
        retrying: deliveries.filter(({ nextAt }) => nextAt !== null).map(aboutDelivery),
        failed: deliveries.filter(({ nextAt }) => nextAt === null).map(aboutDelivery),
      };
      texts.push(JSON.stringify(state));
    }
    return texts;
  }

  /**
   * Makes one call to a hook's URL now, also if the hook is disabled. It is signed and limited as others are, but it is not repeated, and neither its
   * success nor its failure changes anything. @throws PereError unknown, conflict: another test of this hook is running here
   */
  async test(channel: string, name: string): Promise<Pick<HookAnswer, "status" | "ms" | "body" | "error">> {
    const { allowed, call, now, stamp } = this.#options;
    const hook = (await this.#store.hooks(channel)).find((one) => one.name === name);
    if (!hook) throw unknown(channel, name);
    if (this.#tests.has(nameOf(hook)))
      throw new PereError("conflict", `a test call to hook ${name} is running; wait until it is answered`);
    this.#tests.add(nameOf(hook));
    try {
      await yieldToEventLoop("hooks", CALL_ROWS);
      const at = stamp();
      const { status, ms, body, error } = await callHook(
        {
          id: `msg_test_${crypto.randomUUID()}`,
          url: hook.url,
          secret: hook.secret,
          formerSecrets: formerSecretsOf(hook, now(), now()),
          body: bodyOf("test", at, JSON.stringify({ channel, hook: name })),
          at,
        },
        allowed,
        call,
      );
      return { status, ms, body, error };
    } finally {
      this.#tests.delete(nameOf(hook));
    }
  }

  /**
   * Restarts all given-up and pending deliveries from the first attempt, and enables a disabled hook.
   * @returns the number of deliveries; @throws PereError unknown
   */
  async retry(channel: string, name: string): Promise<number> {
    const now = this.#options.now();
    const deliveries = await this.#store.deliveries(channel, name);
    const keep = deliveries.map((delivery) => ({
      ...delivery,
      attempts: delivery.nextAt === null ? 0 : delivery.attempts,
      nextAt: now,
    }));
    if (!(await this.#store.progress(channel, name, null, { keep, disabled: null }))) throw unknown(channel, name);
    await this.#changed();
    return keep.length;
  }

  // ------------------------------------------------------------------------------------------------------------------ runners

  /** A read that began before the change may have missed it. */
  async #changed(): Promise<void> {
    await this.#looking;
    await this.#look();
  }

  /** Lets each runner retry what is due, in steps. */
  async #tick(): Promise<void> {
    if (this.#isTicking) return;
    this.#isTicking = true;
    let ticked = 0;
    for (const runner of this.#runners.values()) {
      if (++ticked % TICK_RUNNERS === 0) await yieldToEventLoop("hooks", TICK_RUNNERS);
      attempt(this.#options.report, () => runner.tick());
    }
    this.#isTicking = false;
  }

  #look(): Promise<void> {
    this.#looking ??= this.#lookOnce().finally(() => (this.#looking = undefined));
    return this.#looking;
  }

  /** Renews the lease and updates the runners to the stored hooks. */
  async #lookOnce(): Promise<void> {
    // Their results are stored, so their successors start from what is read below.
    for (const [name, { ended }] of this.#runners) if (ended) this.#runners.delete(name);
    try {
      const asked = performance.now();
      const fence = this.#stopped ? null : await this.#store.lease("hooks", this.#holder, LEASE_MS);
      this.#isHolder = fence !== null;
      const hooks = fence === null ? [] : await this.#store.hooks(null);
      if (this.#stopped) return;
      const stored = new Map(hooks.map((hook) => [nameOf(hook), hook]));
      for (const [name, runner] of this.#runners) {
        const hook = stored.get(name);
        if (fence !== null && hook?.createdAt !== runner.hook.createdAt) runner.abandon();
        if (fence === runner.fence && hook?.revision === runner.hook.revision && hook.disabled === null)
          runner.until = asked + LEASE_MS;
        else if (!runner.stopped) void runner.stop().then(() => this.#changed());
      }
      for (const [name, hook] of stored)
        if (hook.disabled === null && !this.#runners.has(name))
          this.#runners.set(name, new Runner(this.#store, this.#options, hook, fence!, asked + LEASE_MS));
    } catch (error) {
      // If the store is away, the timer tries again. A runner makes no call after its lease.
      unexpected(this.#options.report, error);
    }
  }

  /** Begins no more calls, and waits a moment for those in flight. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const timer of this.#timers) clearInterval(timer);
    const ends = [...this.#runners.values()].map((runner) => runner.stop());
    await Promise.race([Promise.all(ends), Bun.sleep(CLOSE_TIMEOUT_MS)]);
    // Other instances need not wait for the lease to expire.
    if (this.#isHolder) await this.#store.lease("hooks", this.#holder, 0).catch(() => {});
  }
}

const about = ({ channel, name, url, on, createdAt, disabled }: Hook) => ({
  channel,
  name,
  url,
  on,
  createdAt: iso(createdAt),
  disabled,
});

const aboutDelivery = ({ id, createdAt, attempts, nextAt, status, error, tries, body }: Delivery) => ({
  id,
  createdAt: iso(createdAt),
  attempts,
  nextAt: nextAt === null ? null : iso(nextAt),
  status,
  error,
  tries: tries.map((one) => ({ ...one, at: iso(one.at) })),
  body: body.slice(0, BODY_CHARACTERS),
});

const malformed = (path: string, message: string): PereError =>
  new PereError("malformed", `${path}: ${message}`, [{ path, message }]);

const unknown = (channel: string, name: string): PereError =>
  new PereError("unknown", `channel ${channel} has no hook ${name}`);
