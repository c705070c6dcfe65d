"use strict";
// Sorting and filtering. Without this script every row is there, in the paper's order, and its runs open.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const cells = (row) => all("th, td", row.rows ? row.rows[0] : row).map((cell) => cell.textContent.trim());

// What a cell is sorted by; null for "not run" and the like, which come last in both directions.
function key(text, numeric) {
  if (!numeric) return text === "" || text === "not run" ? null : text;
  const found = text.match(/[+-]?\d+(\.\d+)?/);
  return found && Number(found[0]);
}

// sign: 1 up, -1 down, 0 as printed.
function sort(rows, column, numeric, sign) {
  const keyed = rows.map((row) => [key(cells(row)[column], numeric), row]);
  const compared = (a, b) => (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
  if (sign) {
    keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compared(a, b)));
  }
  keyed.forEach(([, row]) => row.parentNode.append(row));
}

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
const SIGN = { none: 0, ascending: 1, descending: -1 };
for (const table of all("table.sortable")) {
  const rows = all("[data-row]", table);
  const heads = all("thead th", table);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = NEXT[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      sort(rows, column, head.classList.contains("n"), SIGN[order]);
    });
  });
}

const field = document.getElementById("filter");
const filtered = all("#filtered table").map((table) => ({
  shown: table.querySelector(".shown"),
  rows: all("[data-row]", table).map((row) => [row, cells(row).join(" ").toLowerCase()]),
}));

function filter() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  let total = 0;
  for (const { shown, rows } of filtered) {
    let here = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      here += !row.hidden;
    }
    shown.textContent = words.length ? here + " of " + rows.length + " rows" : "";
    count += here;
    total += rows.length;
  }
  document.getElementById("count").textContent = count + " of " + total + " rows";
}
field.addEventListener("input", filter);
document.querySelector(".tools").hidden = false;
filter();

// A browser without ::details-content prints what is folded as folded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = all("details:not([open])");
  folded.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));
