// Sorts tables; filters, sorts, pairs and enlarges the pictures of the gallery. Without this script everything is there in
// the order of the file.
(() => {
  "use strict";
  // A click on a column of numbers sorts by it, the highest first, the next click the other way round.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
    Array.from(heads).forEach((head, column) => {
      if (column && !head.classList.contains("number")) return;
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falling = column ? head.ariaSort !== "descending" : head.ariaSort === "ascending";
        for (const other of heads) other.ariaSort = null;
        head.ariaSort = falling ? "descending" : "ascending";
        const cell = (body) => body.rows[0].cells[column];
        const value = (body) => cell(body).dataset.value === undefined ? NaN : Number(cell(body).dataset.value);
        const compare = (a, b) => {
          if (!column) return cell(a).textContent.localeCompare(cell(b).textContent);
          // What has no number is last, whichever way.
          const missing = isNaN(value(a)) - isNaN(value(b));
          return missing ? (falling ? -missing : missing) : value(a) - value(b) || 0;
        };
        table.append(...Array.from(table.tBodies).sort((a, b) => (falling ? -1 : 1) * compare(a, b)));
      });
    });
  }

  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const figures = Array.from(gallery.children);
  const find = (id) => document.getElementById(id);
  const [result, beside, name, order] = ["by-result", "beside", "by-class", "by-order"].map(find);
  const controls = find("with-controls");
  const status = find("count");
  const number = (figure, key) => Number(figure.dataset[key]);
  const orders = {
    worst: (a, b) => number(a, "iou") - number(b, "iou"),
    best: (a, b) => number(b, "iou") - number(a, "iou"),
    number: (a, b) => a.dataset.episode.localeCompare(b.dataset.episode, "en", { numeric: true }) ||
      a.dataset.result.localeCompare(b.dataset.result),
  };
  // Of each episode that both results show, the two figures.
  const pairs = () => {
    const of = (value) => figures.filter((f) => f.dataset.result === value);
    const others = new Map(of(beside.value).map((f) => [f.dataset.episode, f]));
    return of(result.value).filter((f) => others.has(f.dataset.episode)).map((f) => [f, others.get(f.dataset.episode)]);
  };
  const difference = ([a, b]) => Math.abs(number(a, "iou") - number(b, "iou"));
  const update = () => {
    const ofClass = (f) => name.value === "" || JSON.parse(f.dataset.classes).includes(name.value);
    const paired = result.value !== "" && beside.value !== "" && result.value !== beside.value;
    const chosen = paired
      ? pairs().filter(([f]) => ofClass(f)).sort(order.value === "difference"
        ? (a, b) => difference(b) - difference(a) : ([a], [b]) => orders[order.value](a, b)).flat()
      : figures.filter((f) => ofClass(f) && (result.value === "" ? controls?.checked || f.dataset.control === "0"
        : f.dataset.result === result.value)).sort(orders[order.value] ?? orders.worst);
    for (const figure of figures) figure.hidden = true;
    for (const figure of chosen) figure.hidden = false;
    gallery.append(...chosen);
    gallery.classList.toggle("paired", paired);
    // A printed page has the first ones.
    chosen.forEach((figure, place) => figure.classList.toggle("unprinted", place >= 12));
    status.textContent = paired
      ? `${chosen.length / 2} episodes that both results show, ${result.value} first`
      : `${chosen.length} of ${figures.length} episodes` + (beside.value === "" ? "" : "; choose a result to lay the other beside");
  };

  // The filters are in the address, so that a link shows the same episodes.
  const keys = { result, beside, class: name, order };
  const read = () => {
    const asked = new URLSearchParams(location.search);
    for (const [key, select] of Object.entries(keys)) {
      select.value = asked.get(key) ?? select.options[0].value;
      if (select.selectedIndex < 0) select.selectedIndex = 0;
    }
    if (controls) controls.checked = asked.has("controls");
  };
  const write = () => {
    const asked = new URLSearchParams();
    for (const [key, select] of Object.entries(keys)) if (select.selectedIndex > 0) asked.set(key, select.value);
    if (controls?.checked) asked.set("controls", "1");
    const search = asked.toString();
    try {
      history.replaceState(null, "", location.pathname + (search && `?${search}`) + location.hash);
    } catch { /* a page without an address of its own, as in a frame */ }
  };
  for (const control of [...Object.values(keys), controls].filter(Boolean)) {
    control.addEventListener("change", () => { update(); write(); });
  }

  const dialog = find("enlarged");
  const enlarge = (figure) => {
    const place = dialog.querySelector("div");
    const shown = gallery.classList.contains("paired")
      ? figures.filter((f) => !f.hidden && f.dataset.episode === figure.dataset.episode) : [figure];
    if (shown.length > 1 && shown[0].dataset.result !== result.value) shown.reverse();
    place.replaceChildren(...shown.map((f) => f.cloneNode(true)));
    dialog.showModal();
  };
  gallery.addEventListener("click", (event) => { if (event.target.matches("img")) enlarge(event.target.closest("figure")); });
  gallery.addEventListener("keydown", (event) => {
    if (!event.target.matches("img") || !["Enter", " "].includes(event.key)) return;
    event.preventDefault();
    enlarge(event.target.closest("figure"));
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog || event.target.matches("img")) dialog.close(); });
  find("controls").hidden = false;
  read();
  update();
})();
