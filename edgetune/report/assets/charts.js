// Draws what the page's JSON describes, with uPlot. It knows two forms, "lines" and "heat", and nothing of their meaning.
(function () {
  "use strict";

  const charts = JSON.parse(document.getElementById("charts").textContent);
  const narrow = 440; // px: below this a chart gets shorter
  const steps = uPlot.sync("step");
  const wholeNumbers = [1, 2, 5].flatMap((n) => Array.from({ length: 16 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);
  let drawn = [];

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const heightFor = (width) => (width < narrow ? 200 : 230);
  const fontFor = () => '12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';

  function number(value) {
    if (value === null || value === undefined) return "—";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e");
    return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  }

  function ticks(u, splits, axis, space, step) {
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    return splits.map((value) => {
      if (value === null) return "";
      if (value === 0) return "0";
      if (step < 1e-3) return value.toExponential(1).replace(".0e", "e");
      return digits ? value.toFixed(Math.min(digits, 6)) : value.toLocaleString("en");
    });
  }

  function yAxisSize(u, values, index, cycle) {
    const axis = u.axes[index];
    if (cycle > 1) return axis._size;
    const longest = (values || []).reduce((most, text) => Math.max(most, String(text).length), 0);
    return 18 + 7 * longest;
  }

  const fullRange = (pad) => (u, low, high) => (low === null ? [0, 1] : low === high ? [low - pad, high + pad] : [low, high]);

  function yRange(chart, least, most) {
    const pad = most === least ? Math.abs(most) * 0.1 || 1 : 0;
    const [low, high] = uPlot.rangeNum(chart.from_zero ? 0 : least - pad, most + pad, 0.1, true);
    return [low, chart.most === null ? high : Math.min(high, chart.most)];
  }

  function axes(chart) {
    const common = { stroke: () => color("muted"), font: fontFor(), labelFont: fontFor(), ticks: { stroke: () => color("rule"), width: 1, size: 5 } };
    return [
      { ...common, values: ticks, incrs: wholeNumbers, space: 60, label: chart.x_label || "step", labelSize: 18, size: 26, labelGap: 0, grid: { show: false } },
      { ...common, values: ticks, size: yAxisSize, space: 34, label: chart.unit || undefined, labelSize: 16, labelGap: 2, grid: { stroke: () => color("rule"), width: 1 } },
    ];
  }

  // Where a series has no value of its own at the cursor, its last one is told.
  function lastKnown(values, index) {
    if (index === null || index === undefined) index = values.length - 1;
    while (index >= 0 && (values[index] === null || values[index] === undefined)) index--;
    return index < 0 ? null : values[index];
  }

  function lineSeries(line, unit) {
    const band = line.style === "low" || line.style === "high";
    return {
      label: line.label,
      stroke: () => (band ? "transparent" : color(line.color)),
      width: line.style === "points" ? 0 : 1.6,
      spanGaps: true,
      legend: !band,
      points: line.style === "points"
        ? { show: true, size: 7, width: 1.5, stroke: () => color(line.color), fill: () => color("paper") }
        : band ? { show: false } : { size: 5, stroke: () => color(line.color), fill: () => color(line.color) },
      value: (u, value, series, index) => (number(lastKnown(u.data[series], index)) + " " + unit).trim(),
    };
  }

  function uprights(u, positions) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.strokeStyle = color("muted");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([devicePixelRatio, 3 * devicePixelRatio]);
    for (const position of positions) {
      if (position < u.scales.x.min || position > u.scales.x.max) continue;
      const x = Math.round(u.valToPos(position, "x", true));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  function levels(u, marks) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.font = 12 * devicePixelRatio + "px system-ui, sans-serif";
    ctx.textAlign = "right";
    ctx.textBaseline = "alphabetic";
    ctx.lineWidth = 1.2 * devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    let above = -Infinity;
    for (const mark of [...marks].sort((a, b) => b.value - a.value)) {
      if (mark.value < u.scales.y.min || mark.value > u.scales.y.max) continue;
      const y = Math.round(u.valToPos(mark.value, "y", true));
      ctx.strokeStyle = ctx.fillStyle = color(mark.color);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      // Its name stands above the line, or below it where another name is in the way.
      const up = y - 4 * devicePixelRatio, down = y + 13 * devicePixelRatio;
      const at = up - above > 12 * devicePixelRatio ? up : down;
      ctx.fillText(mark.label + " " + number(mark.value), bbox.left + bbox.width - 4 * devicePixelRatio, at);
      above = at;
    }
    ctx.restore();
  }

  function lines(chart, place, width) {
    const data = [chart.x, ...chart.lines.map((line) => line.values)];
    const high = chart.lines.findIndex((line) => line.style === "high") + 1;
    const low = chart.lines.findIndex((line) => line.style === "low") + 1;
    const top = Math.max(-Infinity, ...chart.marks.map((mark) => mark.value));
    const u = new uPlot({
      width, height: heightFor(width),
      padding: [14, 20, 0, 0],
      scales: {
        x: { time: false, range: fullRange(0.5) },
        y: { range: (u, least, most) => (least === null ? [0, 1] : yRange(chart, least, Math.max(most, top))) },
      },
      axes: axes(chart),
      series: [{ label: chart.x_label, value: (u, v, s, index) => number(lastKnown(u.data[0], index)) }, ...chart.lines.map((line) => lineSeries(line, chart.unit))],
      bands: high && low ? [{ series: [high, low], fill: () => color(chart.lines[high - 1].color) + "33" }] : [],
      cursor: { y: false, sync: chart.x_label === "step" ? { key: steps.key } : undefined, points: { size: 7 } },
      hooks: { draw: [(u) => { uprights(u, chart.event_steps); levels(u, chart.marks); }] },
    }, data, place);
    const rows = place.querySelectorAll(".u-legend .u-series");
    chart.lines.forEach((line, index) => { if (line.style === "low" || line.style === "high") rows[index + 1].remove(); });
    return u;
  }

  const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

  function ramp() {
    const stops = ["heat0", "heat1", "heat2"].map((name) => channels(color(name)));
    return (share) => {
      const at = Math.min(Math.max(share, 0), 1) * 2, from = Math.min(Math.floor(at), 1), part = at - from;
      return "rgb(" + stops[from].map((value, index) => Math.round(value + (stops[from + 1][index] - value) * part)) + ")";
    };
  }

  function cells(u, chart) {
    const { ctx, bbox } = u, shade = ramp();
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const across = chart.edges.map((edge) => Math.round(u.valToPos(edge, "x", true)));
    const up = chart.rows.map((_, row) => Math.round(u.valToPos(row, "y", true))).concat(Math.round(u.valToPos(chart.rows.length, "y", true)));
    chart.rows.forEach((row, index) => row.forEach((value, column) => {
      if (value === null) return;
      ctx.fillStyle = shade((value - chart.low) / (chart.high - chart.low));
      ctx.fillRect(across[column], up[index + 1] + devicePixelRatio, across[column + 1] - across[column], up[index] - up[index + 1] - devicePixelRatio);
    }));
    ctx.restore();
  }

  function columnAt(edges, x) {
    let column = edges.findIndex((edge) => edge > x) - 1;
    return column >= 0 && column < edges.length - 1 ? column : null;
  }

  function heat(chart, place, width) {
    const middles = chart.edges.slice(1).map((edge, index) => (edge + chart.edges[index]) / 2);
    const readout = place.parentElement.querySelector(".readout");
    const ends = [chart.edges[0], chart.edges[chart.edges.length - 1]];
    const [xAxis, yAxis] = axes({ x_label: "step", unit: "block" });
    const every = (u) => Math.max(1, Math.ceil((14 * chart.rows.length) / (u.height - 60)));
    const point = (u) => {
      const { left, top } = u.cursor;
      if (left < 0 || top < 0) { readout.textContent = ""; return; }
      const column = columnAt(chart.edges, u.posToVal(left, "x")), row = Math.floor(u.posToVal(top, "y"));
      const value = chart.rows[row] && column !== null ? chart.rows[row][column] : undefined;
      if (value === undefined) { readout.textContent = ""; return; }
      const first = Math.ceil(chart.edges[column]), last = Math.floor(chart.edges[column + 1]);
      readout.textContent = (first < last ? "steps " + number(first) + " to " + number(last) : "step " + number(last)) +
        ", block " + row + ": " + number(value) + (value === null ? "" : " " + chart.unit);
    };
    return new uPlot({
      width, height: heightFor(width),
      padding: [8, 20, 0, 0],
      legend: { show: false },
      scales: { x: { time: false, range: (u, low, high) => (low === null || high - low >= middles[middles.length - 1] - middles[0] ? ends : [low, high]) }, y: { range: [0, chart.rows.length] } },
      axes: [
        xAxis,
        {
          ...yAxis, grid: { show: false },
          splits: (u) => chart.rows.map((_, row) => row + 0.5).filter((_, row) => row % every(u) === 0),
          values: (u, splits) => splits.map((split) => String(Math.floor(split))),
        },
      ],
      series: [{}, { show: true, stroke: "transparent", points: { show: false } }],
      cursor: { sync: { key: steps.key, setSeries: false, scales: ["x", null] }, points: { show: false } },
      hooks: { draw: [(u) => cells(u, chart)], setCursor: [point] },
    }, [middles, middles.map(() => chart.rows.length / 2)], place);
  }

  function drawAll() {
    drawn.forEach(({ plot }) => plot.destroy());
    drawn = charts.map((chart) => {
      const place = document.querySelector('[data-chart="' + chart.id + '"]');
      place.replaceChildren();
      const plot = (chart.kind === "heat" ? heat : lines)(chart, place, place.clientWidth);
      return { plot, place };
    });
  }

  drawAll();
  document.documentElement.dataset.charts = String(drawn.length);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => drawn.forEach(({ plot, place }) => {
    if (plot.width !== place.clientWidth) plot.setSize({ width: place.clientWidth, height: heightFor(place.clientWidth) });
  }));
})();
