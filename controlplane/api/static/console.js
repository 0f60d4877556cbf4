// Keeps the page fresh: fetches the parts that change and puts those in place that did. Without this the page still works.
(() => {
  "use strict";
  const slowest = 30;
  const root = document.documentElement;

  const wanted = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const keep = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* a page without storage has no memory */ } };
  const paint = (theme) => { if (theme) root.dataset.theme = theme; };
  paint(wanted());

  const part = (element) => element.getAttribute("data-part");

  // A part that somebody is working in keeps its focus and its opened details.
  const put = (old, fresh) => {
    if (old.className !== fresh.className) old.className = fresh.className;
    const status = old.querySelector("[aria-live]");
    const news = fresh.querySelector("[aria-live]");
    if (status && news) { // a part of its own, so that it is announced only when its words changed
      if (status.textContent !== news.textContent) status.replaceChildren(...news.childNodes);
      return;
    }
    const opened = new Map([...old.querySelectorAll("details[id]")].map((one) => [one.id, one.open]));
    for (const one of fresh.querySelectorAll("details[id]")) if (opened.has(one.id)) one.open = opened.get(one.id);
    if (old.innerHTML === fresh.innerHTML) return;
    const focus = document.activeElement;
    const index = old.contains(focus) ? [...old.querySelectorAll("a, button, summary")].indexOf(focus) : -1;
    old.replaceChildren(...fresh.childNodes);
    if (index >= 0) old.querySelectorAll("a, button, summary")[index]?.focus({ preventScroll: true });
  };

  const apply = (html) => {
    const content = document.getElementById("content");
    const news = new DOMParser().parseFromString(html, "text/html");
    const fresh = [...news.body.querySelectorAll("[data-part]")];
    const names = new Set(fresh.map(part));
    for (const old of [...content.querySelectorAll("[data-part]")]) if (!names.has(part(old))) old.remove();
    let last = null;
    for (const one of fresh) {
      const old = content.querySelector(`[data-part="${CSS.escape(part(one))}"]`);
      if (old) put(old, one);
      else if (last) last.after(document.adoptNode(one));
      else content.append(document.adoptNode(one));
      last = old || one;
    }
  };

  const start = () => {
    const button = document.getElementById("theme");
    if (button) {
      button.hidden = false;
      button.addEventListener("click", () => {
        const dark = matchMedia("(prefers-color-scheme: dark)").matches;
        const now = root.dataset.theme || (dark ? "dark" : "light");
        const next = now === "dark" ? "light" : "dark";
        paint(next);
        keep(next);
      });
    }
    const source = document.body.dataset.live;
    if (!source) return;
    const every = Number(document.body.dataset.pollS) || 2;
    const link = document.getElementById("link");
    let wait = every;
    let timer = 0;
    const look = async () => {
      clearTimeout(timer);
      if (!document.hidden) {
        try {
          const answer = await fetch(source, { headers: { accept: "text/html" }, signal: AbortSignal.timeout(15000) });
          if (answer.status === 401) { location.reload(); return; }
          if (!answer.ok) throw new Error(String(answer.status));
          apply(await answer.text());
          wait = every;
          link.hidden = true;
        } catch {
          wait = Math.min(wait * 2, slowest);
          link.textContent = "No connection to the control plane; what you see is old.";
          link.hidden = false;
        }
      }
      timer = setTimeout(look, wait * 1000);
    };
    document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
    timer = setTimeout(look, every * 1000);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
