"use strict";
// Draws the charts that stand as JSON in #charts, in the page's own colours, which follow light and dark.
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const colours = ["#3a82c4", "#d2782a", "#3f9b6c", "#a868b8"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const round = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(1));

  function lay(chart) {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--soft").trim();
    const line = style.getPropertyValue("--line").trim();
    const axis = { fixedrange: true, gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
    const n = chart.labels.length;
    const several = chart.series.length > 1;
    const names = { ...axis, tickvals: chart.labels.map((_, i) => i), ticktext: chart.labels, showgrid: false, zeroline: false };
    const bins = { ...axis, showgrid: false, tickformat: "~r", nticks: 8 };
    const low = chart.edges.length ? bins : { ...names, nticks: 12 };
    if (!chart.across && !chart.edges.length && n > 12) {
      const every = Math.ceil(n / 12);
      low.tickvals = low.tickvals.filter((i) => i % every === 0);
      low.ticktext = low.ticktext.filter((_, i) => i % every === 0);
    }
    const count = { ...axis, rangemode: "tozero" };
    const title = (text) => ({ text: text, standoff: 8, font: { size: 13 } });
    return {
      xaxis: { ...(chart.across ? count : low), title: title(chart.x) },
      yaxis: { ...(chart.across ? { ...names, autorange: "reversed" } : count), title: title(chart.y) },
      height: chart.across ? Math.max(230, 90 + n * (several ? 38 : 27)) : 300,
      margin: { l: 56, r: chart.across ? 46 : 12, t: several ? 34 : 10, b: 48 },
      font: { color: ink, size: 13, family: "system-ui, sans-serif" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", bargap: chart.edges.length ? 0.04 : 0.25,
      dragmode: false, showlegend: several, barmode: "group", hovermode: "closest",
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
    };
  }

  function trace(chart, series, i) {
    const middle = chart.edges.length ? chart.edges.slice(1).map((e, k) => (e + chart.edges[k]) / 2) : chart.labels.map((_, k) => k);
    const common = {
      type: "bar", name: series.name, marker: { color: colours[i % colours.length] }, customdata: chart.labels,
      hovertext: series.values.map((value, k) => chart.labels[k] + ": " + round(value)), hoverinfo: "text", textposition: "none",
    };
    if (!chart.across) return { ...common, x: middle, y: series.values };
    return { ...common, orientation: "h", x: series.values, y: middle, text: series.values.map(round), textposition: "outside", cliponaxis: false };
  }

  function draw() {
    for (const place of document.querySelectorAll(".plot")) {
      const chart = charts[place.dataset.chart];
      if (!chart) continue;
      Plotly.react(place, chart.series.map((series, i) => trace(chart, series, i)), lay(chart), { displayModeBar: false, responsive: true });
    }
  }

  draw();
  dark.addEventListener("change", draw);
})();
