"""The page in a real browser, from disk, without network: it renders, says values where one points, and fits a phone.

Needs chromium, chromedriver and selenium (extra ``browser``); skipped, with the reason, where one of them is absent.
"""

import json
import os
import re
import shutil

import numpy as np
import pytest
from report_world import HOSTILE, write_run
from safetensors.numpy import load_file

from shoal.run.stages.report import report_stage

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
PHONE, DESK = (375, 800), (1280, 900)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install 'shoal[browser]'")
    chrome = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chrome is None or driver is None:
        pytest.skip("no chromium or no chromedriver on this machine (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("run"), HOSTILE, kind="layer", n_layers=12)
    report_stage(folder)
    return folder


def show(browser, run, *, size=DESK, scheme="light"):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((run / "report.html").as_uri())


def find(browser, selector):
    return browser.find_element("css selector", selector)


def point_at(browser, element, *, x=None, y=None):
    """Move the mouse to a place in an element, in pixels of the element; its middle unless given."""
    from selenium.webdriver import ActionChains

    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    box = element.rect
    dx = 0 if x is None else x - box["width"] / 2
    dy = 0 if y is None else y - box["height"] / 2
    ActionChains(browser).move_to_element_with_offset(element, round(dx), round(dy)).perform()


def luminance(browser, selector="body", what="backgroundColor"):
    colour = browser.execute_script(f"return getComputedStyle(document.querySelector('{selector}')).{what}")
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_it_renders_without_an_error_and_nothing_sticks_out(browser, run, size, scheme):
    show(browser, run, size=size, scheme=scheme)
    assert browser.get_log("browser") == []
    assert "made shallower" in browser.title and find(browser, "h1").is_displayed()
    wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll, client = browser.execute_script(wide)
    assert scroll <= client <= size[0]
    for figure in browser.find_elements("css selector", "figure"):
        box = figure.rect
        assert box["width"] > 200 and box["height"] > 40 and box["x"] >= 0 and box["x"] + box["width"] <= size[0]


def test_texts_of_strangers_did_nothing(browser, run):
    show(browser, run)
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.scripts.length") == 2, "the map's values and ours"
    assert "alert(1)" in find(browser, ".generated").text


def test_nothing_is_asked_of_the_network(browser, run):
    show(browser, run)
    names = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert names == []


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize(("start", "n"), [(0, 1), (3, 4), (11, 1), (0, 12), (7, 2)])
def test_pointing_at_a_cell_of_the_heat_map_says_its_value(browser, run, start, n, size):
    show(browser, run, size=size)
    drawing = find(browser, ".heat")
    data = json.loads(browser.execute_script("return document.querySelector('.heatmap script').textContent"))
    scale = drawing.rect["width"] / 420
    x = 420 - data["cell"] * (12 - start - 0.5)
    y = (12 - n + 0.5) * data["cell"]
    point_at(browser, drawing, x=x * scale, y=y * scale)
    value = load_file(run / "scan.safetensors")["cosine/rest.values"][start, start + n]
    said = find(browser, ".heatmap .readout").text
    layers = f"layers {start}..{start + n - 1} (n = {n})" if n > 1 else f"layer {start} (n = 1)"
    assert said.startswith(f"{layers}: {float(f'{value:.4g}')} ")
    assert find(browser, "#tip").text == said and find(browser, "#tip").is_displayed()
    tip = find(browser, "#tip").rect
    assert tip["x"] >= 0 and tip["x"] + tip["width"] <= size[0]


def test_another_score_brings_its_own_colours_and_values(browser, run):
    show(browser, run)
    colours = "return [...document.querySelectorAll('.cells rect')].map(one => one.getAttribute('fill'))"
    before = browser.execute_script(colours)
    choice = find(browser, ".which")
    assert choice.is_displayed()
    find(browser, ".which option[value='2']").click()
    assert browser.execute_script(colours) != before
    assert find(browser, ".heatmap figcaption").text == "angular (pi rad), last token"
    drawing = find(browser, ".heat")
    drawing.send_keys("\ue014")  # The key is the arrow to the right.
    table = load_file(run / "scan.safetensors")["angular/last.values"]
    row = np.diagonal(table, offset=1)
    assert f"{float(f'{row.min():.4g}')} " in find(browser, ".heatmap .readout").text, "the first key goes to the best of n = 1"
    choice.find_element("css selector", "option[value='0']").click()
    assert browser.execute_script(colours) == before


def test_keys_walk_over_the_heat_map_and_stay_inside(browser, run):
    show(browser, run)
    drawing, readout = find(browser, ".heat"), find(browser, ".heatmap .readout")
    left, up, right, down = "\ue012", "\ue013", "\ue014", "\ue015"
    drawing.send_keys(right, *[down] * 3, *[left] * 20)
    assert readout.text.startswith("layer 0 (n = 1)")
    drawing.send_keys(*[up] * 20)
    assert readout.text.startswith("layers 0..11 (n = 12)")
    drawing.send_keys(down, right, right, right)
    assert readout.text.startswith("layers 1..11 (n = 11)")
    drawing.send_keys("\ue00c")  # The key is escape.
    assert readout.text == ""


def test_every_chart_says_its_points_to_mouse_and_keys(browser, run):
    show(browser, run)
    charts = browser.find_elements("css selector", ".chart")
    assert len(charts) >= 8
    for chart in charts:
        points = chart.find_elements("css selector", ".plot .point")
        tips = [point.get_attribute("data-tip") for point in points]
        point_at(browser, points[-1])
        assert chart.find_element("css selector", ".readout").text in tips
        drawing = chart.find_element("css selector", ".plot")
        drawing.send_keys("\ue00c", "\ue014")
        assert chart.find_element("css selector", ".readout").text == tips[0]
        drawing.send_keys("\ue014")
        assert chart.find_element("css selector", ".readout").text == tips[min(1, len(tips) - 1)]


def test_touch_says_the_value_too(browser, run):
    show(browser, run, size=PHONE)
    drawing = find(browser, ".heat")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", drawing)
    box = browser.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]", drawing
    )
    touch = {"x": box[0] + 0.2 * box[2], "y": box[1] + 0.8 * box[3]}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [touch]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert find(browser, ".heatmap .readout").text.startswith("layer")


