/** What to do first, while there is no channel. */
export const Welcome = () => (
  <section class="welcome">
    <h2>Nothing here yet</h2>
    <p>A channel is created by its first event or its first device. Three steps show what PERE does:</p>
    <ol>
      <li>
        <a href="weblistener.html?channel=orders" target="_blank" rel="noreferrer">
          Open a device
        </a>{" "}
        in another tab; it follows the channel <code>orders</code>.
      </li>
      <li>
        <a href="#/orders/push">Push an event</a> to it.
      </li>
      <li>
        Press <em>Done</em> there and look at the <a href="#/orders">board</a> here.
      </li>
    </ol>
  </section>
);
