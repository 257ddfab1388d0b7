/** Pages whose scripts are loaded when they are first shown, so that the first page comes sooner. */
import { useSignal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { Skeleton } from "./skeleton.tsx";

/** @param load imports the page @returns a component that loads it once, then renders it */
export function lazy<Props extends object>(load: () => Promise<ComponentType<Props>>): ComponentType<Props> {
  let Page: ComponentType<Props> | null = null;
  return function Lazy(props: Props) {
    const isHere = useSignal(Page !== null);
    const isLost = useSignal(false);
    useEffect(() => {
      if (isHere.peek()) return;
      load().then(
        (found) => {
          Page = found;
          isHere.value = true;
        },
        () => (isLost.value = true),
      );
    }, []);
    if (isHere.value && Page !== null) return <Page {...props} />;
    if (!isLost.value) return <Skeleton />;
    return (
      <p class="trouble" role="alert">
        This page could not be loaded. {/* Not every browser tries again to import what it could not. */}
        <button type="button" class="plain" onClick={() => location.reload()}>
          Try again
        </button>
      </p>
    );
  };
}
