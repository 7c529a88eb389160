// Keeps the page current, copies commands, and shows times as the time since then. Nothing is lost without it.
"use strict";
(() => {
  const body = document.body;
  const link = document.getElementById("link");
  const spoken = document.getElementById("spoken");
  const say = (text) => { if (spoken.textContent !== text) spoken.textContent = text; };

  // Times.
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  const since = (time) => {
    const past = Math.round((Date.now() - Date.parse(time)) / 1000);
    const unit = units.find(([, length]) => Math.abs(past) >= length);
    if (!unit) return past < -5 ? "in less than a minute" : "just now";
    const amount = `${Math.floor(Math.abs(past) / unit[1])} ${unit[0]}`;
    return past < 0 ? `in ${amount}` : `${amount} ago`;
  };
  const dress = (root) => {
    for (const time of root.querySelectorAll("time")) {
      if (!time.title) time.title = time.textContent;
      const text = since(time.dateTime);
      if (time.textContent !== text) time.textContent = text;
    }
    for (const button of root.querySelectorAll("button[data-copy]")) button.hidden = false;
  };

  // Commands.
  const name = (button, word) => {
    button.textContent = word;
    button.setAttribute("aria-label", `${word}: ${button.dataset.copy}`);
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      name(button, "Copied");
      say("Copied");
    } catch {
      const range = document.createRange();
      range.selectNodeContents(button.previousElementSibling);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      name(button, "Selected");
    }
    setTimeout(() => name(button, "Copy"), 2000);
  });

  // Events.
  const replace = ({ id, html }) => {
    const old = document.getElementById(id);
    if (!old) return;
    // A row is no element outside of a table, except in a template.
    const template = document.createElement("template");
    template.innerHTML = html;
    const fresh = template.content.firstElementChild;
    if (!fresh) return;
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const links = (root) => [...root.querySelectorAll("a, button, summary")];
    const place = focused ? links(old).indexOf(focused) : -1;
    const open = [...old.querySelectorAll("details")].map((details) => details.open);
    old.replaceWith(fresh);
    [...fresh.querySelectorAll("details")].forEach((details, index) => { details.open = open[index] ?? details.open; });
    dress(fresh);
    if (place >= 0) links(fresh)[place]?.focus({ preventScroll: true });
    if (fresh.dataset.say) say(fresh.dataset.say);
  };

  let source = null;
  let retry = 0;
  const show = (text, attribute) => {
    if (!link) return;
    delete link.dataset.on;
    delete link.dataset.off;
    if (attribute) link.dataset[attribute] = "";
    link.textContent = text;
  };
  const close = () => {
    clearTimeout(retry);
    source?.close();
    source = null;
  };
  let known = "";
  const open = () => {
    close();
    const [address, version] = body.dataset.live.split("?");
    source = new EventSource(`${address}?${known || version}`);
    source.addEventListener("edition", (event) => {
      // The origin was upgraded: its page has other files now.
      if (event.data !== body.dataset.edition) location.reload();
      show("live", "on");
    });
    source.addEventListener("replace", (event) => replace(JSON.parse(event.data)));
    source.addEventListener("done", (event) => { known = event.lastEventId; });
    source.addEventListener("error", () => {
      // A stream ends every minute and is opened again at once: that is no news.
      setTimeout(() => { if (source?.readyState !== EventSource.OPEN) show("reconnecting", "off"); }, 2500);
      if (source?.readyState === EventSource.CLOSED) {
        clearTimeout(retry);
        retry = setTimeout(open, 5000);
      }
    });
  };

  dress(document);
  setInterval(() => dress(document), 15000);
  if (body.dataset.live) {
    // A hidden page costs the origin nothing.
    const look = () => { if (document.hidden) { close(); show("paused"); } else open(); };
    document.addEventListener("visibilitychange", look);
    look();
  }
})();
