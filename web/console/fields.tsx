/** Fields of forms: a text with its fault, and radio buttons side by side. */

interface FieldProps {
  /** Unique on the page. */
  readonly id: string;
  readonly name: string;
  readonly label: string;
  readonly hint: string;
  readonly value: string;
  readonly fault: string;
  /** What it does, below the field. */
  readonly help?: string | undefined;
  /** Suggestions. */
  readonly list?: readonly string[] | undefined;
  readonly type?: "text" | "time" | "datetime-local";
  readonly isNumber?: boolean;
  readonly change: (value: string) => void;
}

export const Field = ({ id, name, label, hint, value, fault, help, list, type, isNumber, change }: FieldProps) => (
  <div>
    <label for={id}>{label}</label>
    <input
      id={id}
      name={name}
      {...({ type, list: list && `${id}-list` } as { type: "text" })}
      value={value}
      placeholder={hint}
      inputMode={isNumber ? "decimal" : undefined}
      autocomplete="off"
      autocapitalize="none"
      spellcheck={false}
      aria-invalid={fault === "" ? undefined : "true"}
      aria-describedby={help === undefined ? `${id}-fault` : `${id}-fault ${id}-help`}
      onInput={({ currentTarget }) => change(currentTarget.value.trim())}
    />
    {list && (
      <datalist id={`${id}-list`}>
        {list.map((one) => (
          <option key={one} value={one} />
        ))}
      </datalist>
    )}
    {help !== undefined && (
      <p id={`${id}-help`} class="help">
        {help}
      </p>
    )}
    <p id={`${id}-fault`} class="fault" role="status">
      {fault}
    </p>
  </div>
);

interface SegmentsProps {
  readonly label: string;
  readonly name: string;
  readonly value: string;
  readonly choices: readonly (readonly [value: string, label: string])[];
  readonly choose: (value: string) => void;
}

/** Radio buttons side by side. */
export const Segments = ({ label, name, value, choices, choose }: SegmentsProps) => (
  <div class="segments" role="radiogroup" aria-label={label}>
    {choices.map(([one, text]) => (
      <label key={one}>
        <input type="radio" name={name} value={one} checked={one === value} onChange={() => choose(one)} />
        <span>{text}</span>
      </label>
    ))}
  </div>
);
