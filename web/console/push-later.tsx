/** When a push is due: now, at a time, or repeatedly, with the time zone. */
import type { Signal } from "@preact/signals";
import { Field, Segments } from "./fields.tsx";
import { cronOf, HERE_ZONE, inZone, momentOf, type When, type WhenKind, zones } from "./push-when.ts";
import { now } from "./state.ts";
import { span } from "./words.ts";

const KINDS: readonly (readonly [WhenKind, string])[] = [
  ["now", "now"],
  ["at", "at a time"],
  ["daily", "every day at"],
  ["weekdays", "every weekday at"],
  ["cron", "cron"],
];

interface LaterProps {
  readonly when: Signal<When>;
  readonly faultOf: (...paths: string[]) => string;
}

export function Later({ when, faultOf }: LaterProps) {
  const { kind, at, time, cron, zone } = when.value;
  const change = (part: Partial<When>): void => void (when.value = { ...when.peek(), ...part });
  const every = { id: "push-every", name: "every", fault: faultOf("every") };
  return (
    <div class="later">
      <p class="label">When to push it</p>
      <Segments
        label="When to push it"
        name="when"
        value={kind}
        choices={KINDS}
        choose={(value) => change({ kind: value as WhenKind, ...(value === "at" && at === "" ? inAnHour() : {}) })}
      />
      {kind === "at" && (
        <Field
          id="push-at"
          name="at"
          type="datetime-local"
          label={`Day and time, in ${HERE_ZONE}`}
          hint="2026-12-01T09:00"
          value={at}
          fault={faultOf("at")}
          help={momentText(at)}
          change={(value) => change({ at: value })}
        />
      )}
      {(kind === "daily" || kind === "weekdays") && (
        <Field
          {...every}
          type="time"
          label="Time of day"
          hint="09:00"
          value={time}
          change={(value) => change({ time: value })}
        />
      )}
      {kind === "cron" && (
        <Field
          {...every}
          label="Cron expression"
          hint="0 9 * * 1-5"
          help="Minute, hour, day, month, weekday: 0 9 * * 1-5 is 09:00 from Monday to Friday."
          value={cron}
          change={(value) => change({ cron: value })}
        />
      )}
      {kind !== "now" && kind !== "at" && (
        <Field
          id="push-tz"
          name="tz"
          label="Time zone"
          hint="UTC"
          list={zones()}
          help={zone === HERE_ZONE ? "The one of this browser." : undefined}
          value={zone}
          fault={faultOf("tz")}
          change={(value) => change({ zone: value })}
        />
      )}
      {kind !== "now" && (
        <p class="muted small">
          {kind === "at" ? "It goes" : "Each push goes"} to the devices that have joined by then, and its deadline
          counts from then.
          {cronOf(when.value) !== "" && kind !== "cron" && ` As cron: ${cronOf(when.value)}`}
        </p>
      )}
    </div>
  );
}

/** The next full hour that is at least an hour away, as a field has it. */
function inAnHour(): Partial<When> {
  const date = new Date(Math.ceil(Date.now() / 3_600_000 + 1) * 3_600_000);
  const two = (value: number): string => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return { at: `${day}T${two(date.getHours())}:${two(date.getMinutes())}` };
}

/** "in 3 h, Tue 1 Dec 08:00 UTC" */
function momentText(at: string): string {
  const moment = momentOf(at);
  if (moment === null) return "";
  const seconds = (moment.getTime() - now.value) / 1000;
  const away = seconds > 0 ? `in ${span(Math.ceil(seconds))}` : "that is past: it is pushed at once";
  return HERE_ZONE === "UTC" ? away : `${away}, ${inZone(moment.toISOString(), "UTC")}`;
}
