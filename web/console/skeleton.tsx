/** In place of what is not known yet. It takes about the room of what it stands for, so that nothing jumps. */
export const Skeleton = ({ words = false, rows = 8 }: { readonly words?: boolean; readonly rows?: number }) =>
  words ? (
    <span class="skeleton words" role="img" aria-label="Loading" />
  ) : (
    <div class="skeleton" role="img" aria-label="Loading">
      {Array.from({ length: rows }, (_, row) => (
        <span key={row} />
      ))}
    </div>
  );
