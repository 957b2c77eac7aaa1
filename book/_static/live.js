/* Live elements: models that run in the page, without a kernel and without a network.

An element is <div data-live="NAME"> with its text alternative inside and, last, a <script type="application/json"> that holds
what it needs. `nbvae.notebook.live` writes it. This file is loaded once, by the pages that have one. */
"use strict";
(() => {
  if (window.nbvaeLive) return;
  const HERE = document.currentScript.src;

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

  const LINE = { fill: "none", stroke: "currentColor" };
  const text = (x, y, words = "", anchor = "end") => make("text", { x, y, "text-anchor": anchor }, words);
  const button = (words, action) => make("button", { type: "button", onclick: action }, words);
  const title = (text = "") => make("p", { class: "title" }, text);
  const hint = (text) => make("p", { class: "hint" }, text);
  const block = (text, ...children) => make("div", {}, title(text), ...children);
  const two = (...children) => make("div", { class: "two" }, ...children);
  const wide = (...children) => make("div", { class: "wide" }, ...children);
  const row = (...children) => make("div", { class: "live-row" }, ...children);
  const said = () => make("p", { "aria-live": "polite" });
  const picture = (side, size, attributes = {}) => make("canvas", { class: size, width: side, height: side, role: "img", ...attributes });
  const range = (label, max, value = 0) => make("input", { type: "range", min: 0, max, step: 1, value, "aria-label": label });
  const PRICE = "β, the price of a nat of rate";
  const label = (node, text) => node.setAttribute("aria-label", text);
  const move = (node, values) => Object.entries(values).forEach(([name, value]) => node.setAttribute(name, value));
  const brief = (beta) => Number(beta.toPrecision(2)).toString();
  const nats = (value) => value.toFixed(1).replace("-", "−");

  /** A button with an image in it. */
  function imageButton(side, image, label, action) {
    const canvas = make("canvas", { class: "small", width: side, height: side });
    if (image) paint(canvas, image, side);
    return make("button", { class: "image", type: "button", "aria-label": label, onclick: action }, canvas);
  }

  /** The axes of rate and distortion up to `top`; returns where a point of them is. */
  function axes(plane, top, rate = "rate R (nats)") {
    plane.append(
      make("path", { d: AXES, ...LINE }),
      text(312, 212, rate), text(50, 16, "distortion D (nats)", "start"), text(44, 204, "0", "start"),
      text(312, 186, top.R.toFixed(0)), text(40, 16, top.D.toFixed(0)),
    );
    return (R, D) => [44 + 266 * Math.min(1, R / top.R), 190 - 180 * Math.min(1, D / top.D)];
  }
  const joined = (points) => points.map((point, i) => `${i ? "L" : "M"}${point.map((v) => v.toFixed(1))}`).join("");
  const AXES = "M44 8V190H312";
  /** Where in a node a pointer is, as shares of its width and height. */
  function within(node, event) {
    const box = node.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const CURVE = { fill: "none", stroke: "#0072b2", "stroke-width": 2 };
  const DOT = { r: 6, fill: "#d55e00", stroke: "currentColor" };

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
    const rebuilt = picture(side, "large");
    const slider = range(PRICE, 100);
    const words = said();
    const plane = make("svg", { viewBox: "0 0 320 220", role: "img" });
    const bars = make("svg", { viewBox: "0 0 320 120", role: "img" });
    const beta = make("output");
    const rows = { prior: row(), data: row() };
    const set = (values) => (Object.assign(state, values), update());

    const starts = images.map((image, index) => {
      const name = weights.labels ? `a test image of ${weights.labels.data[index]}` : `test image ${index + 1}`;
      return imageButton(side, image, `Begin with ${name}`, () => set({ x: image.slice(), drawn: false }));
    });
    const clear = () => set({ x: new Float64Array(size), drawn: true });
    const again = () => set({ seed: state.seed + 1 });

    const small = root.dataset.size === "small";
    const body = make("div", { class: "live" },
      wide(make("label", {}, "The price of a nat: ", beta), slider, words),
      block("Draw here", pad, row(button("Clear", clear))),
      block("What comes back", rebuilt),
      two(title("Rate and distortion"), plane, hint("Line: means over the test images, the ring at this β. Dot: this image.")),
    );
    if (!small) {
      body.append(
        wide(title("Or begin with a test image"), row(...starts)),
        wide(title("Nats of each latent"), bars),
        wide(title("Decoded codes from the prior"), rows.prior),
        wide(title("Decoded codes of the test images"), rows.data, button("Draw other codes", again)),
      );
    }

    // From the slider to β and back, on a logarithmic scale.
    const [low, high] = [Math.log(given.low), Math.log(given.high)];
    slider.value = Math.round((100 * (Math.log(state.beta) - low)) / (high - low));
    slider.addEventListener("input", () => set({ beta: Math.exp(low + ((high - low) * slider.value) / 100) }));

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
      const to = within(pad, event).map((share) => share * side);
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
      if (event.key === " ") state.pen = 1 - state.pen;
      else if (event.key === "Delete" || event.key === "Backspace") return clear(), event.preventDefault();
      else if (ARROWS[event.key]) {
        state.cursor = state.cursor.map((at, i) => Math.min(side - 1, Math.max(0, at + ARROWS[event.key][i])));
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
    const place = axes(plane, top);
    const dot = make("circle", DOT);
    const mean = make("circle", { r: 4.5, fill: "none", stroke: "#0072b2", "stroke-width": 2.5 });
    plane.append(make("path", { d: joined(given.curve.map((p) => place(p.rate, p.distortion))), ...CURVE }), mean, dot);
    const marks = Array.from({ length: model.latents }, (_, i) =>
      make("rect", { x: 4 + (312 / model.latents) * i, width: 312 / model.latents - 3, fill: "#009e73" }),
    );
    bars.append(make("line", { x1: 0, y1: 110, x2: 320, y2: 110, stroke: "currentColor" }), ...marks);
    const tallest = text(316, 14);
    bars.append(tallest);

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
      const price = `β = ${brief(state.beta)}`;
      beta.value = price;
      move(slider, { "aria-valuetext": price });
      words.textContent = `The code of this image costs ${nats(code.rate)} nats of rate. Then ${nats(D)} nats are still missing, the distortion.`;
      label(rebuilt, `What the model makes of the image at ${price}.`);
      [[dot, [code.rate, D]], [mean, recorded(state.beta)]].forEach(([circle, point]) => {
        const [cx, cy] = place(...point);
        move(circle, { cx, cy });
      });
      label(plane, `Distortion against rate: a falling curve of the test images, and this image at ${nats(code.rate)} and ${nats(D)} nats.`);
      const most = Math.max(4, ...code.nats);
      code.nats.forEach((value, i) => {
        const height = (96 * Math.max(0, value)) / most;
        move(marks[i], { y: 110 - height, height });
      });
      tallest.textContent = `tallest: ${nats(Math.max(...code.nats))} nats`;
      const used = code.nats.filter((value) => value > 0.1).length;
      label(bars, `${used} of ${model.latents} latents carry more than a tenth of a nat.`);
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
          for (let i = 0; i < 10; i++) row.append(picture(side, "small", { "aria-label": alt }));
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
    const sliders = both ? { beta: range("β", 200), sigma: range("σ", 200) } : { s: range("water level s", 200) };
    const outputs = Object.fromEntries(Object.keys(sliders).map((key) => [key, make("output")]));
    const letters = { s: "Water level s", beta: "β", sigma: "σ" };
    const words = said();
    const width = root.clientWidth < 500 ? 380 : 640; // so that its letters can be read on a phone
    const frame = { width, height: 230, left: 52, right: width - 8, top: 12, bottom: 200 };
    const spectrum = make("svg", { viewBox: `0 0 ${frame.width} ${frame.height}`, role: "img", class: "drag" });
    const plane = make("svg", { viewBox: "0 0 320 220", role: "img" });

    root.replaceChildren(
      make(
        "div", { class: "live" },
        wide(make("label", {}, "Data set: ", choice),
          ...Object.entries(sliders).flatMap(([key, slider]) => [
            make("div", {}, make("label", {}, `${letters[key]} = `, outputs[key])), slider])),
        wide(title("Eigenvalues and the water level"), spectrum),
        two(words), two(title("Rate and squared error"), plane),
      ),
    );

    const level = make("line", { stroke: "#0072b2", "stroke-width": 3, x1: frame.left, x2: frame.right });
    const sea = make("rect", { fill: "#0072b2", opacity: 0.25, x: frame.left, width: frame.right - frame.left });
    const stones = make("path", { ...CURVE, stroke: "#d55e00" });
    const ticks = { low: text(46, 0), high: text(46, 0) };
    spectrum.append(
      stones, sea, level,
      make("path", { d: `M${frame.left} ${frame.top}V${frame.bottom}H${frame.right}`, ...LINE }),
      text(frame.right, 222, "rank of the direction, on a logarithmic axis"),
      text(frame.left + 6, frame.top + 6, "variance along it (logarithmic)", "start"),
      ticks.low, ticks.high,
    );
    const path = make("path", CURVE);
    const dot = make("circle", DOT);
    const ends = { R: text(312, 186), E: text(56, 30, "", "start") };
    plane.append(
      make("path", { d: AXES, ...LINE }), text(312, 212, "rate R (nats)"), text(50, 14, "squared error MSE", "start"),
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
      move(stones, { d: joined([...all].flatMap((value, i) => [i + 1, i + 2].map((rank) => [x(rank), height(value)]))) });
      for (const [key, value] of [["low", lowest], ["high", all[0]]]) {
        move(ticks[key], { y: height(value) + 4 });
        ticks[key].textContent = value.toPrecision(2);
      }
      top = { rate: waterLevel(all, lowest).rate, mse: waterLevel(all, 2 * highest).mse };
      const points = Array.from({ length: 120 }, (_, i) => waterLevel(all, highest * (lowest / highest) ** (i / 119)));
      move(path, { d: joined(points.map((p) => place(p, top))) });
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
      const y = within(spectrum, event)[1] * frame.height;
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
      const short = (value) => Number(value.toPrecision(3)).toString();
      for (const [key, slider] of Object.entries(sliders)) {
        outputs[key].value = short(state[key]);
        move(slider, { "aria-valuetext": `${letters[key]} = ${short(state[key])}` });
      }
      const y = Math.min(frame.bottom, height(state.s));
      move(level, { y1: y, y2: y });
      move(sea, { y, height: Math.max(0, frame.bottom - y) });
      const [cx, cy] = place({ rate: Math.min(point.rate, top.rate), mse: point.mse }, top);
      move(dot, { cx, cy });
      const n = values().length;
      const parts = [
        `${point.above} of ${n} directions are above water, and each of them keeps the error s = ${short(state.s)}.`,
        `The code costs ${point.rate.toFixed(2)} nats, and leaves a squared error of ${short(point.mse)} of ${short(top.mse)}.`,
      ];
      if (both) {
        const D = point.mse / (2 * state.sigma ** 2) + (n / 2) * Math.log(2 * Math.PI * state.sigma ** 2);
        parts.push(`With this σ the distortion is ${D.toFixed(1)} nats. Move σ and β against each other, and only that number changes.`);
      }
      words.textContent = parts.join(" ");
      label(spectrum, `Eigenvalues that fall with their rank, and a level that ${point.above} of them are above.`);
      label(plane, `Squared error against rate, a falling curve, and a point at ${point.rate.toFixed(2)} nats.`);
      root.live = { state, ...point, waterLevel };
    }
    begin();
  }

  // The hole -----------------------------------------------------------------------------------------------------------

  /** log q(z) from a grid of bytes, bilinear between its nodes: `studies.hole.at`. */
  function gridAt({ data, shape: [, nodes] }, index, { reach, lowest, step }, z) {
    const [[c, s], [r, t]] = [...z].map((value) => {
      const at = Math.min(nodes - 1, Math.max(0, ((value + reach) / (2 * reach)) * (nodes - 1)));
      const low = Math.min(nodes - 2, Math.floor(at));
      return [low, at - low];
    });
    const line = (y) => {
      const start = (index * nodes + y) * nodes + c;
      return (1 - s) * data[start] + s * data[start + 1];
    };
    return lowest + step * ((1 - t) * line(r) + t * line(r + 1));
  }
  const logPrior = (z) => -Math.log(2 * Math.PI) - (z[0] * z[0] + z[1] * z[1]) / 2;

  function hole(root, given) {
    const weights = arrays(given.weights);
    const model = new MultiBeta(weights, given.low, given.high);
    const { side, reach, betas } = given;
    const { codes, density, labels } = weights;
    const [count, nodes] = [codes.shape[1], density.shape[1]];
    const state = { index: Math.max(0, betas.indexOf(given.beta)), z: [0, 0], kind: "prior", seed: 1 };
    const unit = (160 * (nodes - 1)) / nodes / reach; // a node is in the middle of a pixel of the shade
    const place = (z) => [160 + unit * z[0], 160 - unit * z[1]];
    const codeOf = (i) => codes.data.subarray(2 * (state.index * count + i), 2 * (state.index * count + i) + 2);
    const logQ = (z) => gridAt(density, state.index, given, z);
    const border = Math.log(given.thin);
    const isHole = (z) => logQ(z) - logPrior(z) < border;
    const set = (values) => (Object.assign(state, values), update());

    const slider = range(PRICE, betas.length - 1, state.index);
    const beta = make("output");
    const words = said();
    const shade = make("canvas", { width: nodes, height: nodes });
    const plane = make("svg", { viewBox: "0 0 320 320", tabindex: 0, role: "application" });
    label(plane, "Plane of the two latents. Point with mouse or finger, or move the cross with the arrow keys, in longer steps with shift.");
    const shown = picture(side, "large", { "aria-label": "What is decoded from the point at the cross." });
    const heading = title();
    const again = (kind) => () => set({ kind, seed: state.seed + 1 });
    let draws = [];
    const drawn = Array.from({ length: 10 }, (_, i) => imageButton(side, null, "", () => set({ z: [...draws[i]] })));
    root.replaceChildren(
      make("div", { class: "live" },
        wide(make("label", {}, "The price of a nat: ", beta), slider),
        two(title("Codes, and holes"), make("div", { class: "codes" }, shade, plane),
          hint("Digits: codes of test images. Circles: the prior at one and two standard deviations. Shade: holes. Squares: the draws below.")),
        two(title("Decoded at the cross"), shown, words),
        wide(heading, row(...drawn), row(button("Draw from the prior", again("prior")), button("Draw from the aggregate", again("codes")))),
      ),
    );
    const ink = { ...LINE, "stroke-width": 1.5 };
    const marks = Array.from({ length: count }, (_, i) =>
      make("text", { class: "code", "aria-hidden": true, style: `--hue: ${labels ? 36 * labels.data[i] : 200}` }, labels ? labels.data[i] : "•"));
    const squares = drawn.map(() => make("rect", { width: 7, height: 7, ...ink }));
    const cross = make("path", { ...ink, "stroke-width": 3 });
    plane.append(...marks, ...[1, 2].map((r) => make("circle", { cx: 160, cy: 160, r: r * unit, ...ink })), ...squares, cross);

    slider.addEventListener("input", () => set({ index: Number(slider.value) }));
    const go = (z) => set({ z: z.map((value) => Math.min(reach, Math.max(-reach, value))) });
    const point = (event) => {
      const [x, y] = within(plane, event);
      go([(320 * x - 160) / unit, (160 - 320 * y) / unit]);
    };
    plane.addEventListener("pointerdown", (event) => (point(event), event.preventDefault(), plane.focus({ preventScroll: true })));
    plane.addEventListener("pointermove", (event) => (event.buttons || event.pointerType === "mouse") && point(event));
    plane.addEventListener("keydown", (event) => {
      const [right, down] = ARROWS[event.key] || [];
      if (right === undefined) return;
      const far = event.shiftKey ? 0.5 : 0.1;
      go([state.z[0] + far * right, state.z[1] - far * down]);
      event.preventDefault();
    });

    /** What depends on β only. */
    function clouds() {
      const pixels = new ImageData(nodes, nodes);
      for (let i = 0; i < nodes * nodes; i++) {
        const [x, y] = [i % nodes, nodes - 1 - Math.floor(i / nodes)];
        const logP = logPrior([x, y].map((at) => reach * ((2 * at) / (nodes - 1) - 1)));
        const excess = given.lowest + given.step * density.data[(state.index * nodes + y) * nodes + x] - logP;
        const dense = Math.min(1, Math.exp(3.8 + logP)); // where the prior is nothing, nothing is missing
        pixels.data.set([213, 94, 0, (170 * dense) / (1 + Math.exp(3 * (excess - border)))], 4 * i);
      }
      shade.getContext("2d").putImageData(pixels, 0, 0);
      marks.forEach((mark, i) => {
        const [x, y] = place(codeOf(i));
        move(mark, { x, y: y + 3 });
      });
    }

    function sample() {
      const [noise, prior] = [normals(state.seed), state.kind === "prior"];
      draws = drawn.map((_, i) => (prior ? [noise(), noise()] : codeOf((37 * state.seed + 11 * i) % count)));
      const empty = draws.map(isHole);
      draws.forEach((z, i) => {
        paint(drawn[i].firstChild, model.decode(z, betas[state.index]), side);
        label(drawn[i], `Draw ${i + 1}${empty[i] ? ", in a hole" : ""}: go there`);
        drawn[i].classList.toggle("hole", empty[i]);
        const [x, y] = place(z);
        move(squares[i], { x: x - 3.5, y: y - 3.5 });
      });
      const from = prior ? "the prior" : "the aggregate, codes of test images";
      heading.textContent = `Ten draws from ${from}: ${empty.filter(Boolean).length} in holes (dashed)`;
    }

    /** Of which labels the codes nearest to z are. */
    function nearest(z) {
      const away = (i) => Math.hypot(codeOf(i)[0] - z[0], codeOf(i)[1] - z[1]);
      const all = Array.from(labels.data, (kind, i) => [away(i), kind]).sort((a, b) => a[0] - b[0]);
      const tally = {};
      for (const [, kind] of all.slice(0, 10)) tally[kind] = (tally[kind] || 0) + 1;
      return Object.entries(tally).sort((a, b) => b[1] - a[1]).map(([kind, n]) => `${n} of ${kind}`).join(", ");
    }

    let before = [];
    function update() {
      const began = performance.now();
      const { index, z } = state;
      const price = `β = ${brief(betas[index])}`;
      beta.value = price;
      move(slider, { "aria-valuetext": price });
      const now = [index, state.kind, state.seed];
      if (now[0] !== before[0]) clouds();
      if (`${now}` !== `${before}`) sample();
      before = now;
      const image = model.decode(z, betas[index]);
      paint(shown, image, side);
      const [p, q] = [logPrior(z), logQ(z)];
      const [x, y] = place(z);
      move(cross, { d: `M${x - 9} ${y}h18M${x} ${y - 9}v18` });
      const times = Math.exp(Math.abs(q - p));
      const much = times > 100 ? "more than 100" : nats(times);
      const verdict = !isHole(z) ? "." : p > -4.5 ? ": a hole." : ", which is small here, too.";
      words.textContent = [
        `At the cross, z = (${nats(z[0])}, ${nats(z[1])}): log p(z) = ${nats(p)}, log q(z) ${q > given.lowest ? "=" : "<"} ${nats(q)} nats.`,
        times < 1.5 ? "Codes are as dense here as the prior." : `Codes are ${much} times ${q > p ? "denser" : "thinner"} here than the prior${verdict}`,
        labels ? `The ten nearest codes: ${nearest(z)}.` : "",
      ].join(" ");
      root.live = { model, state, image, logP: p, logQ: q, draws, milliseconds: performance.now() - began };
    }
    update();
  }

  // The code arrives ---------------------------------------------------------------------------------------------------

  function arrives(root, given) {
    const { pictures, images, labels, ...numbers } = arrays(given.weights);
    const [count, draws, stages, size] = pictures.shape;
    const { side, curve, alone } = given;
    const last = stages - 1;
    const state = { image: Math.min(4, count - 1), draw: 0, stage: 0 };
    const originals = unpackBits(images, size);
    const decoded = (stage) => {
      const from = ((state.image * draws + state.draw) * stages + stage) * size;
      return Array.from(pictures.data.subarray(from, from + size), (v) => v / 255);
    };
    const [R, D] = ["nats", "distortion"].map((name) => (stage) => numbers[name].data[state.image * stages + stage]);
    const set = (values) => (Object.assign(state, values), update());

    const slider = range("codes that have arrived", last);
    const output = make("output");
    const words = said();
    const [received, sent] = [picture(side, "large"), picture(side, "large")];
    const strip = Array.from({ length: stages }, () => picture(side, "small"));
    const plane = make("svg", { viewBox: "0 0 320 220", role: "img" });
    const nameOf = (i) => (labels ? `a ${labels.data[i]}` : `image ${i + 1}`);
    const choices = originals.map((image, i) => imageButton(side, image, `Send ${nameOf(i)}`, () => set({ image: i })));
    let timer = 0;
    const stop = () => ((timer = clearInterval(timer)), (play.textContent = "Play"));
    const next = () => set({ stage: Math.min(last, state.stage + 1) });
    const play = button("Play", () => {
      if (timer) return stop();
      if (state.stage === last) set({ stage: 0 });
      play.textContent = "Stop";
      timer = setInterval(() => (next(), state.stage === last && stop()), 900);
    });
    play.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches;
    slider.addEventListener("input", () => (stop(), set({ stage: Number(slider.value) })));
    root.replaceChildren(
      make("div", { class: "live" },
        wide(make("label", {}, "Codes that have arrived: ", output), slider,
          row(play, button("Next code", next), button("Another draw of the codes", () => set({ draw: (state.draw + 1) % draws }))), words),
        block("Received", received), block("Sent", sent),
        two(title("Distortion against nats so far"), plane,
          hint("Line: means over the test images, a point for each code. Rings: each code sent alone. Large dot: this image.")),
        wide(title("After each code"), row(...strip)),
        wide(title("Send another image"), row(...choices)),
      ),
    );
    const most = (name) => 1.1 * Math.max(...numbers[name].data, ...curve.map((p) => p[name]));
    const place = axes(plane, { R: most("nats"), D: most("distortion") }, "nats so far");
    const [line, rings] = [curve, alone].map((points) => points.map((p) => place(p.nats, p.distortion)));
    const dots = (points, style) => points.map(([cx, cy]) => make("circle", { cx, cy, ...style }));
    const dot = make("circle", DOT);
    plane.append(make("path", { d: joined(line), ...CURVE }), ...dots(line, { r: 3, fill: "#0072b2" }),
      ...dots(rings, { r: 5, ...LINE }), dot);

    function update() {
      const began = performance.now();
      const { stage } = state;
      const [arrived, missing] = [nats(R(stage)), nats(D(stage))];
      slider.value = stage;
      output.value = `${stage} of ${last}`;
      move(slider, { "aria-valuetext": output.value });
      paint(received, decoded(stage), side);
      paint(sent, originals[state.image], side);
      strip.forEach((canvas, i) => {
        paint(canvas, decoded(i), side);
        canvas.style.visibility = i > stage ? "hidden" : "";
        label(canvas, `After ${i} codes, ${nats(R(i))} nats`);
      });
      choices.forEach((each, i) => move(each, { "aria-pressed": i === state.image }));
      const [cx, cy] = place(R(stage), D(stage));
      move(dot, { cx, cy });
      words.textContent = stage
        ? `${arrived} nats have arrived, and ${missing} nats are still missing, the distortion.`
        : `Nothing has arrived. Shown is the mean of the training images, and ${missing} nats are missing.`;
      if (stage === last) {
        words.textContent += ` That is all. In the mean over test images the ladder costs ${nats(curve[last].nats)} nats, its last code alone ${nats(alone[last - 1].nats)}.`;
      }
      label(received, `What is decoded from ${stage} of ${last} codes.`);
      label(sent, `The image that is sent: ${nameOf(state.image)}.`);
      label(plane, `Distortion against nats: a falling curve, and this image at ${arrived} and ${missing} nats.`);
      root.live = { state, nats: R(stage), distortion: D(stage), milliseconds: performance.now() - began };
    }
    update();
  }

  // Start --------------------------------------------------------------------------------------------------------------

  const ELEMENTS = { draw, water, hole, arrives };

  function start() {
    const roots = [...document.querySelectorAll("[data-live]")].filter((root) => !root.live);
    if (!roots.length) return;
    document.head.append(make("link", { rel: "stylesheet", href: HERE.replace(/js$/, "css") }));
    for (const root of roots) {
      const data = root.querySelector('script[type="application/json"]');
      if (data && ELEMENTS[root.dataset.live]) ELEMENTS[root.dataset.live](root, JSON.parse(data.textContent));
    }
  }

  window.nbvaeLive = { arrays, MultiBeta, normals, waterLevel, gridAt };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
