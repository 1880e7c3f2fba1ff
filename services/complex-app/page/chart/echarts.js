// The parts of Apache ECharts that the timeline draws with. Everything else (the
// other charts, its tooltip and legend, SVG) stays out: the page has a tooltip and
// a legend of its own, which a keyboard reaches and which need no inline style.
export { graphic, init, use } from "echarts/core";
export { CustomChart, LineChart } from "echarts/charts";
export { DataZoomComponent, GridComponent } from "echarts/components";
export { CanvasRenderer } from "echarts/renderers";
