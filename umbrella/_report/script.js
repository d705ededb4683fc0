"use strict";
// Hover on the charts. The page says everything without it.
for (const plot of document.querySelectorAll(".plot[data-plot]")) {
  const { x, series } = JSON.parse(plot.dataset.plot);
  const area = plot.querySelector(".area");
  const make = (name, parent) => {
    const node = document.createElement("div");
    node.className = name;
    parent.append(node);
    return node;
  };
  let cross, tip, spots;
  const show = (event) => {
    const box = area.getBoundingClientRect();
    const at = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    if (!cross) {
      cross = make("cross", area);
      spots = series.map((s) => {
        const spot = make("spot", area);
        spot.style.setProperty("--c", `var(--s${s.slot})`);
        return spot;
      });
      tip = make("tip", area);
    }
    tip.replaceChildren();
    const title = make("", tip);
    let nearest = null;
    series.forEach((s, k) => {
      let i = -1;
      s.at.forEach((a, j) => {
        if (a !== null && (i < 0 || Math.abs(a - at) < Math.abs(s.at[i] - at))) i = j;
      });
      spots[k].hidden = i < 0 || s.up[i] === null;
      if (i < 0) return;
      if (!nearest || Math.abs(s.at[i] - at) < Math.abs(nearest.at - at)) nearest = { at: s.at[i], text: s.x[i] };
      spots[k].style.left = `${100 * s.at[i]}%`;
      spots[k].style.bottom = `${100 * s.up[i]}%`;
      const row = make("", tip);
      const key = document.createElement("i");
      key.className = "key disc";
      key.style.setProperty("--c", `var(--s${s.slot})`);
      const value = document.createElement("b");
      value.textContent = s.y[i];
      row.append(key, s.name, value);
    });
    cross.hidden = tip.hidden = !nearest;
    if (!nearest) return;
    title.textContent = `${x} ${nearest.text}`;
    cross.style.left = `${100 * nearest.at}%`;
    tip.style.left = nearest.at < 0.5 ? `calc(${100 * nearest.at}% + 14px)` : "";
    tip.style.right = nearest.at < 0.5 ? "" : `calc(${100 - 100 * nearest.at}% + 14px)`;
  };
  area.addEventListener("pointermove", show);
  area.addEventListener("pointerleave", () => {
    if (cross) for (const node of [cross, tip, ...spots]) node.hidden = true;
  });
}
for (const chart of document.querySelectorAll(".chart.scatter")) {
  const mark = (event) => {
    const on = event.type === "pointerover" && event.target.closest("[data-class]");
    chart.classList.toggle("one", Boolean(on));
    for (const dot of chart.querySelectorAll(".dot")) dot.classList.toggle("on", Boolean(on) && dot.dataset.class === on.dataset.class);
  };
  chart.addEventListener("pointerover", mark);
  chart.addEventListener("pointerout", mark);
}
