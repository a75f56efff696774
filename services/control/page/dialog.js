// What is asked before something is changed, and what is said after.
import { button, el } from "./dom.js";

let quiet = 0;

export function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  clearTimeout(quiet);
  quiet = setTimeout(() => { said.textContent = ""; }, 8000);
}

// The fields as an object, or null when it was dismissed.
export function ask(title, content, confirm, kind = "main") {
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-labelledby": "dialog-title" });
    const form = el("form", { method: "dialog" },
      el("h2", { id: "dialog-title" }, title), content,
      el("div", { class: "actions" },
        button("Cancel", () => dialog.close()),
        el("button", { type: "submit", class: kind, value: "yes" }, confirm)));
    dialog.append(form);
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes" ? Object.fromEntries(new FormData(form)) : null);
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Do it, say how it ended, and look again at once.
export async function act(work, done) {
  try {
    say(done(await work()));
  } catch (error) {
    say(`Not done: ${error.message}`);
  }
  document.dispatchEvent(new Event("again"));
}
