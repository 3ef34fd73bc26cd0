"""A headless browser that looks at MLflow's pages."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def start_browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """Yield a browser with a new profile, and quit it at the end; skip the test if there is no browser."""
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1500,950",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(option)
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def compared_columns(browser: webdriver.Chrome) -> list[str]:
    """Return the axes of the parallel-coordinates chart on the page that compares runs, parameters first."""
    axes = "return [...document.querySelectorAll('.parcoords .axis-title')].map(title => title.textContent)"
    names: list[str] = WebDriverWait(browser, 90).until(lambda page: page.execute_script(axes))
    return names


def charted_columns(browser: webdriver.Chrome) -> list[str]:
    """Return the axes of a parallel-coordinates chart among the charts of an experiment."""
    # A long name is shortened, and stands whole in a tooltip.
    axes = """
        return [...document.querySelectorAll('.axis .label')].map(
            label => (label.parentNode.querySelector('.axis-label-tooltip') ?? label).textContent)
    """
    names: list[str] = WebDriverWait(browser, 90).until(lambda page: page.execute_script(axes))
    return names


def wait_for_texts(browser: webdriver.Chrome, *texts: str) -> None:
    """Wait until the page shows all texts."""
    WebDriverWait(browser, 90).until(
        lambda page: all(text in page.find_element(By.TAG_NAME, "body").text for text in texts)
    )


def follow(browser: webdriver.Chrome, text: str) -> None:
    """Wait for a link with this text, and follow it, into a new tab if it opens one."""
    WebDriverWait(browser, 90).until(lambda page: page.find_element(By.LINK_TEXT, text)).click()
    browser.switch_to.window(browser.window_handles[-1])
