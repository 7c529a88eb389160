// Opens a page of the origin in Chromium and prints what happened, one line of JSON for each step. The suite
// page (tests/tests/page.rs) judges it.
//
//   node drive.mjs visit URL [{"width":..,"height":..,"dark":..,"axe":..,"copy":..,"wait":TEXT,
//                              "shot":FILE,"replace":[[FROM,TO],..]}]
//   node drive.mjs walk URL             goes from the fleet to a difference by clicks, and to the history by keys
//   node drive.mjs follow URL TEXT      waits until the page says TEXT, without being loaded again
//   node drive.mjs frame URL            embeds the page in a stranger's page
//   node drive.mjs login URL TEXT       opens a login link and waits until the page says TEXT
//   node drive.mjs rebind URL           asks for the page under a stranger's name
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

const LIMIT = 120_000;
const [, , scene, url, argument] = process.argv;
const tell = (step) => console.log(JSON.stringify(step));

const browser = await puppeteer.launch({
  executablePath: process.env.SYNCD_CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP evil.example 127.0.0.1"],
  acceptInsecureCerts: true,
  protocolTimeout: LIMIT,
  timeout: LIMIT,
});

// A page that notes every request, and everything that went wrong.
const opened = async (options = {}) => {
  const page = await browser.newPage();
  page.setDefaultTimeout(LIMIT);
  await page.setViewport({ width: options.width ?? 1280, height: options.height ?? 800 });
  const scheme = options.dark ? "dark" : "light";
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  const noted = { requests: [], errors: [], bytes: 0 };
  const sizes = await page.createCDPSession();
  await sizes.send("Network.enable");
  sizes.on("Network.loadingFinished", (event) => { noted.bytes += event.encodedDataLength; });
  page.on("request", (request) => noted.requests.push(request.url()));
  page.on("console", (message) => { if (message.type() === "error") noted.errors.push(message.text()); });
  page.on("pageerror", (error) => noted.errors.push(String(error)));
  page.on("dialog", async (dialog) => { noted.errors.push(`dialog: ${dialog.message()}`); await dialog.dismiss(); });
  return { page, noted };
};

const axe = async (page) => {
  const source = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  await page.evaluate(source);
  const { violations } = await page.evaluate(() => window.axe.run());
  return violations.map((found) => `${found.id}: ${found.nodes.slice(0, 3).map((node) => node.html).join(" | ")}`);
};

// Takes a picture in which some texts, such as paths of this run, are others.
const shoot = async (page, path, replace) => {
  await page.mouse.move(0, 0);
  for (;;) {
    await page.evaluate((replace) => {
      const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (texts.nextNode()) {
        for (const [from, to] of replace) texts.currentNode.data = texts.currentNode.data.replaceAll(from, to);
      }
    }, replace);
    await page.screenshot({ path });
    const text = await page.evaluate(() => document.body.innerText);
    // An event may have replaced a part meanwhile.
    if (!replace.some(([from]) => text.includes(from))) return;
  }
};

