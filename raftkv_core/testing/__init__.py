"""What plugin authors test with: the contracts as suites, simulated parts, real deployments.

The suites need `raftkv[testing]`; what else is here works without it. pytest rewrites `assert` only in modules
that it was told of before their import; without that, a failure in a suite would be a bare AssertionError.
"""

from __future__ import annotations

try:
    import pytest
except ImportError:  # no suite is about to run
    pass
else:
    pytest.register_assert_rewrite(
        *(f"raftkv_core.testing.storage_{part}" for part in ("basics", "model", "processes", "restores", "snapshots"))
    )
