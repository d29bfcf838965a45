// Draws what the page's JSON describes, with uPlot. It knows four forms and nothing of their meaning.
(function () {
  "use strict";

  const charts = JSON.parse(document.getElementById("charts").textContent);
  const narrow = 440; // px: below this a chart gets shorter
  const steps = uPlot.sync("step");
  const wholeNumbers = [1, 2, 5].flatMap((n) => Array.from({ length: 16 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);
  let drawn = [];

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const heightFor = (width) => (width < narrow ? 200 : 230);
  const heightOf = (chart, width) => (chart.kind === "bars" ? 52 + 27 * chart.bars.length : heightFor(width) + (chart.kind === "scatter" ? 70 : 0));
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

  const scaled = (size) => size * devicePixelRatio;
  const wide = (low, high) => uPlot.rangeNum(0, low === null ? 1 : Math.max(high, 1e-9), 0.1, true);

  function stroke(ctx, from, to) {
    ctx.beginPath();
    ctx.moveTo(...from);
    ctx.lineTo(...to);
    ctx.stroke();
  }

  // Markers with their spread, the front through the best of them, and a number beside each where it is free.
  function marks(u, chart) {
    const { ctx } = u, taken = [];
    const at = (point) => [u.valToPos(point.x, "x", true), u.valToPos(point.y, "y", true)];
    const overlaps = (box) => taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
    ctx.save();
    ctx.lineWidth = scaled(1.2);
    ctx.strokeStyle = color("muted");
    ctx.setLineDash([scaled(5), scaled(4)]);
    chart.front.slice(1).forEach((place, index) => stroke(ctx, at(chart.points[chart.front[index]]), at(chart.points[place])));
    ctx.setLineDash([]);
    for (const point of chart.points) {
      const [x, y] = at(point), r = scaled(4.5);
      ctx.strokeStyle = ctx.fillStyle = color(point.color);
      ctx.globalAlpha = 0.55;
      stroke(ctx, [u.valToPos(point.x_low, "x", true), y], [u.valToPos(point.x_high, "x", true), y]);
      stroke(ctx, [x, u.valToPos(point.y_low, "y", true)], [x, u.valToPos(point.y_high, "y", true)]);
      ctx.globalAlpha = 1;
      ctx.beginPath();
      ctx.arc(x, y, r, 0, 2 * Math.PI);
      if (point.modelled) { ctx.fillStyle = color("paper"); ctx.fill(); ctx.stroke(); } else ctx.fill();
      taken.push([x - r, y - r, x + r, y + r]);
    }
    ctx.font = "600 " + scaled(11.5) + "px system-ui, sans-serif";
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    for (const point of chart.points) {
      const [x, y] = at(point), half = ctx.measureText(point.number).width / 2, tall = scaled(6);
      const near = [[1, 0], [0, -1], [-1, 0], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1]];
      const spots = [1, 2, 3].flatMap((far) => near.map(([dx, dy]) => [x + dx * (scaled(3 + 6 * far) + half), y + dy * scaled(5 + 8 * far)]));
      const box = ([cx, cy]) => [cx - half, cy - tall, cx + half, cy + tall];
      const spot = spots.find((each) => !overlaps(box(each))) || spots[0];
      taken.push(box(spot));
      ctx.fillStyle = color("ink");
      ctx.fillText(point.number, ...spot);
    }
    ctx.restore();
  }

  function scatter(chart, place, width) {
    const points = chart.points, order = [...points].sort((a, b) => a.x - b.x);
    const readout = place.parentElement.querySelector(".readout");
    const [xAxis, yAxis] = axes(chart);
    const nearest = (u) => {
      const { left, top } = u.cursor;
      const away = points.map((point) => Math.hypot(u.valToPos(point.x, "x") - left, u.valToPos(point.y, "y") - top));
      const best = away.indexOf(Math.min(...away));
      const point = points[best];
      readout.textContent = left < 0 || away[best] > 40 ? "" : point.number + " " + point.label + ": " + number(point.x) + " " + chart.x_label + ", " + number(point.y) + " " + chart.unit + (point.modelled ? " (modelled)" : "");
    };
    return new uPlot({
      width, height: heightOf(chart, width),
      padding: [14, 20, 0, 0],
      legend: { show: false },
      scales: {
        x: { time: false, range: () => wide(0, Math.max(...points.map((point) => point.x_high))) },
        y: { range: () => wide(0, Math.max(...points.map((point) => point.y_high))) },
      },
      axes: [{ ...xAxis, incrs: undefined, grid: { stroke: () => color("rule"), width: 1 } }, yAxis],
      series: [{}, { stroke: "transparent", points: { show: false } }],
      cursor: { points: { show: false }, drag: { x: false, y: false } },
      hooks: { draw: [(u) => marks(u, chart)], setCursor: [nearest] },
    }, [order.map((point) => point.x), order.map((point) => point.y)], place);
  }

  function whiskers(u, chart) {
    const { ctx } = u;
    ctx.save();
    ctx.lineWidth = scaled(1.2);
    ctx.font = scaled(12) + "px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    chart.bars.forEach((bar, index) => {
      const y = u.valToPos(index, "x", true), [low, high] = [bar.low, bar.high].map((value) => u.valToPos(value, "y", true));
      ctx.strokeStyle = ctx.fillStyle = color("ink");
      if (high > low) stroke(ctx, [low, y], [high, y]);
      ctx.fillText(number(bar.value) + (bar.modelled ? "*" : ""), Math.max(high, u.valToPos(bar.value, "y", true)) + scaled(5), y);
    });
    ctx.restore();
  }

  function bars(chart, place, width) {
    const places = chart.bars.map((_, index) => index);
    const [, common] = axes(chart);
    const longest = Math.max(...chart.bars.map((bar) => bar.label.length));
    const kinds = [...new Set(chart.bars.map((bar) => bar.color + (bar.modelled ? " modelled" : "")))];
    const one = (kind) => {
      const [name, modelled] = kind.split(" ");
      return {
        stroke: () => color(name), fill: () => (modelled ? color(name) + "22" : color(name)), width: modelled ? 1.2 : 0, dash: modelled ? [4, 3] : undefined,
        paths: uPlot.paths.bars({ size: [0.62, 40] }), points: { show: false },
      };
    };
    const values = (kind) => chart.bars.map((bar) => (bar.color + (bar.modelled ? " modelled" : "") === kind ? bar.value : null));
    return new uPlot({
      width, height: heightOf(chart, width),
      padding: [6, 52, 0, 0],
      legend: { show: false },
      scales: {
        x: { time: false, ori: 1, dir: -1, range: () => [-0.6, chart.bars.length - 0.4] },
        y: { ori: 0, range: () => [0, 1.02 * Math.max(1e-9, ...chart.bars.map((bar) => Math.max(bar.value, bar.high)))] },
      },
      axes: [
        { ...common, label: undefined, side: 3, size: 14 + Math.min(150, 6.6 * longest), grid: { show: false }, ticks: { show: false }, splits: () => places, values: () => chart.bars.map((bar) => bar.label) },
        { ...common, scale: "y", side: 2, size: 26, space: 60, label: chart.unit || undefined, labelSize: 18 },
      ],
      series: [{}, ...kinds.map(one)],
      cursor: { show: false },
      hooks: { draw: [(u) => whiskers(u, chart)] },
    }, [places, ...kinds.map(values)], place);
  }

  const forms = { lines, heat, scatter, bars };

  function drawAll() {
    drawn.forEach(({ plot }) => plot.destroy());
    drawn = charts.map((chart) => {
      const place = document.querySelector('[data-chart="' + chart.id + '"]');
      place.replaceChildren();
      return { plot: forms[chart.kind](chart, place, place.clientWidth), place, chart };
    });
  }

  drawAll();
  document.documentElement.dataset.charts = String(drawn.length);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => drawn.forEach(({ plot, place, chart }) => {
    if (plot.width !== place.clientWidth) plot.setSize({ width: place.clientWidth, height: heightOf(chart, place.clientWidth) });
  }));
})();