const scenes = {
  async visit() {
    const options = JSON.parse(argument ?? "{}");
    const { page, noted } = await opened(options);
    const answer = await page.goto(url, { waitUntil: "load" });
    if (options.live) await page.waitForSelector("#link[data-on]");
    if (options.wait) await page.waitForFunction((text) => document.body.innerText.includes(text), {}, options.wait);
    const told = {
      status: answer.status(),
      // The script has run: buttons copy.
      interactive_ms: await page.evaluate(() => performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd),
      text: await page.evaluate(() => document.body.innerText),
      rows: (await page.$$("tbody tr")).length,
      commands: await page.$$eval("[data-copy]", (buttons) => buttons.map((button) => button.dataset.copy)),
      sideways: await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth),
    };
    if (options.copy) {
      await browser.defaultBrowserContext().overridePermissions(new URL(url).origin, ["clipboard-sanitized-write"]);
      await page.bringToFront();
      // By keyboard, as anybody may.
      await page.focus("button[data-copy]");
      await page.keyboard.press("Enter");
      await page.waitForFunction(() => document.querySelector("button[data-copy]").textContent !== "Copy");
      told.copied = await page.evaluate(() => document.querySelector("button[data-copy]").textContent);
    }
    if (options.axe) told.violations = await axe(page);
    if (options.shot) await shoot(page, options.shot, options.replace ?? []);
    tell({ ...told, ...noted });
  },

  async walk() {
    const { page, noted } = await opened();
    const rights = ["clipboard-read", "clipboard-sanitized-write"];
    await browser.defaultBrowserContext().overridePermissions(new URL(url).origin, rights);
    await page.goto(url, { waitUntil: "load" });
    await page.bringToFront();
    const at = () => page.evaluate(() => `${location.pathname} ${document.querySelector("h1").innerText}`);
    const click = async (selector) => {
      await Promise.all([page.waitForNavigation({ waitUntil: "load" }), page.click(selector)]);
      return at();
    };
    const clicks = [
      await click("nav a[href='/history']"),
      await click("table.history tbody tr:first-child th a"),
      await click("table.changes tbody tr:first-child th a"),
    ];
    const difference = await page.$$eval("table.difference tr[data-c]", (lines) =>
      lines.map((line) => `${line.dataset.c}: ${line.lastElementChild.innerText}`));
    await page.goBack({ waitUntil: "load" });
    const button = "button[data-copy]";
    const shown = await page.$eval(".command code", (code) => code.innerText);
    await page.click(button);
    await page.waitForFunction((button) => document.querySelector(button).textContent === "Copied", {}, button);
    const copied = await page.evaluate(() => navigator.clipboard.readText());

    // From the top of the fleet, without a mouse.
    await page.goto(url, { waitUntil: "load" });
    const focused = () => page.evaluate(() => {
      const { id, innerText } = document.activeElement;
      return { name: id || innerText, outline: getComputedStyle(document.activeElement).outlineStyle };
    });
    const keys = [];
    for (let count = 0; count < 4; count++) {
      await page.keyboard.press("Tab");
      keys.push(await focused());
    }
    await Promise.all([page.waitForNavigation({ waitUntil: "load" }), page.keyboard.press("Enter")]);
    const opened_by_keys = await at();
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    const skipped_to = await focused();
    await page.keyboard.press("Tab");
    tell({ clicks, difference, shown, copied, keys, opened_by_keys, skipped_to, next: await focused(), ...noted });
  },

  async follow() {
    const { page, noted } = await opened();
    await page.goto(url, { waitUntil: "load" });
    await page.waitForSelector("#link[data-on]");
    await page.evaluate(() => { window.loadedOnce = true; });
    tell({ step: "open" });
    await page.waitForFunction((text) => document.body.innerText.includes(text), {}, argument);
    await page.waitForSelector("#link[data-on]");
    tell({ step: "seen", once: await page.evaluate(() => window.loadedOnce === true), ...noted });
  },

  async frame() {
    const stranger = createServer((_, answer) => answer.end(`<iframe src="${url}"></iframe>`));
    await new Promise((done) => stranger.listen(0, "127.0.0.1", done));
    const { page, noted } = await opened();
    await page.goto(`http://127.0.0.1:${stranger.address().port}/`, { waitUntil: "load" });
    const frames = await Promise.all(page.frames().slice(1).map((frame) => frame.evaluate(() => document.documentElement.innerText)));
    stranger.close();
    tell({ frames, ...noted });
  },

  async login() {
    const { page, noted } = await opened();
    await page.goto(url, { waitUntil: "load" });
    await page.waitForFunction((text) => document.body?.innerText.includes(text), {}, argument);
    await page.waitForSelector("#link[data-on]");
    const cookies = await page.cookies();
    const readable = await page.evaluate(() => document.cookie);
    tell({ cookies: cookies.map(({ name, httpOnly, secure, sameSite }) => ({ name, httpOnly, secure, sameSite })), readable, ...noted });
  },

  async rebind() {
    const { page, noted } = await opened();
    const answer = await page.goto(url.replace("127.0.0.1", "evil.example"), { waitUntil: "load" });
    tell({ status: answer.status(), text: await page.evaluate(() => document.body.innerText), ...noted });
  },
};

try {
  await scenes[scene]();
} finally {
  await browser.close();
}
