// Queues: numbers of each, pause and resume.

import { ask, bar, card, empty, h, link, number, short, swap, table } from "./dom.js";

export default function queues(page) {
  const list = h("div"),
    node = h("div", { class: "view" }, h("h1", null, "Queues"), card(null, list));
  let shown = "";

  async function turn(queue) {
    if (queue.paused) await page.act("queues/resume", { name: queue.queue }, `${queue.queue} goes on`);
    else if (await ask(`Pause ${queue.queue}? Workers take nothing more of it; what runs goes on.`, "Pause", false))
      await page.act("queues/pause", { name: queue.queue }, `${queue.queue} is paused`);
  }

  function update(look) {
    const state = JSON.stringify(look.queues);
    if (state === shown) return;
    shown = state;
    const most = Math.max(1, ...look.queues.map((queue) => queue.ready));
    swap(
      list,
      look.queues.length
        ? table(
            [
              ["Queue"],
              ["Ready"],
              ["Parked", "n"],
              ["Backlog", "n"],
              ["Scheduled", "n"],
              ["Per second", "n"],
              ["Succeeded", "n"],
              ["Failed", "n"],
              ["Cancelled", "n"],
              ["Retried", "n"],
              ["Handed back", "n"],
              ["", "n"],
            ],
            look.queues.map((queue) => ({
              key: queue.queue,
              cells: [
                [
                  h("a", { href: `#/tasks?queue=${encodeURIComponent(queue.queue)}`, "data-key": `queue-${queue.queue}` }, queue.queue),
                  " ",
                  queue.paused ? h("span", { class: "badge cancelled" }, "paused") : null,
                ],
                [bar(queue.ready / most, "queued"), " ", number(queue.ready)],
                h("span", { title: "Ready, but for a limit of their task" }, number(queue.parked)),
                number(queue.backlog),
                number(queue.scheduled),
                h("span", { title: queue.rates.map((rate, i) => `${[1, 5, 15][i]} min: ${short(rate)}`).join(" · ") }, short(queue.rates[0])),
                number(queue.succeeded),
                queue.failed ? link("tasks", { status: "failed", queue: queue.queue }, number(queue.failed)) : "0",
                number(queue.cancelled),
                number(queue.retried),
                h("span", { title: "Attempts that had not ended when their worker left" }, number(queue.handed_back)),
                h(
                  "button",
                  { type: "button", class: "small", "data-key": `turn-${queue.queue}`, onclick: () => turn(queue) },
                  queue.paused ? "Resume" : "Pause",
                ),
              ],
            })),
            "Queues",
          )
        : empty("No queue yet", "It comes with the first task or worker."),
    );
  }
  return { node, update };
}
