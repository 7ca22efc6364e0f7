// All numbers at a glance: totals, three charts, queues, workers, what failed last.

import { ago, badge, bar, card, empty, h, link, number, short, span, swap, table, taskLink } from "./dom.js";
import { chart } from "./charts.js";

const RATE = (value) => `${short(value)}/s`;

export default function overview(page) {
  const tiles = h("div", { class: "tiles" });
  const charts = [
    chart(
      "Throughput",
      [
        { name: "succeeded", kind: "success", of: (point) => point[3], area: true },
        { name: "failed", kind: "failed", of: (point) => point[4] },
      ],
      RATE,
    ),
    chart("Tasks", [
      { name: "ready", kind: "queued", of: (point) => point[5], area: true },
      { name: "processing", kind: "processing", of: (point) => point[6] },
      { name: "scheduled", kind: "scheduled", of: (point) => point[7] },
    ]),
    chart(
      "Latency, median",
      [
        { name: "waits", kind: "waiting", of: (point) => point[10], area: true },
        { name: "runs", kind: "processing", of: (point) => point[9] },
      ],
      span,
    ),
  ];
  const queues = h("div"),
    workers = h("div"),
    failed = h("div");
  const node = h(
    "div",
    { class: "view" },
    h("h1", { class: "hidden" }, "Overview"),
    tiles,
    h(
      "div",
      { class: "charts" },
      charts.map((one) => one.node),
    ),
    h("div", { class: "halves" }, card([link("queues", {}, "Queues")], queues), card([link("workers", {}, "Workers")], workers)),
    card([link("tasks", { status: "failed" }, "Failed last")], failed),
  );

  const tile = (title, value, hint, kind, to) =>
    link(
      to[0],
      to[1],
      h("span", { class: `tile ${kind}` }, h("small", null, title), h("b", { "data-number": title }, value), h("em", null, hint)),
    );

  function update(look) {
    const { totals, rates, latency } = look;
    swap(
      tiles,
      tile("per second", short(rates[0]), `5 min ${short(rates[1])} · 15 min ${short(rates[2])}`, "success", [
        "tasks",
        { status: "success" },
      ]),
      tile("ready", number(totals.ready), totals.backlog > 0 ? `and ${number(totals.backlog)} in the log` : "wait for a worker", "queued", [
        "tasks",
        { status: "queued" },
      ]),
      tile("processing", number(totals.processing), `${number(totals.slots)} slots`, "processing", ["tasks", { status: "processing" }]),
      tile(
        "scheduled",
        number(totals.scheduled),
        totals.waiting ? `${number(totals.waiting)} wait for others` : "wait for their time",
        "scheduled",
        ["tasks", { status: "scheduled" }],
      ),
      tile(
        "succeeded",
        number(totals.succeeded),
        latency.run === null ? "" : `take ${span(latency.run)}, 95 %: ${span(latency.run95)}`,
        "success",
        ["tasks", { status: "success" }],
      ),
      tile(
        "failed",
        number(totals.failed),
        `${number(totals.retried)} retried · ${number(totals.dead)} dead`,
        totals.failed ? "failed" : "",
        ["tasks", { status: "failed" }],
      ),
    );
    charts.forEach((one) => one.draw(page.points));
    swap(
      queues,
      look.queues.length
        ? table(
            [["Queue"], ["Ready", "n"], ["Scheduled", "n"], ["Succeeded", "n"], ["Failed", "n"]],
            look.queues
              .slice(0, 8)
              .map((queue) => ({
                key: queue.queue,
                cells: [
                  [
                    h("a", { href: `#/tasks?queue=${encodeURIComponent(queue.queue)}`, "data-key": `queue-${queue.queue}` }, queue.queue),
                    queue.paused ? h("span", { class: "badge cancelled" }, "paused") : null,
                  ],
                  number(queue.ready),
                  number(queue.scheduled),
                  number(queue.succeeded),
                  number(queue.failed),
                ],
              })),
            "Queues",
          )
        : empty("No queue yet", "It comes with the first task or worker."),
    );
    swap(
      workers,
      look.workers.length
        ? table(
            [["Worker"], ["Busy"], ["Done", "n"], ["Beat", "n"]],
            look.workers
              .slice(0, 8)
              .map((worker) => ({
                key: worker.incarnation,
                cells: [
                  h("span", { class: "cut", title: worker.incarnation }, worker.id),
                  [bar(worker.slots ? worker.busy / worker.slots : 0), ` ${worker.busy}/${worker.slots}`],
                  number(worker.succeeded + worker.failed),
                  ago(worker.beat),
                ],
              })),
            "Workers",
          )
        : empty("No worker is alive", "Start one: krq worker APP"),
    );
    swap(
      failed,
      look.failed.length
        ? table(
            [["Task"], ["Id", "bare"], ["Error", "bare"], ["When", "n bare"]],
            look.failed.map((one) => ({
              key: one.id,
              cells: [
                [badge(one.status), " ", one.name],
                taskLink(one.id),
                h("span", { class: "cut wide" }, one.error ? `${one.error.type}: ${one.error.message}` : ""),
                ago(one.finished),
              ],
            })),
            "Failed last",
          )
        : empty("Nothing has failed", ""),
    );
  }
  return { node, update, close: () => charts.forEach((one) => one.close()) };
}
