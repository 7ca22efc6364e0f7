// Workers: who is alive and busy with what, and who has died.

import { ago, asking, bar, card, empty, get, h, number, since, swap, table, taskLink } from "./dom.js";

export default function workers() {
  const alive = h("div"),
    deaths = h("div");
  const node = h("div", { class: "view" }, h("h1", null, "Workers"), card("Alive", alive), card("Deaths", deaths));
  const open = new Set();

  const death = (one) => `${one.incarnation} ${one.at}`;
  /** The last lines of a dead worker's log. */
  const tail = (one) =>
    one.tail.length
      ? h(
          "details",
          {
            open: open.has(death(one)),
            ontoggle: (event) => {
              if (event.target.open) open.add(death(one));
              else open.delete(death(one));
            },
          },
          h("summary", { "data-key": `log-${death(one)}` }, `${one.tail.length} ${one.tail.length === 1 ? "line" : "lines"}`),
          h("pre", { class: "log" }, one.tail.join("\n")),
        )
      : "–";

  return asking(
    node,
    () => get("workers"),
    (found) => {
      swap(
        alive,
        found.workers.length
          ? table(
              [
                ["Worker"],
                ["Host"],
                ["Process", "n"],
                ["Busy"],
                ["Succeeded", "n"],
                ["Failed", "n"],
                ["Retried", "n"],
                ["Up", "n"],
                ["Beat", "n"],
                ["Queues"],
                ["Version"],
              ],
              found.workers.map((one) => ({
                key: one.incarnation,
                cells: [
                  h(
                    "a",
                    {
                      href: `#/tasks?${new URLSearchParams({ worker: one.id })}`,
                      "data-key": `worker-${one.incarnation}`,
                      title: one.incarnation,
                    },
                    one.id,
                  ),
                  one.host,
                  String(one.pid),
                  [bar(one.slots ? one.busy / one.slots : 0, "processing"), ` ${one.busy}/${one.slots}`],
                  number(one.succeeded),
                  number(one.failed),
                  number(one.retried),
                  one.started ? since(one.started) : "–",
                  ago(one.beat),
                  one.queues.filter(Boolean).join(", "),
                  one.version,
                ],
              })),
              "Alive",
            )
          : empty("No worker is alive", "Start one: krq worker APP"),
      );
      swap(
        deaths,
        found.failures.length
          ? table(
              [["When"], ["Worker"], ["Host"], ["Cause"], ["Last beat", "n"], ["Held", "n"], ["Was running"], ["Log"]],
              found.failures.map((one) => ({
                key: death(one),
                cells: [
                  ago(one.at),
                  h("span", { title: one.incarnation }, one.worker),
                  one.host || "–",
                  h("span", { class: "badge failed" }, one.cause || "?"),
                  ago(one.beat),
                  number(one.held),
                  one.ran.length ? one.ran.slice(0, 5).map((id) => [taskLink(id), " "]) : "–",
                  tail(one),
                ],
              })),
              "Deaths",
            )
          : empty("No worker has died", "Those that stop when they are told to are not deaths."),
      );
    },
  );
}
