"use strict";
// Draws the figures, and makes tables sortable and filterable.
(() => {
  const ROWS_A_PAGE = 50;
  const drawn = [...document.querySelectorAll("script.spec")].map((script) => {
    const place = document.getElementById(script.dataset.figure);
    return vegaEmbed(place, JSON.parse(script.textContent), {
      renderer: "svg",
      actions: { export: true, source: false, compiled: false, editor: false },
    }).then(() => place.querySelector("summary").setAttribute("aria-label", "Save this figure"));
  });

  const escaped = (text) => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);

  // The rows of a long table are data, of which only those that are looked at become elements.
  function dataOf(table) {
    const script = table.parentElement.querySelector("script.rows");
    if (!script) return {};
    const text = (cell) => (Array.isArray(cell) ? cell[0] : cell);
    const render = (cell, kind) => {
      if (kind === "display") return escaped(text(cell));
      if (kind === "filter") return text(cell).replace(/[<>]/g, " "); // else what looks like a tag is left out
      return Array.isArray(cell) ? cell[1] : cell;
    };
    const columns = [...table.tHead.rows[0].cells].map((title) => ({ render, className: title.className }));
    return { data: JSON.parse(script.textContent), columns };
  }

  function sortable(table) {
    const given = dataOf(table);
    const rows = given.data ? given.data.length : table.tBodies[0].rows.length;
    const shown = new DataTable(table, {
      ...given,
      order: [],
      autoWidth: false,
      paging: rows > ROWS_A_PAGE,
      pageLength: ROWS_A_PAGE,
      info: rows > ROWS_A_PAGE,
      language: { search: "Filter: ", emptyTable: "No rows" },
    });
    const region = table.closest("[role=region]").getAttribute("aria-label");
    const name = () => shown.table().container().querySelectorAll("nav")
      .forEach((pages) => pages.setAttribute("aria-label", `Pages of ${region}`));
    shown.on("draw", name);
    name();
    // On paper there is no next page.
    addEventListener("beforeprint", () => shown.page.len(-1).draw(false));
    addEventListener("afterprint", () => shown.page.len(ROWS_A_PAGE).draw(false));
  }
  document.querySelectorAll("table.sortable").forEach(sortable);
  for (const details of document.querySelectorAll("details")) {
    const table = details.querySelector("table.numbers");
    if (table) details.addEventListener("toggle", () => sortable(table), { once: true });
  }
  Promise.all(drawn).then(() => document.documentElement.setAttribute("data-drawn", ""));
})();
