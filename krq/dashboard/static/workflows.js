// Workflows: those under way, and one of them as a graph.

import { ago, badge, card, empty, get, h, link, number, swap, table, taskLink } from "./dom.js";
import { picture } from "./layers.js";

const open = (id, ...children) => h("a", { href: `#/workflows/${encodeURIComponent(id)}`, "data-key": `flow-${id}` }, ...children);

export function workflows(page) {
  const list = h("div");
  const find = h(
    "form",
    {
      role: "search",
      class: "row",
      onsubmit: (event) => {
        event.preventDefault();
        const id = event.target.find.value.trim();
        if (id) page.go(`/workflows/${encodeURIComponent(id)}`);
      },
    },
    h("input", { name: "find", type: "search", placeholder: "Id of any task in it …", "aria-label": "Task id", maxlength: 128 }),
    h("button", null, "Draw"),
  );
  const node = h("div", { class: "view" }, h("div", { class: "row between" }, h("h1", null, "Workflows"), find), card(null, list));
  let shown = "";
  const view = {
    node,
    ready: false,
    async load() {
      const { workflows: found } = await get("workflows"),
        state = JSON.stringify(found);
      view.ready = true;
      if (state === shown) return;
      shown = state;
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
  };
  return view;
}

export function workflow(page, id) {
  const node = h("div", { class: "view" });
  let shown = "";
  const view = {
    node,
    ready: false,
    async load() {
      const found = await get("workflow", { id }),
        state = JSON.stringify(found);
      view.ready = true;
      if (state === shown) return;
      shown = state;
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
  };
  return view;
}
