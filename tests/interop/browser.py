"""Opens pages in headless Chromium and does what a reader does. Arguments: a folder with pages, and where screenshots go.

The folder holds sentence-{zh,en}.html and sentence.json (`tallow show --html`, `--json`), long.html, hostile.html with
hostile.txt, repeated.html, and plot.html. Prints one line a check; any failure ends it with a traceback.
"""

import json
import pathlib
import sys

from playwright.sync_api import expect, sync_playwright

pages, shots = map(pathlib.Path, sys.argv[1:3])
chromium = sys.argv[3]
sentence = json.loads((pages / "sentence.json").read_text(encoding="utf-8"))

# Text that is cut (its box is smaller than what is in it, and does not scroll), and text over other text.
CUT = """() => [...document.querySelectorAll('h1,h2,p,li,span,button,td,th,footer')].filter(e => {
  const s = getComputedStyle(e);
  return e.getClientRects().length && s.visibility !== 'hidden' && s.display !== 'inline' && e.clientWidth > 0
    && !['auto', 'scroll'].includes(s.overflowX) && e.scrollWidth > e.clientWidth + 1;
}).map(e => e.className + ': ' + e.textContent.slice(0, 60))"""
OVERLAP = """(selector) => {
  const boxes = [...document.querySelectorAll(selector)].filter(e => e.getClientRects().length && getComputedStyle(e).visibility !== 'hidden' && e.textContent.trim())
    .map(e => {
      // What a scrolling box hides is not seen.
      const b = e.getBoundingClientRect(), frame = (e.closest('.chips, .matrix') ?? document.documentElement).getBoundingClientRect();
      return [e.textContent, { left: b.left, right: b.right, top: Math.max(b.top, frame.top), bottom: Math.min(b.bottom, frame.bottom) }];
    }).filter(([_, b]) => b.right > b.left && b.bottom > b.top);
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, b] = [boxes[i][1], boxes[j][1]];
    if (a.left + 1 < b.right && b.left + 1 < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom) found.push([boxes[i][0], boxes[j][0]]);
  }
  return found;
}"""
OUTSIDE = """() => [...document.querySelectorAll('figure text')].filter(e => {
  const [a, b] = [e.getBoundingClientRect(), e.ownerSVGElement.getBoundingClientRect()];
  return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
}).map(e => e.textContent)"""
LABELS = ".chip .text, .chip .number, .split .whole, .row .text, .row .number, .ends span, .heads > *, .marks span, .axis span"


def check(what, holds, found=""):
    assert holds, f"{what}: {found}"


