// The gallery: hides and sorts the figures of the page. Without this script all of them are visible.
(() => {
  "use strict";
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const figures = Array.from(gallery.children);
  const [result, name, order] = ["by-result", "by-class", "by-order"].map((id) => document.getElementById(id));
  const status = document.getElementById("count");
  const number = (figure, key) => Number(figure.dataset[key]);
  const orders = {
    worst: (a, b) => number(a, "iou") - number(b, "iou"),
    best: (a, b) => number(b, "iou") - number(a, "iou"),
    number: (a, b) => number(a, "result") - number(b, "result") || number(a, "number") - number(b, "number"),
  };
  const update = () => {
    let count = 0;
    for (const figure of figures) {
      const classes = JSON.parse(figure.dataset.classes);
      figure.hidden = (result.value !== "" && figure.dataset.result !== result.value) ||
        (name.value !== "" && !classes.includes(name.value));
      count += figure.hidden ? 0 : 1;
    }
    gallery.append(...figures.sort(orders[order.value]));
    status.textContent = `${count} of ${figures.length} episodes`;
  };
  for (const control of [result, name, order]) control.addEventListener("change", update);
  document.getElementById("controls").hidden = false;
  update();
})();
