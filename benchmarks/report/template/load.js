// The board keeps each task in a file of its own, which is a script: pages from the disk may not fetch.

const loaded = new Map();
window.llmqueue = (file, part) => loaded.set(file, part);

/** Call `then` with the part that a file holds, at once if it has come before. */
function load(file, then) {
  if (loaded.has(file)) { then(loaded.get(file)); return; }
  document.head.append(h("script", { src: `${DATA.base}${file}.js`, onload: () => then(loaded.get(file)) }));
}
