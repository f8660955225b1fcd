"""timm, which backbones of it need and others do not."""

from __future__ import annotations

from typing import Any

from fss_svf.errors import ConfigError


def import_timm(backbone: str, extra: str = "timm") -> Any:
    """The module. Raises ConfigError where it is not installed; extra: of this package, which brings it."""
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"backbone={backbone}: needs timm, which is not installed; run pip install 'fss-svf[{extra}]'"
        ) from None
    return timm
