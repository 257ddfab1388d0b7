/**
 * `clients/pere.sh` where an event comes again, or is taken back: status 75, attempts and rounds, and commands whose event is withdrawn while they run.
 * With every shell that is installed here.
 */
import { expect } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ask, push, temporary, until } from "./support/harness.ts";
import { cleanup, Device, isDone, rowOf, service, SHELLS, shellTest } from "./support/shell.ts";

const withdraw = (url: string, id: string, note = "") =>
  ask(`${url}/events/orders/${id}${note && `?note=${encodeURIComponent(note)}`}`, { method: "DELETE" });

const statusIs = (url: string, id: string, status: string, device: Device): Promise<unknown> =>
  until(
    async () => (await rowOf(url, id)).status === status,
    () => `${status}; ${device.complained}`,
  );

const end = async (device: Device): Promise<void> => {
  device.child.kill("SIGTERM");
  await device.ended();
};

shellTest(
  "status 75 defers: the event comes again, with its round, after the time that the last line says",
  async () => {
    const { url } = await service();
    for (const shell of SHELLS) {
      const device = new Device(
        [
          url,
          "orders",
          "till-7",
          `echo "$PERE_ROUND" >>"$PERE_STATE/rounds"
case $(cat) in
*later*) [ "$PERE_ROUND" = 3 ] && { echo "round $PERE_ROUND"; exit; }; echo '{"paper":"out"}'; echo PERE_AFTER=1; exit 75 ;;
*wrong*) echo "no paper" >&2; printf 'PERE_AFTER=0'; exit 75 ;;
*never*) echo 'in vain' >&2; echo PERE_RETRY=no; exit 3 ;;
*soon*) echo "try $PERE_ROUND"; echo PERE_AFTER=1; exit 3 ;;
esac`,
        ],
        {},
        shell,
      );
      const later = await push(url, "orders", "later");
      await statusIs(url, later, "deferred", device);
      expect(await rowOf(url, later)).toMatchObject({ detail: { paper: "out" } });
      await isDone(url, await push(url, "orders", "other"));
      await isDone(url, later);
      expect(await rowOf(url, later)).toMatchObject({ detail: "round 3", round: 3, attempt: 0 });
      expect(readFileSync(join(device.state, "rounds"), "utf8")).toBe("1\n1\n2\n3\n");
      const wrong = await push(url, "orders", "wrong");
      await statusIs(url, wrong, "deferred", device);
      expect(await rowOf(url, wrong)).toMatchObject({ detail: "no paper" });
      expect(device.complained).toContain("PERE_AFTER must be whole seconds from 1 to 86400, not 0");
      const never = await push(url, "orders", "never", "?attempts=3");
      await statusIs(url, never, "failed", device);
      expect(await rowOf(url, never)).toMatchObject({ detail: "in vain", attempt: 1 });
      const soon = await push(url, "orders", "soon", "?attempts=2");
      await statusIs(url, soon, "failed", device);
      expect(await rowOf(url, soon)).toMatchObject({ detail: "try 2", attempt: 2, round: 2 });
      await withdraw(url, wrong);
      await end(device);
    }
  },
);

shellTest("a withdrawn event ends the command that runs with TERM, and nothing wrong is said", async () => {
  const { url } = await service();
  for (const shell of SHELLS) {
    const folder = temporary();
    const at = (name: string) => join(folder, name);
    const device = new Device(
      [
        url,
        "orders",
        "till-7",
        `case $(cat) in
*dies*) : >'${at("dies")}'; while :; do sleep 0.05; done ;;
*fails*) trap "echo 'cleaned up' >&2; exit 9" TERM; : >'${at("fails")}'; while :; do sleep 0.05; done ;;
*defers*) trap 'exit 75' TERM; : >'${at("defers")}'; while :; do sleep 0.05; done ;;
*saves*) trap 'echo saved; exit 0' TERM; : >'${at("saves")}'; while :; do sleep 0.05; done ;;
*waiting*) : >'${at("waiting")}' ;;
esac`,
      ],
      {},
      shell,
    );
    for (const what of ["dies", "fails", "defers", "saves"]) {
      const id = await push(url, "orders", what);
      const waiting = await push(url, "orders", "waiting");
      await until(
        () => existsSync(at(what)),
        () => `${what}: ${device.complained}`,
      );
      await withdraw(url, waiting);
      await withdraw(url, id, "printed twice");
      await isDone(url, await push(url, "orders", "next"));
      if (what === "saves") {
        await isDone(url, id);
        expect(await rowOf(url, id)).toMatchObject({ detail: "saved", late: true });
        expect(device.complained).toContain(`done of ${id} was recorded, but late: withdrawn`);
      } else expect([what, await rowOf(url, id)]).toMatchObject([what, { status: "withdrawn", detail: null }]);
      await device.complains(new RegExp(`an event was withdrawn: .*"withdrawn":"${id}".*printed twice`));
      expect((await rowOf(url, waiting)).status).toBe("withdrawn");
    }
    expect(existsSync(at("waiting"))).toBe(false);
    expect(device.complained).not.toMatch(/stays open|rejected|deferred/);
    await end(device);
  }
});

