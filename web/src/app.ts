// On every page: live updates, relative times, the bar that counts ticked checkpoints, and the keys that go places.
import { startLive } from "./live";

document.documentElement.classList.add("js");
startLive();
setInterval(refreshTimes, 20_000);
countTicked();
document.addEventListener("change", countTicked);
document.addEventListener("keydown", goPlaces);

function refreshTimes(): void {
  for (const element of document.querySelectorAll<HTMLTimeElement>("time")) {
    const text = element.textContent ?? "";
    if (!/ ago$|^just now$/.test(text)) continue;
    const seconds = (Date.now() - Date.parse(element.dateTime)) / 1000;
    element.textContent = seconds < 45 ? "just now" : `${span(seconds)} ago`;
  }
}

function span(seconds: number): string {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86_400)} d`;
}

function countTicked(): void {
  const form = document.getElementById("compare-form");
  const button = form?.querySelector("button");
  if (!form || !button) return;
  const count = form.querySelectorAll("input:checked").length;
  button.parentElement?.classList.toggle("counting", count > 0);
  button.disabled = count === 0 || count > 5;
  button.textContent = count === 0 ? "Compare ticked checkpoints" : count === 1 ? "Compare 1 checkpoint with the backbone" : `Compare ${count} checkpoints`;
}

let before = "";
function goPlaces(event: KeyboardEvent): void {
  const typing = event.target instanceof HTMLElement && event.target.closest("input, textarea, select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const place = { e: "/", q: "/queue", s: "/searches", w: "/workers" }[event.key];
  if (before === "g" && place) location.href = place;
  before = event.key;
}
