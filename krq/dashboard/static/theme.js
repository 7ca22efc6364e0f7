// Before the first paint: the theme that was chosen here, if any. Else the system's.
(() => {
  try {
    const chosen = localStorage.getItem("krq-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    /* no storage: the system's */
  }
})();
