"use strict";
(() => {
  const labels = JSON.parse(document.getElementById("labels-data").textContent);
  const card = document.getElementById("card");
  const table = card.querySelector("table");
  const buttons = [...document.querySelectorAll(".gallery button")];
  let pinned = null;

  function cell(row, tag, text, name) {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    row.append(made);
    return made;
  }

  function fill(button) {
    const { bars, rest } = labels[Number(button.dataset.label)];
    const image = button.querySelector("img");
    const large = card.querySelector("img");
    large.src = image.src;
    large.className = image.className;
    const grow = Math.max(1, Math.floor(112 / Math.max(image.width, image.height)));
    large.width = image.width * grow;
    large.height = image.height * grow;
    card.querySelector("p").textContent = image.alt.split(", label: ")[0];
    table.replaceChildren();
    for (const [name, text, length, own, negative] of bars) {
      const row = table.insertRow();
      row.className = (own ? "own" : "") + (negative ? " negative" : "");
      cell(row, "th", name).scope = "row";
      const bar = document.createElement("i");
      bar.style.width = 100 * length + "%";
      cell(row, "td", "", "track").append(bar);
      cell(row, "td", text, "n");
    }
    if (rest !== null) {
      const row = table.insertRow();
      row.className = "rest";
      cell(row, "th", "all others").scope = "row";
      cell(row, "td", "");
      cell(row, "td", rest, "n");
    }
  }

  function place(button) {
    const at = button.getBoundingClientRect();
    const width = card.offsetWidth;
    const height = card.offsetHeight;
    const left = Math.min(Math.max(8, at.left + at.width / 2 - width / 2), innerWidth - width - 8);
    const below = at.bottom + 8;
    const top = below + height <= innerHeight - 8 ? below : Math.max(8, at.top - height - 8);
    card.style.left = left + "px";
    card.style.top = top + "px";
  }

  function show(button) {
    buttons.forEach((other) => other.classList.toggle("open", other === button));
    card.hidden = button === null;
    if (button === null) return;
    fill(button);
    place(button);
  }

  function pin(button) {
    pinned = button;
    card.classList.toggle("pinned", button !== null);
    if (button === null) card.setAttribute("aria-hidden", "true");
    else card.removeAttribute("aria-hidden");
    card.setAttribute("role", button === null ? "none" : "status");
    show(button);
  }

  // One stop for the Tab key; the arrow keys move between images.
  function rove(to) {
    buttons.forEach((button) => (button.tabIndex = button === to ? 0 : -1));
  }

  function beside(button, key) {
    const index = buttons.indexOf(button);
    if (key === "ArrowRight") return buttons[index + 1];
    if (key === "ArrowLeft") return buttons[index - 1];
    if (key === "Home") return buttons[0];
    if (key === "End") return buttons[buttons.length - 1];
    const from = button.getBoundingClientRect();
    const sign = key === "ArrowDown" ? 1 : -1;
    let best = null;
    let least = Infinity;
    for (const other of buttons) {
      const to = other.getBoundingClientRect();
      const down = sign * (to.top - from.top);
      const cost = down * 1000 + Math.abs(to.left - from.left);
      if (down > 2 && cost < least) [best, least] = [other, cost];
    }
    return best;
  }

  rove(buttons[0]);
  for (const button of buttons) {
    button.addEventListener("pointerenter", (event) => { if (!pinned && event.pointerType === "mouse") show(button); });
    button.addEventListener("pointerleave", (event) => { if (!pinned && event.pointerType === "mouse") show(null); });
    button.addEventListener("focus", () => { rove(button); if (!pinned && button.matches(":focus-visible")) show(button); });
    button.addEventListener("blur", () => { if (!pinned) show(null); });
    button.addEventListener("click", () => pin(pinned === button ? null : button));
    button.addEventListener("keydown", (event) => {
      if (!["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
      event.preventDefault();
      const next = beside(button, event.key);
      if (!next) return;
      if (pinned) pin(null);
      next.focus();
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") pin(null); });
  document.addEventListener("click", (event) => { if (pinned && !event.target.closest(".gallery button, #card")) pin(null); });
  addEventListener("scroll", () => { if (pinned) place(pinned); else if (!card.hidden) show(null); }, { passive: true });
  addEventListener("resize", () => { if (pinned) place(pinned); });
})();
