"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", hidden: true }));

  const say = (figure, text, event) => {
    figure.querySelector(".readout").textContent = text;
    tip.hidden = !event || !text;
    if (tip.hidden) return;
    tip.textContent = text;
    const room = root.clientWidth - tip.offsetWidth - 8;
    const above = event.clientY - tip.offsetHeight - 14;
    tip.style.left = `${scrollX + Math.max(8, Math.min(event.clientX + 12, room))}px`;
    tip.style.top = `${scrollY + (above > 0 ? above : event.clientY + 18)}px`;
  };

  // A place on the screen in the units of a drawing.
  const inside = (drawing, event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());

  const follow = (drawing, { point, leave, step }) => {
    for (const kind of ["pointermove", "pointerdown"]) drawing.addEventListener(kind, point);
    drawing.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && leave());  // a finger is lifted
    drawing.addEventListener("blur", leave);
    drawing.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      if (event.key === "Escape") leave();
      else if (moves[event.key]) {
        event.preventDefault();
        step(...moves[event.key]);
      }
    });
  };

  for (const figure of document.querySelectorAll(".chart")) {
    const drawing = figure.querySelector(".plot");
    const points = [...drawing.querySelectorAll(".point[data-tip]")];
    const middle = (one) => {
      const box = one.getBBox();
      return [box.x + box.width / 2, box.y + box.height / 2];
    };
    let now = -1;
    const choose = (index, event) => {
      points[now]?.classList.remove("on");
      now = index;
      points[now]?.classList.add("on");
      say(figure, points[now]?.dataset.tip ?? "", event);
    };
    follow(drawing, {
      point: (event) => {
        const at = inside(drawing, event);
        const far = points.map((one) => Math.hypot(middle(one)[0] - at.x, middle(one)[1] - at.y));
        const nearest = far.indexOf(Math.min(...far));
        choose(far[nearest] < 24 ? nearest : -1, event);
      },
      leave: () => choose(-1),
      step: (right, up) => choose(Math.max(0, Math.min(points.length - 1, now + (right || -up)))),
    });
  }

  for (const figure of document.querySelectorAll(".heatmap")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const drawing = figure.querySelector(".heat");
    const cells = figure.querySelectorAll(".cells rect");
    const cursor = figure.querySelector(".cursor");
    const codes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const L = data.layers;
    const left = Number(cells[0].getAttribute("x"));
    let table = data.tables[0];
    let now = null;

    const words = (start, n) => {
      const value = table.values[n - 1][start];
      const layers = n > 1 ? `layers ${start}..${start + n - 1} (n = ${n})` : `layer ${start} (n = 1)`;
      if (value === null) return `${layers}: no value`;
      const error = table.errors[n - 1][start];
      const best = table.best[n - 1] === start ? "; changes least of its row" : "";
      return `${layers}: ${value}${error === null ? "" : ` ± ${Number(error.toPrecision(2))}`} ${table.unit}${best}`;
    };
    const choose = (start, n, event) => {
      const there = n >= 1 && n <= L && start >= 0 && start + n <= L;
      now = there ? [start, n] : null;
      cursor.setAttribute("visibility", there ? "visible" : "hidden");
      if (there) {
        cursor.setAttribute("x", left + start * data.cell);
        cursor.setAttribute("y", (L - n) * data.cell);
      }
      say(figure, there ? words(start, n) : "", event);
    };
    follow(drawing, {
      point: (event) => {
        const at = inside(drawing, event);
        choose(Math.floor((at.x - left) / data.cell), L - Math.floor(at.y / data.cell), event);
      },
      leave: () => choose(-1, 0),
      step: (right, up) => {
        if (!now) return choose(table.best[0] ?? 0, 1);
        const n = Math.max(1, Math.min(L, now[1] + up));
        choose(Math.max(0, Math.min(L - n, now[0] + right)), n);
      },
    });
    figure.querySelector(".which").addEventListener("change", (event) => {
      table = data.tables[Number(event.target.value)];
      figure.querySelector("figcaption").textContent = table.title;
      [...table.levels.join("")].forEach((code, index) =>
        cells[index].setAttribute("fill", code === "-" ? "none" : data.colours[codes.indexOf(code)]),
      );
      const rings = [...figure.querySelectorAll(".best circle")];
      rings.forEach((ring, index) => {
        const start = table.best[index];
        ring.setAttribute("visibility", start === null || start === undefined ? "hidden" : "visible");
        if (start !== null && start !== undefined) {
          ring.setAttribute("cx", left + (start + 0.5) * data.cell);
          ring.setAttribute("cy", (L - index - 0.5) * data.cell);
        }
      });
      choose(-1, 0);
    });
  }

  // Tables as tab-separated values, code as it is.
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) throw new Error("the browser does not allow copying");
    }
  };
  const flat = (text) => text.replace(/\s+/g, " ").trim();
  for (const button of document.querySelectorAll(".copy")) {
    const box = button.parentElement;
    const label = button.textContent;
    const table = box.querySelector("table");
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = table
        ? [...table.rows].map((row) => [...row.cells].map((cell) => flat(cell.textContent)).join("\t")).join("\n")
        : box.querySelector("code").textContent;
      button.dataset.copied = text;
      button.textContent = await copied(text).then(() => "Copied", () => "Select and copy by hand");
      setTimeout(() => (button.textContent = label), 1500);
    });
  }

  const scheme = document.getElementById("scheme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.scheme ? root.dataset.scheme === "dark" : prefersDark.matches);
  const label = () => {
    scheme.textContent = isDark() ? "Light" : "Dark";
    scheme.setAttribute("aria-pressed", String(isDark()));
  };
  scheme.hidden = false;
  scheme.addEventListener("click", () => {
    root.dataset.scheme = isDark() ? "light" : "dark";
    label();
  });
  prefersDark.addEventListener("change", label);
  label();

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((one) => (one.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)));
})();
