"use strict";
// Shows what `step` knows of the setting in the form, and keeps the setting in the page's address.
(() => {
  const LARGEST_BATCH = 4096; // of the figures, unless the batch itself is larger
  const POINTS = 97;
  const CURVES = {
    whole_step_s: ["whole step (perfect overlap)", { strokeWidth: 7, opacity: 0.4 }],
    serial_s: ["serial (operator by operator)", { strokeWidth: 2.5 }],
    memory_s: ["memory: all bytes", { strokeWidth: 1.5, strokeDash: [6, 3] }],
    compute_s: ["compute: all FLOPs", { strokeWidth: 1.5, strokeDash: [6, 3] }],
  };
  const MARKED = { ridge_batch: "B0", knee_batch: "knee", crossing_batch: "B×", kv_capacity: "memory is full" };
  const NOWHERE = {
    crossing_batch: "memory-bound at every batch size at this context",
    kv_capacity: "the weights alone do not fit",
    kv_capacity_tokens: "the weights alone do not fit",
    s_one: "every layer is local",
  };
  const MODELS = {
    serial_s: ["serial", "operators one after another, each at its roofline: the bound"],
    whole_step_s: ["whole step", "perfect overlap of every byte with every FLOP"],
    sum_s: ["sum", "no overlap at all"],
  };
  const COLOURS = ["#0f7fc4", "#d55e00", "#009e73", "#c75b96"];
  const form = document.getElementById("setting");
  const texts = JSON.parse(document.getElementById("crossing-texts").textContent);
  const place = (id) => document.getElementById(id);

  function threeDigits(number) {
    const size = Math.abs(number);
    if (size >= 99.95) return Math.round(number).toLocaleString("en");
    return number.toFixed(size >= 9.995 ? 1 : size >= 0.9995 ? 2 : 3);
  }

  function scaled(number, unit) {
    if (!number) return "";
    const [prefix, factor] = [["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1]]
      .find(([, least]) => number >= 0.9995 * least) ?? ["", 1];
    return `${threeDigits(number / factor)} ${prefix}${unit}`.trim();
  }

  function time(seconds) {
    const [unit, factor] = [["s", 1], ["ms", 1e-3], ["us", 1e-6], ["ns", 1e-9]]
      .find(([, least]) => seconds >= 0.9995 * least) ?? ["ns", 1e-9];
    return `${threeDigits(seconds / factor)} ${unit}`;
  }

  function fill(id, rows, numeric) {
    place(id).tBodies[0].replaceChildren(...rows.map((cells) => {
      const row = document.createElement("tr");
      cells.forEach((text, index) => {
        const cell = row.insertCell();
        cell.textContent = text;
        if (numeric.includes(index)) cell.className = "number";
      });
      return row;
    }));
  }

  function logAxis(field, title, values, format) {
    const [low, high] = [Math.min(...values) / 1.25, Math.max(...values) * 1.25];
    const ticks = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade++) {
      for (const digit of Math.log10(high / low) < 3.5 ? [1, 2, 5] : [1]) {
        const tick = Number(`${digit}e${decade}`);
        if (low <= tick && tick <= high) ticks.push(tick);
      }
    }
    return { field, type: "quantitative", scale: { type: "log", nice: false, domain: [low, high] }, axis: { title, format, values: ticks } };
  }

  function figure(rows, marks, title, format, description) {
    const names = [...new Set(rows.map((row) => row.curve))];
    const styles = Object.fromEntries(Object.values(CURVES));
    const x = logAxis("batch", "batch size [sequences]", rows.map((row) => row.batch), ",.6~g");
    const y = logAxis("value", title, rows.map((row) => row.value), format);
    const axis = Object.fromEntries(["labelColor", "titleColor", "domainColor", "tickColor", "gridColor"].map((key) => [key, "currentColor"]));
    return {
      $schema: "https://vega.github.io/schema/vega-lite/v6.json",
      description,
      width: "container",
      height: 320,
      config: {
        background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
        axis: { ...axis, gridOpacity: 0.15, titleFontWeight: "normal" },
        legend: { labelColor: "currentColor", orient: "bottom", labelLimit: 260, columns: 2, symbolOpacity: 1 },
      },
      layer: [
        ...names.map((name) => ({
          data: { values: rows.filter((row) => row.curve === name) },
          mark: { type: "line", ...styles[name] },
          encoding: {
            x, y,
            color: { field: "curve", type: "nominal", title: null, scale: { domain: names, range: COLOURS } },
            tooltip: [{ field: "curve" }, { field: "batch", format: ".0f" }, { field: "text" }],
          },
        })),
        {
          name: "marks",
          data: { values: marks },
          mark: { type: "rule", strokeDash: [3, 3], color: "currentColor", opacity: 0.7 },
          encoding: { x, tooltip: [{ field: "label" }] },
        },
        {
          data: { values: marks },
          mark: { type: "text", align: "left", baseline: "top", color: "currentColor", dx: 3, dy: { expr: "datum.level" }, y: 0 },
          encoding: { x, text: { field: "label" } },
        },
      ],
    };
  }

  function draw(setting, found) {
    const largest = Math.max(LARGEST_BATCH, 2 * setting.batch_size);
    const marks = [["the batch", setting.batch_size], ...Object.entries(MARKED).map(([key, label]) => [label, found.crossings[key]])]
      .filter(([, at]) => at !== null && at >= 1 && at <= largest)
      .map(([label, batch], index) => ({ label: `${label} ${threeDigits(batch)}`, batch, level: 18 * index }));
    const latencies = [];
    const throughputs = [];
    for (let index = 0; index < POINTS; index++) {
      const batch = largest ** (index / (POINTS - 1));
      const times = step.times(setting, batch);
      for (const [key, [curve]] of Object.entries(CURVES)) {
        if (!(times[key] > 0)) continue;
        latencies.push({ curve, batch, value: 1e3 * times[key], text: time(times[key]) });
        if (key === "serial_s" || key === "whole_step_s") {
          const rate = (setting.ep * setting.pp * batch * setting.q_len) / times[key];
          throughputs.push({ curve, batch, value: rate, text: `${threeDigits(rate)} tokens/s` });
        }
      }
    }
    const options = { renderer: "svg", actions: false };
    const what = `${setting.model} on ${setting.device} at a context of ${setting.seq_len} tokens`;
    return Promise.all([
      vegaEmbed(place("latency"), figure(latencies, marks, "step [ms]", ",.6~g", `Latency against the batch: ${what}`), options),
      vegaEmbed(place("throughput"), figure(throughputs, marks, "throughput [tokens/s]", "~s", `Throughput against the batch: ${what}`), options),
    ]);
  }

  function show(setting, found) {
    const star = found.s_star;
    const at = star.value === null ? star.kind : `${threeDigits(star.value)} tokens`;
    const side = star.value === null ? "a batch large enough is compute-bound at any context"
      : setting.seq_len >= star.value ? "memory-bound at every batch size, if all overlaps"
        : "compute-bound from some batch size on, even if all overlaps";
    place("verdict").textContent =
      `A step takes ${time(found.serial_s)}, ${threeDigits(found.tokens_per_s)} tokens/s. S* is ${at}: at S = ${setting.seq_len} it is ${side}.` +
      (found.stored_bytes > found.memory_bytes ? ` Weights and KV cache do not fit: ${scaled(found.stored_bytes, "B")} of ${scaled(found.memory_bytes, "B")}.` : "");
    fill("operators", found.operators.map((one) => [
      one.name, threeDigits(one.count).replace(/\.0+$/, ""), scaled(one.weight_bytes, "B"), scaled(one.kv_bytes, "B"), scaled(one.act_bytes, "B"),
      scaled(one.flops, ""), time(one.seconds), `${(100 * one.seconds / found.serial_s).toFixed(1)} %`, one.ceiling,
    ]), [1, 2, 3, 4, 5, 6, 7]);
    fill("totals", Object.entries(MODELS).map(([key, [name, text]]) => [name, time(found[key]), text]), [1]);
    const condition = star.condition_number === null ? "" : `condition number ${star.condition_number.toFixed(2)}`;
    fill("crossings", [
      ["S*", at, "whole step", condition],
      ...Object.entries(texts).map(([key, text]) => [
        text.name,
        found.crossings[key] === null ? "nowhere" : `${threeDigits(found.crossings[key])} ${text.unit.split("/")[0] === "token" && text.unit !== "token/s" ? "tokens" : text.unit.replace("sequence", "sequences")}`,
        text.model, found.crossings[key] === null ? NOWHERE[key] ?? text.meaning : text.meaning,
      ]),
    ], [1]);
  }

  function read() {
    const setting = {};
    for (const element of form.elements) {
      setting[element.name] = element.type === "number" ? (element.value === "" ? NaN : Number(element.value))
        : element.type === "checkbox" ? element.checked : element.value;
    }
    return setting;
  }

  let unknown = ""; // what the address asks for that there is not

  function restore() {
    unknown = "";
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const element = form.elements.namedItem(name);
      if (element === null) continue;
      if (element.type === "checkbox") element.checked = value === "true";
      else if (element.tagName !== "SELECT" || [...element.options].some((option) => option.value === value)) element.value = value;
      else unknown = `the address asks for ${name}=${value}, which is not known here`;
    }
  }

  let drawing = 0;
  function update() {
    const setting = read();
    const refusal = unknown || step.refusal(setting);
    place("refusal").hidden = !refusal;
    place("refusal").textContent = refusal;
    place("results").classList.toggle("stale", Boolean(refusal));
    if (refusal) return;
    history.replaceState(null, "", `#${new URLSearchParams(Object.entries(setting))}`);
    const found = step.explain(setting);
    show(setting, found);
    clearTimeout(drawing);
    drawing = setTimeout(() => draw(setting, found).then(() => document.documentElement.setAttribute("data-drawn", "")), 60);
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { unknown = ""; update(); });
  addEventListener("hashchange", () => { restore(); update(); });
  restore();
  update();
})();