def test_tables_are_copied_as_tab_separated_values(browser, run):
    show(browser, run)
    button = find(browser, "#figures .table .copy")
    button.click()
    text = browser.execute_script("return arguments[0].dataset.copied", button)
    found = json.loads((run / "evaluation.json").read_text())
    lines = [line.split("\t") for line in text.split("\n")]
    assert lines[0] == ["", "teacher", "student", "change"] and {len(line) for line in lines} == {4}
    assert lines[1][:3] == ["layers", str(found["teacher"]["cost"]["layers"]), str(found["student"]["cost"]["layers"])]


def test_the_switch_changes_the_scheme_and_back(browser, run):
    show(browser, run, scheme="light")
    assert luminance(browser) > 0.9
    find(browser, "#scheme").click()
    assert luminance(browser) < 0.05 and find(browser, "#scheme").get_attribute("aria-pressed") == "true"
    find(browser, "#scheme").click()
    assert luminance(browser) > 0.9
    show(browser, run, scheme="dark")
    assert luminance(browser) < 0.05


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("selector", ["p", ".note", ".tiles dt", "td", "thead th", ".top a", "summary", ".readout", ".missing"])
def test_text_stands_out_from_its_ground(browser, run, selector, scheme):
    """Contrast of at least 4.5, as WCAG 2.2 AA has it."""
    part = run.parent / "part"
    if not part.exists():
        part.mkdir()
        shutil.copytree(run, part, dirs_exist_ok=True)
        os.remove(part / "evaluation.json")
        os.remove(part / "tasks.json")
        report_stage(part)
    show(browser, part if selector == ".missing" else run, scheme=scheme)
    ground = {".tiles dt": ".tiles > div", ".missing": ".missing"}.get(selector, "body")
    light, dark = sorted((luminance(browser, selector, "color"), luminance(browser, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_on_paper_everything_is_open(browser, run):
    show(browser, run, scheme="dark")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert not browser.find_elements("css selector", "details:not([open])")
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.find_elements("css selector", "details:not([open])")
    assert browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
