// Schedules: what is sent at which times, pause, resume, send now.

import { ago, asking, card, empty, get, h, swap, table, taskLink } from "./dom.js";

export default function schedules(page) {
  const list = h("div"),
    node = h("div", { class: "view" }, h("h1", null, "Schedules"), card(null, list));
  const act = (what, name, said) => page.act(`schedules/${what}`, { name }, said);
  return asking(
    node,
    () => get("schedules"),
    ({ schedules: found }) => {
      swap(
        list,
        found.length
          ? table(
              [["Name"], ["Task"], ["When"], ["Next", "n"], ["Last", "n"], ["From"], ["", "n"]],
              found.map((one) => ({
                key: one.name,
                cells: [
                  [h("b", null, one.name), " ", one.paused ? h("span", { class: "badge cancelled" }, "paused") : null],
                  one.task,
                  [h("code", null, one.when), one.tz ? h("span", { class: "quiet" }, ` ${one.tz}`) : null],
                  ago(one.next),
                  one.last_id ? h("span", null, ago(one.last), " ", taskLink(one.last_id)) : ago(one.last),
                  one.source,
                  h(
                    "span",
                    { class: "row end" },
                    h(
                      "button",
                      {
                        type: "button",
                        class: "small",
                        "data-key": `fire-${one.name}`,
                        onclick: () => act("fire", one.name, `${one.task} was sent`),
                      },
                      "Send now",
                    ),
                    h(
                      "button",
                      {
                        type: "button",
                        class: "small",
                        "data-key": `turn-${one.name}`,
                        onclick: () =>
                          act(one.paused ? "resume" : "pause", one.name, one.paused ? `${one.name} goes on` : `${one.name} is paused`),
                      },
                      one.paused ? "Resume" : "Pause",
                    ),
                  ),
                ],
              })),
              "Schedules",
            )
          : empty("There are no schedules", '@app.task(cron="0 3 * * *"), or app.schedule(…)'),
      );
    },
  );
}
