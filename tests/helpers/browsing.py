"""Headless Chromium for the tests of pages."""

import base64
import io
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

BROWSERS = ("chromium", "google-chrome")  # and Ubuntu has another under the name chromium-browser, a snap
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)

CONTRASTS = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const luminance = (colour) => {
  const [r, g, b] = channels(colour).slice(0, 3).map((c) => c / 255).map(
    (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if ((channels(colour)[3] ?? 1) > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
const selectors = "h1, h2, h3, h4, p, td, th, small, figcaption, label, output, .slice span, .strip span, .chart text, .arms li, .badge, summary, pre";
return [...document.querySelectorAll(selectors)].filter((element) => element.getClientRects().length).map((element) => {
  const style = getComputedStyle(element);
  const [one, two] = [element instanceof SVGElement ? style.fill : style.color, ground(element)].map(luminance);
  return [(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), element.tagName, element.textContent.slice(0, 40)];
});
"""


CHARTS = """
return [...document.querySelectorAll(".chart")].map((chart) => {
  const shown = [...chart.querySelectorAll("svg")].filter((svg) => svg.getClientRects().length);
  const texts = shown.flatMap((svg) => [...svg.querySelectorAll("text")]);
  const size = (text) => {
    const { a, b } = text.getScreenCTM();  // turned text has its scale in both
    return Math.hypot(a, b) * parseFloat(getComputedStyle(text).fontSize);
  };
  const edges = texts.map((text) => text.getBoundingClientRect());
  const box = chart.getBoundingClientRect();
  return {
    name: chart.closest("section").id,
    shown: shown.length,
    overflow: chart.scrollWidth - chart.clientWidth,
    smallest: Math.min(...texts.map(size)),
    outside: edges.filter((edge) => edge.left < box.left - 1 || edge.right > box.right + 1).length,
  };
});
"""
"""For each chart: its section, the number of figures shown, pixels hidden by scrolling, the smallest text in pixels, and
the number of texts that stick out."""


@contextmanager
def open_browser(profile):
    """Yield a browser that logs what it does; skip where there is none."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver found; install Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def look(browser, *, width, scheme):
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def picture_of(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


def pdf_of(browser):
    """The page as printed; Chromium's print service, a process of its own, may fail while a busy machine starts it."""
    options = {"printBackground": False}
    printing = WebDriverWait(browser, timeout=60, ignored_exceptions=[WebDriverException])
    return base64.b64decode(
        printing.until(lambda page: page.execute_cdp_cmd("Page.printToPDF", options))["data"]
    )
