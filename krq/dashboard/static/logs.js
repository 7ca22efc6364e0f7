// What a task has logged and printed: text alone, the newest at the end, in view while nobody scrolls up.

import { card, clock, get, h } from "./dom.js";

const LEVELS = { WARNING: "warning", ERROR: "bad", CRITICAL: "bad" };

const line = (one) =>
  h(
    "li",
    { class: one.stream === "krq" ? "missing" : null },
    h("time", { title: clock(one.at) }, clock(one.at).slice(11)),
    h("b", { class: LEVELS[one.level] || null, title: one.logger || null }, one.level || one.stream),
    h("span", null, one.text),
  );

export default function logs(id) {
  const list = h("ol", { class: "lines", tabindex: 0, "aria-label": "Lines" });
  const more = h("p", { class: "quiet", hidden: true }, "Older lines are not shown here: ", h("code", null, `krq logs ${id}`));
  const node = h("div", { hidden: true }, card("What it logged and printed", more, list));
  let shown = "";

  return {
    node,
    async load() {
      const found = await get("logs", { id }),
        state = JSON.stringify(found);
      if (state === shown) return;
      shown = state;
      const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 24;
      let attempt = 1;
      list.replaceChildren(
        ...found.lines.flatMap((one) => {
          const turn = one.attempt !== attempt ? [h("li", { class: "turn" }, `Attempt ${one.attempt} on ${one.worker}`)] : [];
          attempt = one.attempt;
          return [...turn, line(one)];
        }),
      );
      node.hidden = !found.lines.length;
      more.hidden = !found.cut;
      if (atEnd) list.scrollTop = list.scrollHeight;
    },
  };
}
