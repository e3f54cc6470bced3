"""What tests of the dashboard look at and do on it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.e2e.harness import wait_until


def text_of(browser: Any, css: str) -> str:
    text: str = browser.find_element(By.CSS_SELECTOR, css).text
    return text


def row(browser: Any, agent: str) -> str:
    for each in browser.find_elements(By.CSS_SELECTOR, "#agents tr"):
        if agent in each.text:
            text: str = each.text
            return text
    return ""


def seen(browser: Any, what: Callable[[], Any], say: str) -> None:
    def look() -> Any:
        try:
            return what()
        except Exception as e:  # the page replaces what it shows
            if "StaleElement" in type(e).__name__:
                return None
            raise

    wait_until(look, say)


def press(browser: Any, name: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f'button[aria-label="{name}"]').send_keys(Keys.ENTER)


def confirm(browser: Any, token: str) -> None:
    field = browser.find_element(By.ID, "token")
    field.clear()
    field.send_keys(token, Keys.ENTER)


def accessibility_problems(browser: Any) -> list[str]:
    browser.execute_script((files("axe_core_python") / "axe.min.js").read_text())
    result = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    return [f"{v['id']}: {v['help']}" for v in result["violations"]]


def resize(browser: Any, width: int, height: int = 900) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def color(browser: Any, meter: str) -> str:
    """Of the bar with that name."""
    bar = browser.find_element(By.CSS_SELECTOR, f'[aria-label="{meter}"] i')
    text: str = bar.value_of_css_property("background-color")
    return text


def cut_off(browser: Any) -> list[str]:
    """What does not fit into a tile, and tiles that do not fit into the page."""
    names: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#tiles div, #tiles dt, #tiles dd')]"
        ".filter((node) => node.scrollWidth > node.clientWidth || node.getBoundingClientRect().right > innerWidth)"
        ".map((node) => node.textContent)"
    )
    return names
