"""The parts of the page: figures as plain data and as SVG, tables as HTML, what stands behind a number."""
