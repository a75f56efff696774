"""What every test shares: a skipped test is a failed one in CI, unless it needs a GPU."""

import gc
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is installed, a skip hides a hole: CI turns it into a failure that names its reason."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = (
            f"skipped in CI, where nothing may be: {call.excinfo.value if call.excinfo else report.longrepr}"
        )
    return report


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of public data sets; tests that need real data skip, with this reason, where it is unset."""
    folder = os.environ.get("SLATEWISE_DATASETS")
    if not folder:
        pytest.skip("needs real data: set SLATEWISE_DATASETS to the folder of the public data sets")
    return Path(folder).resolve()


@pytest.fixture(scope="session", autouse=True)
def kafka_broker() -> Generator[None]:
    """The broker that the first test in need of it starts ends with the session."""
    yield
    if "tests.kafka_setup" in sys.modules:  # no test that needs none pays for the import
        sys.modules["tests.kafka_setup"].stop()


@pytest.fixture
def swept() -> Generator[None]:
    """What the test let go of is collected with it, once its threads have ended: no later test is blamed for it."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    for _ in range(3):  # what one collection sets free may hold the next
        gc.collect()
