"use strict";
(() => {
  const message = document.getElementById("copied");

  // Browsers may refuse the clipboard to pages opened from disk; copying a selection still works.
  const copyBySelection = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    area.readOnly = true;
    area.className = "unseen";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return copyBySelection(text);
    }
  };

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    let waiting;
    button.addEventListener("click", async () => {
      const done = await copy(document.getElementById(button.dataset.copy).textContent);
      button.focus({ preventScroll: true });
      button.textContent = message.textContent = done ? "Copied" : "Select the text and copy it by hand";
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        button.textContent = "Copy";
        message.textContent = "";
      }, 2500);
    });
  }

  // Open all details for printing.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
