// Shows the values of the step that is pointed at, and hides lines. The page is whole without it.
for (const key of document.querySelectorAll('.key')) {
  const chart = key.parentElement.querySelector('.chart'), cursor = chart.querySelector('.cursor'), step = key.querySelector('.step');
  const { first, steps, left, right } = key.dataset;
  const lines = [...key.querySelectorAll('button')].map(button => ({
    button, output: button.querySelector('output'), values: button.dataset.values.split(' ') }));
  for (const { button } of lines) button.onclick = () => {
    const shown = button.getAttribute('aria-pressed') !== 'true';
    button.setAttribute('aria-pressed', shown);
    for (const line of chart.querySelectorAll(`[data-of='${button.dataset.line}']`)) line.style.display = shown ? '' : 'none';
  };
  const show = at => {
    const inside = at >= 0 && at < steps;
    cursor.setAttribute('visibility', inside ? 'visible' : 'hidden');
    step.textContent = inside ? `step ${+first + at}` : '';
    for (const { output, values } of lines) output.textContent = inside ? values[at] : '';
    const x = chart.viewBox.baseVal.width * (+left + (right - left) * (at + 0.5) / steps);
    for (const end of ['x1', 'x2']) cursor.setAttribute(end, x);
  };
  chart.onpointermove = event => {
    const box = chart.getBoundingClientRect();
    show(Math.floor(((event.clientX - box.left) / box.width - left) / (right - left) * steps));
  };
  chart.onpointerleave = () => show(-1);
  key.dataset.ready = 'true';
}
