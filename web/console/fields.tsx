/** Fields of forms: a text with its fault, and radio buttons side by side. */

interface FieldProps {
  /** Unique on the page. */
  readonly id: string;
  readonly name: string;
  readonly label: string;
  readonly hint: string;
  readonly value: string;
  readonly fault: string;
  readonly isNumber?: boolean;
  readonly change: (value: string) => void;
}

export const Field = ({ id, name, label, hint, value, fault, isNumber = false, change }: FieldProps) => (
  <div>
    <label for={id}>{label}</label>
    <input
      id={id}
      name={name}
      value={value}
      placeholder={hint}
      inputMode={isNumber ? "decimal" : undefined}
      autocomplete="off"
      autocapitalize="none"
      spellcheck={false}
      aria-invalid={fault === "" ? undefined : "true"}
      aria-describedby={`${id}-fault`}
      onInput={({ currentTarget }) => change(currentTarget.value.trim())}
    />
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
