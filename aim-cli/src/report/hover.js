// Legends show the values under the pointer; without this script, the last ones.
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor");
  const [left, right, top, bottom] = svg.dataset.frame.split(" ").map(Number);
  const [low, high] = svg.dataset.x.split(" ").map(Number);
  const outputs = [...figure.querySelectorAll("output")].map((output) => {
    const path = svg.querySelector(`path[data-series="${output.dataset.series}"]`);
    const points = path.dataset.points.split(" ").map((pair) => pair.split(","));
    return { output, points, last: output.textContent };
  });
  svg.addEventListener("pointermove", (event) => {
    const x = (event.clientX - svg.getBoundingClientRect().left) * svg.viewBox.baseVal.width / svg.clientWidth;
    const at = Math.min(right, Math.max(left, x));
    const step = low + (at - left) / (right - left) * (high - low);
    const near = (points) => points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
    for (const { output, points } of outputs) {
      const [where, value] = near(points);
      output.textContent = `${value} at ${where}`;
    }
    for (const [name, value] of Object.entries({ x1: at, x2: at, y1: top, y2: bottom })) cursor.setAttribute(name, value);
    cursor.style.visibility = "visible";
  });
  svg.addEventListener("pointerleave", () => {
    for (const { output, last } of outputs) output.textContent = last;
    cursor.style.visibility = "hidden";
  });
}
