"""What was measured on, and with what."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, cores, caches, operating system, date, and the versions that do not depend on the
    thread setting.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": {name: version(name) for name in ("numpy", "torch", "jax", "jaxlib")},
    }


def libraries() -> dict[str, Any]:
    """NumPy's BLAS and the threads that each library has in this process; imports them all."""
    import jax
    import numpy
    import torch
    from threadpoolctl import threadpool_info

    from gradpath.training import threads

    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas" and "numpy" in pool["filepath"]]
    blas_build = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "blas": f"{blas_build['name']} {blas_build['version']}, {blas[0]['architecture']}"
        if blas
        else blas_build["name"],
        "threads": {
            "gradpath": min(threads.MOST_THREADS, threads.share(1)),
            "numpy": blas[0]["num_threads"] if blas else None,
            "torch": torch.get_num_threads(),
        },
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "jax": jax.default_backend(),
    }


def forget_compiled() -> None:
    """JAX keeps every compiled function."""
    import jax

    jax.clear_caches()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        for key, value in fields.items():
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Level and type → size, of the first core."""
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        caches[f"L{level} {kind.lower()}"] = size
    return caches
