// Workflows: those under way, and one of them as a graph.

import { ago, asking, badge, card, empty, get, h, link, number, search, swap, table, taskLink } from "./dom.js";
import { picture } from "./layers.js";

const open = (id, ...children) => h("a", { href: `#/workflows/${encodeURIComponent(id)}`, "data-key": `flow-${id}` }, ...children);

export function workflows(page) {
  const list = h("div");
  const find = search("Id of any task in it …", "Draw", "workflows", page);
  const node = h("div", { class: "view" }, h("div", { class: "row between" }, h("h1", null, "Workflows"), find), card(null, list));
  return asking(
    node,
    () => get("workflows"),
    ({ workflows: found }) => {
      swap(
        list,
        found.length
          ? table(
              [["Ends with"], ["Tasks seen", "n"], ["State"], ["Made of"], ["Sent", "n"]],
              found.map((one) => ({
                key: one.id,
                cells: [
                  open(one.id, one.name || one.id),
                  number(one.n),
                  Object.entries(one.counts).map(([state, n]) => [h("span", { class: `badge ${state}` }, `${n} ${state}`), " "]),
                  one.names.join(", "),
                  ago(one.sent),
                ],
              })),
              "Workflows",
            )
          : empty(
              "No workflow is under way",
              "Those that wait or have failed are listed. One that has succeeded is found by the id of a task in it.",
            ),
      );
    },
  );
}

export function workflow(page, id) {
  const node = h("div", { class: "view" });
  return asking(
    node,
    () => get("workflow", { id }),
    (found) => {
      const counts = {};
      for (const one of found.nodes) counts[one.status || "unknown"] = (counts[one.status || "unknown"] || 0) + 1;
      swap(
        node,
        h(
          "div",
          { class: "row between head" },
          h(
            "div",
            null,
            h("p", { class: "crumbs" }, link("workflows", {}, "Workflows"), " / ", h("code", null, id)),
            h(
              "h1",
              null,
              `${number(found.nodes.length)} tasks `,
              Object.entries(counts).map(([state, n]) => [h("span", { class: `badge ${state}` }, `${n} ${state}`), " "]),
            ),
          ),
        ),
        found.cut ? h("p", { class: "note" }, "It is larger than one picture: this is what stands nearest.") : null,
        card(null, picture(found)),
        card(
          "Tasks",
          h(
            "ul",
            { class: "list" },
            found.nodes
              .slice(0, 100)
              .map((one) =>
                h(
                  "li",
                  null,
                  badge(one.status),
                  " ",
                  taskLink(one.id, one.name || "not published", `node-${one.id}`),
                  " ",
                  taskLink(one.id),
                ),
              ),
          ),
        ),
      );
    },
  );
}
