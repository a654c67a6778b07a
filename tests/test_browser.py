"""The app in a real Chromium: the right answer, readable messages, no request to elsewhere."""
import pytest
from tests.repository import ROOT  # noqa: F401  (puts tools/ on the path)

import browser


@pytest.mark.skipif(bool(browser.why_not()), reason=str(browser.why_not()))
def test_app_in_a_browser():
    assert not list(browser.complaints())