class Session:
    """A page, with everything that it logs and asks for."""

    def __init__(self, browser, name, width=1024, height=768, scheme="light", script=True):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script)
        self.page = self.context.new_page()
        self.log, self.requests = [], []
        self.page.on("console", lambda message: self.log.append(message.text))
        self.page.on("pageerror", lambda error: self.log.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.log.append("dialog " + dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        url = (pages / name).resolve().as_uri()
        self.page.goto(url)
        self.url = url

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0] is None:
            check("nothing on the console", not self.log, self.log)
            left = [url for url in self.requests if not url.startswith("data:") and url.split("#")[0] != self.url]
            check("no request leaves the page", not left, left)
        self.context.close()


def layout(page, what):
    check(f"{what}: nothing is wider than the window", page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
    cut = page.evaluate(CUT)
    check(f"{what}: no text is cut", not cut, cut)
    over = page.evaluate(OVERLAP, LABELS)
    check(f"{what}: no text lies over another", not over, over[:5])


def values(page):
    """The values that the panel shows, by column."""
    return {int(name): value for name, value in page.eval_on_selector_all("#values li", "items => items.map(i => [i.firstChild.textContent, i.lastChild.textContent])")}


def sentences(browser):
    for lang in ["zh", "en"]:
        for scheme in ["light", "dark"]:
            for width, height in [(360, 1540), (1024, 1120), (1920, 1120)]:
                with Session(browser, f"sentence-{lang}.html", width, height, scheme) as s:
                    layout(s.page, f"{lang} {scheme} {width}")
                    s.page.locator(".chip").nth(6).focus()
                    s.page.screenshot(path=shots / f"page-{lang}-{scheme}-{width}.png")
                    for step in range(1, 7):
                        s.page.locator("#step").fill(str(step))
                        layout(s.page, f"{lang} {scheme} {width} step {step}")
                    ground = s.page.evaluate("getComputedStyle(document.body).backgroundColor")
                    check(f"{scheme} is {scheme}", (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark"), ground)
        with Session(browser, f"sentence-{lang}.html") as s:
            check("language", s.page.evaluate("document.documentElement.lang") == {"zh": "zh-CN", "en": "en"}[lang])
            (shots / f"page-{lang}.pdf").write_bytes(s.page.pdf(format="A4", print_background=False))
        print("layout, screenshots and print:", lang)


def reading(browser):
    with Session(browser, "sentence-zh.html", 1024, 900) as s:
        page, ids = s.page, sentence["ids"]
        # Tab finds the pieces, arrows walk them all, and each shows its own row.
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.className").startswith("chip"):
                break
        for i in range(len(ids)):
            check("the focus is on the piece", page.evaluate("document.activeElement.dataset.i") == str(i))
            check("its id stands in the panel", str(ids[i]) in page.inner_text("#what"), page.inner_text("#what"))
            shown = values(page)
            check("as many values as columns", len(shown) == sentence["d_model"], len(shown))
            for column in [0, 31, 63] if i else range(sentence["d_model"]):
                check(f"value [{i}, {column}]", float(shown[column]) == sentence["values"][i][column], (shown[column], sentence["values"][i][column]))
            check("its row, its tick and its line light up", page.locator(f".on[data-id='{ids[i]}']").count() >= 4)
            check("nothing else does", page.locator(".on").count() == page.locator(f"[data-id='{ids[i]}']").count())
            check("a name for those who cannot see", str(ids[i]) in page.evaluate("document.activeElement.getAttribute('aria-label')"))
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Home")
        check("Home is the first piece", page.evaluate("document.activeElement.dataset.i") == "0")
        page.evaluate("document.activeElement.blur()")
        expect(page.locator(".on")).to_have_count(0)
        # The pointer: over a cell of the matrix its value stands in the panel.
        for i, column in [(3, 5), (15, 63), (9, 0)]:
            strip = page.locator(f".row[data-i='{i}'] .strip")
            strip.hover(position={"x": (column + 0.5) * strip.bounding_box()["width"] / sentence["d_model"], "y": 5})
            said = page.inner_text("#cell")
            check("the cell's value", str(column) in said and float(said.split()[-1].split("：")[-1]) == sentence["values"][i][column], said)
            check("the piece lights up", "on" in page.get_attribute(f".chip[data-i='{i}']", "class"))
        # A click keeps it, Escape lets go.
        page.locator(".chip[data-i='5']").click()
        page.mouse.move(5, 5)
        check("pinned", page.get_attribute(".chip[data-i='5']", "aria-pressed") == "true" and str(ids[5]) in page.inner_text("#what"))
        page.keyboard.press("Escape")
        check("let go", page.get_attribute(".chip[data-i='5']", "aria-pressed") == "false")
        # Steps hide what comes later.
        page.locator("#step").fill("2")
        check("no matrix yet", not page.locator(".matrix").is_visible() and page.locator(".chips").is_visible() and not page.locator(".chip .number").first.is_visible())
        page.locator("#forth").click()
        check("ids now", page.locator(".chip .number").first.is_visible() and page.inner_text("#count") == "3 / 6")
    with Session(browser, "sentence-en.html", script=False) as s:
        check("without a script the six steps stand there", s.page.locator(".told li:visible").count() == 6)
        check("and the matrix", s.page.locator(".row:visible").count() == len(sentence["ids"]))
        layout(s.page, "no script")
    with Session(browser, "repeated.html") as s:
        s.page.locator(".chip").first.hover()
        places = s.page.locator(".row.on").count()
        check("repeated pieces light up together", places == 3 and "3" in s.page.inner_text("#what"), s.page.inner_text("#what"))
        check("and have one row in the table", s.page.locator(".tick.on").count() == 1)
    print("keyboard, pointer, steps, exact values")


def long_and_hostile(browser):
    check("the lesson's page is small", (pages / "sentence-zh.html").stat().st_size < 300_000)
    check("a long page is below 5 MB", (pages / "long.html").stat().st_size < 5_000_000)
    for width in [360, 1024]:
        with Session(browser, "long.html", width, 800) as s:
            layout(s.page, f"long {width}")
            rows = s.page.locator(".row").count()
            check("2000 tokens at least", rows >= 2000, rows)
            s.page.locator(".matrix").evaluate("m => m.scrollTop = m.scrollHeight")
            s.page.locator(".row").last.hover()
            check("the last row says its piece", f" {rows - 1}:" in s.page.inner_text("#what"), s.page.inner_text("#what"))
            s.page.locator(".chip").first.focus()
            s.page.keyboard.press("End")
            check("End is the last piece", s.page.evaluate("document.activeElement.dataset.i") == str(rows - 1))
            if width == 1024:
                s.page.screenshot(path=shots / "long.png")
                # The longest pause between two frames while the matrix and the page scroll. (A CPU draws here.)
                pause = s.page.evaluate("""async () => {
                  const matrix = document.querySelector('.matrix'), frame = () => new Promise(requestAnimationFrame);
                  await frame(); let last = performance.now(), most = 0;
                  for (let i = 0; i < 60; i++) { matrix.scrollTop = i * 400; scrollTo(0, i * 10); await frame(); const now = performance.now(); most = Math.max(most, now - last); last = now; }
                  return most; }""")
                print(f"longest pause while scrolling: {pause:.0f} ms")
    for width in [360, 1024]:
        with Session(browser, "hostile.html", width, 800) as s:
            layout(s.page, f"hostile {width}")
            said = s.page.text_content(".sentence")
            expected = (pages / "hostile.txt").read_text(encoding="utf-8")
            check("the text stands there as text", said == expected, (said[:200], expected[:200]))
            check("no element came out of it", s.page.evaluate("document.querySelectorAll('main b, main script, img').length") == 6, "the steps' b")
            s.page.screenshot(path=shots / f"hostile-{width}.png")
    print("long and hostile texts")


def plots(browser):
    for scheme in ["light", "dark"]:
        for width in [360, 1024, 1920]:
            with Session(browser, "plot.html", width, 900, scheme) as s:
                check("four figures with names", s.page.locator("figure[aria-label]").count() == 4)
                layout(s.page, f"plot {scheme} {width}")
                over = s.page.evaluate(OVERLAP, "figure text")
                check("no label lies over another", not over, over[:5])
                out = s.page.evaluate(OUTSIDE)
                check("no label leaves its figure", not out, out)
                s.page.screenshot(path=shots / f"plot-{scheme}-{width}.png", full_page=True)
    print("plots")


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    shots.mkdir(parents=True, exist_ok=True)
    print("Chromium", browser.version)
    sentences(browser)
    reading(browser)
    long_and_hostile(browser)
    plots(browser)
    browser.close()
