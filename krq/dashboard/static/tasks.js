// Tasks: search by id, filter, page, act upon many.

import { ago, ask, badge, card, empty, filters, get, h, number, search, since, span, swap, table, taskLink } from "./dom.js";

const STATES = ["", "processing", "queued", "scheduled", "waiting", "success", "failed", "cancelled"];

export default function tasks(page, _id, query) {
  const list = h("div"),
    pager = h("div", { class: "row pager" }),
    chosen = new Set();
  const names = h("datalist", { id: "queues" });
  const before = [];
  let cursor = "",
    answer = null,
    shown = "";

  const { change, input } = filters(page, "tasks", query);
  const chips = h(
    "div",
    { class: "chips", role: "group", "aria-label": "Status" },
    STATES.map((state) =>
      h(
        "button",
        {
          type: "button",
          class: `chip ${state}`,
          "aria-pressed": String((query.status || "") === state),
          onclick: () => change({ status: state }),
        },
        state || "all",
      ),
    ),
  );
  const find = search("Task id …  ( / )", "Open", "tasks", page, { id: "find" });
  const actions = h("div", { class: "row actions", hidden: true });
  const node = h(
    "div",
    { class: "view" },
    h("div", { class: "row between" }, h("h1", null, "Tasks"), find),
    chips,
    h(
      "div",
      { class: "row filters" },
      input("name", "Name"),
      input("queue", "Queue", { list: "queues" }),
      input("worker", "Worker"),
      names,
      actions,
    ),
    card(null, list, pager),
  );

  const turn = (to, back) => {
    if (back) before.pop();
    else before.push(cursor);
    cursor = to;
    shown = "";
    chosen.clear();
    view.load().catch(page.report);
  };

  function times(one) {
    if (one.status === "processing") return ["runs ", since(one.started)];
    if (one.status === "scheduled") return ago(one.due);
    return ago(one.finished || one.sent);
  }
  function end(one) {
    if (one.error) return h("span", { class: "cut wide bad", title: one.error.message }, `${one.error.type}: ${one.error.message}`);
    if (one.progress) return `${number(one.progress[0])} of ${number(one.progress[1])}`;
    return h("code", { class: "cut wide" }, one.result || "");
  }

  function tell() {
    const able = (states) => answer.tasks.filter((one) => chosen.has(one.id) && states(one.status)).map((one) => one.id);
    const retry = able((status) => status === "failed" || status === "cancelled"),
      cancel = able((status) => !["success", "failed", "cancelled"].includes(status));
    actions.hidden = !chosen.size;
    swap(
      actions,
      `${chosen.size} chosen`,
      h(
        "button",
        {
          type: "button",
          class: "small",
          disabled: !retry.length,
          onclick: () => done(page.act("tasks/retry", { ids: retry }, (found) => `${found.done.length} sent again`)),
        },
        `Retry ${retry.length}`,
      ),
      h(
        "button",
        {
          type: "button",
          class: "small danger",
          disabled: !cancel.length,
          onclick: async () => {
            if (await ask(`Cancel ${cancel.length} tasks?`, "Cancel them"))
              done(page.act("tasks/cancel", { ids: cancel }, (found) => `${found.done.length} cancelled`));
          },
        },
        `Cancel ${cancel.length}`,
      ),
    );
  }
  const done = async (acting) => {
    if (await acting) {
      chosen.clear();
      shown = "";
      tell();
      await view.load();
    }
  };
  const choose = (ids, on) => {
    for (const id of ids) {
      if (on) chosen.add(id);
      else chosen.delete(id);
    }
    tell();
    draw();
  };

  function draw() {
    const all = answer.tasks.map((one) => one.id),
      some = all.filter((id) => chosen.has(id)).length;
    const every = h("input", {
      type: "checkbox",
      "aria-label": "All",
      "data-key": "all",
      checked: some > 0 && some === all.length,
      indeterminate: some > 0 && some < all.length,
      onchange: (event) => choose(all, event.target.checked),
    });
    swap(
      list,
      all.length
        ? table(
            [
              [every, "box"],
              ["Task", "bare"],
              ["Id", "bare"],
              ["Status", "bare"],
              ["Queue"],
              ["Attempt", "n"],
              ["When", "n bare"],
              ["Took", "n"],
              ["Result", "bare"],
            ],
            answer.tasks.map((one) => ({
              key: one.id,
              cells: [
                h("input", {
                  type: "checkbox",
                  "aria-label": `Choose ${one.id}`,
                  "data-key": `choose-${one.id}`,
                  checked: chosen.has(one.id),
                  onchange: (event) => choose([one.id], event.target.checked),
                }),
                taskLink(one.id, one.name || "?", `name-${one.id}`),
                taskLink(one.id),
                badge(one.status),
                one.queue,
                one.attempt || "",
                times(one),
                one.started && one.finished ? span(one.finished - one.started) : "",
                end(one),
              ],
            })),
            "Tasks",
          )
        : empty(
            answer.cursor ? `None among the first ${number(answer.looked)}` : "No such task",
            answer.cursor ? "There are more to look through." : "Nothing that Redis knows fits.",
          ),
    );
    swap(
      pager,
      h(
        "button",
        { type: "button", disabled: !before.length, onclick: () => turn(before[before.length - 1], true), "data-key": "back" },
        "← Back",
      ),
      h("span", { class: "quiet" }, `page ${before.length + 1}`),
      h(
        "button",
        { type: "button", disabled: !answer.cursor, onclick: () => turn(answer.cursor), "data-key": "next" },
        all.length ? "Next →" : "Search on →",
      ),
    );
  }

  const view = {
    node,
    ready: false,
    async load() {
      if (view.ready && before.length && shown) return; // later pages stand still
      const asked = cursor,
        found = await get("tasks", {
          status: query.status,
          name: query.name,
          queue: query.queue,
          worker: query.worker,
          cursor: asked,
          limit: 50,
        });
      if (asked !== cursor) return;
      const state = JSON.stringify(found);
      view.ready = true;
      if (state === shown) return;
      shown = state;
      answer = found;
      draw();
    },
    update(look) {
      swap(
        names,
        look.queues.map((queue) => h("option", { value: queue.queue })),
      );
    },
  };
  return view;
}
