const slider = document.getElementById("t"), shown = document.getElementById("shown");
function mask() {
  shown.textContent = Number(slider.value).toFixed(2);
  for (const row of document.querySelectorAll(".row")) {
    let masked = 0, all = 0;
    for (const piece of row.querySelectorAll("i")) {
      const on = Number(piece.dataset.u) < slider.value, tokens = Number(piece.dataset.n || 1);
      piece.classList.toggle("m", on);
      masked += on ? tokens : 0;
      all += tokens;
    }
    row.querySelector(".count").textContent = `${masked} of ${all} shown tokens masked`;
  }
}
slider.addEventListener("input", mask);
mask();
