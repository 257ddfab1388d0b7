/** The console: what publishers and operators see. */
import { render } from "preact";

render(<h1>PERE</h1>, document.body);
