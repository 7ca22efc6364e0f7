// Dead letters: what could not be run, and why; run many again.

import { ago, ask, card, clock, empty, filters, get, h, number, pretty, swap, taskLink } from "./dom.js";

export default function dead(page, _id, query) {
  const list = h("div"),
    pager = h("div", { class: "row pager" }),
    actions = h("div", { class: "row actions" });
  const chosen = new Set(),
    before = [],
    open = new Set();
  let from = null,
    letters = [],
    next = null,
    shown = "";
  const { input } = filters(page, "dead", query);
  const node = h(
    "div",
    { class: "view" },
    h("h1", null, "Dead letters"),
    h("div", { class: "row filters" }, input("name", "Task"), input("code", "Code of the error"), actions),
    card(null, list, pager),
  );

  const done = async (acting) => {
    if (await acting) {
      chosen.clear();
      shown = "";
      await view.load();
    }
  };
  function tell() {
    const refs = [...chosen],
      runnable = letters.filter((one) => chosen.has(one.ref) && one.id && one.partition < 0).map((one) => one.ref);
    swap(
      actions,
      h(
        "button",
        {
          type: "button",
          "data-key": "all",
          disabled: !letters.length,
          onclick: () => {
            const all = chosen.size < letters.length;
            chosen.clear();
            if (all) letters.forEach((one) => chosen.add(one.ref));
            shown = "";
            draw();
          },
        },
        letters.length && chosen.size === letters.length ? "Choose none" : "Choose all",
      ),
      h(
        "button",
        {
          type: "button",
          class: "primary",
          "data-key": "retry",
          disabled: !runnable.length,
          onclick: () => done(page.act("dead/retry", { ids: runnable }, (found) => `${found.done.length} sent again`)),
        },
        `Retry ${runnable.length || ""}`,
      ),
      h(
        "button",
        {
          type: "button",
          class: "danger",
          "data-key": "purge",
          disabled: !refs.length,
          onclick: async () => {
            if (await ask(`Forget ${refs.length} dead letters? The topic of dead letters keeps them.`, "Forget them"))
              done(page.act("dead/purge", { ids: refs }, (found) => `${found.done.length} forgotten`));
          },
        },
        `Forget ${refs.length || ""}`,
      ),
    );
  }

  function letter(one) {
    const details = h(
      "details",
      {
        open: open.has(one.ref),
        ontoggle: (event) => {
          if (event.target.open) open.add(one.ref);
          else open.delete(one.ref);
        },
      },
      h("summary", { "data-key": `more-${one.ref}` }, "Message", one.traceback ? " and traceback" : ""),
      one.arguments ? h("pre", null, pretty(one.arguments)) : h("pre", null, one.raw || "(empty)"),
      one.traceback ? h("pre", { class: "trace" }, one.traceback) : null,
    );
    return h(
      "li",
      { class: "letter" },
      h("input", {
        type: "checkbox",
        "aria-label": `Choose ${one.ref}`,
        "data-key": `choose-${one.ref}`,
        checked: chosen.has(one.ref),
        onchange: (event) => {
          if (event.target.checked) chosen.add(one.ref);
          else chosen.delete(one.ref);
          tell();
        },
      }),
      h(
        "div",
        null,
        h(
          "p",
          null,
          h("span", { class: "badge failed" }, one.code),
          " ",
          one.id ? taskLink(one.id, one.name || one.id, `letter-${one.ref}`) : h("b", null, one.name || "no task"),
          " ",
          h("span", { class: "quiet" }, one.queue, one.partition >= 0 ? ` · ${one.partition}/${one.offset}` : "", " · "),
          h("span", { title: clock(one.at) }, ago(one.at)),
        ),
        h("p", { class: "reason" }, one.reason),
        details,
      ),
    );
  }

  function draw() {
    swap(
      list,
      letters.length
        ? h("ul", { class: "list letters" }, letters.map(letter))
        : empty("There are no dead letters", "What cannot be run ends here, with the reason and the original bytes."),
    );
    const turn = (to) => {
      from = to;
      shown = "";
      chosen.clear();
      view.load().catch(page.report);
    };
    swap(
      pager,
      h("button", { type: "button", disabled: !before.length, "data-key": "back", onclick: () => turn(before.pop()) }, "← Newer"),
      h("span", { class: "quiet" }, `${number(letters.length)} shown`),
      h(
        "button",
        {
          type: "button",
          disabled: next === null,
          "data-key": "next",
          onclick: () => {
            before.push(from);
            turn(next);
          },
        },
        "Older →",
      ),
    );
    tell();
  }

  const view = {
    node,
    ready: false,
    async load() {
      const asked = from,
        found = await get("dead", { name: query.name, code: query.code, before: asked, limit: 50 }),
        state = JSON.stringify(found);
      view.ready = true;
      if (state === shown || asked !== from) return;
      shown = state;
      letters = found.letters;
      next = found.before;
      for (const ref of chosen) if (!letters.some((one) => one.ref === ref)) chosen.delete(ref);
      draw();
    },
  };
  return view;
}
