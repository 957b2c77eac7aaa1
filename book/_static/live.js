/* Live elements: models that run in the page, without a kernel and without a network.

An element is <div data-live="NAME"> with its text alternative inside and, last, a <script type="application/json"> that holds
what it needs. `nbvae.notebook.live` writes it. This file is loaded once, by the pages that have one. */
"use strict";
(() => {
  if (window.nbvaeLive) return;

  // Numbers ------------------------------------------------------------------------------------------------------------

  const KINDS = { int8: Int8Array, uint8: Uint8Array, float32: Float32Array };

  /** Arrays by their names, from {name: {type, shape, data}} with the bytes in base64. */
  function arrays(packed) {
    const found = {};
    for (const [name, { type, shape, data }] of Object.entries(packed)) {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      found[name] = { shape, data: new KINDS[type](bytes.buffer) };
    }
    return found;
  }

  /** A generator of normal numbers, the same ones for the same seed. */
  function normals(seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  /** log(1 + e^x). */
  const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

  /** One model of many β, as `nbvae.models.MultiBetaVAE` with FiLM, from weights in eight bits. */
  class MultiBeta {
    constructor(weights, low, high) {
      Object.assign(this, { weights, low, high });
      const count = (part) => Object.keys(weights).filter((name) => RegExp(`^${part}\\.layers\\.\\d+\\.bias$`).test(name)).length;
      this.depth = { encoder: count("encoder"), decoder: count("decoder") };
      this.latents = weights[`encoder.layers.${this.depth.encoder - 1}.bias`].shape[0] / 2;
      this.features = weights["response.modulation.weight"].shape[1];
    }

    /** Wx + b, with the rows of W as whole numbers times a factor. */
    linear(name, x) {
      const { data, shape } = this.weights[`${name}.weight`];
      const scale = this.weights[`${name}.weight scale`].data;
      const bias = this.weights[`${name}.bias`].data;
      const [rows, columns] = shape;
      const y = new Float64Array(rows);
      for (let row = 0, at = 0; row < rows; row++) {
        let sum = 0;
        for (let column = 0; column < columns; column++, at++) sum += data[at] * x[column];
        y[row] = sum * scale[row] + bias[row];
      }
      return y;
    }

    /** Scales and shifts of all layers, at one β. */
    condition(beta) {
      if (this.last && this.last.beta === beta) return this.last.parts;
      const [low, high] = [Math.log(this.low), Math.log(this.high)];
      const sharp = (Math.SQRT1_2 * (this.features - 1)) / (high - low);
      const bumps = Float64Array.from({ length: this.features }, (_, i) => {
        const centre = low + ((high - low) * i) / (this.features - 1);
        return Math.exp(-(((Math.log(beta) - centre) * sharp) ** 2));
      });
      const parts = this.linear("response.modulation", bumps);
      this.last = { beta, parts };
      return parts;
    }

    network(part, x, beta) {
      const all = this.condition(beta);
      const width = (name, index) => this.weights[`${name}.layers.${index}.bias`].shape[0];
      let at = 0;
      if (part === "decoder") for (let i = 0; i < this.depth.encoder; i++) at += 2 * width("encoder", i);
      for (let index = 0; index < this.depth[part]; index++) {
        const y = this.linear(`${part}.layers.${index}`, index ? x.map((value) => Math.max(value, 0)) : x);
        for (let i = 0; i < y.length; i++) y[i] = all[at + i] * y[i] + all[at + y.length + i];
        at += 2 * y.length;
        x = y;
      }
      return x;
    }

    /** Means and deviations of the posterior of an image, and the nats of each latent. */
    encode(x, beta) {
      const out = this.network("encoder", x, beta);
      const mean = out.slice(0, this.latents);
      const logVariance = out.slice(this.latents).map((v) => -softplus(-(v + Math.log(beta))));
      const nats = mean.map((m, i) => (m * m + Math.exp(logVariance[i]) - 1 - logVariance[i]) / 2);
      return { mean, std: logVariance.map((v) => Math.exp(v / 2)), nats, rate: nats.reduce((a, b) => a + b, 0) };
    }

    /** Probabilities of white pixels. */
    decode(z, beta) {
      return this.network("decoder", z, beta).map((logit) => 1 / (1 + Math.exp(-logit)));
    }

    /** −log p(x|z) in nats, a mean over draws of z with the same noise each time. */
    distortion(x, code, beta, draws = 6) {
      const noise = normals(1);
      let total = 0;
      for (let draw = 0; draw < draws; draw++) {
        const logits = this.network("decoder", code.mean.map((m, i) => m + code.std[i] * noise()), beta);
        for (let i = 0; i < x.length; i++) total += softplus(logits[i]) - x[i] * logits[i];
      }
      return total / draws;
    }
  }

  // The page -----------------------------------------------------------------------------------------------------------

  const STYLE = `
    [data-live] .live { display: grid; gap: 0.8rem 1rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
    [data-live] .live .two { grid-column: span 2; }
    [data-live] { margin-bottom: 1.2rem; }
    .output.text_html:has([data-live]) { background: transparent !important; color: var(--pst-color-text-base) !important; padding: 0 !important; }
    [data-live] .live > div { min-width: 0; }
    [data-live] .live .wide { grid-column: 1 / -1; }
    [data-live] .live p.title { font-weight: bold; margin: 0 0 0.3rem; }
    [data-live] canvas { background: black; border: 1px solid var(--pst-color-border, #888); image-rendering: pixelated; }
    [data-live] canvas.large { height: auto; max-width: 13rem; width: 100%; }
    [data-live] canvas.pad { cursor: crosshair; touch-action: none; }
    [data-live] svg.drag { cursor: ns-resize; max-width: 40rem; touch-action: none; }
    [data-live] canvas.small { height: 42px; width: 42px; }
    [data-live] button { background: var(--pst-color-surface, #eee); border: 1px solid var(--pst-color-text-muted, #666);
      border-radius: 4px; color: var(--pst-color-text-base, #222); padding: 0.2rem 0.6rem; }
    [data-live] button.image { line-height: 0; padding: 1px; }
    [data-live] select { background: var(--pst-color-surface, #eee); color: var(--pst-color-text-base, #222); padding: 0.2rem; }
    [data-live] :focus-visible { outline: 3px solid var(--pst-color-primary, #06c); outline-offset: 1px; }
    [data-live] input[type="range"] { width: 100%; }
    [data-live] .live-row { align-items: center; display: flex; flex-wrap: wrap; gap: 0.3rem; }
    [data-live] svg { display: block; height: auto; max-width: 24rem; width: 100%; }
    [data-live] svg text { fill: currentColor; font-size: 11px; }
    [data-live] .hint { color: var(--pst-color-text-muted, #555); font-size: 0.85rem; margin: 0.3rem 0 0; }
  `;

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "path", "circle", "line", "rect", "text", "title"].includes(tag);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  /** Paint values from 0 to 1 as grey pixels. */
  function paint(canvas, values, side) {
    const pixels = new ImageData(side, side);
    for (let i = 0; i < values.length; i++) {
      const grey = Math.round(255 * values[i]);
      pixels.data.set([grey, grey, grey, 255], 4 * i);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** Images of 0 and 1 from their bits, a row of bytes each. */
  function unpackBits({ data, shape }, size) {
    return Array.from({ length: shape[0] }, (_, image) =>
      Float64Array.from({ length: size }, (_, i) => (data[image * shape[1] + (i >> 3)] >> (7 - (i & 7))) & 1),
    );
  }

  // Draw a digit -------------------------------------------------------------------------------------------------------

  function draw(root, given) {
    const weights = arrays(given.weights);
    const model = new MultiBeta(weights, given.low, given.high);
    const side = given.side;
    const size = side * side;
    const images = unpackBits(weights.images, size);
    const state = { x: images[Math.min(4, images.length - 1)].slice(), drawn: false, beta: given.beta, seed: 7, cursor: [side >> 1, side >> 1], pen: 0 };

    const pad = make("canvas", {
      class: "large pad", width: side, height: side, tabindex: 0, role: "application",
      "aria-label": "Canvas of black pixels. Draw with mouse or finger; or move with the arrow keys, press space to put the pen down or lift it, and delete to clear.",
    });
    const rebuilt = make("canvas", { class: "large", width: side, height: side, role: "img" });
    const slider = make("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": "β, the price of a nat of rate" });
    const said = make("p", { "aria-live": "polite" });
    const plane = make("svg", { viewBox: "0 0 320 220", role: "img" });
    const bars = make("svg", { viewBox: "0 0 320 120", role: "img" });
    const beta = make("output");
    const rows = { prior: make("div", { class: "live-row" }), data: make("div", { class: "live-row" }) };

    const starts = images.map((image, index) => {
      const canvas = make("canvas", { class: "small", width: side, height: side });
      paint(canvas, image, side);
      const name = weights.labels ? `a test image of ${weights.labels.data[index]}` : `test image ${index + 1}`;
      const use = () => Object.assign(state, { x: image.slice(), drawn: false }) && update();
      return make("button", { class: "image", type: "button", "aria-label": `Begin with ${name}`, onclick: use }, canvas);
    });
    const clear = () => Object.assign(state, { x: new Float64Array(size), drawn: true }) && update();
    const again = () => Object.assign(state, { seed: state.seed + 1 }) && update();
    const button = (text, action) => make("button", { type: "button", onclick: action }, text);

    const small = root.dataset.size === "small";
    const block = (title, ...children) => make("div", {}, make("p", { class: "title" }, title), ...children);
    const wide = (...children) => make("div", { class: "wide" }, ...children);
    const plot = block("Rate and distortion", plane);
    plot.append(make("p", { class: "hint" }, "Line: means over the test images, the ring at this β. Dot: this image."));
    plot.className = "two";
    const body = make("div", { class: "live" });
    body.append(
      wide(make("label", {}, "The price of a nat: ", beta), slider, said),
      block("Draw here", pad, make("div", { class: "live-row" }, button("Clear", clear))),
      block("What comes back", rebuilt),
      plot,
    );
    if (!small) {
      body.append(
        wide(make("p", { class: "title" }, "Or begin with a test image"), make("div", { class: "live-row" }, ...starts)),
        wide(make("p", { class: "title" }, "Nats of each latent"), bars),
        wide(make("p", { class: "title" }, "Decoded codes from the prior"), rows.prior),
        wide(make("p", { class: "title" }, "Decoded codes of the test images"), rows.data, button("Draw other codes", again)),
      );
    }

    // From the slider to β and back, on a logarithmic scale.
    const [low, high] = [Math.log(given.low), Math.log(given.high)];
    slider.value = Math.round((100 * (Math.log(state.beta) - low)) / (high - low));
    slider.addEventListener("input", () => {
      state.beta = Math.exp(low + ((high - low) * slider.value) / 100);
      update();
    });

    // The pen: by mouse and finger, and by keys.
    const put = (column, row) => {
      for (let i = -1; i <= 1; i++) {
        for (let j = -1; j <= 1; j++) {
          const [r, c] = [row + i, column + j];
          if (Math.abs(i) + Math.abs(j) < 2 && r >= 0 && r < side && c >= 0 && c < side) state.x[r * side + c] = 1;
        }
      }
      state.drawn = true;
    };
    let from = null;
    const stroke = (event) => {
      const box = pad.getBoundingClientRect();
      const to = [((event.clientX - box.left) / box.width) * side, ((event.clientY - box.top) / box.height) * side];
      const [a, b] = [from || to, to];
      const steps = Math.max(1, Math.ceil(2 * Math.hypot(b[0] - a[0], b[1] - a[1])));
      for (let s = 0; s <= steps; s++) {
        put(Math.floor(a[0] + ((b[0] - a[0]) * s) / steps), Math.floor(a[1] + ((b[1] - a[1]) * s) / steps));
      }
      from = to;
      update();
    };
    pad.addEventListener("pointerdown", (event) => {
      if (pad.setPointerCapture && event.isTrusted) pad.setPointerCapture(event.pointerId);
      from = null;
      stroke(event);
      event.preventDefault();
    });
    pad.addEventListener("pointermove", (event) => event.buttons && stroke(event));
    pad.addEventListener("pointerup", () => (from = null));
    pad.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (event.key === " ") state.pen = 1 - state.pen;
      else if (event.key === "Delete" || event.key === "Backspace") return clear(), event.preventDefault();
      else if (moves[event.key]) {
        state.cursor = state.cursor.map((at, i) => Math.min(side - 1, Math.max(0, at + moves[event.key][i])));
      } else return;
      if (state.pen) put(...state.cursor);
      event.preventDefault();
      update();
    });

    /** The image as the model gets it: what was drawn by hand is moved so that its centre is that of the frame, as in the data. */
    function centred() {
      if (!state.drawn) return { x: state.x, shift: [0, 0] };
      let [mass, row, column] = [0, 0, 0];
      state.x.forEach((value, i) => {
        mass += value;
        row += value * Math.floor(i / side);
        column += value * (i % side);
      });
      if (!mass) return { x: state.x, shift: [0, 0] };
      const shift = [side / 2 - row / mass, side / 2 - column / mass].map(Math.round);
      return { x: moved(state.x, shift), shift };
    }
    function moved(x, [down, right]) {
      const found = new Float64Array(size);
      for (let r = 0; r < side; r++) {
        for (let c = 0; c < side; c++) {
          const [a, b] = [r - down, c - right];
          if (a >= 0 && a < side && b >= 0 && b < side) found[r * side + c] = x[a * side + b];
        }
      }
      return found;
    }

    const top = { R: 1.15 * Math.max(...given.curve.map((p) => p.rate)), D: 1.25 * Math.max(...given.curve.map((p) => p.distortion)) };
    const place = (R, D) => [44 + 266 * Math.min(1, R / top.R), 190 - 180 * Math.min(1, D / top.D)];
    const path = given.curve.map((p, i) => `${i ? "L" : "M"}${place(p.rate, p.distortion).map((v) => v.toFixed(1))}`).join("");
    const dot = make("circle", { r: 6, fill: "#d55e00", stroke: "currentColor" });
    const mean = make("circle", { r: 4.5, fill: "none", stroke: "#0072b2", "stroke-width": 2.5 });
    plane.append(
      make("line", { x1: 44, y1: 190, x2: 312, y2: 190, stroke: "currentColor" }),
      make("line", { x1: 44, y1: 190, x2: 44, y2: 8, stroke: "currentColor" }),
      make("path", { d: path, fill: "none", stroke: "#0072b2", "stroke-width": 2 }),
      make("text", { x: 312, y: 212, "text-anchor": "end" }, "rate R (nats)"),
      make("text", { x: 50, y: 16 }, "distortion D (nats)"),
      make("text", { x: 44, y: 204 }, "0"), make("text", { x: 312, y: 186, "text-anchor": "end" }, top.R.toFixed(0)),
      make("text", { x: 40, y: 16, "text-anchor": "end" }, top.D.toFixed(0)),
      mean, dot,
    );
    const marks = Array.from({ length: model.latents }, (_, i) =>
      make("rect", { x: 4 + (312 / model.latents) * i, width: 312 / model.latents - 3, fill: "#009e73" }),
    );
    bars.append(make("line", { x1: 0, y1: 110, x2: 320, y2: 110, stroke: "currentColor" }), ...marks);
    const nats = make("text", { x: 316, y: 14, "text-anchor": "end" });
    bars.append(nats);

    /** The recorded point of the test images at a β, on straight lines in log β. */
    function recorded(b) {
      const [points, at] = [given.curve, Math.log(b)];
      const right = Math.max(1, points.findIndex((p) => Math.log(p.beta) >= at));
      const [p, q] = [points[right - 1], points[right]];
      const t = Math.min(1, Math.max(0, (at - Math.log(p.beta)) / (Math.log(q.beta) - Math.log(p.beta))));
      return [p.rate + t * (q.rate - p.rate), p.distortion + t * (q.distortion - p.distortion)];
    }

    function update() {
      const began = performance.now();
      const { x, shift } = centred();
      const code = model.encode(x, state.beta);
      const back = moved(model.decode(code.mean, state.beta), shift.map((s) => -s));
      const D = model.distortion(x, code, state.beta);
      paint(rebuilt, back, side);
      const shown = state.x.slice();
      if (document.activeElement === pad) shown[state.cursor[1] * side + state.cursor[0]] = 0.55;
      paint(pad, shown, side);
      const label = state.beta.toPrecision(2).replace(/e.*/, "");
      beta.value = `β = ${label}`;
      slider.setAttribute("aria-valuetext", `β = ${label}`);
      said.textContent = `The code of this image costs ${code.rate.toFixed(1)} nats of rate. Then ${D.toFixed(1)} nats are still missing, the distortion.`;
      rebuilt.setAttribute("aria-label", `What the model makes of the image at β = ${label}.`);
      [[dot, [code.rate, D]], [mean, recorded(state.beta)]].forEach(([circle, point]) => {
        const [cx, cy] = place(...point);
        circle.setAttribute("cx", cx);
        circle.setAttribute("cy", cy);
      });
      plane.setAttribute("aria-label", `Distortion against rate: a falling curve of the test images, and this image at ${code.rate.toFixed(1)} and ${D.toFixed(1)} nats.`);
      const most = Math.max(4, ...code.nats);
      code.nats.forEach((value, i) => {
        const height = (96 * Math.max(0, value)) / most;
        marks[i].setAttribute("y", 110 - height);
        marks[i].setAttribute("height", height);
      });
      nats.textContent = `tallest: ${Math.max(...code.nats).toFixed(1)} nats`;
      const used = code.nats.filter((value) => value > 0.1).length;
      bars.setAttribute("aria-label", `${used} of ${model.latents} latents carry more than a tenth of a nat.`);
      if (!small) samples();
      root.live = { model, state, code, distortion: D, milliseconds: performance.now() - began, update };
    }

    function samples() {
      const noise = normals(state.seed);
      const fresh = (code) =>
        Float64Array.from({ length: model.latents }, (_, i) => (code ? code.mean[i] + code.std[i] * noise() : noise()));
      for (const [kind, row] of Object.entries(rows)) {
        if (!row.children.length) {
          const alt = kind === "prior" ? "A decoded draw from the prior." : "A decoded draw from the code of a test image.";
          for (let i = 0; i < 10; i++) row.append(make("canvas", { class: "small", width: side, height: side, role: "img", "aria-label": alt }));
        }
        [...row.children].forEach((canvas, i) => {
          const image = images[(3 * i + state.seed) % images.length];
          const z = fresh(kind === "prior" ? null : model.encode(image, state.beta));
          paint(canvas, model.decode(z, state.beta), side);
        });
      }
    }

    pad.addEventListener("focus", update);
    pad.addEventListener("blur", update);
    root.replaceChildren(body);
    update();
  }

  // The water level ----------------------------------------------------------------------------------------------------

  /** Rate and squared error of a Gaussian with these eigenvalues at a water level, and how many directions are above it. */
  function waterLevel(eigenvalues, s) {
    let [rate, mse, above] = [0, 0, 0];
    for (const value of eigenvalues) {
      if (value > s) {
        rate += Math.log(value / s) / 2;
        above += 1;
      }
      mse += Math.min(value, s);
    }
    return { rate, mse, above };
  }

  function water(root, given) {
    const spectra = arrays(given.weights);
    const names = Object.keys(spectra);
    const both = given.handles === "both";
    const state = { name: given.name || names[0], sigma: 0, beta: 0, s: 0 };
    const values = () => spectra[state.name].data;

    const choice = make("select", { "aria-label": "data set" }, ...names.map((name) => make("option", { value: name }, name)));
    choice.value = state.name;
    const range = (label) => make("input", { type: "range", min: 0, max: 200, step: 1, "aria-label": label });
    const sliders = both ? { beta: range("β"), sigma: range("σ") } : { s: range("water level s") };
    const outputs = Object.fromEntries(Object.keys(sliders).map((key) => [key, make("output")]));
    const letters = { s: "Water level s", beta: "β", sigma: "σ" };
    const said = make("p", { "aria-live": "polite" });
    const width = root.clientWidth < 500 ? 380 : 640; // so that its letters can be read on a phone
    const frame = { width, height: 230, left: 52, right: width - 8, top: 12, bottom: 200 };
    const spectrum = make("svg", { viewBox: `0 0 ${frame.width} ${frame.height}`, role: "img", class: "drag" });
    const plane = make("svg", { viewBox: "0 0 320 220", role: "img" });

    const plot = make("div", {}, make("p", { class: "title" }, "Rate and squared error"), plane);
    plot.className = "two";
    const words = make("div", { class: "two" }, said);
    root.replaceChildren(
      make(
        "div", { class: "live" },
        make("div", { class: "wide" }, make("label", {}, "Data set: ", choice),
          ...Object.entries(sliders).flatMap(([key, slider]) => [
            make("div", {}, make("label", {}, `${letters[key]} = `, outputs[key])), slider])),
        make("div", { class: "wide" }, make("p", { class: "title" }, "Eigenvalues and the water level"), spectrum),
        words, plot,
      ),
    );

    const level = make("line", { stroke: "#0072b2", "stroke-width": 3, x1: frame.left, x2: frame.right });
    const sea = make("rect", { fill: "#0072b2", opacity: 0.25, x: frame.left, width: frame.right - frame.left });
    const stones = make("path", { fill: "none", stroke: "#d55e00", "stroke-width": 2 });
    const names2 = { low: make("text", { x: 46, "text-anchor": "end" }), high: make("text", { x: 46, "text-anchor": "end" }) };
    spectrum.append(
      stones, sea, level,
      make("line", { x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom, stroke: "currentColor" }),
      make("line", { x1: frame.left, x2: frame.left, y1: frame.top, y2: frame.bottom, stroke: "currentColor" }),
      make("text", { x: frame.right, y: 222, "text-anchor": "end" }, "rank of the direction, on a logarithmic axis"),
      make("text", { x: frame.left + 6, y: frame.top + 6 }, "variance along it (logarithmic)"),
      names2.low, names2.high,
    );
    const path = make("path", { fill: "none", stroke: "#0072b2", "stroke-width": 2 });
    const dot = make("circle", { r: 6, fill: "#d55e00", stroke: "currentColor" });
    const ends = { R: make("text", { x: 312, y: 186, "text-anchor": "end" }), E: make("text", { x: 56, y: 30 }) };
    plane.append(
      make("line", { x1: 44, y1: 190, x2: 312, y2: 190, stroke: "currentColor" }),
      make("line", { x1: 44, y1: 190, x2: 44, y2: 8, stroke: "currentColor" }),
      make("text", { x: 312, y: 212, "text-anchor": "end" }, "rate R (nats)"),
      make("text", { x: 50, y: 14 }, "squared error MSE"),
      path, dot, ends.R, ends.E,
    );

    let [lowest, highest] = [0, 0]; // of the level
    const height = (value) => frame.bottom - ((frame.bottom - frame.top) * Math.log(value / lowest)) / Math.log((1.3 * highest) / lowest);
    const place = (point, top) => [44 + (262 * point.rate) / top.rate, 190 - (168 * point.mse) / top.mse];
    let top = {};

    /** What depends on the data set only. */
    function begin() {
      const all = values().filter((value) => value > 1e-4 * values()[0]);
      [lowest, highest] = [all[all.length - 1] * 0.9, 1.3 * all[0]];
      const x = (rank) => frame.left + ((frame.right - frame.left) * Math.log(rank)) / Math.log(all.length + 1);
      stones.setAttribute("d", [...all].map((value, i) =>
        `${i ? "L" : "M"}${x(i + 1).toFixed(1)} ${height(value).toFixed(1)}L${x(i + 2).toFixed(1)} ${height(value).toFixed(1)}`).join(""));
      for (const [key, value] of [["low", lowest], ["high", all[0]]]) {
        names2[key].setAttribute("y", height(value) + 4);
        names2[key].textContent = value.toPrecision(2);
      }
      top = { rate: waterLevel(all, lowest).rate, mse: waterLevel(all, 2 * highest).mse };
      const points = Array.from({ length: 120 }, (_, i) => waterLevel(all, highest * (lowest / highest) ** (i / 119)));
      path.setAttribute("d", points.map((p, i) => `${i ? "L" : "M"}${place(p, top).map((v) => v.toFixed(1))}`).join(""));
      ends.R.textContent = top.rate.toFixed(0);
      ends.E.textContent = `all of it: ${top.mse.toPrecision(3)}`;
      if (both) {
        Object.assign(state, { beta: 1, sigma: Math.sqrt(0.1 * all[0]) });
      } else state.s = 0.1 * all[0];
      read();
      update();
    }

    // From the sliders to the values and back, on logarithmic scales.
    const limits = () => ({ s: [lowest, highest], beta: [0.05, 20], sigma: [Math.sqrt(lowest), Math.sqrt(highest)] });
    function read() {
      for (const [key, slider] of Object.entries(sliders)) {
        const [low, high] = limits()[key];
        slider.value = Math.round((200 * Math.log(state[key] / low)) / Math.log(high / low));
      }
    }
    for (const [key, slider] of Object.entries(sliders)) {
      slider.addEventListener("input", () => {
        const [low, high] = limits()[key];
        state[key] = low * (high / low) ** (slider.value / 200);
        update();
      });
    }
    choice.addEventListener("change", () => {
      state.name = choice.value;
      begin();
    });
    const drag = (event) => {
      const box = spectrum.getBoundingClientRect();
      const y = ((event.clientY - box.top) / box.height) * frame.height;
      const wanted = lowest * ((1.3 * highest) / lowest) ** ((frame.bottom - y) / (frame.bottom - frame.top));
      const s = Math.min(highest, Math.max(lowest, wanted));
      if (both) state.beta = Math.min(20, Math.max(0.05, s / state.sigma ** 2));
      else state.s = s;
      read();
      update();
    };
    spectrum.addEventListener("pointerdown", (event) => (drag(event), event.preventDefault()));
    spectrum.addEventListener("pointermove", (event) => event.buttons && drag(event));

    function update() {
      if (both) state.s = state.beta * state.sigma ** 2;
      const point = waterLevel(values(), state.s);
      const text = (value) => Number(value.toPrecision(3)).toString();
      for (const [key, slider] of Object.entries(sliders)) {
        outputs[key].value = text(state[key]);
        slider.setAttribute("aria-valuetext", `${letters[key]} = ${text(state[key])}`);
      }
      const y = Math.min(frame.bottom, height(state.s));
      level.setAttribute("y1", y);
      level.setAttribute("y2", y);
      sea.setAttribute("y", y);
      sea.setAttribute("height", Math.max(0, frame.bottom - y));
      const [cx, cy] = place({ rate: Math.min(point.rate, top.rate), mse: point.mse }, top);
      dot.setAttribute("cx", cx);
      dot.setAttribute("cy", cy);
      const n = values().length;
      const parts = [
        `${point.above} of ${n} directions are above water, and each of them keeps the error s = ${text(state.s)}.`,
        `The code costs ${point.rate.toFixed(2)} nats, and leaves a squared error of ${text(point.mse)} of ${text(top.mse)}.`,
      ];
      if (both) {
        const D = point.mse / (2 * state.sigma ** 2) + (n / 2) * Math.log(2 * Math.PI * state.sigma ** 2);
        parts.push(`With this σ the distortion is ${D.toFixed(1)} nats. Move σ and β against each other, and only that number changes.`);
      }
      said.textContent = parts.join(" ");
      spectrum.setAttribute("aria-label", `Eigenvalues that fall with their rank, and a level that ${point.above} of them are above.`);
      plane.setAttribute("aria-label", `Squared error against rate, a falling curve, and a point at ${point.rate.toFixed(2)} nats.`);
      root.live = { state, ...point, waterLevel };
    }
    begin();
  }

  // Start --------------------------------------------------------------------------------------------------------------

  const ELEMENTS = { draw, water };

  function start() {
    const roots = [...document.querySelectorAll("[data-live]")].filter((root) => !root.live);
    if (!roots.length) return;
    document.head.append(make("style", {}, STYLE));
    for (const root of roots) {
      const data = root.querySelector('script[type="application/json"]');
      if (data && ELEMENTS[root.dataset.live]) ELEMENTS[root.dataset.live](root, JSON.parse(data.textContent));
    }
  }

  window.nbvaeLive = { arrays, MultiBeta, normals, waterLevel };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
