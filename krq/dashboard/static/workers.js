// Workers: who is alive and busy with what, and who has died.

import { ago, bar, card, empty, get, h, number, since, swap, table, taskLink } from "./dom.js";

export default function workers() {
  const alive = h("div"),
    deaths = h("div");
  const node = h("div", { class: "view" }, h("h1", null, "Workers"), card("Alive", alive), card("Deaths", deaths));
  let shown = "";

  const view = {
    node,
    ready: false,
    async load() {
      const found = await get("workers"),
        state = JSON.stringify(found);
      view.ready = true;
      if (state === shown) return;
      shown = state;
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
              [["When"], ["Worker"], ["Host"], ["Cause"], ["Last beat", "n"], ["Held", "n"], ["Was running"]],
              found.failures.map((one) => ({
                key: `${one.incarnation}${one.at}`,
                cells: [
                  ago(one.at),
                  h("span", { title: one.incarnation }, one.worker),
                  one.host || "–",
                  h("span", { class: "badge failed" }, one.cause || "?"),
                  ago(one.beat),
                  number(one.held),
                  one.ran.length ? one.ran.slice(0, 5).map((id) => [taskLink(id), " "]) : "–",
                ],
              })),
              "Deaths",
            )
          : empty("No worker has died", "Those that stop when they are told to are not deaths."),
      );
    },
  };
  return view;
}
