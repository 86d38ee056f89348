(function () {
  "use strict";
  var drawings = JSON.parse(document.getElementById("drawings").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function theme() {
    var style = getComputedStyle(document.documentElement);
    function value(name) { return style.getPropertyValue("--" + name).trim(); }
    return {
      first: value("first"), second: value("second"), third: value("third"), quiet: value("quiet"),
      wash: value("wash"), page: value("card"), ink: value("ink"), soft: value("soft"), line: value("line"),
      scale: [[0, value("scale-0")], [0.5, value("scale-1")], [1, value("scale-2")]]
    };
  }
  var coloured = { color: 1, colorscale: 1, fillcolor: 1, fgcolor: 1 };
  function painted(thing, colours) {
    if (Array.isArray(thing)) {
      return thing.map(function (item) { return painted(item, colours); });
    }
    if (thing && typeof thing === "object") {
      var result = {};
      Object.keys(thing).forEach(function (key) {
        var item = thing[key];
        result[key] = coloured[key] && typeof item === "string" ? colours[item] || item : painted(item, colours);
      });
      return result;
    }
    return thing;
  }
  function axis(given, colours) {
    return Object.assign(
      { fixedrange: true, tickfont: { size: 12 }, gridcolor: colours.line, zeroline: false, linecolor: colours.line, automargin: true }, given);
  }
  function draw() {
    var colours = theme();
    drawings.forEach(function (drawing) {
      var place = document.getElementById("plot-" + drawing.id);
      var layout = Object.assign({}, drawing.layout);
      layout.xaxis = axis(layout.xaxis, colours);
      layout.yaxis = axis(layout.yaxis, colours);
      Plotly.react(place, painted(drawing.traces, colours), Object.assign({
        autosize: true, height: drawing.height, dragmode: false, showlegend: true,
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
        margin: { t: 16, r: 18, b: 48, l: 56 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: "system-ui, sans-serif", size: 13, color: colours.soft },
        hoverlabel: { bgcolor: colours.page, bordercolor: colours.line, font: { color: colours.ink } }
      }, layout), { displayModeBar: false, displaylogo: false, responsive: true, showTips: false });
    });
    document.documentElement.dataset.drawn = String(drawings.length);
  }
  draw();
  dark.addEventListener("change", draw);
})();
