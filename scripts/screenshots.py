"""The pictures of docs/report.md: a run and the curves of the bundled model, opened in headless Chromium.

With ``--models DIR``, the ``--work`` of benchmarks/evaluate.py, instead the head of every model's report, and the tasks of one.
Needs chromium, chromedriver and the extra ``browser``; takes a few minutes and no network.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import tempfile
from pathlib import Path
from typing import Any

from shoal.recipes.recipe_file import load_recipe
from shoal.run.compress import compress
from shoal.run.curve.methods import method_choice
from shoal.run.curve.over_ratios import measure_curves
from shoal.run.job import bundled_model
from shoal.run.stages.report import write_report

OUT = Path(__file__).parent.parent / "docs" / "figures"
TEXT = {"samples": 32, "length": 128}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
)
PHONE, DESK = 375, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, help="folder of the run and the curves; kept, and continued  [default: a temporary one]"
    )
    parser.add_argument("--models", type=Path, help="folder of finished runs by model; only their pictures are made")
    parser.add_argument("--tasks", help="the one of them whose tasks are shown")
    args = parser.parse_args()
    if args.models:
        of_models(args.models, tasks=args.tasks)
        return
    run, curves = make(args.work or Path(tempfile.mkdtemp()))
    browser = start()
    try:
        shoot(browser, run, "report-head", width=DESK, upto="#figures")
        point_at_span(browser, start=6, n=4)
        clip(browser, "report-heatmap", "#figure-heatmap")
        shoot(browser, curves, "report-curve-dark", width=DESK, scheme="dark", upto=".table")
        shoot(browser, run, "report-phone", width=PHONE, upto="#figures")
    finally:
        browser.quit()


def of_models(folder: Path, *, tasks: str | None) -> None:
    """The head of each report as ``report-MODEL.png``; tables and charts of the tasks of one as ``report-tasks.png``."""
    browser = start()
    try:
        for page in sorted(folder.glob("*/run/report.html")):
            name = page.parent.parent.name
            shoot(browser, page, f"report-{name}", width=DESK, upto="#figures")
            if name == tasks:
                clip(browser, "report-tasks", "#tasks", upto="#tasks details")
    finally:
        browser.quit()


def make(work: Path) -> tuple[Path, Path]:
    """A run and curves, each with its report."""
    model = str(bundled_model())
    recipe = load_recipe("default", {"model": model, "text": TEXT, "train": {"tokens": 60_000}})
    compress(recipe, work / "run", command=f"shoal compress {model} --samples 32 --length 128 --train-tokens 60000 --out run")
    methods = {}
    for name in ("none", "uidl", "shortgpt"):
        base, changes = method_choice(name)
        methods[name] = load_recipe(base, {**changes, "model": model, "text": TEXT})
    measure_curves(
        methods,
        work / "curves",
        drop="0..50%",
        n_points=7,
        command=f"shoal curve {model} --methods none,uidl,shortgpt --points 7 --samples 32 --length 128 --out curves",
    )
    for one in ("run", "curves"):
        write_report(work / one)
    return work / "run" / "report.html", work / "curves" / "report.html"


def start() -> Any:
    """A browser without a window, with a profile of its own."""
    from selenium import webdriver

    chrome, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chrome is None or driver is None:
        raise SystemExit("no chromium or chromedriver here; on Debian: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (*FLAGS, f"--user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def shoot(browser: Any, page: Path, name: str, *, width: int, upto: str, scheme: str = "light") -> None:
    """A page from its top to where an element begins."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 9000, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.resolve().as_uri())
    top = browser.execute_script(f"return document.querySelector('{upto}').getBoundingClientRect().top + scrollY")
    save(browser, name, 0, 0, width, top)


def point_at_span(browser: Any, *, start: int, n: int) -> None:
    """Bring the mouse to a cell of the heat map."""
    from selenium.webdriver import ActionChains

    cell = browser.find_elements("css selector", ".cells rect")
    n_layers = browser.execute_script("return JSON.parse(document.querySelector('.heatmap script').textContent).layers")
    index = sum(n_layers - k + 1 for k in range(1, n)) + start  # The rows begin at n = 1.
    ActionChains(browser).move_to_element(cell[index]).perform()


def clip(browser: Any, name: str, selector: str, *, upto: str | None = None) -> None:
    """One element, or as much of it as lies above another, with a little air."""
    script = f"const b = document.querySelector('{selector}').getBoundingClientRect(); "
    x, y, width, height = browser.execute_script(script + "return [b.x + scrollX, b.y + scrollY, b.width, b.height]")
    if upto is not None:
        height = browser.execute_script(f"return document.querySelector('{upto}').getBoundingClientRect().top + scrollY") - y
    save(browser, name, x - 8, y - 8, width + 16, height + 16)


def save(browser: Any, name: str, x: float, y: float, width: float, height: float) -> None:
    area = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": area})
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.png"
    path.write_bytes(base64.b64decode(shot["data"]))
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
