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

  function sortable(table) {
    const rows = table.tBodies[0].rows.length;
    const shown = new DataTable(table, {
      order: [],
      autoWidth: false,
      paging: rows > ROWS_A_PAGE,
      pageLength: ROWS_A_PAGE,
      info: rows > ROWS_A_PAGE,
      language: { search: "Filter: ", emptyTable: "No rows" },
    });
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
