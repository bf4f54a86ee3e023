"""The implementations that an operator may have."""

from __future__ import annotations

import pytest

from dcnzoo.ops import backend


@pytest.fixture(params=["native", "torchvision"])
def backend_in_use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and backend.NATIVE_PROBLEM is not None:
        pytest.skip(backend.NATIVE_PROBLEM)
    monkeypatch.setattr(backend, "_chosen", (request.param, "chosen by the test"))
    return request.param
