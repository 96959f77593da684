"use strict";
(() => {
  const message = document.getElementById("copied");
  let spoken;

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

  const offer = (button, text) => {
    const word = button.textContent;
    let waiting;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const done = await copy(text());
      button.focus({ preventScroll: true });
      button.textContent = message.textContent = done ? "Copied" : "Select the text and copy it by hand";
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        button.textContent = word;
      }, 2500);
      clearTimeout(spoken);
      spoken = setTimeout(() => {
        message.textContent = "";
      }, 2500);
    });
  };

  for (const button of document.querySelectorAll("button[data-copy]")) {
    offer(button, () => document.getElementById(button.dataset.copy).textContent);
  }

  // Tables show few digits and copy all of them, as lines of cells that spreadsheets take.
  const lines = (table) =>
    [...table.rows]
      .map((row) => [...row.cells].map((cell) => cell.dataset.full ?? cell.innerText.replace(/\s+/g, " ").trim()).join("\t"))
      .join("\n");
  for (const box of document.querySelectorAll(".scroll")) {
    const table = box.querySelector("table");
    const more = document.createElement("p");
    more.className = "more";
    more.textContent = "Goes on to the right: scroll.";
    more.hidden = true;
    box.after(more);
    const check = () => {
      more.hidden = box.scrollWidth - box.clientWidth - box.scrollLeft < 2;
    };
    box.addEventListener("scroll", check, { passive: true });
    new ResizeObserver(check).observe(box);
    if (!table.querySelector("[data-full]") || table.classList.contains("brief")) continue;
    const tools = document.createElement("p");
    tools.className = "tools";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy table";
    button.setAttribute("aria-label", `Copy table with all digits: ${box.getAttribute("aria-label")}`);
    tools.append(button);
    more.after(tools);
    offer(button, () => lines(table));
  }

  // Two pictures in one place, divided where the slider or the pointer is.
  for (const pair of document.querySelectorAll(".pair")) {
    const [pictures, slider, range] = [".two", ".slider", "input"].map((name) => pair.querySelector(name));
    const show = () => pictures.style.setProperty("--cut", `${range.value}%`);
    const follow = (event) => {
      const place = pictures.getBoundingClientRect();
      range.value = (100 * (event.clientX - place.left)) / place.width;
      show();
    };
    pair.classList.add("sliding");
    slider.hidden = false;
    range.addEventListener("input", show);
    pictures.addEventListener("pointerdown", follow);
    pictures.addEventListener("pointermove", (event) => {
      if (event.buttons || event.pointerType === "touch") follow(event);
    });
    pictures.addEventListener("dragstart", (event) => event.preventDefault());
    show();
  }

  // Links into a folded part open it.
  const reveal = () => {
    let node = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();

  const unfold = document.getElementById("unfold");
  const folds = [...document.querySelectorAll("details")];
  const name = () => {
    unfold.textContent = folds.every((fold) => fold.open) ? "Close all" : "Open all";
  };
  unfold.hidden = false;
  unfold.addEventListener("click", () => {
    const open = !folds.every((fold) => fold.open);
    for (const fold of folds) fold.open = open;
  });
  for (const fold of folds) fold.addEventListener("toggle", name);

  // On paper, the parts for readers are open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.printed:not([open])")];
    for (const fold of closed) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of closed) fold.open = false;
  });
})();
