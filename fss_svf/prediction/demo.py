"""fss-svf demo: a page in the browser, to paint an object on a few photographs and find it in others. It is Gradio's."""

from __future__ import annotations

import errno
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fss_svf.config import DemoConfig
from fss_svf.errors import ConfigError
from fss_svf.prediction.demo_page import CSS, make_page
from fss_svf.prediction.finder import Finder
from fss_svf.prediction.loading import check_model, load_segmenter, model_name

log = logging.getLogger(__name__)


def demo(config: DemoConfig, _: Path) -> None:
    """Serve the page until Ctrl+C. Photographs and masks lie in a temporary folder, which goes with it."""
    check_model(config)
    check_address(config.host, config.port)
    with tempfile.TemporaryDirectory(prefix="fss-svf-demo-") as folder, _gradio(folder, config.host) as gradio:
        page = make_page(gradio, Finder(load_segmenter(config), Path(folder)), model_name(config))
        page.launch(
            server_name=config.host,
            server_port=config.port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=CSS,
        )
        log.info("the page is at http://%s:%d; Ctrl+C ends it", config.host, config.port)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        page.close(verbose=False)


@contextmanager
def _gradio(folder: str, host: str) -> Iterator[Any]:
    """The module, which is to keep its files in `folder`, to ask nobody outside, and to find itself without a proxy."""
    there = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    direct = ",".join(filter(None, [there, "localhost", "127.0.0.1", host]))
    os.environ |= {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
    }
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every request
    try:
        import gradio
    except ImportError:
        raise ConfigError("demo: the page needs gradio, which is not installed; pip install 'fss-svf[demo]'") from None
    yield gradio


def check_address(host: str, port: int) -> None:
    """Raise ConfigError, before the model is loaded, where the page cannot be served there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"port={port}: taken by another program, perhaps a demo that still runs; say port={port % 65535 + 1}"
        elif error.errno == errno.EACCES:
            why = f"port={port}: this user may not serve there; say a port from 1024 on"
        else:
            why = f"host={host}: no address of this machine; say host=127.0.0.1"
        raise ConfigError(why) from None