shellTest(
  "on long-polls too an event that is withdrawn ends its command, and one that waits is not begun",
  async () => {
    const { url, proxy } = await service();
    proxy.weather = ({ errand }) => (errand === "sse" ? "buffer" : "pass");
    for (const shell of SHELLS) {
      const folder = temporary();
      const work = `case $(cat) in
*long*) : >'${folder}/long'; while :; do sleep 0.05; done ;;
*waiting*) : >'${folder}/waiting' ;;
*later*) [ "$PERE_ROUND" = 2 ] || { echo PERE_AFTER=1; exit 75; } ;;
esac`;
      const device = new Device([proxy.url, "orders", "till-7", work], { PERE_FIRST_BYTE: "1" }, shell);
      await device.complains(/using long-polling/);
      const long = await push(url, "orders", "long");
      await until(() => existsSync(join(folder, "long")), "the command");
      const waiting = await push(url, "orders", "waiting");
      await withdraw(url, waiting);
      await withdraw(url, long);
      const later = await push(url, "orders", "later");
      await isDone(url, later);
      expect(await rowOf(url, later)).toMatchObject({ round: 2 });
      for (const id of [long, waiting]) expect((await rowOf(url, id)).status).toBe("withdrawn");
      expect(existsSync(join(folder, "waiting"))).toBe(false);
      expect(device.complained).not.toMatch(/stays open|rejected/);
      await end(device);
    }
  },
);

shellTest(
  "what the version before has written is read; a deferral is remembered, and taken back where it is rejected",
  async () => {
    const { url, proxy } = await service();
    const [done, later] = [await push(url, "orders", 1), await push(url, "orders", 2)];
    const state = temporary();
    writeFileSync(join(state, "handled"), `${done} done "before"\n`);
    const work = `echo "$PERE_ROUND" >>'${state}/rounds'; [ "$PERE_ROUND" = 2 ] || { echo PERE_AFTER=1; exit 75; }`;
    let rejects = true;
    proxy.weather = ({ errand, body }) => {
      if (errand !== "receipts" || !body.includes('"deferred"')) return "pass";
      if (!rejects) return "hold";
      const reason = "status: must be received, working, done or failed";
      const answer = `{"type":"urn:pere:refused","title":"Refused","status":422,"detail":"rejected","recorded":0,"duplicate":0,"rejected":[{"index":0,"event":"${later}","reason":"${reason}"}]}`;
      const head = `HTTP/1.1 422 No\r\nContent-Type: application/problem+json\r\nContent-Length: ${answer.length}\r\n\r\n`;
      return { bytes: head + answer, stays: false };
    };
    const first = new Device([proxy.url, "orders", "till-7", work], { PERE_STATE: state });
    await isDone(url, done);
    expect(await rowOf(url, done)).toMatchObject({ detail: "before" });
    await first.complains(/deferred of .* was rejected/);
    await until(() => readFileSync(join(state, "handled"), "utf8").endsWith(`${later} open null\n`), "a note of that");
    await end(first);
    // The event is owed again to a client that has no position; its receipt is held back, and the client killed.
    writeFileSync(join(state, "position"), "");
    rejects = false;
    const second = new Device([proxy.url, "orders", "till-7", work], { PERE_STATE: state });
    await until(
      () => readFileSync(join(state, "handled"), "utf8").endsWith(`${later} deferred:1 null\n`),
      "the deferral",
    );
    second.child.kill("SIGKILL");
    await second.ended();
    proxy.weather = () => "pass";
    const third = new Device([proxy.url, "orders", "till-7", work], { PERE_STATE: state });
    cleanup.push(() => end(third));
    await isDone(url, later);
    expect(readFileSync(join(state, "rounds"), "utf8")).toBe("1\n1\n2\n");
    expect(readFileSync(join(state, "handled"), "utf8")).toEndWith(`${later} done@2 null\n`);
  },
);
