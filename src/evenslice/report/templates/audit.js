"use strict";
(() => {
  const viewer = document.getElementById("examples");
  if (!viewer) return;
  const [previous, slider, next, shown, opacity] = ["previous", "slider", "next", "shown", "opacity"].map((id) =>
    document.getElementById(id));
  const examples = [...viewer.querySelectorAll(".example")];
  const show = (number) => {
    slider.value = number;
    const at = slider.valueAsNumber;
    examples.forEach((example, index) => { example.hidden = index !== at - 1; });
    shown.textContent = `${at} of ${examples.length}`;
    previous.disabled = at === 1;
    next.disabled = at === examples.length;
  };
  slider.addEventListener("input", () => show(slider.valueAsNumber));
  previous.addEventListener("click", () => show(slider.valueAsNumber - 1));
  next.addEventListener("click", () => show(slider.valueAsNumber + 1));
  opacity.addEventListener("input", () => viewer.style.setProperty("--opacity", opacity.value));
  viewer.querySelector(".controls").hidden = false;
  show(1);
})();
